//! A message of repair or forgetting: its kind, and its body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::wire::fuzz::peer_repair(bytes));
