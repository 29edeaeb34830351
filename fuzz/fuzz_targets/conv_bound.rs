//! See `tests::targets::conv_bound`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::targets::conv_bound(data));
