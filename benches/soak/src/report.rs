//! The table at the end, and the verdict.

use crate::probe::Latency;
use crate::soak::{Pair, Side};
use crate::watch::Look;

/// What memory may grow by without an end, in KiB a minute: less than two bytes for each of 24,000
/// connections. A leak is larger.
const RSS_SLOPE_MAX: f64 = 40.0;
/// What memory may grow by once, within the half of the run that is looked at, in KiB: the largest
/// number of connections at a time so far, and pages of the heap and of the pool that were not
/// touched before. A slope over a few minutes shows such a step as well.
const RSS_STEP_MAX: f64 = 1024.0;

/// Prints everything. True if nothing was found wrong.
pub(crate) fn tell(pairs: &[Pair], seconds: u64) -> bool {
    let bound = RSS_SLOPE_MAX + RSS_STEP_MAX / (seconds as f64 / 120.0);
    let mut wrong = Vec::new();
    println!(
        "\n                  descriptors, slope without      memory, RSS in MiB, slope of the"
    );
    println!("                  those of connections            second half, and what it may be");
    println!("process           start   max   end  per min    start    max    end  KiB/min  bound");
    for pair in pairs {
        for (side, role) in [(&pair.server, "server"), (&pair.load, "load")] {
            let name = format!("{} {role}", pair.driver);
            process(&name, side, seconds as f64, bound, &mut wrong);
        }
    }
    println!(
        "\ndriver  connections  skipped  MiB checked  errors  tasks: start  max  end  \
         p50 us  p99  p99.9  p99 of the first third, of the last"
    );
    for pair in pairs {
        driver(pair, &mut wrong);
    }
    println!();
    for what in &wrong {
        println!("WRONG: {what}");
    }
    println!("{}", if wrong.is_empty() { "passed" } else { "FAILED" });
    wrong.is_empty()
}

fn process(name: &str, side: &Side, seconds: f64, bound: f64, wrong: &mut Vec<String>) {
    let watched = &side.watched;
    let (first, last) = (watched.first(), watched.last());
    let descriptors = |look: &Look| look.descriptors as f64;
    let rss = |look: &Look| look.rss_kib;
    // The first half fills pools, caches and the heap; behind the load's end all is let go of.
    let spare = |look: &Look| look.descriptors as f64 - look.open as f64;
    let spare_slope = watched.per_minute(seconds / 2.0, seconds, spare);
    let rss_slope = watched.per_minute(seconds / 2.0, seconds, rss);
    println!(
        "{name:<16} {:>6} {:>5} {:>5} {spare_slope:>8.1}   {:>6.1} {:>6.1} {:>6.1} \
         {rss_slope:>8.1} {bound:>6.0}",
        first.descriptors,
        watched.most(descriptors),
        last.descriptors,
        first.rss_kib / 1024.0,
        watched.most(rss) / 1024.0,
        last.rss_kib / 1024.0,
    );
    if last.descriptors > first.descriptors {
        let more = last.descriptors - first.descriptors;
        wrong.push(format!("{name} has {more} more descriptors than before it served anybody"));
    }
    if rss_slope > bound {
        wrong.push(format!("the memory of {name} grows by {rss_slope:.0} KiB a minute"));
    }
    for error in &side.errors {
        wrong.push(format!("{name}: {error}"));
    }
    if side.tally.errors > side.errors.len() as u64 {
        wrong.push(format!("{name}: {} errors in all", side.tally.errors));
    }
    if side.tally.done == 0 {
        wrong.push(format!("{name} has seen no connection to its end"));
    }
}

fn driver(pair: &Pair, wrong: &mut Vec<String>) {
    let Pair { server, load, latencies, .. } = pair;
    let tasks_first = server.first.map_or(0, |tally| tally.tasks);
    let third = latencies.len().div_ceil(3);
    let mean = |latencies: &[Latency], of: fn(&Latency) -> f64| {
        latencies.iter().map(of).sum::<f64>() / latencies.len().max(1) as f64
    };
    let begin = mean(&latencies[..third], |latency| latency.p99_us);
    let end = mean(&latencies[latencies.len() - third..], |latency| latency.p99_us);
    println!(
        "{:<7} {:>11} {:>8} {:>12.0} {:>7} {tasks_first:>13} {:>4} {:>4} {:>7.0} {:>4.0} {:>6.0}  \
         {begin:.0} -> {end:.0} ({:+.0} %)",
        pair.driver,
        server.tally.done,
        load.tally.skipped,
        (server.tally.bytes + load.tally.bytes) as f64 / (1024.0 * 1024.0),
        server.tally.errors + load.tally.errors,
        server.tasks_most,
        server.tally.tasks,
        mean(latencies, |latency| latency.p50_us),
        mean(latencies, |latency| latency.p99_us),
        mean(latencies, |latency| latency.p999_us),
        100.0 * (end / begin - 1.0),
    );
    if server.tally.tasks > tasks_first {
        let more = server.tally.tasks - tasks_first;
        wrong.push(format!("{more} tasks of the {} server have not ended", pair.driver));
    }
    if server.tally.open > 0 {
        wrong.push(format!("{} connections of it are open", server.tally.open));
    }
}
