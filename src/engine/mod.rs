//! The storage engine of one core.

pub mod block;
pub mod cache;
pub mod filter;
pub mod format;
pub mod fuzz_table;
pub mod table;
pub mod table_iter;
#[cfg(test)]
mod table_tests;
pub mod table_writer;
pub mod verify;

use crate::base::codec::Malformed;

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
    /// Too new for this build: the file and which feature.
    Unsupported {
        file: String,
        what: String,
    },
}

impl EngineError {
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
            EngineError::Unsupported { file, what } => write!(f, "{file} needs {what}, which this build does not know"),
        }
    }
}

impl std::error::Error for EngineError {}
