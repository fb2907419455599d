//! The pause behind a send that has failed for a shortage.
//!
//! What was accepted is kept and has to go out, also where no call follows that would try again: a
//! task may only read from now on, or have dropped the write half. At once the send would fail
//! again.

use std::time::{Duration, Instant};

use annulus_runtime::io::{ResidentKey, mark_dirty};
use annulus_runtime::spawn;
use annulus_runtime::task::AbortHandle;
use annulus_runtime::time::sleep;

const PAUSE: Duration = Duration::from_secs(1);

/// At the end of a runtime, which lets all write out again and again.
const PAUSE_AT_END: Duration = Duration::from_millis(10);

/// When it ends, the connection is let write out.
#[derive(Default)]
pub(super) struct Pause {
    task: Option<AbortHandle>,
    /// Where there are no tasks any more.
    until: Option<Instant>,
}

impl Pause {
    pub(super) fn begin(&mut self, key: ResidentKey) {
        if self.is_on() {
            return;
        }
        let task = spawn(async move {
            sleep(PAUSE).await;
            mark_dirty(key);
        });
        if task.is_finished() {
            self.until = Some(Instant::now() + PAUSE_AT_END);
        }
        self.task = Some(task.abort_handle());
    }

    /// A send has gone well, or somebody was told who may have freed something.
    pub(super) fn end(&mut self, key: ResidentKey) {
        self.until = None;
        if let Some(task) = self.task.take() {
            task.abort();
            mark_dirty(key);
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.task.as_ref().is_some_and(|task| !task.is_finished())
            || self.until.is_some_and(|until| Instant::now() < until)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::{self, IoSlice};
    use std::rc::Rc;

    use annulus_runtime::io::{Fd, Homed, Release, Resident};
    use annulus_runtime::task::yield_now;
    use annulus_runtime::{Driver, Runtime};

    use super::*;
    use crate::UnixStream;
    use crate::stream::outbound::Outbound;

    fn runtimes() -> [Runtime; 2] {
        [Driver::Auto, Driver::Epoll]
            .map(|driver| Runtime::builder().driver(driver).shards(1).build().expect("a runtime"))
    }

    #[test]
    fn a_shortage_that_is_over_when_its_pause_is_is_told_nobody() {
        for runtime in runtimes() {
            runtime.block_on(async {
                let (mut one, mut other) = UnixStream::pair().unwrap();
                for moves in [false, true] {
                    let shortage = io::Error::from_raw_os_error(libc::ENOBUFS);
                    one.connection().unwrap().send_fell_short(b"x".to_vec(), Err(shortage));
                    other.read_exact(&mut [0]).await.unwrap();
                    if moves {
                        one = UnixStream::attach(one.detach().unwrap()).unwrap();
                    }
                    one.write_all(b"y").await.expect("nothing is kept back");
                    other.read_exact(&mut [0]).await.unwrap();
                }
            });
        }
    }

    #[test]
    fn a_shortage_behind_a_send_that_went_well_is_told() {
        for runtime in runtimes() {
            runtime.block_on(async {
                let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
                one.set_nonblocking(true).unwrap();
                let short = Homed::new(|key| Short { key, pause: RefCell::default() }).unwrap();
                let key = short.get().unwrap().key;
                let mut outbound = Outbound::new(Fd::new(one.into()), key);
                outbound.keep(&[IoSlice::new(b"w")], 1);
                outbound.start();
                while outbound.is_sending() {
                    yield_now().await;
                }
                let shortage = io::Error::from_raw_os_error(libc::ENOBUFS);
                outbound.weigh_own(b"x".to_vec(), 0, Err(shortage));
                let told = outbound.check().unwrap_err();
                assert_eq!(told.raw_os_error(), Some(libc::ENOBUFS));
            });
        }
    }

    thread_local! {
        static PAUSED: Cell<Option<bool>> = const { Cell::new(None) };
    }

    struct Short {
        key: ResidentKey,
        pause: RefCell<Pause>,
    }

    impl Resident for Short {
        fn release(self: Rc<Self>) -> Release {
            self.pause.borrow_mut().begin(self.key);
            PAUSED.set(Some(self.pause.borrow().until.is_some()));
            Release::Depart
        }
    }

    #[test]
    fn there_is_a_pause_at_the_end_of_a_runtime_too() {
        for runtime in runtimes() {
            let short = runtime.block_on(async {
                Homed::new(|key| Short { key, pause: RefCell::default() }).expect("a runtime")
            });
            drop(runtime);
            assert_eq!(PAUSED.take(), Some(true));
            drop(short);
        }
    }
}
