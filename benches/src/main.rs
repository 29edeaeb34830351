//! `kernelbench`: times the kernels.
fn main() {}
