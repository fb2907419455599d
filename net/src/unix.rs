//! Unix stream sockets: connecting, listening, and what only they have.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use annulus_runtime::LIMITS;
use annulus_runtime::io::{Fd, check_runtime};
use annulus_runtime::time::sleep;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::family::Unix;
use crate::listener::Listener;
use crate::stream::{self, Stream};

/// A connection between two processes of one machine: [`Stream`] has its methods.
///
/// What unix(7) says holds here too:
///
/// - A peer that closes while bytes of ours lie unread in its socket gives us `ConnectionReset`,
///   after what it had sent. Bytes that its runtime had received for it already do not count.
/// - Nothing is delivered late: what has been sent is the peer's, and `SO_LINGER` has no meaning.
/// - Descriptors that a peer sends along are closed; the bytes beside them arrive.
///
/// # Examples
///
/// ```
/// use annulus_net::UnixStream;
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let (mut one, mut other) = UnixStream::pair()?;
/// one.write_all(b"hello").await?;
/// let mut buffer = [0; 5];
/// other.read_exact(&mut buffer).await?;
/// assert_eq!(&buffer, b"hello");
/// # Ok(())
/// # })
/// # }
/// ```
pub type UnixStream = Stream<Unix>;

/// A Unix socket that accepts connections: [`Listener`] has its methods.
///
/// Its path stays when it is dropped, as in the standard library, and keeps the next listener from
/// being bound: remove it before binding or after the drop. An abstract name is free at once.
///
/// # Examples
///
/// ```
/// use annulus_net::{UnixListener, UnixStream};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// # let name = format!("annulus-doc-{}.socket", std::process::id());
/// # let path = std::env::temp_dir().join(name);
/// let listener = UnixListener::bind(&path)?;
/// let mut client = UnixStream::connect(&path).await?;
/// let (mut served, peer) = listener.accept().await?;
/// assert!(peer.is_unnamed());
///
/// client.write_all(b"hello").await?;
/// let mut buffer = [0; 5];
/// served.read_exact(&mut buffer).await?;
/// assert_eq!(&buffer, b"hello");
/// # std::fs::remove_file(&path)
/// # })
/// # }
/// ```
pub type UnixListener = Listener<Unix>;

/// A half of a [`UnixStream`]: [`Stream::split`].
pub type ReadHalf<'a> = stream::ReadHalf<'a, Unix>;

/// A half of a [`UnixStream`]: [`Stream::split`].
pub type WriteHalf<'a> = stream::WriteHalf<'a, Unix>;

/// A half of a [`UnixStream`]: [`Stream::into_split`].
pub type OwnedReadHalf = stream::OwnedReadHalf<Unix>;

/// A half of a [`UnixStream`]: [`Stream::into_split`].
pub type OwnedWriteHalf = stream::OwnedWriteHalf<Unix>;

/// The process at the other end, as it was when the connection was made.
///
/// ```
/// # annulus_runtime::Runtime::new().unwrap().block_on(async {
/// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
/// let peer = one.peer_cred()?;
/// assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
/// assert_eq!(peer.uid, std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self")?));
/// # Ok::<_, std::io::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The process; `None` if it has no number here, such as one of another container.
    pub pid: Option<i32>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

impl Stream<Unix> {
    /// Connects to the listener at this path.
    ///
    /// Waits while the listener's backlog is full. The kernel tells a socket that does not block
    /// `EAGAIN` then, and never when to come back (unix(7)): so this asks again after 1 ms, then
    /// ever more slowly, every 64 ms in the end. Whoever blocks in `connect(2)` meanwhile is
    /// served first. Use a [`timeout`](annulus_runtime::time::timeout) where that may be long.
    ///
    /// ```
    /// # use annulus_net::{UnixListener, UnixStream};
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let name = format!("annulus-doc-connect-{}", std::process::id());
    /// # let path = std::env::temp_dir().join(name);
    /// let listener = UnixListener::bind(&path)?;
    /// let client = UnixStream::connect(&path).await?;
    /// assert_eq!(client.peer_addr()?.as_pathname(), Some(&*path));
    ///
    /// // The file is left when the listener is gone, and nobody listens there.
    /// drop(listener);
    /// let error = UnixStream::connect(&path).await.unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    /// # std::fs::remove_file(&path)?;
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Of the kind that the standard library gives: `NotFound`; `ConnectionRefused` if nobody
    /// listens at the path; `PermissionDenied`; `InvalidInput` for a path of more than 107 bytes or
    /// with a NUL. No descriptor left. Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// A dropped connect closes its socket; it is connected only when this returns.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<UnixStream> {
        UnixStream::connect_addr(&SocketAddr::from_pathname(path)?).await
    }

    /// Connects to the listener at this address, which may be an abstract name.
    ///
    /// ```
    /// use std::os::linux::net::SocketAddrExt;
    /// use std::os::unix::net::SocketAddr;
    ///
    /// use annulus_net::{UnixListener, UnixStream};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// # let name = format!("annulus-doc-{}", std::process::id());
    /// let address = SocketAddr::from_abstract_name(name)?;
    /// let listener = UnixListener::bind_addr(&address)?;
    /// let client = UnixStream::connect_addr(&address).await?;
    /// # drop((listener, client));
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`connect`](UnixStream::connect).
    ///
    /// # Cancel safety
    ///
    /// As [`connect`](UnixStream::connect).
    pub async fn connect_addr(address: &SocketAddr) -> io::Result<UnixStream> {
        check_runtime()?;
        let address = to_kernel(address)?;
        let socket = new_socket()?;
        let mut pause = CONNECT_PAUSE_MIN;
        // No operation of the ring: on a socket that does not block it answers EAGAIN as well, by a
        // detour over a worker thread (measured, Linux 6.18). The call never blocks.
        loop {
            match socket.connect(&address) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(pause).await,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                answer => break answer?,
            }
            pause = (2 * pause).min(CONNECT_PAUSE_MAX);
        }
        UnixStream::settle_in(Fd::new(socket.into()))
    }

    /// Two streams that are connected with each other, without names.
    ///
    /// ```
    /// # use annulus_net::UnixStream;
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// let (mut one, mut other) = UnixStream::pair()?;
    /// one.write_all(b"hello").await?;
    /// assert_eq!(other.read(&mut [0; 8]).await?, 5);
    /// assert!(other.peer_addr()?.is_unnamed());
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// No descriptor left. Outside of a runtime.
    pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
        check_runtime()?;
        let (one, other) = Socket::pair(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        Ok((
            UnixStream::settle_in(Fd::new(one.into()))?,
            UnixStream::settle_in(Fd::new(other.into()))?,
        ))
    }

    /// Who has made the other end (`SO_PEERCRED`, unix(7)): the process that connected, listened or
    /// made the pair, with the ids it had then.
    ///
    /// Only the user who runs the server may ask it to do more:
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// # let own_uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self")?);
    /// let may_administer = one.peer_cred()?.uid == own_uid;
    /// assert!(may_administer);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn peer_cred(&self) -> io::Result<Credentials> {
        credentials(self.connection()?.socket())
    }
}

impl Listener<Unix> {
    /// Listens at this path, where a file is made. Nobody removes it but you.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if there is a file already, also one that a listener has left which is gone;
    /// `InvalidInput` for a path of more than 107 bytes or with a NUL; `NotFound` and
    /// `PermissionDenied` for its directory. No descriptor left. Outside of a runtime.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<UnixListener> {
        UnixListener::bind_with(path, UnixListenOptions::new())
    }

    /// As [`bind`](UnixListener::bind), with options.
    ///
    /// # Errors
    ///
    /// As [`bind`](UnixListener::bind).
    pub fn bind_with(
        path: impl AsRef<Path>,
        options: UnixListenOptions,
    ) -> io::Result<UnixListener> {
        UnixListener::bind_addr_with(&SocketAddr::from_pathname(path)?, options)
    }

    /// Listens at this address, which may be an abstract name: no file, and free again when the
    /// listener is dropped. An unnamed address takes a free abstract name.
    ///
    /// # Errors
    ///
    /// As [`bind`](UnixListener::bind).
    pub fn bind_addr(address: &SocketAddr) -> io::Result<UnixListener> {
        UnixListener::bind_addr_with(address, UnixListenOptions::new())
    }

    /// As [`bind_addr`](UnixListener::bind_addr), with options.
    ///
    /// # Errors
    ///
    /// As [`bind`](UnixListener::bind).
    pub fn bind_addr_with(
        address: &SocketAddr,
        options: UnixListenOptions,
    ) -> io::Result<UnixListener> {
        check_runtime()?;
        let socket = new_socket()?;
        socket.bind(&to_kernel(address)?).map_err(|error| explain_bind(error, address))?;
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        UnixListener::from_socket(OwnedFd::from(socket))
    }
}

/// How a Unix listener is bound.
///
/// # Examples
///
/// ```
/// use annulus_net::{UnixListenOptions, UnixListener};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// # let name = format!("annulus-options-{}.socket", std::process::id());
/// # let path = std::env::temp_dir().join(name);
/// let listener = UnixListener::bind_with(&path, UnixListenOptions::new().backlog(128))?;
/// # drop(listener);
/// # std::fs::remove_file(&path)
/// # })
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "options do nothing unless a listener is bound with them"]
pub struct UnixListenOptions {
    backlog: u32,
}

impl UnixListenOptions {
    /// The defaults.
    pub fn new() -> UnixListenOptions {
        UnixListenOptions { backlog: LIMITS.backlog }
    }

    /// How many connections may wait in the kernel; one more than that do. Default 1024; the
    /// sysctl `net.core.somaxconn` bounds it. Clients that find it full wait, or get `EAGAIN` if
    /// they do not block.
    pub fn backlog(mut self, connections: u32) -> UnixListenOptions {
        self.backlog = connections;
        self
    }
}

impl Default for UnixListenOptions {
    fn default() -> UnixListenOptions {
        UnixListenOptions::new()
    }
}

/// Non-blocking, and closed on exec.
fn new_socket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)
}

fn to_kernel(address: &SocketAddr) -> io::Result<SockAddr> {
    if let Some(path) = address.as_pathname() {
        return SockAddr::unix(path);
    }
    let Some(name) = address.as_abstract_name() else { return SockAddr::unix("") };
    // An abstract name is what begins with a NUL.
    let name = [b"\0", name].concat();
    SockAddr::unix(std::ffi::OsStr::from_bytes(&name))
}

fn credentials(socket: SockRef<'_>) -> io::Result<Credentials> {
    let mut found = MaybeUninit::<libc::ucred>::zeroed();
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the value and its length are valid for writing and agree with each other.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            found.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: three integers, of which zero is a value, and which the call has filled.
    let libc::ucred { pid, uid, gid } = unsafe { found.assume_init() };
    Ok(Credentials { pid: (pid > 0).then_some(pid), uid, gid })
}

fn explain_bind(error: io::Error, address: &SocketAddr) -> io::Error {
    let why = match (error.kind(), address.as_pathname()) {
        (io::ErrorKind::AddrInUse, Some(_)) => {
            "there is a file already: if no server listens there any more, remove the file"
        }
        (io::ErrorKind::AddrInUse, None) => "another socket has the name",
        (io::ErrorKind::NotFound, _) => "the directory does not exist",
        (io::ErrorKind::PermissionDenied, _) => "the directory must be writable for this user",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("binding {address:?} failed: {error}: {why}"))
}

/// How soon a connect that found the backlog full asks again, at first and in the end.
const CONNECT_PAUSE_MIN: Duration = Duration::from_millis(1);
const CONNECT_PAUSE_MAX: Duration = Duration::from_millis(64);
