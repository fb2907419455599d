use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};
use std::time::Duration;

use super::{Clock, NEVER, Registration, TimerKey, Timers, wake_all};

/// A tick of the wheel.
const TICK_NS: u64 = 1 << 16;

/// Writes its number into a log when it is woken.
struct Numbered {
    number: u64,
    log: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Numbered {
    fn wake(self: Arc<Self>) {
        self.log.lock().unwrap().push(self.number);
    }
}

/// A wheel whose wakers tell which timer fired.
struct Bench {
    timers: Timers,
    log: Arc<Mutex<Vec<u64>>>,
    woken: Vec<Waker>,
}

impl Bench {
    fn new() -> Self {
        Self { timers: Timers::new(), log: Arc::default(), woken: Vec::new() }
    }

    fn waker(&self, number: u64) -> Waker {
        Waker::from(Arc::new(Numbered { number, log: self.log.clone() }))
    }

    fn insert(&mut self, deadline_ns: u64, number: u64) -> TimerKey {
        let waker = self.waker(number);
        self.timers.insert(deadline_ns, waker)
    }

    fn expire(&mut self, now_ns: u64) -> Vec<u64> {
        self.timers.expire(now_ns, &mut self.woken);
        wake_all(&mut self.woken);
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

#[test]
fn a_tick_with_several_timers_is_waited_for_to_its_end() {
    let mut bench = Bench::new();
    let alone = bench.insert(10 * TICK_NS + 700, 0);
    assert_eq!(bench.timers.next_wake(), Some(10 * TICK_NS + 700));
    let other = bench.insert(10 * TICK_NS + 900, 1);
    assert_eq!(bench.timers.next_wake(), Some(11 * TICK_NS));
    assert_eq!(bench.timers.next_deadline(), Some(10 * TICK_NS + 700));
    assert!(bench.timers.remove(other).is_some());
    assert_eq!(bench.timers.next_wake(), Some(10 * TICK_NS + 700));
    // Of a slot that is longer than a tick only the first is waited for.
    assert!(bench.timers.remove(alone).is_some());
    bench.insert(100 * TICK_NS + 1, 2);
    bench.insert(101 * TICK_NS + 1, 3);
    assert_eq!(bench.timers.next_wake(), Some(100 * TICK_NS + 1));
    assert_eq!(bench.expire(100 * TICK_NS + 1), [2]);
    assert_eq!(bench.timers.next_wake(), Some(101 * TICK_NS + 1));
    assert_eq!(bench.expire(200 * TICK_NS), [3]);
    assert_eq!(bench.timers.next_wake(), None);
}

/// A small generator of the xorshift family: the tests need no more.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A duration of any magnitude, from nanoseconds to centuries, each magnitude as likely.
    fn duration_ns(&mut self) -> u64 {
        let bits = self.below(64);
        self.next() >> (63 - bits)
    }
}

#[test]
fn a_timer_fires_at_its_deadline_and_not_a_nanosecond_before() {
    for deadline in [1, TICK_NS - 1, TICK_NS, TICK_NS + 1, 64 * TICK_NS + 7, 1 << 40, NEVER - 1] {
        let mut bench = Bench::new();
        bench.insert(deadline, 7);
        assert_eq!(bench.timers.next_deadline(), Some(deadline));
        assert_eq!(bench.expire(deadline - 1), [], "early: {deadline}");
        assert_eq!(bench.timers.next_deadline(), Some(deadline));
        assert_eq!(bench.expire(deadline), [7], "late: {deadline}");
        assert_eq!(bench.timers.next_deadline(), None);
        assert_eq!(bench.timers.len(), 0);
    }
}

#[test]
fn timers_of_one_tick_fire_each_at_its_own_time() {
    let mut bench = Bench::new();
    let base = 5 * TICK_NS;
    for offset in [30, 10, 20] {
        bench.insert(base + offset, offset);
    }
    assert_eq!(bench.expire(base + 9), []);
    assert_eq!(bench.expire(base + 10), [10]);
    assert_eq!(bench.timers.next_deadline(), Some(base + 20));
    assert_eq!(bench.expire(base + 29), [20]);
    assert_eq!(bench.expire(base + 30), [30]);
}

#[test]
fn never_does_not_fire_and_can_be_removed() {
    let mut bench = Bench::new();
    let never = bench.insert(NEVER, 1);
    let once = bench.insert(1000, 2);
    assert_eq!(bench.expire(NEVER), [2]);
    assert_eq!(bench.timers.next_deadline(), None);
    assert_eq!(bench.timers.len(), 1);
    assert!(bench.timers.remove(once).is_none());
    assert!(bench.timers.remove(never).is_some());
    assert!(bench.timers.remove(never).is_none());
    assert_eq!(bench.timers.len(), 0);
}

#[test]
fn past_deadlines_are_due_at_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.expire(1 << 40), []);
    bench.insert(0, 1);
    bench.insert((1 << 40) - 1, 2);
    bench.insert(1 << 40, 3);
    assert!(bench.timers.next_deadline() <= Some(1 << 40));
    assert_eq!(bench.expire(1 << 40), [1, 2, 3]);
}

#[test]
fn one_jump_fires_in_the_order_of_deadlines_then_of_insertion() {
    let mut bench = Bench::new();
    let mut random = Random(11);
    let mut expected = Vec::new();
    for number in 0..5000 {
        let deadline = random.duration_ns().min(NEVER - 1) & !0xff;
        bench.insert(deadline, number);
        expected.push((deadline, number));
        if number == 2500 {
            // Timers before and after a move of the wheel are still told apart by insertion alone.
            bench.expire(255);
            expected.retain(|&(deadline, _)| deadline > 255);
        }
    }
    expected.sort_unstable();
    let expected: Vec<u64> = expected.into_iter().map(|(_, number)| number).collect();
    assert_eq!(bench.expire(NEVER), expected);
}

#[test]
fn the_latest_waker_is_woken() {
    let mut bench = Bench::new();
    let key = bench.insert(100, 1);
    let (first, second) = (bench.waker(1), bench.waker(2));
    assert_eq!(bench.timers.registration(key, &first), Registration::Other);
    let replaced = bench.timers.replace_waker(key, second.clone());
    assert!(replaced.is_ok_and(|waker| !waker.will_wake(&second)));
    assert_eq!(bench.timers.registration(key, &second), Registration::Current);
    assert_eq!(bench.expire(100), [2]);
    assert_eq!(bench.timers.registration(key, &second), Registration::Gone);
    assert!(bench.timers.replace_waker(key, first).is_err());
}

#[test]
fn reset_moves_a_timer_and_keeps_its_waker() {
    let mut bench = Bench::new();
    let key = bench.insert(100, 1);
    assert!(bench.timers.reset(key, 1 << 30));
    assert_eq!(bench.expire(100), []);
    assert!(bench.timers.reset(key, NEVER));
    assert_eq!(bench.expire(1 << 31), []);
    assert!(bench.timers.reset(key, 5));
    assert_eq!(bench.expire(1 << 31), [1]);
    assert!(!bench.timers.reset(key, 1 << 32));
    assert_eq!(bench.timers.len(), 0);
}

#[test]
fn stale_keys_are_unknown_also_when_their_place_is_taken_again() {
    let mut bench = Bench::new();
    let stale = bench.insert(100, 1);
    bench.expire(100);
    let fresh = bench.insert(200, 2);
    assert_eq!(stale.index, fresh.index);
    assert!(bench.timers.remove(stale).is_none());
    assert!(!bench.timers.reset(stale, 5));
    assert_eq!(bench.expire(200), [2]);

    let key = bench.insert(300, 3);
    let mut wakers = Vec::new();
    bench.timers.drain(&mut wakers);
    assert_eq!((wakers.len(), bench.timers.len()), (1, 0));
    assert_eq!(bench.timers.next_deadline(), None);
    assert!(bench.timers.remove(key).is_none());
    bench.insert(400, 4);
    assert!(bench.timers.remove(key).is_none());
    assert_eq!(bench.expire(400), [4]);
}

#[test]
fn random_histories_agree_with_a_sorted_map() {
    for seed in 1..=40 {
        random_history(seed);
    }
}

fn random_history(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut bench = Bench::new();
    // Ordered as timers must fire.
    let mut model = BTreeMap::<(u64, u64), TimerKey>::new();
    let mut gone = Vec::new();
    let mut now = 0_u64;
    // Each seed has its own horizon: only short timers, or all lengths.
    let horizon_shift = random.below(50);
    let mut removed = false;

    for number in 0..4000 {
        let after = random.duration_ns() >> horizon_shift;
        match random.below(10) {
            0..=3 => {
                let deadline = now.saturating_add(after);
                let key = bench.insert(deadline, number);
                model.insert((deadline, number), key);
            }
            4 => {
                let deadline = now.saturating_sub(after);
                model.insert((deadline, number), bench.insert(deadline, number));
            }
            5..=6 if !model.is_empty() => {
                let at = random.below(model.len() as u64) as usize;
                let (&id, &key) = model.iter().nth(at).unwrap();
                model.remove(&id);
                if random.below(2) == 0 {
                    assert!(bench.timers.remove(key).is_some());
                    gone.push(key);
                } else {
                    let deadline = now.saturating_add(after);
                    assert!(bench.timers.reset(key, deadline));
                    // Fires under its old number, in a place that the reset decides.
                    bench.timers.remove(key).unwrap();
                    model.insert((deadline, id.1), bench.insert(deadline, id.1));
                }
                removed = true;
            }
            7 if !gone.is_empty() => {
                let at = random.below(gone.len() as u64) as usize;
                assert!(bench.timers.remove(gone[at]).is_none());
            }
            _ => {
                now = match (random.below(3), bench.timers.next_deadline()) {
                    (0, Some(deadline)) => deadline.max(now),
                    (1, Some(deadline)) => deadline.saturating_sub(1).max(now),
                    _ => now.saturating_add(after),
                };
                let later = model.split_off(&(now.saturating_add(1), 0));
                let mut due = std::mem::replace(&mut model, later);
                if now == NEVER {
                    model.append(&mut due.split_off(&(NEVER, 0)));
                }
                // Equal deadlines: a reset timer comes after those inserted before the reset, the
                // model has it by number. The order of deadlines is what is compared.
                let deadlines: BTreeMap<u64, u64> =
                    due.keys().map(|&(deadline, number)| (number, deadline)).collect();
                let fired = bench.expire(now);
                assert_eq!(fired.len(), due.len(), "seed {seed} now {now}");
                assert!(fired.is_sorted_by_key(|number| deadlines[number]), "seed {seed}");
                gone.extend(due.into_values());
                assert!(bench.timers.next_deadline().is_none_or(|next| next > now), "would spin");
            }
        }
        assert_eq!(bench.timers.len(), model.len());
        let first = model.keys().next().map(|&(deadline, _)| deadline).filter(|&d| d != NEVER);
        let next = bench.timers.next_deadline();
        assert_eq!(next.is_some(), first.is_some());
        assert!(next <= first, "seed {seed}: sleeps past a deadline");
        if !removed {
            assert_eq!(next, first, "seed {seed}: wakes for nothing");
        }
    }
}

#[test]
fn an_idle_shard_wakes_once_per_timer() {
    let mut bench = Bench::new();
    let mut random = Random(3);
    for number in 0..1000 {
        bench.insert(random.duration_ns().clamp(1, NEVER - 1), number);
    }
    let mut wakes = 0;
    let mut fired = 0;
    while let Some(deadline) = bench.timers.next_deadline() {
        fired += bench.expire(deadline).len();
        wakes += 1;
        assert!(wakes <= fired, "a wake that fires nothing");
    }
    assert_eq!(fired, 1000);
}

#[test]
fn a_stale_minimum_costs_one_wake_per_level_at_most() {
    let mut bench = Bench::new();
    let mut keys = Vec::new();
    let base = 1 << 45;
    for number in 0..1000 {
        keys.push(bench.insert(base + number * 1_000, number));
    }
    bench.insert(base + 900_000_000, 1000);
    for key in keys {
        assert!(bench.timers.remove(key).is_some());
    }
    let mut wakes = 0;
    while let Some(deadline) = bench.timers.next_deadline() {
        bench.expire(deadline);
        wakes += 1;
    }
    assert!(wakes <= 9, "{wakes} wakes");
}

#[test]
fn a_clock_that_goes_back_fires_nothing_early_and_hides_nothing() {
    let base = 1 << 30;
    let mut bench = Bench::new();
    bench.expire(base);
    bench.insert(base + 3 * TICK_NS, 3);
    assert_eq!(bench.expire(1 << 20), []);
    bench.insert(base + TICK_NS, 1);
    assert_eq!(bench.timers.next_deadline(), Some(base + TICK_NS));
    assert_eq!(bench.expire(base + TICK_NS - 1), []);
    assert_eq!(bench.expire(base + TICK_NS), [1]);
    assert_eq!(bench.expire(base + 3 * TICK_NS), [3]);
}

#[test]
fn a_million_timers_come_and_go_and_their_memory_with_them() {
    const COUNT: u64 = 1_000_000;
    let mut bench = Bench::new();
    let resting = bench.timers.allocated_bytes();
    let waker = bench.waker(0);
    let mut random = Random(5);

    let mut keys = Vec::new();
    for _ in 0..COUNT {
        keys.push(bench.timers.insert(random.below(1 << 42), waker.clone()));
    }
    let spike = bench.timers.allocated_bytes();
    assert!(spike < COUNT as usize * 50, "{spike} bytes");
    // One timer in ten thousand stays.
    for (number, key) in keys.iter().enumerate() {
        if number % 10_000 != 0 {
            assert!(bench.timers.remove(*key).is_some());
        }
    }
    let stragglers = bench.timers.allocated_bytes();
    assert!(stragglers < spike / 20, "{stragglers} of {spike} bytes with 100 timers left");
    for key in keys.iter().step_by(10_000) {
        assert!(bench.timers.remove(*key).is_some());
    }
    assert!(bench.timers.allocated_bytes() <= resting + (16 << 10));

    for _ in 0..COUNT {
        bench.timers.insert(random.below(1 << 42), waker.clone());
    }
    let mut woken = Vec::new();
    for now in (0..=1 << 42).step_by(1 << 36) {
        bench.timers.expire(now, &mut woken);
    }
    assert_eq!(woken.len(), COUNT as usize);
    assert_eq!(bench.timers.len(), 0);
    assert!(bench.timers.allocated_bytes() <= resting + (16 << 10));
}

#[test]
fn a_steady_state_keeps_its_memory() {
    let mut bench = Bench::new();
    let waker = bench.waker(0);
    let mut woken = Vec::new();
    let mut bytes = None;
    for round in 0..1000_u64 {
        for timer in 0..300 {
            bench.timers.insert(round * 1000 + timer, waker.clone());
        }
        bench.timers.expire(round * 1000 + 999, &mut woken);
        assert_eq!(woken.len(), 300);
        woken.clear();
        let now = bench.timers.allocated_bytes();
        assert_eq!(*bytes.get_or_insert(now), now);
    }
}

#[test]
fn a_waker_that_panics_does_not_silence_the_others() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker's own trouble");
        }
    }
    let mut bench = Bench::new();
    bench.insert(1, 1);
    bench.timers.insert(2, Waker::from(Arc::new(Panics)));
    bench.insert(3, 3);
    assert_eq!(bench.expire(3), [1, 3]);
}

#[test]
fn a_paused_clock_moves_only_by_hand() {
    let clock = Clock::new();
    assert!(!clock.resume());
    assert!(!clock.advance(Duration::from_secs(1)));
    assert!(!clock.auto_advance_to(u64::MAX - 1));
    assert!(clock.pause());
    assert!(!clock.pause());
    assert!(Clock::any_ever_paused());

    let start = clock.now_ns();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(clock.now_ns(), start);
    assert!(clock.advance(Duration::from_secs(3)));
    assert_eq!(clock.now_ns(), start + 3_000_000_000);
    assert!(clock.auto_advance_to(start + 4_000_000_000));
    assert_eq!(clock.now_ns(), start + 4_000_000_000);
    assert!(clock.auto_advance_to(start));
    assert_eq!(clock.now_ns(), start + 4_000_000_000);
    assert!(!clock.auto_advance_to(NEVER));

    let hold = clock.hold();
    assert!(clock.is_held());
    assert!(!clock.auto_advance_to(start + 5_000_000_000));
    std::thread::spawn(move || drop(hold)).join().unwrap();
    assert!(clock.auto_advance_to(start + 5_000_000_000));

    assert!(clock.resume());
    let resumed = clock.now_ns();
    assert!(resumed >= start + 5_000_000_000);
    std::thread::sleep(Duration::from_millis(2));
    let later = clock.now_ns();
    assert!(later >= resumed + 2_000_000 && later < resumed + 2_000_000_000);
    assert!(clock.pause());
    assert!(clock.now_ns() >= later);
}

#[test]
fn a_clock_counts_far_instants_as_never_and_early_ones_as_zero() {
    let before = std::time::Instant::now();
    let clock = Clock::new();
    let far = before + Duration::from_nanos(u64::MAX) + Duration::from_secs(1);
    assert_eq!(clock.ns_of(before), 0);
    assert_eq!(clock.ns_of(far), NEVER);
}
