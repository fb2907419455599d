//! A set that is awaited on one thread while its tasks end on another.

use super::*;
use crate::executor::{Executor, Mailbox};
use crate::sync::{AtomicBool, Ordering};
use loom::thread;

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// As in `executor::models`.
fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

#[test]
fn a_set_that_waits_elsewhere_is_woken_for_each_task() {
    model(|| {
        let executor = Executor::new(Mailbox::new());
        let mut set: JoinSet<u32> =
            [1, 2].map(|it| executor.spawn(async move { it })).into_iter().collect();
        let waiter = thread::spawn(move || {
            let mut sum = 0;
            loop {
                // A new one each time, as a task has that goes to another thread.
                let flag = Arc::new(Flag(AtomicBool::new(false)));
                let waker = Waker::from(Arc::clone(&flag));
                match set.poll_join_next(&mut Context::from_waker(&waker)) {
                    Poll::Ready(Some(output)) => sum += output.unwrap(),
                    Poll::Ready(None) => return sum,
                    Poll::Pending => {
                        while !flag.0.load(Ordering::Acquire) {
                            thread::yield_now();
                        }
                    }
                }
            }
        });
        executor.run(2, &());
        drop(executor);
        assert_eq!(waiter.join().unwrap(), 3);
    });
}

#[test]
fn a_set_that_is_dropped_elsewhere_drops_each_output_once() {
    model(|| {
        let executor = Executor::new(Mailbox::new());
        let outputs = [(); 2].map(|()| Arc::new(()));
        let handles = outputs.clone().map(|output| executor.spawn(async move { output }));
        let mut set: JoinSet<_> = handles.into_iter().collect();
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&flag));
        let dropper = thread::spawn(move || {
            let ended = set.poll_join_next(&mut Context::from_waker(&waker));
            drop((set, ended));
        });
        executor.take_mail(usize::MAX);
        executor.run(2, &());
        drop(executor);
        dropper.join().unwrap();
        assert!(outputs.iter().all(|output| Arc::strong_count(output) == 1));
        assert_eq!(Arc::strong_count(&flag), 1, "a waker was kept");
    });
}
