//! Runs one row on one runtime, so often: for callgrind, which counts what that takes.

use std::process::ExitCode;

use micro::Row;
use micro::subjects;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [row, runtime, operations] = &arguments[..] else {
        eprintln!("counted ROW RUNTIME OPERATIONS");
        return ExitCode::FAILURE;
    };
    let (Some(row), Some(runtime)) = (Row::named(row), subjects::Entry::named(runtime)) else {
        eprintln!("no row {row:?}, or no runtime {runtime:?}");
        return ExitCode::FAILURE;
    };
    let Ok(operations) = operations.parse() else {
        eprintln!("{operations:?} is no number");
        return ExitCode::FAILURE;
    };
    match runtime.measure(row, operations) {
        Some(figure) => println!("{} on {runtime}: {figure:.1} {}", row.name, row.unit),
        None => println!("{runtime} has no such operation"),
    }
    ExitCode::SUCCESS
}
