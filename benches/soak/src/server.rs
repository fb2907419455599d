//! The server that is watched: every shard accepts, connections move, tasks panic and are aborted.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use annulus::net::{Detached, ListenerGroup, Tcp, TcpStream};
use annulus::time::interval;
use annulus::{Driver, Runtime, Shard};
use bench_support::children::{Failure, announce};

use crate::plan::{Plan, Side};
use crate::tally::{self, Open};
use crate::traffic::{self, Reached};

/// Two, so that there is somewhere to go, on one processor too.
const SHARDS: u32 = 2;
/// The number of a connection that echoes, and is neither checked nor counted.
pub(crate) const PROBE: u64 = u64::MAX;

pub(crate) fn serve(driver: Driver, seed: u64) -> Result<(), Failure> {
    let runtime = Runtime::builder().driver(driver).shards(SHARDS).build()?;
    runtime.block_on(async {
        let group = ListenerGroup::bind("127.0.0.1:0")?;
        announce(group.local_addr());
        annulus::spawn(tell());
        group.serve(async move |stream, peer| welcome(stream, peer, seed).await).await?;
        Ok(())
    })
}

/// Once a second, how it stands.
pub(crate) async fn tell() {
    let mut seconds = interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        tally::tell(tasks().await);
    }
}

/// The tasks that live, on all shards.
async fn tasks() -> u64 {
    let counts = annulus::on_each_shard(async |_| annulus::metrics().tasks).await;
    counts.into_iter().map(|count| count.unwrap_or(0)).sum()
}

async fn welcome(mut stream: TcpStream, _peer: SocketAddr, seed: u64) {
    let mut number = [0; 8];
    // A client may leave before it has said anything.
    if stream.read_exact(&mut number).await.is_err() {
        return;
    }
    let number = u64::from_le_bytes(number);
    if number == PROBE {
        // It ends with its client.
        let _ended = echo(stream).await;
        return;
    }
    let open = Open::begin();
    let plan = Rc::new(Plan::of(seed, number));
    let Some((stream, reached)) = traffic::begin(stream, &plan, Side::Server).await else { return };
    if plan.moves {
        match stream.detach() {
            Ok(detached) => go_elsewhere(detached, seed, number, reached, open),
            Err(error) => traffic::unless_planned(&plan, "a move", &error.into()),
        }
        return;
    }
    traffic::finish(stream, &plan, Side::Server, reached).await;
}

/// The connection goes on, on the next shard.
fn go_elsewhere(detached: Detached<Tcp>, seed: u64, number: u64, reached: Reached, open: Open) {
    let shards = Shard::all();
    let next = &shards[(Shard::current().index() + 1) % shards.len()];
    let staying = next.spawn_with(move || async move {
        match TcpStream::attach(detached) {
            Ok(stream) => {
                let plan = Rc::new(Plan::of(seed, number));
                traffic::finish(stream, &plan, Side::Server, reached).await;
            }
            Err(error) => tally::error(&format!("connection {number}: a move: {error}")),
        }
        drop(open);
    });
    // Nobody waits for it; it ends by itself.
    drop(staying);
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 512];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}
