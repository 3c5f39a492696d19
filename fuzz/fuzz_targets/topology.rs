//! A topology, as it lies on a disk and comes from a peer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::cluster::fuzz::topology(bytes));
