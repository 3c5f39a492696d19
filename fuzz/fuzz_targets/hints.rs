//! A log of hints.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::cluster::fuzz::hints(bytes));
