//! Operations and completions: the whole seam to the world, on one page.
//!
//! A driver takes an `Op` with an id and gives one `Completion` for it (several for a multishot one: all but the last say `more`).
//! Buffers are owned: they travel into the operation and come back in its completion. Every operation ends, also one that was
//! cancelled, and also at shutdown: its buffers may not be reused before its completion came.

use super::buffer::{Buf, Chunk};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Names an operation in flight; drawn by the executor, never reused within a process.
pub type OpId = u64;

/// An open file, listener or socket of a driver: an index into its table (a direct descriptor on io_uring), not a process-wide fd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fd(pub u32);

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenHow {
    /// Must exist; reads only.
    Read,
    /// Must exist.
    ReadWrite,
    /// Must not exist.
    Create,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: String,
    pub is_dir: bool,
    pub bytes: u64,
}

/// What a driver can be asked for.
#[derive(Debug)]
pub enum Op {
    /// Files are O_DIRECT where the file system allows: offsets and lengths are multiples of `BLOCK_BYTES`. → `Opened`
    Open {
        path: PathBuf,
        how: OpenHow,
    },
    /// Reads up to the buffer's whole length; short only at the end of the file. → `Read`
    Read {
        file: Fd,
        offset: u64,
        buf: Buf,
    },
    /// Writes the whole buffer; with `sync` it is durable (DSYNC) when it completes. → `Wrote`
    Write {
        file: Fd,
        offset: u64,
        buf: Buf,
        sync: bool,
    },
    /// All writes to the file that completed before are durable, its length too. → `Unit`
    Sync {
        file: Fd,
    },
    /// Sets the file's length. → `Unit`
    Resize {
        file: Fd,
        bytes: u64,
    },
    /// Gives a range's blocks back; it reads as zeros. → `Unit`
    Punch {
        file: Fd,
        offset: u64,
        bytes: u64,
    },
    /// → `Size`
    Size {
        file: Fd,
    },
    /// Names become durable only by `SyncDir` of their folder. → `Unit`
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    /// Not an error where it exists. → `Unit`
    MakeDir {
        path: PathBuf,
    },
    /// Removes an empty folder. → `Unit`
    RemoveDir {
        path: PathBuf,
    },
    SyncDir {
        path: PathBuf,
    },
    /// In order of names. → `Entries`
    List {
        path: PathBuf,
    },
    /// → `Opened`, and the address that was bound (port 0 draws one) in `Bound`
    Listen {
        address: SocketAddr,
    },
    /// Multishot. → `Accepted` each; an error with `more` concerns one connection
    Accept {
        listener: Fd,
    },
    /// → `Opened`
    Connect {
        address: SocketAddr,
    },
    /// Multishot. → `Received` each; an empty chunk is the end of the stream and the last completion.
    Receive {
        socket: Fd,
    },
    /// Sends all of the bytes, in order of submission a socket. → `Sent`
    Send {
        socket: Fd,
        bytes: Vec<u8>,
    },
    /// Ends what is in flight on it (with an error), then gives the descriptor back. Files, listeners and sockets. → `Unit`
    Close {
        fd: Fd,
    },
    /// Takes a socket with nothing in flight out of the table, for another core of this node. → `Detached`
    Detach {
        socket: Fd,
    },
    /// Puts a detached socket into this core's table. → `Opened`
    Attach {
        parcel: Parcel,
    },
    /// Makes the executor of that core turn; no completion of its own here. Only through `Wakers`.
    Wake {
        core: usize,
    },
}

/// What an operation gave.
#[derive(Debug)]
pub enum Done {
    Unit,
    Opened(Fd),
    Bound(Fd, SocketAddr),
    Accepted(Fd, SocketAddr),
    /// The buffer and how many bytes of it are the file's.
    Read(Buf, usize),
    Wrote(Buf),
    Size(u64),
    Entries(Vec<Entry>),
    Received(Chunk),
    /// The vector comes back for reuse.
    Sent(Vec<u8>),
    Detached(Parcel),
}

/// The answer to an operation.
#[derive(Debug)]
pub struct Completion {
    pub id: OpId,
    pub result: std::io::Result<Done>,
    /// A multishot operation goes on.
    pub more: bool,
}

/// How a cancelled operation ends.
pub fn cancelled() -> std::io::Error {
    std::io::Error::from_raw_os_error(libc::ECANCELED)
}

/// Whether an operation ended because it was cancelled.
pub fn is_cancelled(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// A connection between two cores of one node: taken out of one core's table, not yet in another's. Dropping it closes it.
#[derive(Debug)]
pub struct Parcel(pub(super) Parcelled);

#[derive(Debug)]
pub(super) enum Parcelled {
    /// An open descriptor of this process.
    Os(std::os::fd::OwnedFd),
    /// A stream of the simulated world.
    Sim(super::sim::SimParcel),
}
