//! Micro-benchmarks of ringkv, a room each.
