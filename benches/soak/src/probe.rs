//! A connection that asks again and again how long an answer takes: blocking, on a thread.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bench_support::histogram::Histogram;

use crate::keyed::Keyed;
use crate::server::PROBE;

/// Between two questions; 2,000 in an interval of ten seconds.
const PAUSE: Duration = Duration::from_millis(5);
/// An answer that takes so long is none.
const PATIENCE: Duration = Duration::from_secs(10);
const BYTES: usize = 64;

#[derive(Default)]
struct Answers {
    histogram: Histogram,
    failed: Option<String>,
}

/// The probe of one server. Its thread ends when the server does.
pub(crate) struct Probe(Arc<Mutex<Answers>>);

/// What an interval has brought.
#[derive(Clone, Copy, Default)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
}

impl Probe {
    pub(crate) fn start(address: SocketAddr) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&PROBE.to_le_bytes())?;
        let answers = Arc::<Mutex<Answers>>::default();
        let shared = Arc::clone(&answers);
        thread::spawn(move || {
            let mut offset = 0;
            loop {
                match ask(&mut stream, offset) {
                    Ok(took) => lock(&shared).histogram.record(took.as_nanos() as u64),
                    Err(error) => {
                        lock(&shared).failed = Some(error);
                        return;
                    }
                }
                offset += BYTES as u64;
                thread::sleep(PAUSE);
            }
        });
        Ok(Self(answers))
    }

    /// Why there are no more answers, told once.
    pub(crate) fn failed(&self) -> Option<String> {
        lock(&self.0).failed.take()
    }

    /// The answers since the last call.
    pub(crate) fn take(&self) -> Latency {
        let mut answers = lock(&self.0);
        let us = |fraction| answers.histogram.quantile(fraction) as f64 / 1000.0;
        let latency = Latency { p50_us: us(0.5), p99_us: us(0.99), p999_us: us(0.999) };
        answers.histogram.clear();
        latency
    }
}

fn lock(answers: &Mutex<Answers>) -> std::sync::MutexGuard<'_, Answers> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask(stream: &mut TcpStream, offset: u64) -> Result<Duration, String> {
    let question = Keyed(PROBE).bytes(offset, BYTES);
    let mut answer = [0; BYTES];
    let start = Instant::now();
    stream.write_all(&question).map_err(|error| error.to_string())?;
    stream.read_exact(&mut answer).map_err(|error| error.to_string())?;
    let took = start.elapsed();
    Keyed(PROBE).check(offset, &answer)?;
    Ok(took)
}
