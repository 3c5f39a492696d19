//! The epoll driver, for hosts that forbid io_uring: sockets by readiness, files by helper threads.
//!
//! Sockets are registered once, edge-triggered in both directions, so that a turn costs one `epoll_wait` and then only what moves
//! bytes. The driver remembers for each whether it may be readable or writable, tries at once, and believes EAGAIN (or a short read,
//! unless the peer has hung up: then the end of the stream is still to be read). What is ready and wanted stands in a queue; each of it
//! has a budget a turn, so that nobody starves. Receives fill the same ring of buffers that the kernel fills under io_uring.
//!
//! A park ends by an event, by the eventfd that other cores and the helper threads ring, or by its time. The eventfd is never
//! drained: edge-triggered, each ring is an event.

use super::buffer_ring::BufferRing;
use super::driver::Kind;
use super::epoll_ops::{Flight, Sending};
use super::file_pool::FilePool;
use super::op::{Completion, Done, Fd, Op, OpId};
use super::pool::Pool;
use super::sys;
use super::wakers::Wakers;
use crate::base::map::Seeded;
use crate::base::prng::Prng;
use crate::base::time::{Mono, WallMs};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The eventfd's mark among the events; descriptors have their index.
const BELL: u64 = u64::MAX;
/// Events of one look; the rest comes with the next.
const EVENTS_MAX: usize = 512;
/// Chunks of one `poll`, all sockets together: what is not received now keeps its place in the queue.
const CHUNKS_A_POLL_MAX: usize = 256;
/// How long a dropped driver waits for the calls of its threads.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Sizes of a driver. The defaults serve a data core.
#[derive(Clone, Debug)]
pub struct EpollConfig {
    /// Open files and sockets of this core at most; less where the process may not open so many.
    pub descriptors: u32,
    /// Buffers for receiving (a power of two).
    pub receive_buffers: u16,
    pub receive_buffer_bytes: u32,
    /// SO_SNDBUF of every socket, in bytes; `None` leaves it to the kernel.
    pub send_buffer_bytes: Option<u32>,
    /// Helper threads for file calls. More than the log, a flush, a compaction and a read keep busy do not help.
    pub file_threads: usize,
}

impl Default for EpollConfig {
    fn default() -> EpollConfig {
        EpollConfig {
            descriptors: 32 * 1024,
            receive_buffers: 256,
            receive_buffer_bytes: 16 * 1024,
            send_buffer_bytes: None,
            file_threads: 4,
        }
    }
}

/// An open descriptor.
pub(super) struct Descriptor {
    /// Shared with the calls that are in flight on a file; a socket's is here alone.
    pub(super) raw: Arc<OwnedFd>,
    pub(super) kind: Kind,
    /// The receive, accept or connect that waits for it.
    pub(super) waiting: Option<OpId>,
    pub(super) connecting: bool,
    /// In order.
    pub(super) sends: VecDeque<Sending>,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer has ended its direction, or there is an error.
    pub(super) hung_up: bool,
    /// Stands in `active`.
    queued: bool,
    /// A file's calls in flight.
    pub(super) calls: Vec<OpId>,
    pub(super) closing: Option<OpId>,
    /// The recording's number of the file.
    pub(super) recorded: u64,
}

impl Descriptor {
    /// Something can be tried now.
    fn has_work(&self) -> bool {
        let receives = self.readable && self.waiting.is_some() && !self.connecting;
        receives || (self.writable && (self.connecting || !self.sends.is_empty()))
    }
}

/// The driver. Not `Send`: it belongs to the thread that made it.
pub struct EpollDriver {
    epoll: OwnedFd,
    core: usize,
    pub(super) wakers: Wakers,
    pub(super) flights: HashMap<OpId, Flight, Seeded>,
    pub(super) descriptors: Vec<Option<Descriptor>>,
    free: Vec<u32>,
    descriptors_max: u32,
    pub(super) buffers: Rc<BufferRing>,
    /// For receives while no buffer is free.
    pub(super) spare: Vec<u8>,
    events: Vec<libc::epoll_event>,
    /// Sockets on which something can be tried, in turn.
    active: VecDeque<Fd>,
    pub(super) files: FilePool,
    ready: Vec<Completion>,
    in_flight: usize,
    prng: Prng,
    config: EpollConfig,
    pub(super) pool: Rc<Pool>,
    pub(super) recording: Option<super::recording::Recording>,
}

impl EpollDriver {
    /// A driver for core `core`, on the thread that will use it.
    pub fn new(config: EpollConfig, core: usize, wakers: &Wakers) -> io::Result<EpollDriver> {
        let epoll = sys::epoll_create()?;
        // No ring: who wakes this core rings the eventfd.
        let bell = wakers.attach(core, None)?;
        sys::epoll_add(&epoll, bell, BELL)?;
        let seed = sys::random_seed();
        Ok(EpollDriver {
            epoll,
            core,
            wakers: wakers.clone(),
            flights: HashMap::with_hasher(Seeded(seed)),
            descriptors: Vec::new(),
            free: Vec::new(),
            descriptors_max: config.descriptors.min(super::host::nofile().saturating_sub(16).max(16) as u32),
            buffers: Rc::new(BufferRing::new(config.receive_buffers, config.receive_buffer_bytes)),
            spare: vec![0; config.receive_buffer_bytes as usize],
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX],
            active: VecDeque::new(),
            files: FilePool::new(config.file_threads, core, wakers)?,
            ready: Vec::new(),
            in_flight: 0,
            prng: Prng::new(seed),
            config,
            pool: Rc::new(Pool::new()),
            recording: None,
        })
    }

    /// From now on, what is written, flushed and named goes into `recording` too.
    pub fn record(&mut self, recording: super::recording::Recording) {
        self.recording = Some(recording);
    }

    pub(super) fn submit(&mut self, id: OpId, op: Op) {
        if let Op::Wake { core } = op {
            self.wakers.ring_event(core);
            return;
        }
        self.in_flight += 1;
        self.begin(id, op);
    }

    pub(super) fn poll(&mut self, out: &mut Vec<Completion>) {
        self.files.hand_over();
        self.look(Some(Duration::ZERO));
        self.serve_active();
        self.take_outcomes();
        self.in_flight -= self.ready.iter().filter(|completion| !completion.more).count();
        out.append(&mut self.ready);
    }

    pub(super) fn park(&mut self, until: Option<Mono>) {
        self.files.hand_over();
        // A thread whose outcome is not seen here sees that the core sleeps, and rings.
        if !self.ready.is_empty() || !self.active.is_empty() || self.files.has_outcomes() {
            return;
        }
        let pause = until.map(|until| until.since(self.now()));
        if pause != Some(Duration::ZERO) {
            self.look(pause);
        }
    }

    /// The helper threads have work, perhaps on this core's CPU.
    pub(super) fn lends_cpu(&self) -> bool {
        self.files.is_busy()
    }

    pub(super) fn now(&self) -> Mono {
        sys::mono()
    }

    pub(super) fn wall_ms(&self) -> WallMs {
        sys::wall_ms()
    }

    pub(super) fn random_u64(&mut self) -> u64 {
        self.prng.next_u64()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    #[cfg(test)]
    pub(super) fn open_descriptors(&self) -> usize {
        self.descriptors.iter().flatten().count()
    }

    /// Gives a completion that is not the last of its operation.
    pub(super) fn give(&mut self, id: OpId, result: io::Result<Done>) {
        self.ready.push(Completion { id, result, more: true });
    }

    /// Gives the final completion of an operation.
    pub(super) fn answer(&mut self, id: OpId, result: io::Result<Done>) {
        self.ready.push(Completion { id, result, more: false });
    }

    pub(super) fn descriptor(&self, fd: Fd) -> &Descriptor {
        self.descriptors[fd.0 as usize].as_ref().expect("an open descriptor")
    }

    pub(super) fn descriptor_mut(&mut self, fd: Fd) -> &mut Descriptor {
        self.descriptors[fd.0 as usize].as_mut().expect("an open descriptor")
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() || (self.descriptors.len() as u32) < self.descriptors_max
    }

    /// Takes a descriptor of the process into the table; sockets are watched from now on.
    pub(super) fn install(&mut self, raw: OwnedFd, kind: Kind) -> io::Result<Fd> {
        if !self.has_room() {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.descriptors.push(None);
            self.descriptors.len() as u32 - 1
        });
        if let (Some(bytes), Kind::Stream) = (self.config.send_buffer_bytes, kind) {
            let _ = sys::set_option(&raw, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes as i32);
        }
        if kind != Kind::File
            && let Err(error) = sys::epoll_add(&self.epoll, raw.as_raw_fd(), u64::from(index))
        {
            self.free.push(index);
            return Err(error);
        }
        self.descriptors[index as usize] = Some(Descriptor {
            raw: Arc::new(raw),
            kind,
            waiting: None,
            connecting: false,
            sends: VecDeque::new(),
            readable: false,
            writable: kind == Kind::Stream,
            hung_up: false,
            queued: false,
            calls: Vec::new(),
            closing: None,
            recorded: 0,
        });
        Ok(Fd(index))
    }

    /// Takes a descriptor out of the table.
    pub(super) fn uninstall(&mut self, fd: Fd) -> Descriptor {
        let descriptor = self.descriptors[fd.0 as usize].take().expect("an open descriptor");
        assert!(descriptor.calls.is_empty() && descriptor.waiting.is_none() && descriptor.sends.is_empty(), "given back in use");
        if descriptor.queued {
            self.active.retain(|active| *active != fd);
        }
        self.free.push(fd.0);
        descriptor
    }

    /// Takes a socket out of the table that lives on elsewhere.
    pub(super) fn detach(&mut self, fd: Fd) -> OwnedFd {
        let raw = Arc::into_inner(self.uninstall(fd).raw).expect("a socket's descriptor is not shared");
        let removed = sys::epoll_remove(&self.epoll, raw.as_raw_fd());
        assert!(removed.is_ok(), "the kernel does not know a socket of ours: {removed:?}");
        raw
    }

    /// Takes in what epoll tells.
    fn look(&mut self, pause: Option<Duration>) {
        let count = match sys::epoll_wait(&self.epoll, &mut self.events, pause) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => panic!("epoll_wait: {error}"),
        };
        for at in 0..count {
            let (bits, token) = (self.events[at].events, self.events[at].u64);
            if token != BELL
                && let Some(Some(descriptor)) = self.descriptors.get_mut(token as usize)
            {
                let has = |flags: i32| bits & flags as u32 != 0;
                let hung_up = has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR);
                descriptor.hung_up |= hung_up;
                descriptor.readable |= hung_up || has(libc::EPOLLIN);
                descriptor.writable |= has(libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR);
                self.activate(Fd(token as u32));
            }
        }
    }

    /// Queues a socket on which something can be tried.
    pub(super) fn activate(&mut self, fd: Fd) {
        let descriptor = self.descriptor_mut(fd);
        if descriptor.has_work() && !std::mem::replace(&mut descriptor.queued, true) {
            self.active.push_back(fd);
        }
    }

    /// Each active socket has one turn.
    fn serve_active(&mut self) {
        let mut chunks = CHUNKS_A_POLL_MAX;
        for _ in 0..self.active.len() {
            if chunks == 0 {
                break;
            }
            let Some(fd) = self.active.pop_front() else { break };
            self.descriptor_mut(fd).queued = false;
            chunks = chunks.saturating_sub(self.turn_of(fd));
            if self.descriptors[fd.0 as usize].is_some() {
                self.activate(fd);
            }
        }
    }
}

impl Drop for EpollDriver {
    fn drop(&mut self) {
        self.wakers.detach(self.core);
        let ids: Vec<OpId> = self.flights.iter().filter(|(_, flight)| !flight.is_close()).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.cancel(id));
        self.files.hand_over();
        if !self.files.end(DRAIN_MAX) {
            // A thread may still read or write their memory: it is never freed.
            std::mem::forget(std::mem::take(&mut self.flights));
        }
    }
}
