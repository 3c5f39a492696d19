//! The io_uring driver: one ring a core, made and used on that core's thread.
//!
//! Submissions are batched: they reach the kernel at the next `poll` or `park`, reads of the disk before that where few are under way.
//! With deferred task run, completions appear only on an enter, so `poll` looks at the TASKRUN flag and loops, since one enter may deliver
//! a part. Descriptors are direct (a registered table) beside the process's own, so that an operation costs no lookup in a table that
//! threads share; the process's own serve the calls that the ring does not know. What the kernel reads or writes belongs to a `Flight`
//! until its completion has come.
//!
//! On a host that refuses a part of this, the driver runs on what is left, and `degraded` says what that costs and what mends it.

use super::buffer_ring::BufferRing;
use super::driver::Kind;
use super::op::{Completion, Done, Fd, Op, OpId, cancelled};
use super::pool::Pool;
use super::sys;
use super::uring_ops::Flights;
use super::wakers::Wakers;
use crate::base::prng::Prng;
use crate::base::time::{Mono, WallMs};
use crate::limits::POOL_SLAB_BYTES;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

/// Ids with this bit are the driver's own.
const OWN: u64 = 1 << 63;
const OWN_IGNORED: u64 = OWN;
const OWN_EVENT: u64 = OWN | 1;
/// Arrives from another ring.
const OWN_WOKEN: u64 = OWN | 2;
/// The answer to a wake that was sent; the core's number stands above these bits.
const OWN_WAKE_SENT: u64 = OWN | 3;
const OWN_CORE_SHIFT: u32 = 8;
/// At most this share (one in so many) of the reads under way waits for the end of a round: a disk that is idle or not deep in work
/// begins at once, while one that is costs few enters (each costs a fraction of a microsecond, and a virtual disk's doorbell two).
const READS_QUEUED_SHARE: usize = 16;
/// Enters of one `poll`.
const ENTERS_MAX: usize = 8;
/// How long a dropped driver waits for what is in flight.
const DRAIN_WAIT: Duration = Duration::from_millis(10);
const DRAIN_ROUNDS_MAX: usize = 500;
pub(super) const BUFFER_GROUP: u16 = 0;
/// The index under which the slab of the disk buffers is registered.
pub(super) const SLAB_BUFFER: u16 = 0;

/// Sizes of a ring. The defaults serve a data core.
#[derive(Clone, Debug)]
pub struct UringConfig {
    /// Entries of the submission queue (a power of two).
    pub submissions: u32,
    /// Entries of the completion queue (a power of two).
    pub completions: u32,
    /// Open files and sockets of this core at most; less where the process may not open so many.
    pub descriptors: u32,
    /// Buffers of the receive ring (a power of two).
    pub receive_buffers: u16,
    pub receive_buffer_bytes: u32,
    /// SO_SNDBUF of every socket, in bytes; `None` leaves it to the kernel.
    pub send_buffer_bytes: Option<u32>,
    /// Use deferred task run where the kernel has it.
    pub deferred: bool,
    /// Use direct descriptors where the kernel has them.
    pub direct: bool,
    /// Register the disk buffers where the memlock limit allows it.
    pub fixed_buffers: bool,
}

impl Default for UringConfig {
    fn default() -> UringConfig {
        UringConfig {
            submissions: 1024,
            completions: 16 * 1024,
            descriptors: 32 * 1024,
            receive_buffers: 256,
            receive_buffer_bytes: 16 * 1024,
            send_buffer_bytes: None,
            deferred: true,
            direct: true,
            fixed_buffers: true,
        }
    }
}

/// Why there can be no ring on this host. The text names what is missing and what mends it.
#[derive(Debug)]
pub enum UringError {
    /// The kernel has no io_uring.
    Absent,
    /// A policy forbids it.
    Forbidden,
    /// Memory that may be locked is used up.
    Memory,
    /// The kernel is too old.
    Old { missing: &'static str },
    /// Anything else.
    Os(io::Error),
}

impl std::fmt::Display for UringError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            UringError::Absent => write!(f, "this kernel has no io_uring; Linux 6.1 or newer is needed"),
            UringError::Forbidden => {
                write!(
                    f,
                    "io_uring is forbidden here: set kernel.io_uring_disabled=0, and allow io_uring_* in the container's seccomp profile"
                )
            }
            UringError::Memory => write!(f, "no memory for a ring: raise the memlock limit (ulimit -l)"),
            UringError::Old { missing } => write!(f, "this kernel's io_uring lacks {missing}; Linux 6.1 or newer is needed"),
            UringError::Os(error) => write!(f, "io_uring cannot be set up: {error}"),
        }
    }
}

impl std::error::Error for UringError {}

impl From<io::Error> for UringError {
    fn from(error: io::Error) -> UringError {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => UringError::Absent,
            Some(libc::EPERM | libc::EACCES) => UringError::Forbidden,
            Some(libc::ENOMEM) => UringError::Memory,
            _ => UringError::Os(error),
        }
    }
}

/// An open descriptor.
pub(super) struct Descriptor {
    pub(super) raw: OwnedFd,
    pub(super) kind: Kind,
    /// What is in flight on it, queued sends included.
    pub(super) flights: Vec<OpId>,
    /// Sends in order; the first is with the kernel.
    pub(super) sends: VecDeque<OpId>,
    pub(super) closing: Option<OpId>,
    /// The recording's number of the file.
    pub(super) recorded: u64,
}

/// The driver. Not `Send`: it belongs to the thread that made it.
pub struct UringDriver {
    pub(super) ring: IoUring,
    core: usize,
    pub(super) wakers: Wakers,
    event: RawFd,
    pub(super) flights: Flights,
    pub(super) descriptors: Vec<Option<Descriptor>>,
    free: Vec<u32>,
    descriptors_max: u32,
    pub(super) direct: bool,
    pub(super) can_truncate: bool,
    pub(super) pool: Rc<Pool>,
    /// The pool's slab is registered, as `SLAB_BUFFER`.
    pub(super) fixed_buffers: bool,
    pub(super) buffers: Rc<BufferRing>,
    /// Receives that found no buffer.
    pub(super) starved: Vec<OpId>,
    ready: Vec<Completion>,
    backlog: VecDeque<squeue::Entry>,
    taken: Vec<(u64, i32, u32)>,
    in_flight: usize,
    /// Reads that the kernel may not know yet.
    reads_queued: usize,
    prng: Prng,
    degraded: Vec<String>,
    pub(super) config: UringConfig,
    pub(super) recording: Option<super::recording::Recording>,
}

impl UringDriver {
    /// A ring for core `core`, on the thread that will use it.
    pub fn new(config: UringConfig, core: usize, wakers: &Wakers) -> Result<UringDriver, UringError> {
        let mut degraded = Vec::new();
        let ring = set_up(&config, &mut degraded)?;
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_ext_arg() {
            return Err(UringError::Old { missing: "lossless completions" });
        }
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        // It came with the kernel that has multishot receive, which cannot be asked for.
        if !probe.is_supported(opcode::SendZc::CODE) {
            return Err(UringError::Old { missing: "multishot receive" });
        }
        let can_truncate = probe.is_supported(opcode::Ftruncate::CODE);
        if !can_truncate {
            degraded.push("truncation blocks the core: Linux 6.9 has it in the ring".into());
        }
        let buffers = Rc::new(BufferRing::new(config.receive_buffers, config.receive_buffer_bytes));
        // SAFETY: the memory lives as long as `buffers`, which outlives the registration (`drop` below).
        unsafe { ring.submitter().register_buf_ring_with_flags(buffers.address(), buffers.count(), BUFFER_GROUP, 0) }.map_err(|error| {
            if error.raw_os_error() == Some(libc::EINVAL) { UringError::Old { missing: "buffer rings" } } else { error.into() }
        })?;
        let descriptors_max = config.descriptors.min(super::host::nofile().saturating_sub(16).max(16) as u32);
        let direct = config.direct && ring.submitter().register_files_sparse(descriptors_max).is_ok();
        if config.direct && !direct {
            degraded.push("descriptors are looked up for each operation: Linux 5.19 and a higher memlock limit mend it".into());
        }
        let pool = Rc::new(Pool::new());
        let fixed_buffers =
            config.fixed_buffers && slabs_fit(wakers.cores(), super::host::memlock_bytes()) && register_slab(&ring, &pool).is_ok();
        if config.fixed_buffers && !fixed_buffers {
            degraded.push("disk buffers are pinned for each operation: a higher memlock limit (ulimit -l) mends it".into());
        }
        let event = wakers.attach(core, Some(ring.as_raw_fd()))?;
        let seed = sys::random_seed();
        let mut driver = UringDriver {
            ring,
            core,
            wakers: wakers.clone(),
            event,
            flights: Flights::default(),
            descriptors: Vec::new(),
            free: Vec::new(),
            descriptors_max,
            direct,
            can_truncate,
            pool,
            fixed_buffers,
            buffers,
            starved: Vec::new(),
            ready: Vec::new(),
            backlog: VecDeque::new(),
            taken: Vec::new(),
            in_flight: 0,
            reads_queued: 0,
            prng: Prng::new(seed),
            degraded,
            config,
            recording: None,
        };
        driver.watch_event();
        Ok(driver)
    }

    /// From now on, what is written, flushed and named goes into `recording` too.
    pub fn record(&mut self, recording: super::recording::Recording) {
        self.recording = Some(recording);
    }

    /// What this host takes away, one line each with what it costs and what mends it.
    pub fn degraded(&self) -> Vec<String> {
        self.degraded.clone()
    }

    pub(super) fn submit(&mut self, id: OpId, op: Op) {
        if let Op::Wake { core } = op {
            self.wake(core);
            return;
        }
        self.in_flight += 1;
        self.begin(id, op);
    }

    pub(super) fn cancel(&mut self, id: OpId) {
        let Some(flight) = self.flights.get_mut(id) else { return };
        if std::mem::replace(&mut flight.cancelled, true) {
            return;
        }
        let on = flight.on;
        if let Some(position) = self.starved.iter().position(|starved| *starved == id) {
            self.starved.swap_remove(position);
            self.end(id, Err(cancelled()));
        } else if on.is_some_and(|fd| self.is_queued_send(fd, id)) {
            self.end(id, Err(cancelled()));
        } else {
            let entry = opcode::AsyncCancel::new(id).build().user_data(OWN_IGNORED);
            self.push(entry);
        }
    }

    /// A send that is not with the kernel yet.
    fn is_queued_send(&self, fd: Fd, id: OpId) -> bool {
        let sends = &self.descriptor(fd).sends;
        sends.contains(&id) && sends.front() != Some(&id)
    }

    pub(super) fn poll(&mut self, out: &mut Vec<Completion>) {
        for _ in 0..ENTERS_MAX {
            self.feed_starved();
            self.flush_backlog();
            if self.wants_enter() {
                self.enter();
            }
            self.take_completions();
            if self.backlog.is_empty() && !self.wants_enter() {
                break;
            }
        }
        self.in_flight -= self.ready.iter().filter(|completion| !completion.more).count();
        out.append(&mut self.ready);
    }

    pub(super) fn park(&mut self, until: Option<Mono>) {
        self.feed_starved();
        self.flush_backlog();
        if !self.ready.is_empty() || !self.ring.completion().is_empty() {
            return;
        }
        let pause = until.map(|until| until.since(self.now()));
        if pause == Some(Duration::ZERO) {
            return;
        }
        let timespec = pause.map(types::Timespec::from);
        let mut args = types::SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        self.reads_queued = 0;
        self.judge_enter(self.ring.submitter().submit_with_args(1, &args));
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

    /// Gives the final completion of an operation that has no flight.
    pub(super) fn answer(&mut self, id: OpId, result: io::Result<Done>) {
        self.ready.push(Completion { id, result, more: false });
    }

    /// Gives the final completion of a flight and lets its descriptor know.
    pub(super) fn end(&mut self, id: OpId, result: io::Result<Done>) {
        let flight = self.flights.remove(id);
        self.answer(id, result);
        if let Some(fd) = flight.and_then(|flight| flight.on) {
            self.left(fd, id);
        }
    }

    /// An operation has left its descriptor: the next send starts, or a close goes on.
    pub(super) fn left(&mut self, fd: Fd, id: OpId) {
        let descriptor = self.descriptors[fd.0 as usize].as_mut().expect("open while in flight");
        descriptor.flights.retain(|flight| *flight != id);
        let was_first = descriptor.sends.front() == Some(&id);
        descriptor.sends.retain(|send| *send != id);
        let next = if was_first { descriptor.sends.front().copied() } else { None };
        let is_closing = descriptor.closing.is_some();
        let is_free = descriptor.flights.is_empty();
        match next {
            Some(next) if !is_closing => self.relaunch(next),
            _ if is_closing && is_free => self.release(fd),
            _ => {}
        }
    }

    pub(super) fn descriptor(&self, fd: Fd) -> &Descriptor {
        self.descriptors[fd.0 as usize].as_ref().expect("an open descriptor")
    }

    pub(super) fn descriptor_mut(&mut self, fd: Fd) -> &mut Descriptor {
        self.descriptors[fd.0 as usize].as_mut().expect("an open descriptor")
    }

    /// Takes a descriptor of the process into the table.
    pub(super) fn install(&mut self, raw: OwnedFd, kind: Kind) -> io::Result<Fd> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if (self.descriptors.len() as u32) < self.descriptors_max => {
                self.descriptors.push(None);
                self.descriptors.len() as u32 - 1
            }
            None => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
        };
        if let (Some(bytes), Kind::Stream) = (self.config.send_buffer_bytes, kind) {
            let _ = sys::set_option(&raw, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes as i32);
        }
        if self.direct
            && let Err(error) = self.ring.submitter().register_files_update(index, &[raw.as_raw_fd()])
        {
            self.free.push(index);
            return Err(error);
        }
        let descriptor = Descriptor { raw, kind, flights: Vec::new(), sends: VecDeque::new(), closing: None, recorded: 0 };
        self.descriptors[index as usize] = Some(descriptor);
        Ok(Fd(index))
    }

    /// Takes a descriptor out of the table.
    pub(super) fn uninstall(&mut self, fd: Fd) -> Descriptor {
        let descriptor = self.descriptors[fd.0 as usize].take().expect("an open descriptor");
        assert!(descriptor.flights.is_empty(), "given back with operations in flight");
        if self.direct {
            let updated = self.ring.submitter().register_files_update(fd.0, &[-1]);
            assert!(updated.is_ok(), "the kernel refuses to clear a slot: {updated:?}");
        }
        self.free.push(fd.0);
        descriptor
    }

    fn watch_event(&mut self) {
        let entry = opcode::PollAdd::new(types::Fd(self.event), libc::POLLIN as u32).multi(true).build();
        self.push(entry.user_data(OWN_EVENT));
    }

    fn wake(&mut self, core: usize) {
        match self.wakers.ring(core) {
            Some(ring) if core != self.core => {
                let tag = OWN_WAKE_SENT | ((core as u64) << OWN_CORE_SHIFT);
                self.push(opcode::MsgRingData::new(types::Fd(ring), 0, OWN_WOKEN, None).build().user_data(tag));
            }
            _ => self.wakers.ring_event(core),
        }
    }

    /// A read was queued.
    pub(super) fn read_queued(&mut self) {
        self.reads_queued += 1;
        if self.reads_queued * READS_QUEUED_SHARE >= self.flights.reads() {
            self.enter();
        }
    }

    /// Queues an entry; behind what waits already, if the submission queue is full.
    pub(super) fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: whatever the entry points to belongs to a flight, which is kept until the entry's completion.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.enter();
        }
        self.backlog.push_back(entry);
        self.flush_backlog();
    }

    fn flush_backlog(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `push`.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    fn wants_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    fn enter(&mut self) {
        self.reads_queued = 0;
        self.judge_enter(self.ring.submit());
    }

    /// An enter that was interrupted, timed out, or found the completion queue full is repeated by the next turn.
    fn judge_enter(&self, entered: io::Result<usize>) {
        if let Err(error) = entered {
            let passing = [libc::EINTR, libc::ETIME, libc::EBUSY, libc::EAGAIN, libc::ENOMEM];
            assert!(error.raw_os_error().is_some_and(|code| passing.contains(&code)), "io_uring_enter: {error}");
        }
    }

    fn take_completions(&mut self) {
        let mut taken = std::mem::take(&mut self.taken);
        taken.extend(self.ring.completion().map(|cqe| (cqe.user_data(), cqe.result(), cqe.flags())));
        for (id, result, flags) in taken.drain(..) {
            if id & OWN == 0 {
                self.step(id, result, flags);
            } else if id == OWN_EVENT {
                sys::drain_eventfd(self.event);
                if !cqueue::more(flags) {
                    self.watch_event();
                }
            } else if id & 0xFF == OWN_WAKE_SENT & 0xFF && result < 0 {
                // The ring is full or gone.
                self.wakers.ring_event(((id & !OWN) >> OWN_CORE_SHIFT) as usize);
            }
        }
        self.taken = taken;
    }

    fn feed_starved(&mut self) {
        while self.buffers.has_free()
            && let Some(id) = self.starved.pop()
        {
            self.relaunch(id);
        }
    }
}

fn set_up(config: &UringConfig, degraded: &mut Vec<String>) -> Result<IoUring, UringError> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize(config.completions).setup_submit_all().setup_taskrun_flag();
    if config.deferred {
        let mut deferred = builder.clone();
        if let Ok(ring) = deferred.setup_single_issuer().setup_defer_taskrun().build(config.submissions) {
            return Ok(ring);
        }
        degraded.push("completions interrupt running tasks: Linux 6.1 has deferred task run".into());
    }
    match builder.setup_coop_taskrun().build(config.submissions) {
        Ok(ring) => Ok(ring),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(UringError::Old { missing: "cooperative task run" }),
        Err(error) => Err(error.into()),
    }
}

/// Whether the slabs of all cores leave half of the memory that may be locked to the rings, without which there is no start.
pub(super) fn slabs_fit(cores: usize, memlock_bytes: u64) -> bool {
    (cores * POOL_SLAB_BYTES) as u64 <= memlock_bytes / 2
}

fn register_slab(ring: &IoUring, pool: &Pool) -> io::Result<()> {
    let slab = [libc::iovec { iov_base: pool.slab_address().cast(), iov_len: POOL_SLAB_BYTES }];
    // SAFETY: the slab is memory of its own, and every buffer in it that an operation uses keeps it alive. Should the ring outlive the
    // pool, the kernel still holds the pages but writes into them only for operations, of which there are none then.
    unsafe { ring.submitter().register_buffers(&slab) }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        self.wakers.detach(self.core);
        for descriptor in self.descriptors.iter().flatten().filter(|descriptor| descriptor.kind == Kind::Stream) {
            sys::shutdown_socket(&descriptor.raw);
        }
        let ids: Vec<OpId> = self.flights.iter().filter(|(_, flight)| !flight.is_close()).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.cancel(id));
        let mut out = Vec::new();
        for _ in 0..DRAIN_ROUNDS_MAX {
            self.poll(&mut out);
            if self.flights.is_empty() {
                break;
            }
            self.park(Some(self.now().plus(DRAIN_WAIT)));
        }
        let unregistered = self.ring.submitter().unregister_buf_ring(BUFFER_GROUP).is_ok();
        if !self.flights.is_empty() || !unregistered {
            // The kernel may still write into their memory: it is never freed.
            std::mem::forget(std::mem::take(&mut self.flights));
            std::mem::forget(self.buffers.clone());
        }
    }
}
