//! Matrix products.

pub(crate) mod micro;
