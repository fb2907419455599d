//! The table at the end, and the verdict.

use crate::probe::Latency;
use crate::soak::{Pair, Side};
use crate::tally::Tally;
use crate::watch::Look;

/// What memory may grow by without an end, in KiB a minute: less than two bytes for each of 24,000
/// connections. A leak is larger.
const RSS_SLOPE_MAX: f64 = 40.0;
/// What memory may grow by once, within the half of the run that is looked at, in KiB: the largest
/// number of connections at a time so far, and pages of the heap and of the pool that were not
/// touched before. A slope over a few minutes shows such a step as well.
const RSS_STEP_MAX: f64 = 1024.0;

/// Of the looks that are due in the half of the run that is looked at, one a second: with fewer, on
/// a machine that is that slow, a slope says too little.
const LOOKS_SHARE_MIN: f64 = 0.5;
/// Of the connections that are due, so many may be left out, as too many are open. Past this it was
/// not the load that was asked for.
const SKIPPED_SHARE_MAX: f64 = 0.1;

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
    if rss_slope > bound {
        wrong.push(format!("the memory of {name} grows by {rss_slope:.0} KiB a minute"));
    }
    wrong.extend(wrong_with_side(name, side, seconds));
}

fn wrong_with_side(name: &str, side: &Side, seconds: f64) -> Vec<String> {
    let mut wrong = Vec::new();
    let (first, last) = (side.watched.first(), side.watched.last());
    if last.descriptors > first.descriptors {
        let more = last.descriptors - first.descriptors;
        wrong.push(format!("{name} has {more} more descriptors than before it served anybody"));
    }
    let looks = side.watched.count(seconds / 2.0, seconds);
    if (looks as f64) < LOOKS_SHARE_MIN * seconds / 2.0 {
        wrong.push(format!("{name} was looked at {looks} times only in the second half"));
    }
    for error in &side.errors {
        wrong.push(format!("{name}: {error}"));
    }
    let Tally { done, skipped, bytes, errors, .. } = side.tally;
    if errors > side.errors.len() as u64 {
        wrong.push(format!("{name}: {errors} errors in all"));
    }
    if done == 0 || bytes == 0 {
        wrong.push(format!("{name} has seen no connection to its end, or checked no byte"));
    }
    if skipped as f64 > SKIPPED_SHARE_MAX * (done + skipped) as f64 {
        wrong.push(format!("{name} left out {skipped} connections and made {done}"));
    }
    wrong
}

/// An interval without an answer of the probe's.
fn wrong_with_latencies(driver: &str, latencies: &[Latency]) -> Option<String> {
    let silent = latencies.iter().filter(|latency| latency.p50_us == 0.0).count();
    (silent > 0 || latencies.is_empty()).then(|| {
        format!("{driver}: no answer to the probe in {silent} of {} intervals", latencies.len())
    })
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
    wrong.extend(wrong_with_latencies(pair.driver, latencies));
    if server.tally.tasks > tasks_first {
        let more = server.tally.tasks - tasks_first;
        wrong.push(format!("{more} tasks of the {} server have not ended", pair.driver));
    }
    if server.tally.open > 0 {
        wrong.push(format!("{} connections of it are open", server.tally.open));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Watched;

    const SECONDS: f64 = 60.0;

    /// One that was looked at every so many seconds.
    fn side(every_s: usize, tally: Tally) -> Side {
        let look =
            |second| Look { seconds: second as f64, descriptors: 9, open: 0, rss_kib: 1024.0 };
        let watched = Watched::of((0..=SECONDS as usize).step_by(every_s).map(look));
        Side { watched, tally, ..Side::default() }
    }

    const WELL: Tally = Tally { done: 1000, open: 0, skipped: 0, bytes: 9, errors: 0, tasks: 2 };

    #[test]
    fn what_was_looked_at_under_its_load_passes() {
        assert!(wrong_with_side("it", &side(1, WELL), SECONDS).is_empty());
        let few_skipped = Tally { skipped: 100, ..WELL };
        assert!(wrong_with_side("it", &side(1, few_skipped), SECONDS).is_empty());
        let latency = Latency { p50_us: 30.0, ..Latency::default() };
        assert_eq!(wrong_with_latencies("it", &[latency; 6]), None);
    }

    #[test]
    fn what_was_hardly_looked_at_does_not_pass() {
        for every_s in [3, 20, 1000] {
            let wrong = wrong_with_side("it", &side(every_s, WELL), SECONDS);
            assert!(wrong.len() == 1 && wrong[0].contains("looked at"), "{every_s}: {wrong:?}");
        }
    }

    #[test]
    fn a_load_that_was_left_out_does_not_pass() {
        for (tally, expected) in [
            (Tally { done: 1, skipped: 23_999, ..WELL }, "left out 23999"),
            (Tally { skipped: 120, ..WELL }, "left out 120"),
            (Tally { done: 0, ..WELL }, "no connection"),
            (Tally { bytes: 0, ..WELL }, "no byte"),
        ] {
            let wrong = wrong_with_side("it", &side(1, tally), SECONDS);
            assert!(wrong.len() == 1 && wrong[0].contains(expected), "{tally:?}: {wrong:?}");
        }
    }

    #[test]
    fn a_probe_that_was_not_answered_does_not_pass() {
        let answered = Latency { p50_us: 30.0, ..Latency::default() };
        assert!(wrong_with_latencies("it", &[answered, Latency::default()]).is_some());
        assert!(wrong_with_latencies("it", &[]).is_some());
    }
}
