//! The simulated world, in which the same executor, engine and shards run as on a machine: one thread, one seed, a clock of its own.
//!
//! The fault model. What the code above must live with, and what it may rely on:
//!
//! - **write**: lost, kept or torn at 512-byte sectors by a crash until a sync or the write's own durability has completed; fails with EIO,
//!   done or not or half; refused by a full disk, with a part done. Never: it went over one that completed after it; a durable one undone.
//! - **length**: grown without data, or not grown with its data gone, until synced.
//! - **sync**: fails, after which what waited is kept or lost and a later sync says nothing of it. Never: success without durability.
//! - **name**: created, renamed, linked, removed or not, each by itself, until `SyncDir` of its folder; a file without a durable name is
//!   gone with its data. Never: a rename by halves; a change of a name without the earlier ones of that name.
//! - **read**: fails with EIO; shows a bit that a test flipped. Never: other bytes than were written.
//! - **any disk operation**: takes long; is the one at which the power fails: before it, in it, after it.
//! - **stream**: late, in pieces cut anywhere, stalled by a cut link (each direction by itself) and then reset; reset at any time. Never:
//!   bytes lost, doubled, swapped or changed within a stream.
//! - **connect**: refused, or not answered at all.
//! - **machine**: the power fails, or its processes are killed, at any moment; its peers learn it late. Never: a core goes on where another
//!   of the machine has fallen.
//! - **core**: held up for milliseconds.
//! - **wall clock**: off, drifting, jumping both ways.
//!
//! Operations under way when the power fails have each begun or not; none of what they did is durable, whatever it may look like.
//! Everything that happens is counted in `World::stats`: a fault that is never counted was not tested.
//!
//! Datagrams are not simulated here: only gossip has any, and `sim::air` carries those.

mod disk;
mod driver;
mod faults;
mod net;
mod world;

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod tests;

pub use disk::SECTOR_BYTES;
pub use driver::SimDriver;
pub use faults::Faults;
pub use net::SimParcel;
pub use world::{CrashSite, MachineId, Stopped, World};
