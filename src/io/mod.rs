//! The seam to the world: files, sockets, clocks, randomness, tasks. One `Io` a core; nothing above this room names io_uring,
//! libc, or `std::{fs, net, thread, time}`.

pub mod admin;
pub mod buffer;
mod buffer_ring;
#[cfg(test)]
mod contract;
pub mod driver;
#[cfg(test)]
mod driver_tests;
pub mod epoll;
mod epoll_ops;
pub mod executor;
mod file_pool;
mod files;
pub mod host;
pub mod notify;
pub mod op;
pub mod pages;
pub mod paired;
mod pool;
pub mod probe;
pub mod recording;
pub mod signal;
pub mod sim;
pub mod spsc;
mod stream;
mod sys;
mod tasks;
pub mod uring;
mod uring_ops;
pub mod wakers;

use crate::base::time::{Mono, WallMs};
use buffer::Buf;
use executor::{Inbox, Inner, OpFuture, Sleep, Syncing};
use op::{Done, Entry, Fd, Op, OpenHow};
use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use stream::{Arrivals, Found};

pub use buffer::Chunk;
pub use op::Parcel;
pub use std::net::{IpAddr, SocketAddr};
pub use tasks::Task;

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
pub struct Io {
    inner: Rc<Inner>,
}

/// An open file. Cheap to clone; closed when the last clone is dropped and its operations have ended.
#[derive(Clone, Debug)]
pub struct File {
    handle: Rc<FileHandle>,
}

/// A TCP connection. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Socket {
    handle: Rc<SocketHandle>,
}

/// A TCP listener.
pub struct Listener {
    io: Io,
    arrivals: Rc<Arrivals<(Fd, SocketAddr)>>,
    address: SocketAddr,
}

struct FileHandle {
    io: Io,
    fd: Fd,
}

struct SocketHandle {
    io: Io,
    arrivals: Rc<Arrivals<Chunk>>,
}

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "file {}", self.fd.0)
    }
}

impl std::fmt::Debug for SocketHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "socket {}", self.arrivals.fd.0)
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "listener at {}", self.address)
    }
}

/// Is told how a send ended (`Io::send_to`): the vector comes back, emptied.
pub trait OnSent {
    fn sent(self: Rc<Self>, outcome: io::Result<Vec<u8>>);
}

impl Drop for FileHandle {
    fn drop(&mut self) {
        self.io.inner.forget(Op::Close { fd: self.fd });
    }
}

impl Drop for SocketHandle {
    fn drop(&mut self) {
        self.close();
    }
}

impl SocketHandle {
    fn close(&self) {
        if self.arrivals.close().is_some() {
            self.io.inner.forget(Op::Close { fd: self.arrivals.fd });
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let untaken = self.arrivals.close().into_iter().flatten();
        untaken.for_each(|(fd, _)| self.io.inner.forget(Op::Close { fd }));
        self.io.inner.forget(Op::Close { fd: self.arrivals.fd });
    }
}

impl Io {
    /// Monotonic time, read once a turn and after each slice.
    pub fn now(&self) -> Mono {
        self.inner.now.get()
    }
    /// Wall time in ms since 1970, read at most once for each reading of `now`: never before what this turn received was sent.
    pub fn wall_ms(&self) -> WallMs {
        self.inner.wall_ms()
    }
    /// Random bits; from the seed in a simulated world.
    pub fn random_u64(&self) -> u64 {
        self.inner.driver.borrow_mut().random_u64()
    }
    /// This core's number among the node's shards.
    pub fn core(&self) -> usize {
        self.inner.core
    }

    /// Runs a future as a task of its own on this core. After `shutdown` it is dropped.
    pub fn spawn<T: 'static>(&self, class: Class, future: impl Future<Output = T> + 'static) -> Task<T> {
        if self.inner.is_stopping() {
            return Task::never();
        }
        self.inner.tasks.spawn(class, future)
    }
    /// Waits at least so long; ends at once after `shutdown`.
    pub async fn sleep(&self, pause: Duration) {
        Sleep::new(&self.inner, self.now().plus(pause)).await;
    }
    /// Waits until `now` is at least `at`; ends at once after `shutdown`.
    pub async fn sleep_until(&self, at: Mono) {
        Sleep::new(&self.inner, at).await;
    }
    /// The future's result, or `None` if it has none after `limit`; it is dropped then.
    pub async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let mut sleep = pin!(Sleep::new(&self.inner, self.now().plus(limit)));
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => sleep.as_mut().poll(context).map(|()| None),
        })
        .await
    }
    /// Lets the others of its class run first, and the other classes have their shares.
    pub async fn yield_now(&self) {
        tasks::YieldNow::default().await;
    }
    /// This task has run for `SLICE_US`: time to `yield_now`.
    pub fn slice_is_over(&self) -> bool {
        self.inner.slice_is_over()
    }
    /// Ends `run` of the executor: no new tasks; everything in flight is cancelled and drained.
    pub fn shutdown(&self) {
        self.inner.stopping.set(true);
    }
    /// `shutdown` was called or the executor is gone: operations fail from now on.
    pub fn is_shutting_down(&self) -> bool {
        self.inner.is_stopping()
    }

    /// Another core's executor turns soon (no system call when it is awake). The message must have been published before.
    pub fn wake(&self, core: usize) {
        if self.inner.wakers.must_ring(core) {
            self.inner.ring(core);
        }
    }
    /// `pending` is asked every turn and again before parking (a Dekker pair with `wake`); when it says true, `inbox()` completes.
    pub fn set_inbox(&self, pending: Box<dyn Fn() -> bool>) {
        self.inner.set_inbox(pending);
    }
    /// Waits until the inbox's `pending` says true.
    pub async fn inbox(&self) {
        Inbox { inner: self.inner.clone() }.await;
    }

    /// A zeroed, aligned buffer of `bytes` (rounded up to `BLOCK_BYTES`), from this core's pool.
    pub fn buf(&self, bytes: usize) -> Buf {
        let mut buf = self.buf_to_fill(bytes);
        buf.fill(0);
        buf
    }
    /// The same without zeroing, for who overwrites all of it: it holds what its last user left.
    pub fn buf_to_fill(&self, bytes: usize) -> Buf {
        Buf::stale(&self.inner.pool, bytes)
    }

    async fn perform(&self, op: Op) -> io::Result<Done> {
        OpFuture::new(&self.inner, op, None).await
    }
    async fn on_file(&self, file: &File, op: impl FnOnce(Fd) -> Op) -> io::Result<Done> {
        OpFuture::new(&self.inner, op(file.handle.fd), Some(&file.handle)).await
    }
    async fn unit(&self, op: Op) -> io::Result<()> {
        self.perform(op).await.map(|_| ())
    }
    fn socket(&self, fd: Fd) -> Socket {
        Socket { handle: Rc::new(SocketHandle { io: self.clone(), arrivals: Rc::new(Arrivals::new(fd, &self.inner.unread)) }) }
    }

    /// Opens a file, O_DIRECT where the file system allows it.
    pub async fn open(&self, path: &Path, how: OpenHow) -> io::Result<File> {
        match self.perform(Op::Open { path: path.into(), how }).await? {
            Done::Opened(fd) => Ok(File { handle: Rc::new(FileHandle { io: self.clone(), fd }) }),
            other => unexpected(&other),
        }
    }
    /// `bytes` at `offset`, both multiples of `BLOCK_BYTES`; shorter only at the end of the file (then rounded up to blocks, with
    /// zeros after the end).
    pub async fn read(&self, file: &File, offset: u64, bytes: usize) -> io::Result<Buf> {
        self.read_into(file, offset, self.buf_to_fill(bytes)).await.map(|(buf, _)| buf)
    }
    /// Fills `buf`, which need not be zeroed, from `offset`. Also says how many bytes of it are the file's: fewer than asked for
    /// only at the end of the file; the buffer is then cut to blocks, with zeros after the end.
    pub async fn read_into(&self, file: &File, offset: u64, buf: Buf) -> io::Result<(Buf, usize)> {
        assert!(offset.is_multiple_of(crate::limits::BLOCK_BYTES as u64), "offset {offset} is not of whole blocks");
        match self.on_file(file, |fd| Op::Read { file: fd, offset, buf }).await? {
            Done::Read(mut buf, bytes) => {
                let whole = bytes.next_multiple_of(crate::limits::BLOCK_BYTES);
                buf.truncate(whole);
                buf[bytes..].fill(0);
                Ok((buf, bytes))
            }
            other => unexpected(&other),
        }
    }
    /// Writes all of `buf`; with `sync` durable when it returns (O_DSYNC; the length too if the file grew).
    pub async fn write(&self, file: &File, offset: u64, buf: Buf, sync: bool) -> io::Result<Buf> {
        assert!(offset.is_multiple_of(crate::limits::BLOCK_BYTES as u64), "offset {offset} is not of whole blocks");
        let _syncing = sync.then(|| Syncing::begin(&self.inner));
        match self.on_file(file, |fd| Op::Write { file: fd, offset, buf, sync }).await? {
            Done::Wrote(buf) => Ok(buf),
            other => unexpected(&other),
        }
    }
    /// All writes to the file that had returned before are durable, its length too.
    pub async fn sync(&self, file: &File) -> io::Result<()> {
        let _syncing = Syncing::begin(&self.inner);
        self.on_file(file, |fd| Op::Sync { file: fd }).await.map(|_| ())
    }
    /// The file's length in bytes.
    pub async fn size(&self, file: &File) -> io::Result<u64> {
        match self.on_file(file, |fd| Op::Size { file: fd }).await? {
            Done::Size(bytes) => Ok(bytes),
            other => unexpected(&other),
        }
    }
    /// Sets the file's length in bytes; what is added reads as zeros.
    pub async fn resize(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.on_file(file, |fd| Op::Resize { file: fd, bytes }).await.map(|_| ())
    }
    /// Gives a range's blocks back; it reads as zeros, and the length stays.
    pub async fn punch(&self, file: &File, offset: u64, bytes: u64) -> io::Result<()> {
        self.on_file(file, |fd| Op::Punch { file: fd, offset, bytes }).await.map(|_| ())
    }
    /// Renames, over an existing file too. Durable with `sync_dir` of both folders.
    pub async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.unit(Op::Rename { from: from.into(), to: to.into() }).await
    }
    /// Gives a file another name; fails if it is taken. Durable with `sync_dir`.
    pub async fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.unit(Op::Link { from: from.into(), to: to.into() }).await
    }
    /// Removes a file without blocking the core: a large one is truncated in steps first, if no other name holds it. Who still has it
    /// open may find it empty.
    pub async fn remove(&self, path: &Path) -> io::Result<()> {
        self.unit(Op::Unlink { path: path.into() }).await
    }
    /// Makes a folder; no error if it is there. Blocks the core: at startup only.
    pub async fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.unit(Op::MakeDir { path: path.into() }).await
    }
    /// Removes an empty folder.
    pub async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.unit(Op::RemoveDir { path: path.into() }).await
    }
    /// The folder's names are durable.
    pub async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.unit(Op::SyncDir { path: path.into() }).await
    }
    /// Entries in order of names. Blocks the core: at startup only.
    pub async fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        match self.perform(Op::List { path: path.into() }).await? {
            Done::Entries(entries) => Ok(entries),
            other => unexpected(&other),
        }
    }

    /// Listens for connections, port 0 draws one. `AddrInUse` if the port is taken.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        match self.perform(Op::Listen { address }).await? {
            Done::Bound(fd, address) => {
                Ok(Listener { io: self.clone(), arrivals: Rc::new(Arrivals::new(fd, &self.inner.unread)), address })
            }
            other => unexpected(&other),
        }
    }
    /// The next connection. An error (no descriptor left, say) concerns one connection; the listener goes on.
    /// Where none is left the error comes at once each time: wait a little before the next.
    pub async fn accept(&self, listener: &Listener) -> io::Result<(Socket, SocketAddr)> {
        let found = poll_fn(|context| {
            if self.inner.is_stopping() {
                return Poll::Ready(Err(executor::shut_down()));
            }
            let found = listener.arrivals.take_one(context.waker());
            self.inner.arm_accept(&listener.arrivals);
            match found {
                Found::Taken(accepted) => Poll::Ready(Ok(accepted)),
                Found::End => Poll::Ready(Err(op::cancelled())),
                Found::Failed(error) => Poll::Ready(Err(error)),
                Found::Nothing => Poll::Pending,
            }
        });
        found.await.map(|(fd, address)| (self.socket(fd), address))
    }
    /// Connects; dropped early, the attempt is cancelled.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        match self.perform(Op::Connect { address }).await? {
            Done::Opened(fd) => Ok(self.socket(fd)),
            other => unexpected(&other),
        }
    }
    /// The next bytes of the stream: at least one chunk, all that have come. An empty list is the end. Backpressure: when the
    /// reader does not come back, receiving is cancelled at a bound and re-armed when it does. One reader at a time.
    pub async fn receive(&self, socket: &Socket) -> io::Result<Vec<Chunk>> {
        let arrivals = &socket.handle.arrivals;
        poll_fn(|context| {
            let found = arrivals.take_all(context.waker());
            self.inner.arm_receive(arrivals);
            match found {
                Found::Taken(items) => Poll::Ready(Ok(items.into())),
                Found::End => Poll::Ready(Ok(Vec::new())),
                Found::Failed(error) => Poll::Ready(Err(error)),
                Found::Nothing if self.inner.is_stopping() => Poll::Ready(Err(executor::shut_down())),
                Found::Nothing => Poll::Pending,
            }
        })
        .await
    }
    /// The next chunk of the stream alone; `None` is the end. Otherwise as `receive`.
    pub async fn receive_chunk(&self, socket: &Socket) -> io::Result<Option<Chunk>> {
        let arrivals = &socket.handle.arrivals;
        poll_fn(|context| {
            let found = arrivals.take_one(context.waker());
            if arrivals.is_empty() {
                self.inner.arm_receive(arrivals);
            }
            match found {
                Found::Taken(chunk) => Poll::Ready(Ok(Some(chunk))),
                Found::End => Poll::Ready(Ok(None)),
                Found::Failed(error) => Poll::Ready(Err(error)),
                Found::Nothing if self.inner.is_stopping() => Poll::Ready(Err(executor::shut_down())),
                Found::Nothing => Poll::Pending,
            }
        })
        .await
    }
    /// Sends all of `bytes`; gives the vector back, emptied. Sends of one socket go out in the order in which they were first polled;
    /// one that is dropped runs on.
    pub async fn send(&self, socket: &Socket, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        if socket.handle.arrivals.is_closed() {
            return Err(closed_here());
        }
        self.perform(Op::Send { socket: socket.handle.arrivals.fd, bytes }).await.map(sent_bytes)
    }
    /// The same without a task that waits: `sink` is told in the turn in which it ends, or at once where it cannot begin.
    pub fn send_to(&self, socket: &Socket, bytes: Vec<u8>, sink: Rc<dyn OnSent>) {
        if socket.handle.arrivals.is_closed() {
            return sink.sent(Err(closed_here()));
        }
        self.inner.send_to(socket.handle.arrivals.fd, bytes, sink);
    }
    /// Takes a connection out of this core, for `attach` on another: with what was received and not taken. Nothing may be in flight on
    /// it but a receive.
    pub async fn detach(&self, socket: Socket) -> io::Result<(Parcel, Vec<u8>)> {
        let arrivals = socket.handle.arrivals.clone();
        if let Some(receiving) = arrivals.pause() {
            self.inner.driver.borrow_mut().cancel(receiving);
        }
        poll_fn(|context| arrivals.poll_idle(context.waker())).await;
        let done = self.perform(Op::Detach { socket: arrivals.fd }).await?;
        let unread = arrivals.close().into_iter().flatten();
        match done {
            Done::Detached(parcel) => Ok((parcel, unread.flat_map(|chunk| chunk.to_vec()).collect())),
            other => unexpected(&other),
        }
    }
    /// Takes in a connection that another core of this node has detached.
    pub async fn attach(&self, parcel: Parcel) -> io::Result<Socket> {
        match self.perform(Op::Attach { parcel }).await? {
            Done::Opened(fd) => Ok(self.socket(fd)),
            other => unexpected(&other),
        }
    }
    /// Both directions end now; pending operations fail.
    pub fn close(&self, socket: &Socket) {
        socket.handle.close();
    }
}

fn closed_here() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "closed on this side")
}

/// The vector of a send, emptied for reuse.
fn sent_bytes(done: Done) -> Vec<u8> {
    let Done::Sent(mut bytes) = done else { panic!("a send gave {done:?}") };
    bytes.clear();
    bytes
}

fn unexpected<T>(done: &Done) -> io::Result<T> {
    panic!("the driver answered another question: {done:?}")
}

impl Listener {
    /// Where it listens (the port that was drawn for port 0).
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
