//! The seam to the world: files, sockets, clocks, randomness, tasks. One `Io` a core; nothing above this room names io_uring,
//! libc, or `std::{fs, net, thread, time}`.

pub mod admin;
pub mod buffer;
pub mod op;

use crate::base::time::{Mono, WallMs};
use buffer::{Buf, Chunk};
use op::{Entry, OpenHow};
use std::future::Future;
use std::path::Path;
use std::time::Duration;

pub use std::net::SocketAddr;

/// What a task is for: decides its share of the core. Within a class tasks run in FIFO order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Somebody waits for an answer.
    Foreground,
    /// Another replica waits.
    Replication,
    /// Compaction, scans, expiry: nobody waits, but it must not starve.
    Background,
}

/// The handle to one core's executor and driver. Cheap to clone; belongs to one thread.
#[derive(Clone)]
pub struct Io {}

/// An open file. Cheap to clone; closed when the last clone is dropped and its operations have ended.
#[derive(Clone, Debug)]
pub struct File {}

/// A TCP connection. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Socket {}

/// A TCP listener.
#[derive(Debug)]
pub struct Listener {}

/// A spawned task's result, to await. Dropping it lets the task run on.
pub struct Task<T> {
    result: Option<T>,
}

impl<T> Future for Task<T> {
    type Output = T;
    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<T> {
        let _ = &self.result;
        unimplemented!()
    }
}

#[allow(unused_variables)]
impl Io {
    /// Monotonic time, read once a turn and after each slice.
    pub fn now(&self) -> Mono {
        unimplemented!()
    }
    /// Wall time in ms since 1970.
    pub fn wall_ms(&self) -> WallMs {
        unimplemented!()
    }
    pub fn random_u64(&self) -> u64 {
        unimplemented!()
    }
    /// This core's number among the node's shards.
    pub fn core(&self) -> usize {
        unimplemented!()
    }

    /// Runs a future as a task of its own on this core.
    pub fn spawn<T: 'static>(&self, class: Class, future: impl Future<Output = T> + 'static) -> Task<T> {
        unimplemented!()
    }
    pub async fn sleep(&self, pause: Duration) {
        unimplemented!()
    }
    pub async fn sleep_until(&self, at: Mono) {
        unimplemented!()
    }
    /// Lets the others run; comes back in the next round.
    pub async fn yield_now(&self) {
        unimplemented!()
    }
    /// This task has run for `SLICE_US`: time to `yield_now`.
    pub fn slice_is_over(&self) -> bool {
        unimplemented!()
    }
    /// Ends `run` of the executor: no new tasks; everything in flight is cancelled and drained.
    pub fn shutdown(&self) {
        unimplemented!()
    }

    /// Another core's executor turns soon (no system call when it is awake).
    pub fn wake(&self, core: usize) {
        unimplemented!()
    }
    /// `pending` is asked every turn and again before parking (a Dekker pair with `wake`); when it says true, `inbox()` completes.
    pub fn set_inbox(&self, pending: Box<dyn Fn() -> bool>) {
        unimplemented!()
    }
    /// Waits until the inbox's `pending` says true.
    pub async fn inbox(&self) {
        unimplemented!()
    }

    /// A zeroed, aligned buffer of `bytes` (rounded up to `BLOCK_BYTES`), from the pool.
    pub fn buf(&self, bytes: usize) -> Buf {
        unimplemented!()
    }

    pub async fn open(&self, path: &Path, how: OpenHow) -> std::io::Result<File> {
        unimplemented!()
    }
    /// `bytes` at `offset`, both multiples of `BLOCK_BYTES`; shorter only at the end of the file.
    pub async fn read(&self, file: &File, offset: u64, bytes: usize) -> std::io::Result<Buf> {
        unimplemented!()
    }
    /// Writes all of `buf`; with `sync` durable when it returns (O_DSYNC; the length too if the file grew).
    pub async fn write(&self, file: &File, offset: u64, buf: Buf, sync: bool) -> std::io::Result<Buf> {
        unimplemented!()
    }
    pub async fn sync(&self, file: &File) -> std::io::Result<()> {
        unimplemented!()
    }
    pub async fn size(&self, file: &File) -> std::io::Result<u64> {
        unimplemented!()
    }
    pub async fn resize(&self, file: &File, bytes: u64) -> std::io::Result<()> {
        unimplemented!()
    }
    pub async fn punch(&self, file: &File, offset: u64, bytes: u64) -> std::io::Result<()> {
        unimplemented!()
    }
    pub async fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        unimplemented!()
    }
    pub async fn link(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        unimplemented!()
    }
    /// Removes a file without blocking the core: a large one is truncated in steps first, if no other name holds it.
    pub async fn remove(&self, path: &Path) -> std::io::Result<()> {
        unimplemented!()
    }
    pub async fn make_dir(&self, path: &Path) -> std::io::Result<()> {
        unimplemented!()
    }
    /// Removes an empty folder.
    pub async fn remove_dir(&self, path: &Path) -> std::io::Result<()> {
        unimplemented!()
    }
    pub async fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        unimplemented!()
    }
    pub async fn list(&self, path: &Path) -> std::io::Result<Vec<Entry>> {
        unimplemented!()
    }

    pub async fn listen(&self, address: SocketAddr) -> std::io::Result<Listener> {
        unimplemented!()
    }
    pub async fn accept(&self, listener: &Listener) -> std::io::Result<(Socket, SocketAddr)> {
        unimplemented!()
    }
    pub async fn connect(&self, address: SocketAddr) -> std::io::Result<Socket> {
        unimplemented!()
    }
    /// The next bytes of the stream: at least one chunk, all that have come. An empty list is the end. Backpressure: when the
    /// reader does not come back, receiving is cancelled at a bound and re-armed when it does.
    pub async fn receive(&self, socket: &Socket) -> std::io::Result<Vec<Chunk>> {
        unimplemented!()
    }
    /// Sends all of `bytes`; gives the vector back, emptied.
    pub async fn send(&self, socket: &Socket, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
        unimplemented!()
    }
    /// Both directions end now; pending operations fail.
    pub fn close(&self, socket: &Socket) {
        unimplemented!()
    }
}

impl Listener {
    /// Where it listens (the port that was drawn for port 0).
    pub fn address(&self) -> SocketAddr {
        unimplemented!()
    }
}
