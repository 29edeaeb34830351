//! Cases decoded from bytes, oracles and guard pages.
