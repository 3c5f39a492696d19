//! A message of gossip.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringkv::cluster::gossip::fuzz::message(bytes));
