//! Listening with every shard of the runtime.
//!
//! All sockets listen on one address before any shard accepts. What a shard accepts goes to a
//! **station**, its own or another's, where the connection becomes a stream and gets its task.

mod placement;
mod serve;
mod station;

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use annulus_runtime::Shard;
use annulus_runtime::io::check_runtime;
use annulus_runtime::shutdown::ShutdownToken;

use crate::sockets;
use crate::tcp::{ListenOptions, TcpStream};

pub use placement::Placement;

/// Accepts connections on every shard of the runtime, and has each served where there is room.
///
/// Each shard has a socket of its own on the same address (`SO_REUSEPORT`), over which the kernel
/// spreads the clients; [`Placement`] says which shard then serves a connection. So a shard whose
/// tasks compute for long accepts late, whatever the placement. Nobody else listens on the address
/// by mistake: a second server gets an error, unless it asks for `SO_REUSEPORT` itself and runs as
/// the same user.
///
/// A connection is the group's as long as its handler runs. One that the handler has moved to
/// another shard ([`detach`](TcpStream::detach)), or given to a task that it spawned, is counted by
/// no placement and waited for by no shutdown.
///
/// # Examples
///
/// ```no_run
/// use annulus_net::{ListenerGroup, TcpStream};
///
/// async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
///     let mut buffer = [0; 4096];
///     loop {
///         match stream.read(&mut buffer).await? {
///             0 => return Ok(()),
///             count => stream.write_all(&buffer[..count]).await?,
///         }
///     }
/// }
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let group = ListenerGroup::bind("0.0.0.0:7000")?;
/// group.serve(async |stream, _peer| echo(stream).await).await
/// # })
/// # }
/// ```
#[must_use = "connections are accepted when `serve` is called and awaited"]
pub struct ListenerGroup {
    /// One for each shard.
    sockets: Vec<OwnedFd>,
    address: SocketAddr,
    placement: Placement,
    shutdown: Option<(ShutdownToken, Duration)>,
    on_accept_error: Option<OnAcceptError>,
}

type OnAcceptError = Arc<dyn Fn(&io::Error) + Send + Sync>;

impl ListenerGroup {
    /// Listens on the first of the addresses that can be bound, once for each shard of this
    /// runtime. Port 0 takes a free port.
    ///
    /// Clients can connect from now on; they wait in the kernel until [`serve`](Self::serve).
    /// A name is looked up by this call, which blocks: servers listen on addresses, and do so
    /// before they serve.
    ///
    /// # Errors
    ///
    /// Outside of a runtime. The last address's error, if none can be bound: an address in use, not
    /// on this machine, or not permitted; no descriptor left: there is one for each shard.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<ListenerGroup> {
        ListenerGroup::bind_with(address, ListenOptions::new())
    }

    /// As [`bind`](Self::bind), with options. With [`reuse_port`](ListenOptions::reuse_port) other
    /// processes of the same user can listen on the address too, as a server and its successor do.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    pub fn bind_with(
        address: impl ToSocketAddrs,
        options: ListenOptions,
    ) -> io::Result<ListenerGroup> {
        check_runtime()?;
        let shards = Shard::all().len();
        let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on");
        for address in address.to_socket_addrs().map_err(explain_name)? {
            match listen(address, options, shards) {
                Ok(group) => return Ok(group),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// The address that all sockets are bound to: tells which port 0 has become.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Which shard serves a connection. Default: [`Placement::LeastConnections`].
    pub fn placement(mut self, placement: Placement) -> ListenerGroup {
        self.placement = placement;
        self
    }

    /// Has [`serve`](Self::serve) end when the token asks for it.
    ///
    /// First no more connections are accepted: who connects now is refused. (The kernel forgets a
    /// client whose handshake ends just while a listener closes; it is told when it sends.) Those
    /// that are served have so much time to finish; handlers that wait for a next request should
    /// look at the token themselves. Then, or at once when the token is
    /// [forced](ShutdownToken::shutdown_now), the handlers that are left are dropped and their
    /// connections closed. A shard whose task does not yield is waited for; when forced, for a
    /// second.
    pub fn with_shutdown(mut self, token: ShutdownToken, grace: Duration) -> ListenerGroup {
        self.shutdown = Some((token, grace));
        self
    }

    #[cfg(feature = "tower")]
    pub(crate) fn shutdown_token(&self) -> Option<ShutdownToken> {
        self.shutdown.as_ref().map(|(token, _)| token.clone())
    }

    /// Is told when accepting fails, at most every 100 ms for each shard: as a rule that no
    /// descriptor is left. Clients wait meanwhile and are served when there are some. By default
    /// such an error is written to stderr, once in ten seconds.
    pub fn on_accept_error(
        mut self,
        hear: impl Fn(&io::Error) + Send + Sync + 'static,
    ) -> ListenerGroup {
        self.on_accept_error = Some(Arc::new(hear));
        self
    }

    /// Accepts and serves connections on every shard: each runs the handler in a task of its own,
    /// on the shard where it was placed.
    ///
    /// The handler's output is dropped, and so is its panic: both end one connection. Returns only
    /// when there is a [shutdown](Self::with_shutdown), or for an error.
    ///
    /// # Errors
    ///
    /// A shard cannot be started or fails. On another runtime than that of
    /// [`bind`](Self::bind).
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it stops listening and frees the port, which the other shards do when they hear of
    /// it. Connections that are served are served on.
    pub async fn serve<F, R>(self, handler: F) -> io::Result<()>
    where
        F: AsyncFn(TcpStream, SocketAddr) -> R + Clone + Send + 'static,
        R: 'static,
    {
        let nothing = async |_| Ok(());
        self.serve_with(nothing, async move |_, stream, peer| handler(stream, peer).await).await
    }

    /// As [`serve`](Self::serve), with a state for each shard, which need not be `Send`: a cache, a
    /// pool of connections. It is made on its shard, on all shards before any accepts.
    ///
    /// ```no_run
    /// use std::cell::Cell;
    /// use annulus_net::ListenerGroup;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// let group = ListenerGroup::bind("127.0.0.1:7000")?;
    /// let served = async |_shard| Ok(Cell::new(0_u64));
    /// group.serve_with(served, async |served, mut stream, _peer| {
    ///     served.set(served.get() + 1);
    ///     stream.write_all(format!("number {}\n", served.get()).as_bytes()).await
    /// }).await
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`serve`](Self::serve), and that of making a state, when no shard has accepted yet.
    ///
    /// # Panics
    ///
    /// As [`serve`](Self::serve).
    ///
    /// # Cancel safety
    ///
    /// As [`serve`](Self::serve).
    pub async fn serve_with<M, S, F, R>(self, make: M, handler: F) -> io::Result<()>
    where
        M: AsyncFn(Shard) -> io::Result<S> + Clone + Send + 'static,
        S: 'static,
        F: AsyncFn(Rc<S>, TcpStream, SocketAddr) -> R + Clone + Send + 'static,
        R: 'static,
    {
        serve::serve(self, make, handler).await
    }
}

/// The sockets of a group: all bound, then all listening.
fn listen(address: SocketAddr, options: ListenOptions, shards: usize) -> io::Result<ListenerGroup> {
    // The first shares the port only when it has it: a server that listens there by mistake, or
    // this one when it was started twice, is found out.
    let first = options.bound(address)?;
    if shards > 1 {
        sockets::share_address(&first)?;
    }
    let address = sockets::local_address(&first)?;
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(options.reuse_port(true).bound(address)?);
    }
    for socket in &sockets {
        options.listen_on(socket)?;
    }
    Ok(ListenerGroup {
        sockets: sockets.into_iter().map(OwnedFd::from).collect(),
        address,
        placement: Placement::default(),
        shutdown: None,
        on_accept_error: None,
    })
}

/// The standard library does not say what it expects.
fn explain_name(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::InvalidInput => {
            let text = format!("{error}: expected HOST:PORT, such as 0.0.0.0:7000");
            io::Error::new(error.kind(), text)
        }
        _ => error,
    }
}

impl fmt::Debug for ListenerGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerGroup")
            .field("address", &self.address)
            .field("sockets", &self.sockets.len())
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}
