//! A handler, the thread that it rings for, and one who waits, in every order.

use super::*;
use loom::sync::Notify;
use loom::thread;
use std::pin::Pin;
use std::task::{Wake, Waker};

struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// As in `executor::models`, and one less: the listener and who waits sleep in turns.
const PREEMPTIONS_MAX: usize = 2;

#[test]
fn each_signal_is_seen_once_by_who_waits_however_late() {
    const SIGNALS: u64 = 2;
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(|| {
        let source: &'static Source = Box::leak(Box::default());
        let bell = Arc::new(Notify::new());
        let rung = Arc::clone(&bell);
        let handler = thread::spawn(move || {
            for _ in 0..SIGNALS {
                source.note();
                rung.notify();
            }
        });
        let listener = thread::spawn(move || {
            let mut woken = [0];
            while woken != [SIGNALS] {
                bell.wait();
                wake_those_told(std::slice::from_ref(source), &mut woken);
            }
        });
        let mut signal = Signal { source, seen: 0 };
        let woken = Arc::new(Bell(Notify::new()));
        let waker = Waker::from(Arc::clone(&woken));
        let mut seen = 0;
        while seen < SIGNALS {
            let mut place = signal.place();
            let poll = signal.poll(&mut place, &mut Context::from_waker(&waker));
            match poll {
                Poll::Ready(come) => seen += come,
                Poll::Pending => woken.0.wait(),
            }
        }
        handler.join().unwrap();
        listener.join().unwrap();
        assert_eq!((seen, signal.take()), (SIGNALS, 0));
        drop(waker);
        assert_eq!(Arc::strong_count(&woken), 1, "a waker was kept");
    });
}

#[test]
fn a_recv_that_is_dropped_leaves_its_signal_to_the_next() {
    loom::model(|| {
        let source: &'static Source = Box::leak(Box::default());
        let handler = thread::spawn(move || {
            source.note();
            wake_those_told(std::slice::from_ref(source), &mut [0]);
        });
        let mut signal = Signal { source, seen: 0 };
        let mut cx = Context::from_waker(Waker::noop());
        let mut recv = Box::pin(signal.recv());
        let first = Pin::new(&mut recv).poll(&mut cx).is_ready();
        drop(recv);
        handler.join().unwrap();
        assert_eq!(signal.take(), u64::from(!first));
    });
}
