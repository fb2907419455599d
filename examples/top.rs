//! Shows what each shard of a running program does: `top PID [--once]`.
//!
//! Redrawn every second until the program ends; `--once` prints one second and no escape codes.

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use annulus::metrics::{Metrics, ProcessMetrics, ShardMetrics};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (pid, once) = match &arguments[..] {
        [pid] => (pid.parse(), false),
        [pid, option] | [option, pid] if option == "--once" => (pid.parse(), true),
        _ => (String::new().parse(), false),
    };
    let Ok(pid) = pid else {
        eprintln!("usage: top PID [--once]");
        return ExitCode::from(2);
    };
    match watch(pid, once) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("top: {error}");
            ExitCode::FAILURE
        }
    }
}

fn watch(pid: u32, once: bool) -> io::Result<()> {
    let process = ProcessMetrics::attach(pid)?;
    let mut before = (Instant::now(), process.shards()?);
    if !once {
        print!("\x1b[2J");
    }
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = (Instant::now(), process.shards()?);
        let table = table(pid, &before.1, &now.1, now.0 - before.0);
        if once {
            return io::stdout().write_all(table.as_bytes());
        }
        // To the corner, each line up to its end, and then all below.
        let table = table.replace('\n', "\x1b[K\n");
        io::stdout().write_all(format!("\x1b[H{table}\x1b[J").as_bytes())?;
        io::stdout().flush()?;
        before = now;
    }
}

fn table(pid: u32, before: &[ShardMetrics], now: &[ShardMetrics], passed: Duration) -> String {
    let total: u64 = now.iter().map(|shard| shard.metrics.connections).sum();
    let mut text = format!("process {pid}: {} shards, {total} connections\n\n", now.len());
    text += "shard driver  busy                          conns    tasks   polls/s  compl/enter  \
             longest poll\n";
    // Shards of two runtimes may share a number; then the first is compared with the first.
    let mut nth = HashMap::new();
    for shard in now {
        let count = nth.entry(shard.shard).or_insert(0);
        let was = before.iter().filter(|was| was.shard == shard.shard).nth(*count);
        *count += 1;
        let was = was.map_or_else(Metrics::default, |was| was.metrics);
        text += &row(shard, &was, passed);
    }
    text
}

fn row(shard: &ShardMetrics, was: &Metrics, passed: Duration) -> String {
    let now = &shard.metrics;
    // Figures of another process are taken as they come: none is sure to be larger than before.
    let share = now.busy.saturating_sub(was.busy).as_secs_f64() / passed.as_secs_f64();
    let share = share.min(1.0);
    let polls = now.polls.saturating_sub(was.polls) as f64 / passed.as_secs_f64();
    let enters = now.enters.saturating_sub(was.enters);
    let completions = now.completions.saturating_sub(was.completions);
    let each = if enters == 0 { 0.0 } else { completions as f64 / enters as f64 };
    format!(
        "{:>5} {:<7} {} {:>3.0} %  {:>6} {:>8} {:>9} {:>12.1} {:>13}\n",
        shard.shard,
        shard.driver.to_string(),
        bar(share),
        share * 100.0,
        now.connections,
        now.tasks,
        short(polls),
        each,
        length(now.longest_poll_lately),
    )
}

/// None, where there was no poll lately.
fn length(poll: Duration) -> String {
    if poll.is_zero() { "-".to_owned() } else { format!("{poll:.1?}") }
}

/// Twenty places, in eighths.
fn bar(share: f64) -> String {
    let eighths = (share * 160.0).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if eighths % 8 > 0 {
        bar.extend(" ▏▎▍▌▋▊▉".chars().nth(eighths % 8));
    }
    format!("{bar:·<20}")
}

/// A count in at most six places.
fn short(count: f64) -> String {
    match count {
        0.0..1e4 => format!("{count:.0}"),
        1e4..1e7 => format!("{:.1} k", count / 1e3),
        _ => format!("{:.1} M", count / 1e6),
    }
}
