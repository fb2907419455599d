#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| annulus_runtime::fuzzing::SETTINGS(bytes));
