//! A listener and the connections that wait on it.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use annulus_runtime::LIMITS;
use annulus_runtime::io::{Fd, Homed, Multishot, Release, Resident, poll_budget, set_nonblocking};
use annulus_runtime::time::{Sleep, sleep};
use futures_core::Stream;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::notice::Notice;
use super::operations::Accept;
use super::stream::TcpStream;
use crate::addr::{ToSocketAddrs, resolve};

/// A TCP socket that accepts connections.
///
/// On io_uring one request stays with the kernel and accepts whatever comes; accepted connections
/// wait in the listener until somebody asks for them, 1024 at most. The rest waits in the kernel's
/// backlog.
///
/// The listener works on the shard where it was made. It may be sent to another thread, where it
/// can be dropped. Dropping it closes the socket and the connections that wait, and frees the port.
///
/// # Examples
///
/// ```
/// use annulus_net::{TcpListener, TcpStream};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let client = TcpStream::connect(listener.local_addr()?).await?;
/// let (served, peer) = listener.accept().await?;
/// assert_eq!(peer, client.local_addr()?);
/// # drop(served);
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Debug)]
pub struct TcpListener {
    state: Homed<Listening>,
}

/// How a listener is bound.
///
/// # Examples
///
/// ```
/// use annulus_net::{ListenOptions, TcpListener};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let options = ListenOptions::new().backlog(128).reuse_port(true);
/// let first = TcpListener::bind_with("127.0.0.1:0", options).await?;
/// let second = TcpListener::bind_with(first.local_addr()?, options).await?;
/// # drop(second);
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "options do nothing unless a listener is bound with them"]
pub struct ListenOptions {
    backlog: u32,
    reuse_port: bool,
    only_v6: Option<bool>,
}

impl ListenOptions {
    /// The defaults.
    pub fn new() -> ListenOptions {
        ListenOptions { backlog: 1024, reuse_port: false, only_v6: None }
    }

    /// How many established connections may wait in the kernel. Default 1024; the sysctl
    /// `net.core.somaxconn` bounds it. Clients that find it full are slow to connect, not refused.
    pub fn backlog(mut self, connections: u32) -> ListenOptions {
        self.backlog = connections;
        self
    }

    /// Lets several sockets of one user listen on the same port; the kernel spreads connections
    /// over them by a hash of the addresses (`SO_REUSEPORT`, socket(7)). Off by default: with it,
    /// a second server started by mistake takes half of the connections without an error.
    pub fn reuse_port(mut self, reuse: bool) -> ListenOptions {
        self.reuse_port = reuse;
        self
    }

    /// Whether an IPv6 socket refuses IPv4 clients (`IPV6_V6ONLY`). Default: the system's.
    pub fn only_v6(mut self, only: bool) -> ListenOptions {
        self.only_v6 = Some(only);
        self
    }

    fn listen(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        // Connections that are still being closed must not keep a restarted server from its port.
        socket.set_reuse_address(true)?;
        if self.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if let (Some(only), true) = (self.only_v6, address.is_ipv6()) {
            socket.set_only_v6(only)?;
        }
        socket.bind(&address.into()).map_err(|error| explain_bind(error, address))?;
        socket.listen(i32::try_from(self.backlog).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    }
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions::new()
    }
}

fn explain_bind(error: io::Error, address: SocketAddr) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => "another socket has the port; port 0 takes a free one",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has the address",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("binding {address} failed: {error}: {why}"))
}

impl TcpListener {
    /// Listens on the first of the addresses that can be bound. Port 0 takes a free port.
    ///
    /// Sets `SO_REUSEADDR`, so that a restarted server gets its port at once.
    ///
    /// # Errors
    ///
    /// The last address's error, if none can be bound: an address in use, not on this machine, or
    /// not permitted; a name that cannot be resolved; no descriptor left.
    ///
    /// # Panics
    ///
    /// Outside of a runtime, if a name has to be resolved; otherwise that is an error.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
        TcpListener::bind_with(address, ListenOptions::new()).await
    }

    /// As [`bind`](TcpListener::bind), with options.
    ///
    /// # Errors
    ///
    /// As [`bind`](TcpListener::bind).
    ///
    /// # Panics
    ///
    /// As [`bind`](TcpListener::bind).
    pub async fn bind_with(
        address: impl ToSocketAddrs,
        options: ListenOptions,
    ) -> io::Result<TcpListener> {
        let mut last = None;
        for address in resolve(address).await? {
            match options.listen(address) {
                Ok(socket) => return TcpListener::from_socket(socket),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("`resolve` gives at least one address"))
    }

    /// Takes a listener of the standard library, which is made non-blocking.
    ///
    /// # Errors
    ///
    /// Outside of a runtime, and those of `fcntl(2)`.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<TcpListener> {
        TcpListener::from_socket(listener.into())
    }

    fn from_socket(socket: OwnedFd) -> io::Result<TcpListener> {
        let fd = Fd::new(socket);
        set_nonblocking(std::os::fd::AsFd::as_fd(&*fd), true)?;
        // Accepted sockets inherit it, which saves a system call for each.
        SockRef::from(&*fd).set_tcp_nodelay(true)?;
        let linger = SockRef::from(&*fd).linger()?;
        let state = Homed::new(|key| Listening {
            linger,
            notice: Waker::from(Arc::new(Notice(key))),
            accepting: RefCell::new(Some(Multishot::new(Accept::new(Rc::clone(&fd))))),
            waiters: RefCell::default(),
            back_off: RefCell::default(),
            fd,
        })?;
        Ok(TcpListener { state })
    }

    /// The next connection and its peer's address.
    ///
    /// Several tasks may wait at once. Connections that were reset before they could be handed out
    /// are skipped.
    ///
    /// # Errors
    ///
    /// Without a descriptor or memory left (`EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`), at most once
    /// every 100 ms: a loop that logs the error and goes on does not spin, and clients that wait
    /// are served when descriptors are free again. On another shard than the listener's: an error
    /// that says so.
    ///
    /// # Cancel safety
    ///
    /// A dropped `accept` loses no connection: the next one gets it.
    pub fn accept(&self) -> Accepting<'_> {
        Accepting { listener: self }
    }

    /// The connections, one after the other, as a stream that does not end.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { accepting: self.accept() }
    }

    /// The address that the listener is bound to: tells which port 0 has become.
    ///
    /// # Errors
    ///
    /// On another shard than the listener's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let state = self.state.get()?;
        address(SockRef::from(&*state.fd).local_addr()?)
    }

    /// Gives the socket to the standard library, blocking as that expects.
    ///
    /// # Errors
    ///
    /// On another shard than the listener's. Connections that had been accepted and wait to be
    /// handed out are closed.
    pub fn into_std(self) -> io::Result<std::net::TcpListener> {
        let state = self.state.take().map_err(|(_, error)| error)?;
        state.stop();
        let busy = || io::Error::other("the listener is in use by an accept");
        let fd = Rc::into_inner(state).ok_or_else(busy)?.fd;
        let socket = Fd::into_owned(fd).map_err(|_| busy())?;
        set_nonblocking(std::os::fd::AsFd::as_fd(&socket), false)?;
        Ok(socket.into())
    }
}

pub(super) fn address(address: socket2::SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or_else(|| io::Error::other("the socket has no internet address"))
}

/// The state of a listener, which stays on its shard.
struct Listening {
    /// `None` once the listener is gone.
    accepting: RefCell<Option<Multishot<Accept>>>,
    /// Tasks in `accept`. All look when something has come: one that has gone keeps none from it.
    waiters: RefCell<Vec<Waker>>,
    /// Marks the listener dirty, and so has the waiters woken.
    notice: Waker,
    /// Accepted sockets inherit it.
    linger: Option<Duration>,
    /// After an error that is not a client's: when to try again.
    back_off: RefCell<Option<Pin<Box<Sleep>>>>,
    fd: Rc<Fd>,
}

impl Listening {
    /// Polls for itself, not for the caller: whoever waits is woken by `write_out`.
    fn poll_accept(&self) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let mut cx = Context::from_waker(&self.notice);
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
                        let pause = sleep(LIMITS.accept_error_interval);
                        *self.back_off.borrow_mut() = Some(Box::pin(pause));
                    }
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    fn connected(&self, socket: OwnedFd) -> io::Result<(TcpStream, SocketAddr)> {
        let peer = address(SockRef::from(&socket).peer_addr()?)?;
        Ok((TcpStream::from_socket(socket, self.linger)?, peer))
    }

    fn poll_back_off(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut back_off = self.back_off.borrow_mut();
        if let Some(pause) = back_off.as_mut() {
            ready!(pause.as_mut().poll(cx));
            *back_off = None;
        }
        Poll::Ready(())
    }

    fn wait(&self, cx: &Context<'_>) {
        let known = self.waiters.borrow().iter().any(|waiter| waiter.will_wake(cx.waker()));
        if !known {
            let waker = cx.waker().clone();
            self.waiters.borrow_mut().push(waker);
        }
    }

    fn wake_waiters(&self) {
        let waiters = self.waiters.take();
        waiters.into_iter().for_each(Waker::wake);
    }

    /// Ends the accept in the kernel before this returns, so that the port is free when the
    /// descriptor is closed.
    fn stop(&self) {
        let accepting = self.accepting.borrow_mut().take();
        if let Some(mut accepting) = accepting {
            accepting.stop_now();
        }
        self.wake_waiters();
    }
}

impl Resident for Listening {
    fn write_out(self: Rc<Self>) {
        self.wake_waiters();
    }

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

/// Errors that come back at once until something is freed.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|errno| shortages.contains(&errno))
}

/// The future of [`TcpListener::accept`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Accepting<'a> {
    listener: &'a TcpListener,
}

impl Accepting<'_> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let state = self.listener.state.get()?;
        ready!(poll_budget(cx));
        let answer = state.poll_accept();
        if answer.is_pending() {
            state.wait(cx);
        }
        answer
    }
}

impl Future for Accepting<'_> {
    type Output = io::Result<(TcpStream, SocketAddr)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_next(cx)
    }
}

/// The stream of [`TcpListener::incoming`].
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct Incoming<'a> {
    accepting: Accepting<'a>,
}

impl Incoming<'_> {
    /// The next connection, as [`TcpListener::accept`].
    ///
    /// # Errors
    ///
    /// As [`TcpListener::accept`].
    pub async fn next(&mut self) -> io::Result<TcpStream> {
        poll_fn(|cx| self.accepting.poll_next(cx)).await.map(|(stream, _)| stream)
    }
}

impl Stream for Incoming<'_> {
    type Item = io::Result<TcpStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = ready!(self.get_mut().accepting.poll_next(cx));
        Poll::Ready(Some(accepted.map(|(stream, _)| stream)))
    }
}
