//! A block of the log, a segment's header, a group's payload.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::engine::fuzz::wal_block(bytes));
