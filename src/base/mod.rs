//! What every room stands on: time, random numbers, the record model, checksums, maps, byte codecs. Imports nothing of ours.

pub mod checksum;
pub mod codec;
pub mod map;
pub mod metrics;
pub mod prefetch;
pub mod prng;
pub mod record;
pub mod time;
