//! The file calls of the epoll driver. Each may wait for a disk, so only the helper threads of `file_pool` make them.
//!
//! They keep the promises of the ring's operations: whole writes, durable ones where that is asked for, reads that are short only at
//! the end of the file, large files removed in steps, O_DIRECT wherever the file system has it, and the same errno.

use super::buffer::Buf;
use super::op::{Entry, OpenHow};
use super::sys::{self, checked};
use crate::limits::BLOCK_BYTES;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A large file dies in truncations of this size, each a journal transaction of its own.
pub(super) const TRUNCATE_STEP_BYTES: u64 = 64 * 1024 * 1024;

/// The memory of a buffer that stays with the driver, for the one call that is in flight on it.
pub(super) struct Lent {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: a pointer into memory that no thread is tied to. The driver keeps the buffer, and does not touch it, until the call's outcome
// has come (at its own end it waits for the call, or never frees the buffer), so one thread at a time uses the memory.
unsafe impl Send for Lent {}

impl Lent {
    /// The whole of `buf`, which must neither be touched nor freed before the call has ended.
    pub(super) fn new(buf: &mut Buf) -> Lent {
        Lent { start: buf.as_mut_ptr(), bytes: buf.len() }
    }
}

/// A call that may block. A descriptor is shared with the driver's table, so that it is open as long as a call may use it.
pub(super) enum Call {
    Open {
        path: CString,
        how: OpenHow,
    },
    Read {
        file: Arc<OwnedFd>,
        offset: u64,
        memory: Lent,
    },
    Write {
        file: Arc<OwnedFd>,
        offset: u64,
        memory: Lent,
        sync: bool,
    },
    Sync {
        file: Arc<OwnedFd>,
    },
    Resize {
        file: Arc<OwnedFd>,
        bytes: u64,
    },
    Punch {
        file: Arc<OwnedFd>,
        offset: u64,
        bytes: u64,
    },
    Rename {
        from: CString,
        to: CString,
    },
    Link {
        from: CString,
        to: CString,
    },
    Unlink {
        path: CString,
    },
    MakeDir {
        path: PathBuf,
    },
    RemoveDir {
        path: CString,
    },
    SyncDir {
        path: CString,
    },
    List {
        path: PathBuf,
    },
    /// The last close of a removed file frees its blocks.
    Close(#[expect(dead_code, reason = "dropped by the thread")] Arc<OwnedFd>),
}

/// What a call gave.
pub(super) enum Outcome {
    Unit,
    /// It was so before.
    Unchanged,
    Opened(OwnedFd),
    /// How much of the buffer is the file's.
    Read(usize),
    Entries(Vec<Entry>),
}

impl Call {
    /// Makes the call on this thread.
    pub(super) fn make(self) -> io::Result<Outcome> {
        let done = match self {
            Call::Open { path, how } => return open(&path, how).map(Outcome::Opened),
            Call::Read { file, offset, memory } => return read(&file, offset, &memory).map(Outcome::Read),
            Call::List { path } => return list(&path).map(Outcome::Entries),
            Call::MakeDir { path } => return make_dir(&path).map(|new| if new { Outcome::Unit } else { Outcome::Unchanged }),
            Call::Write { file, offset, memory, sync } => write(&file, offset, &memory, sync),
            Call::Sync { file } => sync(&file),
            Call::Resize { file, bytes } => sys::truncate(file.as_raw_fd(), bytes),
            Call::Punch { file, offset, bytes } => punch(&file, offset, bytes),
            Call::Rename { from, to } => rename(&from, &to),
            Call::Link { from, to } => link(&from, &to),
            Call::RemoveDir { path } => remove_dir(&path),
            Call::Unlink { path } => remove(&path),
            Call::SyncDir { path } => sync_dir(&path),
            Call::Close(_) => Ok(()),
        };
        done.map(|()| Outcome::Unit)
    }
}

/// The flags of an open; `buffered` after O_DIRECT was refused.
pub(super) fn open_flags(how: OpenHow, buffered: bool) -> i32 {
    let direct = if buffered { 0 } else { libc::O_DIRECT };
    // Where O_DIRECT is refused, the first try may have made the file all the same.
    let exclusive = if buffered { 0 } else { libc::O_EXCL };
    let mode = match how {
        OpenHow::Read => libc::O_RDONLY,
        OpenHow::ReadWrite => libc::O_RDWR,
        OpenHow::Create => libc::O_RDWR | libc::O_CREAT | exclusive,
    };
    mode | direct | libc::O_CLOEXEC
}

/// The entries of a folder, in order of names.
pub(super) fn list(path: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        // Names that are not UTF-8 are not ours.
        if let Ok(name) = entry.file_name().into_string() {
            entries.push(Entry { name, is_dir: metadata.is_dir(), bytes: metadata.len() });
        }
    }
    entries.sort();
    Ok(entries)
}

/// False if the folder was there.
pub(super) fn make_dir(path: &Path) -> io::Result<bool> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        result => result.map(|()| true),
    }
}

/// The result of a call that a signal may have interrupted.
fn retried(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match call() {
            result if result >= 0 => return Ok(result as usize),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn open_once(path: &CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: a terminated path; the descriptor is fresh and owned by nobody else.
    retried(|| unsafe { libc::open(path.as_ptr(), flags, 0o640) } as isize).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn open(path: &CStr, how: OpenHow) -> io::Result<OwnedFd> {
    match open_once(path, open_flags(how, false)) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open_once(path, open_flags(how, true)),
        result => result,
    }
}

fn read(file: &OwnedFd, offset: u64, memory: &Lent) -> io::Result<usize> {
    let mut done = 0;
    while done < memory.bytes {
        let at = (offset + done as u64) as i64;
        // SAFETY: the rest of the lent memory, writable and this call's alone.
        let got = retried(|| unsafe { libc::pread(file.as_raw_fd(), memory.start.add(done).cast(), memory.bytes - done, at) })?;
        done += got;
        if got == 0 || !done.is_multiple_of(BLOCK_BYTES) {
            break;
        }
    }
    Ok(done)
}

fn write(file: &OwnedFd, offset: u64, memory: &Lent, sync: bool) -> io::Result<()> {
    let mut done = 0;
    while done < memory.bytes {
        let put = if sync { write_durably(file, offset, memory, done)? } else { write_once(file, offset, memory, done)? };
        if put == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        done += put;
        if done < memory.bytes {
            // Direct I/O goes on at a whole block.
            done -= done % BLOCK_BYTES;
        }
    }
    Ok(())
}

fn write_once(file: &OwnedFd, offset: u64, memory: &Lent, done: usize) -> io::Result<usize> {
    let at = (offset + done as u64) as i64;
    // SAFETY: the rest of the lent memory.
    retried(|| unsafe { libc::pwrite(file.as_raw_fd(), memory.start.add(done).cast(), memory.bytes - done, at) })
}

/// One write that is durable when it returns: the same flag that the ring's writes carry.
fn write_durably(file: &OwnedFd, offset: u64, memory: &Lent, done: usize) -> io::Result<usize> {
    // SAFETY: `done` lies within the lent memory.
    let rest = libc::iovec { iov_base: unsafe { memory.start.add(done) }.cast(), iov_len: memory.bytes - done };
    let at = (offset + done as u64) as i64;
    // SAFETY: one iovec over the rest of the lent memory.
    match retried(|| unsafe { libc::pwritev2(file.as_raw_fd(), &raw const rest, 1, at, libc::RWF_DSYNC) }) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM)) => {
            // Sandboxes that lack the call or its flag: the same in two steps.
            let put = write_once(file, offset, memory, done)?;
            // SAFETY: no pointers.
            retried(|| unsafe { libc::fdatasync(file.as_raw_fd()) } as isize).map(|_| put)
        }
        result => result,
    }
}

fn punch(file: &OwnedFd, offset: u64, bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers.
    retried(|| unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, bytes as i64) } as isize).map(drop)
}

fn remove(path: &CStr) -> io::Result<()> {
    match open_once(path, libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW) {
        Ok(file) => shrink(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
        // What cannot be opened can still be unlinked.
        Err(_) => {}
    }
    // SAFETY: a terminated path.
    checked(unsafe { libc::unlink(path.as_ptr()) }).map(drop)
}

/// Empties a large file that no other name holds. What fails here, the unlink does at once.
fn shrink(file: &OwnedFd) {
    let Ok(stat) = sys::stat(file) else { return };
    if !stat.is_regular || stat.names != 1 || stat.bytes <= TRUNCATE_STEP_BYTES {
        return;
    }
    let mut left = stat.bytes;
    while left > 0 {
        left = left.saturating_sub(TRUNCATE_STEP_BYTES);
        if sys::truncate(file.as_raw_fd(), left).is_err() {
            return;
        }
    }
}

fn sync(file: &OwnedFd) -> io::Result<()> {
    // SAFETY: no pointers.
    retried(|| unsafe { libc::fsync(file.as_raw_fd()) } as isize).map(drop)
}

fn sync_dir(path: &CStr) -> io::Result<()> {
    sync(&open_once(path, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC)?)
}

fn rename(from: &CStr, to: &CStr) -> io::Result<()> {
    // SAFETY: terminated paths.
    checked(unsafe { libc::rename(from.as_ptr(), to.as_ptr()) }).map(drop)
}

fn link(from: &CStr, to: &CStr) -> io::Result<()> {
    // SAFETY: terminated paths.
    checked(unsafe { libc::link(from.as_ptr(), to.as_ptr()) }).map(drop)
}

fn remove_dir(path: &CStr) -> io::Result<()> {
    // SAFETY: a terminated path.
    checked(unsafe { libc::rmdir(path.as_ptr()) }).map(drop)
}
