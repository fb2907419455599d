//! Which operations this kernel has, and which flags of each.
//!
//! These are the entries that the runtime submits, and the few besides that its tests and examples
//! do. Everything else is answered as a kernel answers what it does not know: EINVAL.
//!
//! | operation | flags | who submits it |
//! | --- | --- | --- |
//! | `NOP` | | the close of a file that was interrupted; trials |
//! | `POLL_ADD` | multishot or not; IN, RDHUP, OUT | the bell; waiting for a socket |
//! | `ACCEPT` | multishot or not; CLOEXEC, NONBLOCK | listeners |
//! | `CONNECT` | | streams |
//! | `SEND` | WAITALL, NOSIGNAL; quiet: DONTWAIT and CQE_SKIP_SUCCESS | streams |
//! | `SEND_ZC` | WAITALL, NOSIGNAL, REPORT_USAGE | streams |
//! | `RECV` | multishot into a group of buffers, `optlen`; single | streams; custom operations |
//! | `RECVMSG` | multishot into a group of buffers | datagrams |
//! | `ASYNC_CANCEL` | by user data, by descriptor, any; CQE_SKIP_SUCCESS | the driver |
//! | `SHUTDOWN` | | custom operations |
//! | `OPENAT`, `OPENAT2`, `READ`, `WRITE`, `FSYNC`, `STATX`, `CLOSE` | | files |

use io_uring::opcode;

use super::entry::{self, Request};
use super::nature::Nature;

/// What an entry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nop,
    Poll,
    PollMany,
    Accept,
    AcceptMany,
    Connect,
    Send,
    SendZeroCopy,
    Receive,
    ReceiveMany,
    ReceiveMessages,
    Cancel,
    Shutdown,
    Close,
    Open,
    OpenHow,
    Read,
    Write,
    Sync,
    Stat,
}

impl Kind {
    /// # Errors
    ///
    /// EINVAL for what this kernel does not know.
    pub(super) fn of(request: &Request, nature: &Nature) -> Result<Kind, i32> {
        let known = entry::ASYNC | entry::BUFFER_SELECT | entry::SKIP_SUCCESS;
        if request.flags & !known != 0 {
            return Err(libc::EINVAL);
        }
        let kind = Kind::by_opcode(request).ok_or(libc::EINVAL)?;
        let options = match kind {
            Kind::Accept | Kind::AcceptMany => entry::ACCEPT_MULTISHOT,
            Kind::Send => entry::POLL_FIRST,
            Kind::SendZeroCopy => entry::POLL_FIRST | entry::REPORT_USAGE,
            Kind::Receive | Kind::ReceiveMany | Kind::ReceiveMessages => {
                entry::POLL_FIRST | entry::RECEIVE_MULTISHOT
            }
            _ => 0,
        };
        if request.ioprio & !options != 0 || !kind.takes(request, nature) {
            return Err(libc::EINVAL);
        }
        Ok(kind)
    }

    fn by_opcode(request: &Request) -> Option<Kind> {
        let one_or_many = |many, one, several| if many { several } else { one };
        Some(match request.opcode {
            opcode::Nop::CODE => Kind::Nop,
            opcode::PollAdd::CODE => {
                let many = request.length == entry::POLL_MULTISHOT;
                one_or_many(many, Kind::Poll, Kind::PollMany)
            }
            opcode::Accept::CODE => {
                let many = request.has(entry::ACCEPT_MULTISHOT);
                one_or_many(many, Kind::Accept, Kind::AcceptMany)
            }
            opcode::Connect::CODE => Kind::Connect,
            opcode::Send::CODE => Kind::Send,
            opcode::SendZc::CODE => Kind::SendZeroCopy,
            opcode::Recv::CODE => {
                let many = request.has(entry::RECEIVE_MULTISHOT);
                one_or_many(many, Kind::Receive, Kind::ReceiveMany)
            }
            opcode::RecvMsg::CODE if request.has(entry::RECEIVE_MULTISHOT) => Kind::ReceiveMessages,
            opcode::AsyncCancel::CODE => Kind::Cancel,
            opcode::Shutdown::CODE => Kind::Shutdown,
            opcode::Close::CODE => Kind::Close,
            opcode::OpenAt::CODE => Kind::Open,
            opcode::OpenAt2::CODE => Kind::OpenHow,
            opcode::Read::CODE => Kind::Read,
            opcode::Write::CODE => Kind::Write,
            opcode::Fsync::CODE => Kind::Sync,
            opcode::Statx::CODE => Kind::Stat,
            _ => return None,
        })
    }

    /// Whether the fields go together as this kernel wants them.
    fn takes(self, request: &Request, nature: &Nature) -> bool {
        match self {
            Kind::Poll | Kind::PollMany => request.length & !entry::POLL_MULTISHOT == 0,
            // Multishots receive into buffers of a group only, and never all of what was asked for.
            Kind::ReceiveMany | Kind::ReceiveMessages => {
                let bounded = request.option != 0;
                request.selects_buffer()
                    && request.message_flags() & libc::MSG_WAITALL == 0
                    && (!bounded || nature.traits.trial.bounded_receives)
            }
            // From 2^31 on the length is negative.
            Kind::Send | Kind::Receive => i32::try_from(request.length).is_ok(),
            Kind::SendZeroCopy => {
                nature.traits.trial.zero_copy_sends && i32::try_from(request.length).is_ok()
            }
            _ => true,
        }
    }

    pub(super) fn is_single(self) -> bool {
        !matches!(
            self,
            Kind::PollMany | Kind::AcceptMany | Kind::ReceiveMany | Kind::ReceiveMessages
        )
    }

    /// What the descriptor must be ready for. `None` if nothing is waited for.
    pub(super) fn awaited(self, request: &Request) -> Option<u32> {
        Some(match self {
            Kind::Poll => request.poll_events(),
            Kind::Accept
            | Kind::AcceptMany
            | Kind::Receive
            | Kind::ReceiveMany
            | Kind::ReceiveMessages => (libc::POLLIN | libc::POLLRDHUP) as u32,
            Kind::Send | Kind::SendZeroCopy | Kind::Connect => libc::POLLOUT as u32,
            _ => return None,
        })
    }

    /// True if the operation has a file open while it is in flight.
    pub(super) fn has_file(self) -> bool {
        !matches!(self, Kind::Nop | Kind::Cancel | Kind::Close | Kind::Open | Kind::OpenHow)
    }
}
