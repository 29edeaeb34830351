//! See `tests::gemm::target`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::gemm::target(data));
