//! See `tests::targets::attention`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::targets::attention(data));
