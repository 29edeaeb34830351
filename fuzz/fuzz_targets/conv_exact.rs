//! See `tests::targets::conv_exact`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::targets::conv_exact(data));
