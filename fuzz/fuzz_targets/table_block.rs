//! The content of a table's block.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::engine::fuzz::table_block(bytes));
