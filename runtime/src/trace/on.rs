//! With the feature `tracing`: a span for each task, each blocking job and each `block_on`.
//!
//! A span is made where the task is spawned, entered while its future is polled, and closed when
//! the future has been dropped. It is not entered for that drop, so that entries are polls. It has
//! no parent, as a task is no part of the one that spawned it.

use std::any::type_name;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tracing::{Span, trace_span};

use super::waker::Watched;
use crate::sync::counter::{AtomicU64, Ordering};

/// The span of a task that is about to be spawned.
pub(crate) struct TaskSpan(Span);

impl TaskSpan {
    /// For a task with a future of this size, spawned where the caller says.
    #[track_caller]
    pub(crate) fn task(name: Option<&str>, bytes: usize) -> TaskSpan {
        TaskSpan(task_span("task", name, bytes, Location::caller()))
    }

    /// For the future that `block_on` runs. By its kind the console knows that it need not yield.
    #[track_caller]
    pub(crate) fn block_on(bytes: usize) -> TaskSpan {
        TaskSpan(task_span("block_on", None, bytes, Location::caller()))
    }

    pub(crate) fn around<F: Future>(self, future: F) -> Traced<F> {
        Traced { future, watched: None, span: self.0 }
    }
}

fn task_span(kind: &str, name: Option<&str>, bytes: usize, place: &Location<'_>) -> Span {
    trace_span!(
        target: "tokio::task",
        parent: None,
        "runtime.spawn",
        kind = %kind,
        task.name = name.map(tracing::field::display),
        task.id = next_id(),
        size.bytes = bytes,
        loc.file = place.file(),
        loc.line = place.line(),
        loc.col = place.column(),
    )
}

/// A closure for a thread where it may block. Its span is entered while it runs there.
#[track_caller]
pub(crate) fn traced_job<F, T>(f: F) -> impl FnOnce() -> T
where
    F: FnOnce() -> T,
{
    let place = Location::caller();
    let span = trace_span!(
        target: "tokio::task::blocking",
        parent: None,
        "runtime.spawn",
        kind = %"blocking",
        task.id = next_id(),
        "fn" = %type_name::<F>(),
        size.bytes = size_of::<F>(),
        loc.file = place.file(),
        loc.line = place.line(),
        loc.col = place.column(),
    );
    move || span.in_scope(f)
}

/// What the console calls the task's id. Not [`TaskId`](crate::task::TaskId), which a task has only
/// when it has come to its shard, and which is used again.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Relaxed: only that no two are equal counts.
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The type that the user knows, where a task's future is of this one.
pub(crate) fn untraced_name(type_name: &'static str) -> &'static str {
    let inner = type_name.strip_prefix(concat!(module_path!(), "::Traced<"));
    inner.and_then(|name| name.strip_suffix('>')).unwrap_or(type_name)
}

pin_project! {
    /// A future that is polled in its span.
    pub(crate) struct Traced<F> {
        #[pin]
        future: F,
        // Lent to the future at each poll. None before the first, and where no subscriber listens.
        watched: Option<Arc<Watched>>,
        // Last, because it closes when the future has been dropped.
        span: Span,
    }
}

impl<F: Future> Future for Traced<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.span.enter();
        if !this.watched.as_ref().is_some_and(|watched| watched.wakes_as(cx.waker())) {
            *this.watched = Watched::new(cx.waker(), this.span);
        }
        match this.watched {
            Some(watched) => {
                watched.lend(|waker| this.future.poll(&mut Context::from_waker(waker)))
            }
            None => this.future.poll(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Traced, type_name, untraced_name};

    #[test]
    fn the_name_of_a_traced_type_is_that_of_what_is_in_it() {
        assert_eq!(untraced_name(type_name::<Traced<Option<u8>>>()), type_name::<Option<u8>>());
        assert_eq!(untraced_name(type_name::<Option<u8>>()), type_name::<Option<u8>>());
    }
}
