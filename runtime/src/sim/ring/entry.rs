//! An entry of the ring as the kernel reads it: 64 bytes whose layout is its ABI.

use io_uring::squeue;

/// `struct io_uring_sqe`. What a field means depends on the opcode.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Request {
    pub(super) opcode: u8,
    pub(super) flags: u8,
    /// What the operation is told besides its flags.
    pub(super) ioprio: u16,
    pub(super) fd: i32,
    /// `off`, `addr2`: a position, the length of an address, a second pointer.
    pub(super) offset: u64,
    /// `addr`: a pointer, or the user data of another request.
    pub(super) address: u64,
    pub(super) length: u32,
    /// `msg_flags`, `poll32_events`, `accept_flags`, `cancel_flags`, `open_flags`..
    pub(super) op_flags: u32,
    pub(super) user_data: u64,
    /// `buf_group`, `buf_index`.
    pub(super) group: u16,
    _personality: u16,
    /// `file_index`, `optlen`, `splice_fd_in`.
    pub(super) option: u32,
    _address3: u64,
    _padding: u64,
}

const _: () = assert!(size_of::<Request>() == 64);
const _: () = assert!(size_of::<Request>() == size_of::<squeue::Entry>());

impl Request {
    /// True if a success is to have no completion.
    pub(super) fn is_quiet(&self) -> bool {
        self.flags & SKIP_SUCCESS != 0
    }

    pub(super) fn selects_buffer(&self) -> bool {
        self.flags & BUFFER_SELECT != 0
    }

    pub(super) fn has(&self, option: u16) -> bool {
        self.ioprio & option != 0
    }

    /// The events of a poll. That the peer has finished is always told, as ends and errors are
    /// (`IO_POLL_UNMASK`).
    pub(super) fn poll_events(&self) -> u32 {
        self.op_flags | libc::POLLRDHUP as u32
    }

    /// The flags of a send or a receive.
    pub(super) fn message_flags(&self) -> libc::c_int {
        self.op_flags as libc::c_int
    }
}

/// `IOSQE_ASYNC`, `IOSQE_BUFFER_SELECT`, `IOSQE_CQE_SKIP_SUCCESS`.
pub(super) const ASYNC: u8 = 1 << 4;
pub(super) const BUFFER_SELECT: u8 = 1 << 5;
pub(super) const SKIP_SUCCESS: u8 = 1 << 6;

/// In `ioprio`: `IORING_RECVSEND_POLL_FIRST`, `IORING_RECV_MULTISHOT`,
/// `IORING_SEND_ZC_REPORT_USAGE`, `IORING_ACCEPT_MULTISHOT`.
pub(super) const POLL_FIRST: u16 = 1;
pub(super) const RECEIVE_MULTISHOT: u16 = 2;
pub(super) const REPORT_USAGE: u16 = 8;
pub(super) const ACCEPT_MULTISHOT: u16 = 1;

/// In `length` of a poll: `IORING_POLL_ADD_MULTI`.
pub(super) const POLL_MULTISHOT: u32 = 1;

/// In the flags of a cancel: `IORING_ASYNC_CANCEL_ALL`, `_FD`, `_ANY`.
pub(super) const CANCEL_ALL: u32 = 1;
pub(super) const CANCEL_FD: u32 = 2;
pub(super) const CANCEL_ANY: u32 = 4;

/// In the flags of a completion: `IORING_CQE_F_BUFFER`, `_MORE`, `_NOTIF`, and where the number of
/// the buffer begins.
pub(super) const BUFFER: u32 = 1;
pub(super) const MORE: u32 = 2;
pub(super) const NOTICE: u32 = 8;
pub(super) const BUFFER_SHIFT: u32 = 16;

/// `IORING_NOTIF_USAGE_ZC_COPIED`, as the result of a notice.
pub(super) const COPIED: i32 = i32::MIN;

/// What `struct io_uring_cqe` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Posted {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

const _: () = assert!(size_of::<Posted>() == 16);
