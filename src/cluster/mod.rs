//! Decisions about the ring, its members and its replicas: pure, synchronous, no hands.

mod balance;
pub mod detector;
pub mod fuzz;
pub mod gossip;
pub mod placement;
#[cfg(test)]
mod placement_tests;
pub mod plan;
pub mod quorum;
pub mod ring;
pub mod ring_table;
pub mod targets;
pub mod topology;
pub mod topology_codec;
#[cfg(test)]
mod topology_tests;
