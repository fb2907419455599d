//! libuv, the most deployed event loop: `native/libuv.c`, which `build.rs` compiles.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::net::SocketAddr;

use bench_support::children::{self, Failure};

use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

/// `struct plan` of the C file.
#[repr(C)]
struct Plan {
    work: c_int,
    buffer_bytes: usize,
    request_bytes: usize,
    small_writes: c_uint,
}

/// `enum work` of the C file.
const ECHO: c_int = 0;
const SMALL_WRITES_WORK: c_int = 1;
const SOURCE: c_int = 2;
const SINK: c_int = 3;
const RELAY: c_int = 4;

unsafe extern "C" {
    fn versus_libuv_serve(plan: *const Plan, announce: extern "C" fn(c_int)) -> c_int;
    safe fn versus_libuv_error(error: c_int) -> *const c_char;
}

pub(crate) fn does(work: Work) -> bool {
    plan(work).is_some()
}

pub(crate) fn serve(work: Work) -> Result<(), Failure> {
    let plan = plan(work).ok_or_else(|| format!("libuv has no server for {work}"))?;
    // SAFETY: the plan outlives the call, which copies it. The process calls this once only, which
    // is what the C file's static memory needs.
    let error = unsafe { versus_libuv_serve(&raw const plan, announce) };
    // SAFETY: libuv answers with a text that ends with a zero and is never freed, or makes one.
    let text = unsafe { CStr::from_ptr(versus_libuv_error(error)) };
    Err(format!("libuv: {}", text.to_string_lossy()).into())
}

fn plan(work: Work) -> Option<Plan> {
    let (work, buffer_bytes) = match work {
        Work::Echo { buffer_bytes } => (ECHO, buffer_bytes),
        Work::SmallWrites => (SMALL_WRITES_WORK, REQUEST_BYTES),
        Work::Source => (SOURCE, BLOCK_BYTES),
        Work::Sink => (SINK, BLOCK_BYTES),
        Work::Relay => (RELAY, REQUEST_BYTES),
        Work::Http => return None,
    };
    let small_writes = SMALL_WRITES as c_uint;
    Some(Plan { work, buffer_bytes, request_bytes: REQUEST_BYTES, small_writes })
}

extern "C" fn announce(port: c_int) {
    children::announce(SocketAddr::from(([127, 0, 0, 1], port as u16)));
}
