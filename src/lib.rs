//! ringkv: a distributed key-value store, one pinned thread a core. This page is the map.
//!
//! # Rooms
//!
//! | room | what is there | imports |
//! | --- | --- | --- |
//! | [`base`] | time, random numbers, the record model (places, versions, cells, their join), checksums, codecs | nothing of ours |
//! | [`limits`] | every bound, with its reason | base |
//! | [`wire`] | one vocabulary (`command`), frames, the native encoding: bytes ⇄ `Request`/`Reply`; messages between nodes | base, limits |
//! | [`client`] | the native client: a core without I/O, a blocking face, one for tokio | base, limits, wire |
//! | [`cluster`] | decisions about ring, members, replicas, repair: pure; of a node only gossip is wired yet | base, limits, wire |
//! | [`io`] | the seam to the world: operations, executor, the drivers: io_uring, epoll, simulated | base, limits |
//! | [`engine`] | a core's storage: WAL, memtable, tables, compaction, recovery; `format`: every byte on disk | base, limits, io |
//! | [`shard`] | where wire and engine meet: sessions, execution, cross-core mail | all of the above |
//! | [`control`] | the control core on glommio: the admin port, gossip's sockets | base, limits, wire, cluster |
//! | [`sim`] | whole nodes in one thread from a seed, under a checker | everything |
//! | [`node`], [`shell`], [`config`] | the process: threads, the shell client, flags | what they start |
//! | [`local`] | `ringkv local`: a cluster of processes on one machine | config, io |
//! | [`verify`], [`probe`] | `ringkv verify` and `inspect`, `ringkv probe` | what they start |
//!
//! `tests/style.rs` holds the arrows.
//!
//! # The life of a GET
//!
//! 1. The client hashes the key to a token, the token to a vnode, the vnode to a core, and writes a frame on that core's connection.
//! 2. `io::uring` receives it into a ring buffer; `shard::session::read` cuts the chunk into frames where they lie.
//! 3. `shard::route` checks it and sees that the key is this core's own (else the frame goes through `shard::mailbox` to the owner).
//! 4. `shard::execute` peeks into memory: memtables and cache, by the tables' version bounds. A hit is encoded straight into the
//!    connection's outgoing bytes, with no await; `shard::conn`'s writer sends all of a turn's answers with one operation.
//! 5. Not in memory: `shard::perform` makes a task, which reads one block of one table (`engine::table`) and answers.
//! 6. What was seen but is not yet on disk waits in `shard::commits` until it is: nobody is shown what a power loss could take back.
//!
//! # The life of a PUT
//!
//! 1. to 3. as above. 4. `shard::execute` stamps a version (`base::time::HybridClock`), and `engine` appends one record to the WAL's
//!    buffer and puts the cell into the memtable: no read comes first.
//! 5. The WAL writes one group at a time, durable when the write completes; all that arrived meanwhile is the next group.
//! 6. When the group is down, `shard::commits` answers every write that it carried in one pass.
//! 7. Later a full memtable becomes a table, and compaction merges tables, in the background and in slices.

pub mod base;
pub mod limits;
pub mod wire;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod cluster;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod control;
#[cfg(feature = "server")]
pub mod engine;
#[cfg(feature = "server")]
pub mod io;
#[cfg(feature = "server")]
pub mod local;
#[cfg(feature = "server")]
pub mod node;
#[cfg(feature = "server")]
pub mod probe;
#[cfg(feature = "server")]
pub mod shard;
#[cfg(feature = "server")]
pub mod shell;
#[cfg(feature = "server")]
pub mod sim;
#[cfg(feature = "server")]
pub mod verify;

/// The README's code is compiled with the documentation's tests.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
pub struct Readme;
