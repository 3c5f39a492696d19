//! A manifest's edits, and the whole file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::engine::fuzz::manifest(bytes));
