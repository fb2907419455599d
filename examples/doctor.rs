//! Says what a server would run on here, what stands in its way, and what to do about it:
//! `cargo run --example doctor`.
//!
//! Ends with 0 where io_uring would run, with 1 where epoll would, and with 2 where no runtime
//! could be built, so that scripts can ask.
use std::io::Write;
use std::process::ExitCode;

use annulus::Driver;

fn main() -> ExitCode {
    let diagnosis = annulus::doctor();
    // Who has stopped reading is still told by the status.
    let _ = write!(std::io::stdout(), "{diagnosis}");
    match diagnosis.runtime {
        Ok(info) if info.driver() == Driver::Uring => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(_) => ExitCode::from(2),
    }
}
