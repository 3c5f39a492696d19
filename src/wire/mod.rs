//! Bytes ⇄ requests and replies; pure. `command` is the one vocabulary, `frame` cuts a stream into frames, `native` is the rkyv encoding
//! (docs/protocol.md spells out every byte), `peer`, `peer_hello`, `peer_moves` and `peer_repair` what the cores of different nodes say to
//! each other, `fuzz` are the entry points that must survive anything.

pub mod command;
pub mod frame;
pub mod fuzz;
pub mod native;
pub mod peer;
mod peer_body;
pub mod peer_hello;
pub mod peer_moves;
pub mod peer_repair;

#[cfg(test)]
mod peer_repair_tests;
#[cfg(test)]
mod peer_tests;
#[cfg(test)]
mod tests;
