//! A stream of frames, however it is cut into chunks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::wire::fuzz::frame(bytes));
