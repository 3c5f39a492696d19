//! A level of a hash tree, as it comes from a peer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::cluster::fuzz::merkle(bytes));
