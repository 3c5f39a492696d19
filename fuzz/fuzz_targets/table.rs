//! Every part of a table.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::engine::fuzz::table(bytes));
