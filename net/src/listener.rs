//! A listener and the connections that wait on it, whatever the family of its socket.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use annulus_runtime::LIMITS;
use annulus_runtime::io::{
    Fd, Homed, Multishot, Place, Release, Resident, Waiters, accept, accept_paused,
    set_nonblocking, within_budget,
};
use annulus_runtime::time::{Sleep, sleep};
use socket2::SockRef;

use crate::family::Family;
use crate::into_std::{self, IntoStdError};
use crate::operations::Accept;
use crate::shortage::is_shortage;
use crate::stream::Stream;

/// A socket that accepts connections: [`TcpListener`](crate::TcpListener) or
/// [`UnixListener`](crate::UnixListener).
///
/// On io_uring one request stays with the kernel and accepts whatever comes; accepted connections
/// wait in the listener until somebody asks for them, 1024 at most. The rest waits in the kernel's
/// backlog.
///
/// The listener works on the shard where it was made. It may be sent to another thread, where it
/// can be dropped. Dropping it closes the socket and the connections that wait, and frees the port.
pub struct Listener<F: Family> {
    state: Homed<Listening>,
    /// Tasks in `accept`. All look when something has come: one that has gone keeps none from it.
    waiters: Arc<Waiters>,
    _family: PhantomData<fn() -> F>,
}

impl<F: Family> Listener<F> {
    /// Takes a listener of the standard library, which is made non-blocking.
    ///
    /// # Errors
    ///
    /// Outside of a runtime, and those of `fcntl(2)`.
    pub fn from_std(listener: F::StdListener) -> io::Result<Listener<F>> {
        let socket: OwnedFd = listener.into();
        F::prepare_listener(&socket)?;
        Listener::from_socket(socket)
    }

    pub(crate) fn from_socket(socket: OwnedFd) -> io::Result<Listener<F>> {
        let fd = Fd::new(socket);
        set_nonblocking(fd.as_fd(), true)?;
        let linger = SockRef::from(&*fd).linger()?;
        let waiters = Arc::<Waiters>::default();
        let state = Homed::new(|_key| Listening {
            linger,
            waiters: Waker::from(Arc::clone(&waiters)),
            accepting: RefCell::new(Some(Multishot::new(Accept::new(Rc::clone(&fd))))),
            back_off: RefCell::default(),
            fd,
        })?;
        Ok(Listener { state, waiters, _family: PhantomData })
    }

    /// The next connection and its peer's address.
    ///
    /// Several tasks may wait at once. Connections that were reset before they could be handed out
    /// are skipped.
    ///
    /// # Errors
    ///
    /// Without a descriptor or memory left (`EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`), or where
    /// epoll may watch no more (`ENOSPC`), at most once every 100 ms: a loop that logs the error
    /// and goes on does not spin, and clients that wait are served when there is room again. On
    /// another shard than the listener's: an error that says so.
    ///
    /// # Cancel safety
    ///
    /// A dropped `accept` loses no connection: the next one gets it.
    pub fn accept(&self) -> Accepting<'_, F> {
        Accepting { listener: self, place: self.waiters.place() }
    }

    /// The connections, one after the other, as a stream that does not end.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let client = TcpStream::connect(listener.local_addr()?).await?;
    /// let mut incoming = listener.incoming();
    /// let served = incoming.next().await?;
    /// assert_eq!(served.peer_addr()?, client.local_addr()?);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Cancel safety
    ///
    /// As [`accept`](Listener::accept).
    pub fn incoming(&self) -> Incoming<'_, F> {
        Incoming { accepting: self.accept() }
    }

    /// Stops accepting, and gives the connections that have come by now.
    pub(crate) fn take_waiting(&self) -> io::Result<Vec<Accepted<F>>> {
        Ok(self.state.get()?.take_waiting())
    }

    /// The address that the listener is bound to: tells which port 0 has become.
    ///
    /// # Errors
    ///
    /// On another shard than the listener's.
    pub fn local_addr(&self) -> io::Result<F::Address> {
        let state = self.state.get()?;
        F::local_address(&*state.fd)
    }

    /// Gives the socket to the standard library, blocking as that expects.
    ///
    /// # Errors
    ///
    /// On another shard than the listener's, and if the kernel has so much else to do that it holds
    /// on to the listener: try again. The error holds the listener, which goes on. Otherwise
    /// connections that had been accepted and wait to be handed out are closed.
    pub fn into_std(self) -> Result<F::StdListener, IntoStdError<Listener<F>>> {
        let ended = self.state.get().and_then(|state| state.end());
        if let Err(error) = ended {
            return Err(IntoStdError::new(self, error));
        }
        let Listener { state, waiters, _family } = self;
        let state = match state.take() {
            Ok(state) => state,
            Err((state, error)) => {
                return Err(IntoStdError::new(Listener { state, waiters, _family }, error));
            }
        };
        into_std::blocking(Listening::into_fd(state))
    }
}

impl<F: Family> fmt::Debug for Listener<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("state", &self.state).finish_non_exhaustive()
    }
}

/// The state of a listener, which stays on its shard.
struct Listening {
    /// `None` once the listener is gone.
    accepting: RefCell<Option<Multishot<Accept>>>,
    /// Wakes all who wait in `accept`. The driver is given this, never a task's own.
    waiters: Waker,
    /// Accepted sockets inherit it.
    linger: Option<Duration>,
    /// After an error that is not a client's: when to try again.
    back_off: RefCell<Option<Pin<Box<Sleep>>>>,
    fd: Rc<Fd>,
}

impl Listening {
    /// Polls for all who wait, not for the caller.
    fn poll_accept<F: Family>(&self) -> Poll<io::Result<Accepted<F>>> {
        let mut cx = Context::from_waker(&self.waiters);
        loop {
            ready!(self.poll_back_off(&mut cx));
            let mut accepting = self.accepting.borrow_mut();
            let Some(multishot) = accepting.as_mut() else {
                return Poll::Ready(Err(io::Error::other("the listener has been closed")));
            };
            let accepted = ready!(multishot.poll_next(&mut cx));
            drop(accepting);
            match accepted.and_then(|socket| self.connected(socket)) {
                Ok(accepted) => return Poll::Ready(Ok(accepted)),
                Err(error) if is_a_clients(&error) => {}
                Err(error) => {
                    if is_shortage(&error) {
                        accept_paused();
                        let pause = sleep(LIMITS.accept_error_interval);
                        *self.back_off.borrow_mut() = Some(Box::pin(pause));
                    }
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    fn connected<F: Family>(&self, socket: OwnedFd) -> io::Result<Accepted<F>> {
        let peer = F::peer_address(&socket)?;
        Ok(Accepted { socket, peer, linger: self.linger })
    }

    fn poll_back_off(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut back_off = self.back_off.borrow_mut();
        if let Some(pause) = back_off.as_mut() {
            ready!(pause.as_mut().poll(cx));
            *back_off = None;
        }
        Poll::Ready(())
    }

    /// Stops accepting, and gives the connections that have come by now.
    fn take_waiting<F: Family>(&self) -> Vec<Accepted<F>> {
        let Some(mut accepting) = self.accepting.borrow_mut().take() else { return Vec::new() };
        accepting.stop_now();
        let mut waiting: Vec<_> = std::iter::from_fn(|| accepting.pop()).collect();
        // As many as can wait: here, and in the kernel, which takes one more than it was told.
        let waiting_max = LIMITS.accept_queue_max + LIMITS.backlog as usize + 1;
        while waiting.len() < waiting_max {
            match accept(self.fd.as_fd()) {
                Ok(socket) => waiting.push(Ok(socket)),
                Err(error) if is_a_clients(&error) && !is_blocked(&error) => {}
                Err(_none_or_no_room) => break,
            }
        }
        let connected = |socket: io::Result<OwnedFd>| self.connected(socket.ok()?).ok();
        waiting.into_iter().filter_map(connected).collect()
    }

    /// Ends the accept in the kernel before this returns, so that the port is free when the
    /// descriptor is closed.
    fn stop(&self) {
        if self.end().is_err() {
            // It ends a little later.
            drop(self.accepting.take());
            self.waiters.wake_by_ref();
        }
    }

    /// As [`stop`](Self::stop). An error if the kernel has too much else to do to end the accept
    /// soon; the listener goes on then.
    fn end(&self) -> io::Result<()> {
        if let Some(mut accepting) = self.accepting.take() {
            accepting.stop_now();
            if accepting.is_armed() {
                *self.accepting.borrow_mut() = Some(accepting);
                return Err(io::Error::other("the kernel holds on to the listener: try again"));
            }
        }
        self.waiters.wake_by_ref();
        Ok(())
    }

    /// The socket, when nothing is under way and nobody else holds the state.
    fn into_fd(this: Rc<Listening>) -> Option<OwnedFd> {
        let Listening { fd, .. } = Rc::into_inner(this)?;
        Fd::into_owned(fd).ok()
    }
}

impl Resident for Listening {
    fn release(self: Rc<Self>) -> Release {
        self.stop();
        Release::Depart
    }
}

/// Errors that concern one connection, which is gone: the listener goes on (accept(2)).
fn is_a_clients(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::ENOTCONN
                | libc::EINTR
                | libc::EAGAIN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
        )
    )
}

fn is_blocked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// The future of [`Listener::accept`].
#[must_use = "futures do nothing unless polled"]
pub struct Accepting<'a, F: Family> {
    listener: &'a Listener<F>,
    place: Place<'a>,
}

impl<F: Family> Accepting<'_, F> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream<F>, F::Address)>> {
        self.poll_accepted(cx).map(|accepted| accepted.and_then(Accepted::settle))
    }

    pub(crate) fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted<F>>> {
        let state = self.listener.state.get()?;
        within_budget(cx, |cx| self.place.poll(cx, |_| state.poll_accept()))
    }
}

/// A connection that belongs to no shard yet.
pub(crate) struct Accepted<F: Family> {
    socket: OwnedFd,
    peer: F::Address,
    linger: Option<Duration>,
}

impl<F: Family> Accepted<F> {
    /// Takes it to this shard.
    pub(crate) fn settle(self) -> io::Result<(Stream<F>, F::Address)> {
        Ok((Stream::from_socket(self.socket, self.linger)?, self.peer))
    }
}

impl<F: Family> Future for Accepting<'_, F> {
    type Output = io::Result<(Stream<F>, F::Address)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_next(cx)
    }
}

impl<F: Family> fmt::Debug for Accepting<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepting").field("listener", self.listener).finish_non_exhaustive()
    }
}

/// The stream of [`Listener::incoming`].
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct Incoming<'a, F: Family> {
    accepting: Accepting<'a, F>,
}

impl<F: Family> Incoming<'_, F> {
    /// The next connection, as [`Listener::accept`].
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`].
    ///
    /// # Cancel safety
    ///
    /// As [`Listener::accept`].
    pub async fn next(&mut self) -> io::Result<Stream<F>> {
        poll_fn(|cx| self.accepting.poll_next(cx)).await.map(|(stream, _)| stream)
    }
}

impl<F: Family> futures_core::Stream for Incoming<'_, F> {
    type Item = io::Result<Stream<F>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.get_mut().accepting.poll_next(cx));
        Poll::Ready(Some(accepted.map(|(stream, _)| stream)))
    }
}
