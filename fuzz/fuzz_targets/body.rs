//! A kind and a native body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::wire::fuzz::body(bytes));
