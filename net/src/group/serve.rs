//! Accepting on all shards, until an error or a shutdown.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use annulus_runtime::io::{Homed, notify};
use annulus_runtime::shutdown::ShutdownToken;
use annulus_runtime::time::{Sleep, sleep, timeout};
use annulus_runtime::{JoinHandle, LIMITS, Shard, spawn};

use super::placement::Loads;
use super::station::{Begin, Station};
use super::{ListenerGroup, OnAcceptError};
use crate::family::Tcp;
use crate::listener::{Accepted, Accepting, Listener};
use crate::shortage::remedy;
use crate::tcp::TcpStream;

/// How often errors of accepting are written where nobody wants to be told of them.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// How long a forced end waits for shards that do not answer. Dropping handlers and closing their
/// connections takes milliseconds.
const FORCED_END_MAX: Duration = Duration::from_secs(1);

/// What the shards share.
struct Group {
    stations: Vec<Homed<Station>>,
    loads: Arc<Loads>,
    shutdown: Option<(ShutdownToken, Duration)>,
    errors: Errors,
}

pub(super) async fn serve<M, S, F, R>(group: ListenerGroup, make: M, handler: F) -> io::Result<()>
where
    M: AsyncFn(Shard) -> io::Result<S> + Clone + Send + 'static,
    S: 'static,
    F: AsyncFn(Rc<S>, TcpStream, SocketAddr) -> R + Clone + Send + 'static,
    R: 'static,
{
    let shards = Shard::all();
    if shards.len() != group.sockets.len() {
        return Err(io::Error::other(
            "the group was bound in another runtime: bind and serve it in one",
        ));
    }
    let loads = Loads::new(group.placement, shards.len());
    let open = |shard: &Shard| {
        let (make, handler) = (make.clone(), handler.clone());
        let (shard, loads) = (shard.clone(), Arc::clone(&loads));
        Own(shard.clone().spawn_with(move || open_station(shard, loads, make, handler)))
    };
    // All before the first is waited for, and all before any accepts.
    let opening: Vec<_> = shards.iter().map(open).collect();
    let mut stations = Vec::with_capacity(shards.len());
    for station in opening {
        stations.push(station.await??);
    }
    let ListenerGroup { sockets, address, shutdown, on_accept_error, .. } = group;
    let errors = Errors { address, hear: on_accept_error, noticed: Mutex::new(None) };
    let forced = shutdown.as_ref().map(|(token, _)| token.forced());
    let group = Arc::new(Group { stations, loads, shutdown, errors });
    let mut run = pin!(group.run(&shards, sockets));
    let Some(mut forced) = forced else { return run.await };
    match forced.unless(run.as_mut()).await {
        Some(ended) => ended,
        // A shard whose task does not yield must not hold up the others' end.
        None => timeout(FORCED_END_MAX, run).await.unwrap_or(Ok(())),
    }
}

async fn open_station<M, S, F, R>(
    shard: Shard,
    loads: Arc<Loads>,
    make: M,
    handler: F,
) -> io::Result<Homed<Station>>
where
    M: AsyncFn(Shard) -> io::Result<S>,
    S: 'static,
    F: AsyncFn(Rc<S>, TcpStream, SocketAddr) -> R + 'static,
    R: 'static,
{
    let index = shard.index();
    let state = Rc::new(make(shard).await?);
    let handler = Rc::new(handler);
    let begin: Begin = Box::new(move |stream, peer, served| {
        let (handler, state) = (Rc::clone(&handler), Rc::clone(&state));
        let task = spawn(async move {
            // Counted until the handler has dropped what it was given.
            let _served = served;
            handler(state, stream, peer).await;
        });
        task.abort_handle()
    });
    Homed::new(|_| Station::new(begin, loads, index))
}

impl Group {
    /// Accepts on all shards, then waits for what they serve.
    async fn run(self: &Arc<Self>, shards: &[Shard], sockets: Vec<OwnedFd>) -> io::Result<()> {
        let accept = |(shard, socket): (&Shard, OwnedFd)| {
            let (group, index) = (Arc::clone(self), shard.index());
            Own(shard.spawn_with(move || async move { group.accept_all(index, socket).await }))
        };
        wait_for_all(shards.iter().zip(sockets).map(accept).collect()).await?;
        // Nobody accepts any more, so that nothing is placed behind the drain.
        let drain = |shard: &Shard| {
            let (group, index) = (Arc::clone(self), shard.index());
            Own(shard.spawn_with(move || async move { group.drain(index).await }))
        };
        wait_for_all(shards.iter().map(drain).collect()).await
    }

    /// Accepts on one shard until the shutdown.
    async fn accept_all(&self, index: usize, socket: OwnedFd) -> io::Result<()> {
        let listener = Listener::<Tcp>::from_socket(socket)?;
        let station = self.stations[index].get()?;
        let mut accepting = listener.accept();
        let mut requested = self.shutdown.as_ref().map(|(token, _)| token.requested());
        let mut pause = None;
        poll_fn(|cx| match requested.as_mut().map(|it| Pin::new(it).poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(()),
            _ => self.poll_accept(cx, &mut accepting, &mut pause, index, &station),
        })
        .await;
        // What came before the end was asked for is still served.
        for accepted in listener.take_waiting()? {
            self.place(accepted, index, &station);
        }
        Ok(())
    }

    /// Accepts and places what has come. Never ready.
    fn poll_accept(
        &self,
        cx: &mut Context<'_>,
        accepting: &mut Accepting<'_, Tcp>,
        pause: &mut Option<Pin<Box<Sleep>>>,
        index: usize,
        station: &Rc<Station>,
    ) -> Poll<()> {
        loop {
            if let Some(pausing) = pause.as_mut() {
                if pausing.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                *pause = None;
            }
            match accepting.poll_accepted(cx) {
                Poll::Ready(Ok(accepted)) => self.place(accepted, index, station),
                Poll::Ready(Err(error)) => {
                    self.errors.report(&error);
                    *pause = Some(Box::pin(sleep(LIMITS.accept_error_interval)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn place(&self, accepted: Accepted<Tcp>, here: usize, station: &Rc<Station>) {
        let counted = self.loads.place(here);
        let shard = counted.shard();
        if shard == here {
            return Rc::clone(station).take_in(accepted, counted);
        }
        self.stations[shard].visit(move |station| station.take_in(accepted, counted));
    }

    async fn drain(&self, index: usize) -> io::Result<()> {
        let station = self.stations[index].get()?;
        if let Some((token, grace)) = &self.shutdown {
            station.drain(token.clone(), *grace).await;
        }
        Ok(())
    }
}

/// Tells somebody of errors of accepting.
struct Errors {
    address: SocketAddr,
    hear: Option<OnAcceptError>,
    noticed: Mutex<Option<Instant>>,
}

impl Errors {
    fn report(&self, error: &io::Error) {
        if let Some(hear) = &self.hear {
            return hear(error);
        }
        let mut noticed = self.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        if noticed.is_none_or(|last| last.elapsed() >= NOTICE_INTERVAL) {
            *noticed = Some(Instant::now());
            let (address, remedy) = (self.address, remedy(error).unwrap_or("accepting goes on"));
            notify(format_args!("accepting on {address} failed, clients wait: {error}; {remedy}"));
        }
    }
}

/// A task that ends with its handle.
struct Own<T>(JoinHandle<T>);

impl<T> Future for Own<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        Pin::new(&mut self.0).poll(cx).map_err(io::Error::from)
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until all have ended well, or one has not.
async fn wait_for_all(tasks: Vec<Own<io::Result<()>>>) -> io::Result<()> {
    let mut tasks: Vec<_> = tasks.into_iter().map(Some).collect();
    poll_fn(|cx| {
        for place in &mut tasks {
            let Some(task) = place else { continue };
            if let Poll::Ready(ended) = pin!(task).poll(cx) {
                *place = None;
                ended??;
            }
        }
        if tasks.iter().all(Option::is_none) { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}
