//! A task on another thread that answers requests, by tokio's channels.

use std::{io, thread};

use bench_support::children::Failure;
use tokio::sync::{mpsc, oneshot};

/// The memory that the connection has received it in changes hands, so that nothing is copied.
pub(super) type Request = Vec<u8>;

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
        let (desk, clerk) = mpsc::unbounded_channel();
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
        self.0.send(Question { request, answer }).map_err(io::Error::other)?;
        answered.await.map_err(io::Error::other)
    }
}

impl Clerk {
    /// Answers until the last desk has gone.
    pub(super) async fn answer(mut self) {
        while let Some(question) = self.0.recv().await {
            // A connection that has gone needs no answer.
            let _ = question.answer.send(question.request);
        }
    }
}
