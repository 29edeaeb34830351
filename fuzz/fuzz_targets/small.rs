//! See `tests::small::target`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::small::target(data));
