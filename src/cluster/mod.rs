//! Decisions about the ring, its members and its replicas: pure, synchronous, no hands.

pub mod detector;
pub mod gossip;
pub mod ring;
