//! A message that decides topologies or moves vnodes: its kind, and its body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::wire::fuzz::peer_moves(bytes));
