//! Decisions about the ring and its replicas: pure, synchronous, no hands.

pub mod ring;
