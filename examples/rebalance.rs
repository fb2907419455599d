//! Moves live connections from a busy shard to an idle one: `rebalance [ADDR]`, then `nc`.
//!
//! A line comes back behind the number of its shard; `work N` keeps that shard busy first, for N
//! microseconds. The group spreads connections by number and cannot know what they will cost: that
//! shows here, and is mended while they last. (It counts one that has moved as gone.) The shards
//! share no memory: they are asked, and told.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use annulus::net::{ListenerGroup, TcpStream};
use annulus::task::yield_now;
use annulus::time::sleep;
use annulus::{Runtime, Shard, on_each_shard};

/// How often the shards are compared.
const INTERVAL: Duration = Duration::from_millis(100);
/// Shards that differ by less than this share of their time are left as they are.
const CLOSE: f64 = 0.2;
/// What a client may send without a line's end, before it is shown out.
const LINE_BYTES_MAX: usize = 1024;
/// What one request may ask for.
const WORK_MAX: Duration = Duration::from_millis(100);

thread_local! {
    /// How long this shard has worked for its connections.
    static BUSY: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// By how much of its time this shard is busier than which other one.
    static SURPLUS: Cell<(f64, usize)> = const { Cell::new((0.0, 0)) };
}

fn main() -> io::Result<()> {
    // Polls that compute are long: after a few of them, sockets and mail are looked at.
    Runtime::builder().event_interval(4).build()?.block_on(serve())
}

async fn serve() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let group = ListenerGroup::bind(address)?;
    println!("listening on {} with {} shard(s)", group.local_addr(), Shard::all().len());
    println!("driver: {}", annulus::driver_info());
    annulus::spawn(balance());
    group.serve(async |stream, _peer| attend(stream, Vec::new()).await).await
}

/// Tells the busiest shard, again and again, by how much it is busier than the least busy one.
async fn balance() {
    let shards = Shard::all();
    let mut since = Instant::now();
    loop {
        sleep(INTERVAL).await;
        let look = async |_| (SURPLUS.take(), BUSY.take()).1;
        let busy: Result<Vec<_>, _> = on_each_shard(look).await.into_iter().collect();
        let elapsed = since.elapsed().as_secs_f64();
        since = Instant::now();
        // A shard that has failed is started anew by the next look.
        let Ok(busy) = busy else { continue };
        let shares: Vec<f64> = busy.iter().map(|it| it.as_secs_f64() / elapsed).collect();
        let by_share = |&a: &usize, &b: &usize| shares[a].total_cmp(&shares[b]);
        let from = (0..shards.len()).max_by(by_share).unwrap_or(0);
        let to = (0..shards.len()).min_by(by_share).unwrap_or(0);
        let surplus = shares[from] - shares[to];
        if surplus > CLOSE {
            println!("busy: {shares:.2?}; shard {from} gives to shard {to}");
            drop(shards[from].spawn_with(move || async move { SURPLUS.set((surplus, to)) }));
        }
    }
}

/// Answers line by line. `received` is what was read from the stream and not yet answered.
async fn attend(mut stream: TcpStream, mut received: Vec<u8>) -> io::Result<()> {
    let mut cost = Cost { since: Instant::now(), spent: Duration::ZERO };
    while let Some(line) = next_line(&mut stream, &mut received).await? {
        cost.add(work(&line));
        let answer = format!("{} {line}\n", Shard::current().index());
        stream.write_all(answer.as_bytes()).await?;
        // More requests may have come already: others have their turn before the next one.
        yield_now().await;
        // Between two requests: here nothing is half done.
        if let Some(shard) = cost.better_place() {
            return move_to(&shard, stream, received);
        }
    }
    Ok(())
}

/// Goes on in a task on another shard, with what has not been read or sent yet.
fn move_to(shard: &Shard, stream: TcpStream, received: Vec<u8>) -> io::Result<()> {
    let (here, peer) = (Shard::current().index(), stream.peer_addr()?);
    let detached = stream.detach()?;
    println!("moved {peer} from shard {here} to shard {}", shard.index());
    drop(shard.spawn_with(|| async { attend(TcpStream::attach(detached)?, received).await }));
    Ok(())
}

/// What a connection has cost its shard since it was last looked at.
struct Cost {
    since: Instant,
    spent: Duration,
}

impl Cost {
    fn add(&mut self, spent: Duration) {
        self.spent += spent;
        BUSY.set(BUSY.get() + spent);
    }

    /// Where this connection should go, once its share of the time here is known well enough.
    fn better_place(&mut self) -> Option<Shard> {
        let elapsed = self.since.elapsed();
        if elapsed < INTERVAL {
            return None;
        }
        let share = self.spent.as_secs_f64() / elapsed.as_secs_f64();
        *self = Cost { since: Instant::now(), spent: Duration::ZERO };
        let (surplus, to) = SURPLUS.get();
        // Not if the other shard would be the busier one then. What costs nothing may stay.
        (0.0 < share && share < 0.75 * surplus).then(|| {
            SURPLUS.set((surplus - 2.0 * share, to));
            Shard::all().swap_remove(to)
        })
    }
}

/// Keeps this shard busy, if the line asks for that, and answers for how long.
fn work(line: &str) -> Duration {
    let micros = line.strip_prefix("work ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    let (begun, wanted) = (Instant::now(), Duration::from_micros(micros.unwrap_or(0)));
    while begun.elapsed() < wanted.min(WORK_MAX) {}
    begun.elapsed()
}

/// The next line without its end; `None` when there are no more.
async fn next_line(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = received.drain(..=end).collect();
            return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
        }
        if received.len() > LINE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
        }
        let mut buffer = [0; LINE_BYTES_MAX];
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            count => received.extend_from_slice(&buffer[..count]),
        }
    }
}
