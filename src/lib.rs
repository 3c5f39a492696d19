//! ringkv: a distributed key-value store, one pinned thread a core.
//!
//! This page is the map. Rooms, and who may look into whom (a test holds the arrows):
//! `base` ← `limits` ← `wire`, `io`; `cluster` sees base, limits, wire; `engine` sees base, limits, io;
//! `shard` sees all of those; `control` sees base, limits, wire, cluster; `sim` sees everything.

pub mod base;
pub mod limits;
pub mod wire;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod cluster;
#[cfg(feature = "server")]
pub mod control;
#[cfg(feature = "server")]
pub mod engine;
#[cfg(feature = "server")]
pub mod io;
#[cfg(feature = "server")]
pub mod shard;
#[cfg(feature = "server")]
pub mod sim;

#[cfg(feature = "server")]
pub mod config;

#[cfg(feature = "server")]
pub mod shell;
