//! The storage engine of one core.

pub mod batch;
pub mod block;
pub mod cache;
pub mod cell_cache;
pub mod compact;
pub mod expire;
pub mod figures;
pub mod filter;
pub mod format;
pub mod fuzz;
pub mod hint_log;
#[cfg(test)]
mod hint_log_tests;
pub mod inspect;
#[cfg(test)]
mod inspect_tests;
pub mod levels;
pub mod manifest;
#[cfg(test)]
mod manifest_tests;
pub mod memtable;
pub mod merge;
mod moving;
#[cfg(test)]
mod moving_tests;
pub mod pace;
#[cfg(test)]
mod pace_tests;
pub mod pick;
mod pieces;
pub mod recover;
pub mod salvage;
#[cfg(test)]
mod salvage_tests;
pub mod snapshot;
pub mod store;
pub mod store_marks;
mod store_open;
mod store_read;
pub mod store_repair;
#[cfg(test)]
mod store_repair_tests;
mod store_scan;
#[cfg(test)]
mod store_tests;
pub mod store_void;
mod store_work;
pub mod table;
pub mod table_iter;
#[cfg(test)]
mod table_tests;
pub mod table_writer;
pub mod tables;
#[cfg(test)]
mod tables_tests;
#[cfg(test)]
mod test_core;
pub mod verify;
pub mod verify_folder;
#[cfg(test)]
mod verify_folder_tests;
pub mod vnode_set;
pub mod wal;
mod wal_plan;
mod wal_replay;
mod wal_segments;
#[cfg(test)]
mod wal_tests;

pub use batch::{Batch, KeyRef};
pub use store::{Engine, EngineConfig};
pub use store_read::{PREFETCH_MAX, Value, Whole};

use crate::base::codec::Malformed;

/// A sequence of the write-ahead log: dense, from 1; 0 is nothing.
pub type Seq = u64;

/// Bugs that the simulator must find. Never reachable from a configuration file or a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The log is written without sync.
    SyncSkipped,
    /// A torn group at the log's end is taken for a whole one.
    TornTailAccepted,
    /// A tombstone goes although older cells lie below it.
    TombstoneDroppedEarly,
    /// After a restart the clock starts where the wall clock stands.
    ClockRestartedLow,
}

/// Why the engine could not do what it was asked.
#[derive(Debug)]
pub enum EngineError {
    Io(std::io::Error),
    /// Bytes on disk are not what was written: the file and where in it.
    Corrupt {
        file: String,
        offset: u64,
        what: String,
    },
    /// No room; reads and deletes go on.
    DiskFull,
    /// A sync failed earlier: this shard acknowledges nothing any more.
    Stopped(String),
    /// A bound is reached; try later.
    Overloaded,
    /// At or below its vnode's floor: what it is about may have been forgotten.
    Superseded,
    /// One atomic write that does not fit into the log.
    TooLarge,
    /// Too new for this build: the file and which feature.
    Unsupported {
        file: String,
        what: String,
    },
}

/// The disk, or the quota, has no room.
pub fn is_disk_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

impl EngineError {
    /// There was no room on the disk, whoever found that.
    pub fn is_disk_full(&self) -> bool {
        match self {
            EngineError::DiskFull => true,
            EngineError::Io(error) => is_disk_full(error),
            _ => false,
        }
    }

    pub fn corrupt(file: &str, offset: u64, what: Malformed) -> EngineError {
        EngineError::Corrupt { file: file.to_owned(), offset, what: what.0.to_owned() }
    }
}

impl From<std::io::Error> for EngineError {
    fn from(error: std::io::Error) -> EngineError {
        EngineError::Io(error)
    }
}

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EngineError::Io(error) => write!(f, "{error}"),
            EngineError::Corrupt { file, offset, what } => write!(f, "{file} at {offset}: {what}"),
            EngineError::DiskFull => f.write_str("the disk is full"),
            EngineError::Stopped(why) => write!(f, "this shard stopped acknowledging: {why}"),
            EngineError::Overloaded => f.write_str("overloaded"),
            EngineError::Superseded => f.write_str("older than what this shard remembers"),
            EngineError::TooLarge => f.write_str("one write larger than the log takes"),
            EngineError::Unsupported { file, what } => write!(f, "{file} needs {what}, which this build does not know"),
        }
    }
}

impl std::error::Error for EngineError {}
