//! A task on another thread that answers requests, for runtimes that leave channels to the user.
//!
//! The channels are those of `futures-channel`, which know no runtime: they wake a task by its
//! waker, and what that costs is the runtime's.

use std::{io, thread};

use bench_support::children::Failure;
use futures_channel::{mpsc, oneshot};

use crate::work::REQUEST_BYTES;

/// The memory that the connection has received it in changes hands, so that nothing is copied.
pub(super) type Request = Box<[u8; REQUEST_BYTES]>;

struct Question {
    request: Request,
    answer: oneshot::Sender<Request>,
}

/// The connections' side.
#[derive(Clone)]
pub(super) struct Desk(mpsc::UnboundedSender<Question>);

/// The side of the task that answers.
pub(super) struct Clerk(mpsc::UnboundedReceiver<Question>);

impl Desk {
    /// Opens a desk whose clerk a thread of its own runs, as `run` says.
    pub(super) fn open<F>(run: F) -> Self
    where
        F: FnOnce(Clerk) -> Result<(), Failure> + Send + 'static,
    {
        let (desk, clerk) = mpsc::unbounded();
        thread::spawn(move || {
            if let Err(error) = run(Clerk(clerk)) {
                eprintln!("versus: the thread that answers has ended: {error}");
            }
        });
        Self(desk)
    }

    /// # Errors
    /// The other thread has ended.
    pub(super) async fn ask(&self, request: Request) -> io::Result<Request> {
        let (answer, answered) = oneshot::channel();
        self.0.unbounded_send(Question { request, answer }).map_err(io::Error::other)?;
        answered.await.map_err(io::Error::other)
    }
}

impl Clerk {
    /// Answers until the last desk has gone.
    pub(super) async fn answer(mut self) {
        while let Ok(question) = self.0.recv().await {
            // A connection that has gone needs no answer.
            let _ = question.answer.send(question.request);
        }
    }
}
