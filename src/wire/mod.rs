//! Bytes ⇄ requests and replies; pure. `command` is the one vocabulary, `frame` cuts a stream into frames, `native` is the rkyv encoding
//! (docs/protocol.md spells out every byte), `fuzz` are the entry points that must survive anything.

pub mod command;
pub mod frame;
pub mod fuzz;
pub mod native;

#[cfg(test)]
mod tests;
