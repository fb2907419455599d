//! Without the feature `tracing`: nothing is wrapped.

/// Stands for the span of a task.
pub(crate) struct TaskSpan;

impl TaskSpan {
    #[inline(always)]
    pub(crate) fn task(_name: Option<&str>, _bytes: usize) -> TaskSpan {
        TaskSpan
    }

    #[inline(always)]
    pub(crate) fn block_on(_bytes: usize) -> TaskSpan {
        TaskSpan
    }

    #[inline(always)]
    pub(crate) fn around<F>(self, future: F) -> F {
        future
    }
}

#[inline(always)]
pub(crate) fn traced_job<F>(f: F) -> F {
    f
}

pub(crate) fn untraced_name(type_name: &'static str) -> &'static str {
    type_name
}
