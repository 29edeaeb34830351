//! See `tests::targets::nn_graph`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::targets::nn_graph(data));
