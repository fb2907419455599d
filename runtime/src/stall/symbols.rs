//! The names of functions, by the crate `backtrace`.

use std::ffi::c_void;
use std::ptr;

use super::report::Function;

/// The function that this address belongs to, behind those inlined there.
pub(super) fn functions_at(address: usize) -> Vec<Function> {
    let mut functions = Vec::new();
    // It takes a return address, and looks at the call before it.
    let address = ptr::without_provenance_mut::<c_void>(address + 1);
    backtrace::resolve(address, |symbol| {
        if let Some(name) = symbol.name() {
            // Without the hash.
            let name = format!("{name:#}");
            let file = symbol.filename().map(ToOwned::to_owned);
            functions.push(Function { name, file, line: symbol.lineno() });
        }
    });
    functions
}
