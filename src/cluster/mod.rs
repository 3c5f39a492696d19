//! Decisions about the ring and its replicas: pure, synchronous, no hands.

mod balance;
pub mod fuzz;
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
