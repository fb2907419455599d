//! Counts the bytes that a task takes which waits for nothing: `parked RUNTIME TASKS`.
//!
//! A program of its own, because counting would make all other rows slower.

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use micro::subjects::Entry;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match &arguments[..] {
        [runtime, tasks] => Entry::named(runtime).zip(tasks.parse::<u64>().ok()),
        _ => None,
    };
    let Some((runtime, tasks)) = parsed else {
        eprintln!("parked RUNTIME TASKS");
        return ExitCode::FAILURE;
    };
    let mut looks = Vec::with_capacity(2);
    runtime.park(tasks, &mut || looks.push(LIVE_BYTES.load(Ordering::Relaxed)));
    println!("{:.1}", (looks[1] - looks[0]) as f64 / tasks as f64);
    ExitCode::SUCCESS
}

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a sum of what has been asked for and not been given back.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps this method's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}
