//! Decisions about the ring, its members and its replicas: pure, synchronous, no hands.

mod balance;
pub mod board;
pub mod coordinator;
#[cfg(test)]
mod coordinator_sim;
#[cfg(test)]
mod coordinator_tests;
pub mod decide;
#[cfg(test)]
mod decide_tests;
pub mod detector;
#[cfg(test)]
mod dialogue_tests;
pub mod forget;
#[cfg(test)]
mod forget_tests;
pub mod founding;
pub mod fuzz;
pub mod gossip;
pub mod hints;
#[cfg(test)]
mod linearize;
pub mod merkle;
pub mod placement;
#[cfg(test)]
mod placement_tests;
pub mod plan;
pub mod quorum;
pub mod repair;
pub mod repair_plan;
#[cfg(test)]
mod repair_tests;
#[cfg(test)]
mod repair_world;
pub mod replica;
pub mod ring;
pub mod ring_table;
pub mod takeover;
pub mod targets;
pub mod topology;
pub mod topology_codec;
#[cfg(test)]
mod topology_tests;
pub mod words;
