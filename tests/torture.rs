//! Thousands of connections that do at random all that a stream can do, and check every byte.

use std::cell::RefCell;
use std::io::{IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use annulus::net::TcpStream;
use annulus::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use annulus::task::yield_now;
use annulus::time::{sleep, timeout};
use annulus::{Builder, JoinHandle, Runtime};

use common::bytes::{Cursor, Keyed, Numbers};
use common::each_driver;
use common::peer::{self, peer};
use common::steps::listen;

mod common;

each_driver! {
    #[deadline_s(120)]
    fn random_operations_lose_and_mix_no_byte(driver: Driver) {
        torture(Runtime::builder().driver(driver), 0);
    }

    #[deadline_s(120)]
    fn random_operations_with_small_limits_lose_and_mix_no_byte(driver: Driver) {
        let builder = Runtime::builder().driver(driver);
        torture(builder.ring_entries(2).recv_pool(4, 256).event_interval(3), 1_000_000);
    }
}

/// What will become of one connection. Both sides make the same one from its number.
struct Plan {
    number: u64,
    up_bytes: u64,
    down_bytes: u64,
    end: End,
    /// The server reads and writes in two tasks, or first reads and then writes in one.
    two_tasks: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Clean,
    /// The client resets the connection somewhere on the way.
    ClientResets,
    /// The server drops its stream somewhere on the way.
    ServerDrops,
    /// The task that serves the connection is aborted somewhere on the way.
    ServerAborts,
}

impl Plan {
    fn of(number: u64) -> Self {
        let mut numbers = Numbers(number << 20);
        let size = [100, 5000, 80_000][numbers.below(3) as usize];
        Self {
            number,
            up_bytes: numbers.below(size),
            down_bytes: numbers.below(size),
            end: match numbers.below(8) {
                0 => End::ClientResets,
                1 => End::ServerDrops,
                2 => End::ServerAborts,
                _ => End::Clean,
            },
            two_tasks: numbers.below(2) == 0,
        }
    }

    fn up(&self) -> Cursor {
        Keyed(2 * self.number).cursor()
    }

    fn down(&self) -> Cursor {
        Keyed(2 * self.number + 1).cursor()
    }
}

fn torture(builder: Builder, first: u64) {
    let runtime = builder.build().expect("build a runtime");
    runtime.block_on(async {
        let (listener, addr) = listen().await;
        let failures = Rc::new(RefCell::new(Vec::new()));
        let collected = Rc::clone(&failures);
        let serving = annulus::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                let collected = Rc::clone(&collected);
                annulus::spawn(async move {
                    if let Err(failure) = annulus::spawn(serve(stream)).await {
                        collected.borrow_mut().push(failure.to_string());
                    }
                });
            }
        });
        let clients: Vec<_> = (0..THREADS)
            .map(|thread| {
                peer(move || {
                    let numbers = (0..CONNECTIONS).filter(|n| n % THREADS == thread);
                    numbers.for_each(|number| client(addr, &Plan::of(first + number)));
                })
            })
            .collect();
        for client in clients {
            client.await;
        }
        serving.abort();
        assert!(failures.borrow().is_empty(), "{:?}", failures.borrow());
    });
}

fn client(addr: SocketAddr, plan: &Plan) {
    let mut numbers = Numbers(plan.number << 32);
    let mut stream = peer::connect(addr);
    let clean = plan.end == End::Clean;
    if let Err(error) = stream.write_all(&plan.number.to_le_bytes()) {
        panic!("{:?}: {error}", plan.end);
    }
    let mut up = plan.up();
    let reset_at = numbers.below(plan.up_bytes + 1);
    while up.offset < plan.up_bytes {
        if plan.end == End::ClientResets && up.offset >= reset_at {
            return peer::reset(stream);
        }
        let len = (1 + numbers.below(4000)).min(plan.up_bytes - up.offset);
        let sent = stream.write_all(&up.next(len as usize));
        assert!(sent.is_ok() || !clean, "{sent:?}");
        if numbers.below(4) == 0 {
            std::thread::sleep(Duration::from_micros(numbers.below(300)));
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut down = plan.down();
    let mut buf = vec![0; 1 + numbers.below(20_000) as usize];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => down.check(&buf[..n]),
            Err(error) if clean => panic!("connection {}: {error}", plan.number),
            Err(_) => return,
        }
    }
    assert!(!clean || down.offset == plan.down_bytes, "connection {} was cut", plan.number);
}

/// Serves one connection; a panic is a failure of the test.
async fn serve(mut stream: TcpStream) {
    let mut number = [0; 8];
    stream.read_exact(&mut number).await.expect("the number of the connection");
    let plan = Rc::new(Plan::of(u64::from_le_bytes(number)));
    let mut numbers = Numbers(plan.number << 40);
    let (read, write) = stream.into_split();
    let reading = receive(read, Rc::clone(&plan));
    let writing = transmit(write, Rc::clone(&plan));
    match (plan.end, plan.two_tasks) {
        (End::ServerAborts, _) => {
            let tasks = (annulus::spawn(reading), annulus::spawn(writing));
            sleep(Duration::from_micros(numbers.below(1000))).await;
            tasks.0.abort();
            tasks.1.abort();
            unless_aborted(tasks.0).await;
            unless_aborted(tasks.1).await;
        }
        (_, true) => {
            let (reading, writing) = (annulus::spawn(reading), annulus::spawn(writing));
            let halves = (reading.await.expect("to receive"), writing.await.expect("to send"));
            finish(halves, &plan).await;
        }
        (_, false) => {
            let read = reading.await;
            finish((read, writing.await), &plan).await;
        }
    }
}

async fn unless_aborted<T>(task: JoinHandle<T>) {
    if let Err(error) = task.await {
        assert!(error.is_cancelled(), "{error}");
    }
}

async fn finish(halves: (Option<OwnedReadHalf>, Option<OwnedWriteHalf>), plan: &Plan) {
    let (Some(read), Some(write)) = halves else { return };
    let mut stream = read.reunite(write).expect("two halves of one stream");
    if plan.number % 2 == 0 {
        // The client may have reset it by now.
        let ended = stream.shutdown().await;
        assert!(ended.is_ok() || plan.end != End::Clean, "{ended:?}");
    }
}

/// Receives until the end, in every way there is. Gives the half back if it is still good.
async fn receive(mut read: OwnedReadHalf, plan: Rc<Plan>) -> Option<OwnedReadHalf> {
    let mut numbers = Numbers(plan.number << 48);
    let mut up = plan.up();
    let drop_at = numbers.below(plan.up_bytes + 1);
    loop {
        if plan.end == End::ServerDrops && up.offset >= drop_at {
            return None;
        }
        let mut buf = vec![0; 1 + numbers.below(6000) as usize];
        let patience = Duration::from_micros(numbers.below(200));
        let outcome = match numbers.below(8) {
            0 => {
                let peeked = timeout(patience, read.peek(&mut buf)).await;
                if let Ok(Ok(n)) = peeked {
                    // It is not taken: the next read checks it again.
                    { up }.check(&buf[..n]);
                }
                continue;
            }
            1 => {
                let len = buf.len().min(64);
                match timeout(patience, read.read_exact(&mut buf[..len])).await {
                    // Nobody can say how much of a reset stream came before its end.
                    Ok(Err(error)) if is_early_end(&error) && plan.end == End::Clean => {
                        let rest = (plan.up_bytes - up.offset) as usize;
                        assert!(rest < len, "connection {} was cut", plan.number);
                        up.check(&buf[..rest]);
                        continue;
                    }
                    outcome => outcome,
                }
            }
            2 => {
                yield_now().await;
                continue;
            }
            3 => Ok(read.read(&mut buf).await),
            _ => timeout(patience, read.read(&mut buf)).await,
        };
        match outcome {
            Err(_) => {}
            Ok(Ok(0)) => break,
            Ok(Ok(n)) => up.check(&buf[..n]),
            Ok(Err(error)) => {
                assert_ne!(plan.end, End::Clean, "receiving failed: {error}");
                return None;
            }
        }
    }
    if plan.end == End::Clean {
        assert_eq!(up.offset, plan.up_bytes, "connection {} was cut", plan.number);
    }
    Some(read)
}

fn is_early_end(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::UnexpectedEof
}

/// Sends all there is to send, in every way there is. Gives the half back if it is still good.
async fn transmit(mut write: OwnedWriteHalf, plan: Rc<Plan>) -> Option<OwnedWriteHalf> {
    let mut numbers = Numbers(plan.number << 56);
    let mut down = plan.down();
    let drop_at = numbers.below(plan.down_bytes + 1);
    while down.offset < plan.down_bytes {
        if plan.end == End::ServerDrops && down.offset >= drop_at {
            return None;
        }
        let len = (1 + numbers.below(20_000)).min(plan.down_bytes - down.offset) as usize;
        let bytes = { down }.next(len);
        let patience = Duration::from_micros(numbers.below(200));
        let taken = match numbers.below(6) {
            0 => write.write_all(&bytes).await.map(|()| len),
            1 => {
                let slices: Vec<_> = bytes.chunks(1 + len / 3).map(IoSlice::new).collect();
                write.write_vectored(&slices).await
            }
            2 => match timeout(patience, write.flush()).await {
                Ok(flushed) => flushed.map(|()| 0),
                Err(_) => Ok(0),
            },
            3 => {
                sleep(patience).await;
                Ok(0)
            }
            _ => timeout(patience, write.write(&bytes)).await.unwrap_or(Ok(0)),
        };
        match taken {
            Ok(n) => down.offset += n as u64,
            Err(error) => {
                assert_ne!(plan.end, End::Clean, "sending failed: {error}");
                return None;
            }
        }
    }
    Some(write)
}

const CONNECTIONS: u64 = 5000;
const THREADS: u64 = 16;
