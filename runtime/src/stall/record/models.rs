//! What a shard runs, read while it goes on to something else.

use super::*;
use loom::thread;
use std::sync::Arc;

/// As in `executor::models`.
const PREEMPTIONS_MAX: usize = 2;

#[test]
fn what_is_read_belongs_to_the_number_that_was_asked_for() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(|| {
        let place = Location::caller();
        let record = Record::of_this_thread(0, ShardId::next(), Duration::from_secs(1), None);
        let record = Arc::new(record);
        let theirs = Arc::clone(&record);
        // The watchdog is the later thread: loom 0.7 tries every store before a load that comes
        // behind it, but not before one that its own thread has made another load since.
        let watchdog = thread::spawn(move || {
            let number = theirs.number();
            let holder = if number % 2 == 1 { theirs.holder(number) } else { None };
            match holder {
                None => {}
                Some(Holder::BlockOn { type_name, .. }) => {
                    assert_eq!(type_name, if number == 1 { "first" } else { "the third" });
                }
                Some(Holder::Upkeep) => assert_eq!(number, 3),
                Some(other) => panic!("{other:?} under the number {number}"),
            }
        });
        record.begin_root("first", place);
        record.begin_upkeep();
        record.begin_root("the third", place);
        record.rest();
        watchdog.join().unwrap();
        assert_eq!(record.number() % 2, 0);
    });
}
