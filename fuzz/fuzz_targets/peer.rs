//! A message between nodes: its kind, and what stands behind the header.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::wire::fuzz::peer(bytes));
