//! The write-ahead log of one core: nothing is acknowledged before it is here.
//!
//! Group commit: all records that arrive while one durable write is under way go out together with the next. One group is in flight, so
//! that only the last one can be torn; a group starts at a fresh block, so that an acknowledged block is never written again. Records of
//! `interval` durability wait for the next group, at most 50 ms. A failed write stops the log for good: what the disk then holds is not
//! known (Rebello et al., "Can Applications Recover from fsync Failures?", 2020), so nothing is tried again.

use super::format::Identity;
use super::format::wal::{
    GROUP_HEADER_BYTES, GroupHead, RECORD_BYTES_MAX, WAL_BLOCK_PAYLOAD_BYTES, blocks_of, fill_group, put_framed, set_ceiling, start_payload,
};
use super::wal_replay::{Replay, WalReader};
use super::wal_segments::{Ring, Segment, prepare};
use super::{EngineError, Planted, Seq, is_disk_full};
use crate::base::time::Mono;
use crate::io::signal::{Signal, race};
use crate::io::{Class, Io};
use crate::limits::{BLOCK_BYTES, INTERVAL_MS_MAX};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// A record that is not urgent goes out after this long at the latest.
const INTERVAL: Duration = Duration::from_millis(INTERVAL_MS_MAX / 2);
/// A group takes no further record once its payload is this long: a longer write would make those behind it wait for longer.
const GROUP_BYTES_MAX: usize = 1024 * 1024;
/// The most that a record takes beside itself in a group.
const FRAME_BYTES: usize = 10;
/// How long to wait before a segment is tried again that did not fit on the disk.
const DISK_FULL_RETRY: Duration = Duration::from_millis(200);
/// Free segments kept ready.
const SEGMENTS_AHEAD: usize = 1;
/// The clock ceiling lies this far above what was last stamped, in hybrid clock units (100 ms): an announced
/// write waits for a group only where none was written so long, and a restart waits at most so long until the wall clock is there.
pub const CEILING_AHEAD: u64 = 100 << crate::base::time::HLC_COUNTER_BITS;

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct WalConfig {
    pub identity: Identity,
    /// Of a new segment; a multiple of `BLOCK_BYTES`.
    pub segment_bytes: usize,
    pub segments_max: usize,
    /// Bytes of records that wait for a group, at most.
    pub pending_bytes_max: usize,
    /// Everything up to here is in tables.
    pub released: Seq,
    pub planted: Option<Planted>,
}

/// What opening a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalReport {
    pub records: u64,
    pub bytes: u64,
    /// The highest sequence.
    pub last: Seq,
    /// No version above this clock was ever given out.
    pub ceiling: u64,
    /// Groups cut as a torn tail (0 or 1), and the blocks of it that were there.
    pub torn_groups: u32,
    pub torn_blocks: u32,
    pub segments: usize,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    pub groups: u64,
    pub records: u64,
    /// Of records, without anything around them.
    pub record_bytes: u64,
    /// As written to the disk, segments' preparation apart.
    pub written_bytes: u64,
    pub prepared_bytes: u64,
    pub segments: usize,
    pub live_bytes: u64,
    pub pending_bytes: usize,
    pub disk_full: bool,
}

/// Called after each group with the durable sequence, or with why the log stopped.
pub type DurableHook = Box<dyn Fn(Result<Seq, String>)>;

type SharedHook = Rc<dyn Fn(Result<Seq, String>)>;

/// One core's log. Dropping it lets the writer end once everything is out.
pub struct Wal {
    inner: Rc<Inner>,
}

struct Inner {
    io: Io,
    dir: PathBuf,
    config: WalConfig,
    state: RefCell<State>,
    /// There is work for the writer.
    work: Signal,
    /// Something became durable, or never will.
    progress: Signal,
}

struct State {
    ring: Ring,
    lap_next: u64,
    incarnation: u32,
    number_next: u64,
    group_bytes_max: usize,
    next: Seq,
    durable: Seq,
    /// The highest urgent sequence.
    urgent: Seq,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    ceiling: u64,
    ceiling_durable: u64,
    preparing: bool,
    disk_full: bool,
    closing: bool,
    ended: bool,
    stopped: Option<String>,
    hook: Option<SharedHook>,
    stats: WalStats,
}

/// Records that will be one group.
struct Pending {
    payload: Vec<u8>,
    first: Seq,
    records: u32,
    since: Mono,
}

/// A group that is about to be written.
struct Launch {
    segment: Segment,
    start: u32,
    head: GroupHead,
    payload: Vec<u8>,
    ceiling: u64,
}

impl Wal {
    /// Opens the log in `dir`, replays what lies above `config.released`, and starts the writer.
    ///
    /// # Errors
    /// `Corrupt` with file and offset where something acknowledged is damaged; whatever `replay` says; I/O errors.
    pub async fn open(io: &Io, dir: &Path, config: WalConfig, replay: &mut Replay<'_>) -> Result<(Wal, WalReport), EngineError> {
        let mut reader = WalReader::open(io, dir, config.identity, config.released, config.planted).await?;
        while reader.next_group(replay).await? {}
        Wal::start(io, dir, config, reader).await
    }

    /// Starts the writer of a log that was replayed to its end.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn start(io: &Io, dir: &Path, config: WalConfig, reader: WalReader) -> Result<(Wal, WalReport), EngineError> {
        assert!(config.segment_bytes.is_multiple_of(BLOCK_BYTES) && config.segment_bytes >= 4 * BLOCK_BYTES);
        assert!(config.segments_max >= 2);
        reader.settle(dir).await?;
        let report = WalReport {
            records: reader.records,
            bytes: reader.bytes,
            last: reader.plan.last,
            ceiling: reader.ceiling,
            torn_groups: u32::from(reader.plan.torn.is_some()),
            torn_blocks: reader.plan.torn.map_or(0, |(_, blocks)| blocks),
            segments: reader.segments.len(),
        };
        let state = RefCell::new(State::from(reader, &config));
        let inner = Inner { io: io.clone(), dir: dir.to_owned(), config, state, work: Signal::new(), progress: Signal::new() };
        let inner = Rc::new(inner);
        if inner.state.borrow().ring.room_blocks() == 0 {
            match inner.prepare_one().await {
                Err(error) if is_disk_full(&error) => inner.state.borrow_mut().disk_full = true,
                other => other?,
            }
        }
        drop(io.spawn(Class::Foreground, inner.clone().run()));
        inner.prepare_ahead();
        Ok((Wal { inner }, report))
    }

    /// Queues a record. Its sequence; it is durable once `durable()` reaches it. An urgent one goes out with the next group.
    ///
    /// # Errors
    /// `TooLarge`, `Overloaded` (pending bytes or segments at their bound), `DiskFull` (no room for another segment), `Stopped`.
    pub fn append(&self, record: &[u8], urgent: bool) -> Result<Seq, EngineError> {
        let mut state = self.inner.state.borrow_mut();
        state.may_append(record.len(), &self.inner.config)?;
        let seq = state.push(record, self.inner.io.now());
        if urgent {
            state.urgent = seq;
        }
        drop(state);
        self.inner.work.raise();
        Ok(seq)
    }

    /// Everything up to here is on the disk.
    pub fn durable(&self) -> Seq {
        self.inner.state.borrow().durable
    }

    /// The sequence of the last record that was queued.
    pub fn last(&self) -> Seq {
        self.inner.state.borrow().next - 1
    }

    /// Waits until `seq` is durable.
    ///
    /// # Errors
    /// `Stopped` when it never will be.
    pub async fn wait(&self, seq: Seq) -> Result<(), EngineError> {
        loop {
            let wait = self.inner.progress.wait();
            {
                let state = self.inner.state.borrow();
                if state.durable >= seq {
                    return Ok(());
                }
                if let Some(why) = &state.stopped {
                    return Err(EngineError::Stopped(why.clone()));
                }
            }
            wait.await;
        }
    }

    /// The highest clock that was stamped; the ceiling in the next group lies above it.
    pub fn raise_clock(&self, hlc: u64) {
        let mut state = self.inner.state.borrow_mut();
        if hlc > state.ceiling {
            state.ceiling = hlc.saturating_add(CEILING_AHEAD);
        }
    }

    /// After a restart the clock starts above this.
    pub fn ceiling_durable(&self) -> u64 {
        self.inner.state.borrow().ceiling_durable
    }

    /// Everything up to `upto` is in tables, durably: its segments may be written over.
    pub fn release(&self, upto: Seq) {
        let freed = self.inner.state.borrow_mut().ring.release(upto);
        if freed > 0 {
            self.inner.work.raise();
        }
    }

    /// Has `hook` called after each group.
    pub fn on_durable(&self, hook: DurableHook) {
        self.inner.state.borrow_mut().hook = Some(Rc::from(hook));
    }

    /// Why it acknowledges nothing any more.
    pub fn is_disk_full(&self) -> bool {
        self.inner.state.borrow().disk_full
    }

    /// Why it stopped for good.
    pub fn stopped(&self) -> Option<String> {
        self.inner.state.borrow().stopped.clone()
    }

    /// The share of its segments that hold what is not in tables, 0 to 1 of the bound.
    pub fn fullness(&self) -> f64 {
        let state = self.inner.state.borrow();
        let live = state.ring.segments.len() - state.ring.free.len();
        live as f64 / self.inner.config.segments_max as f64
    }

    pub fn stats(&self) -> WalStats {
        let state = self.inner.state.borrow();
        let (segments, live_bytes) = (state.ring.segments.len(), state.ring.live_bytes());
        WalStats { segments, live_bytes, pending_bytes: state.pending_bytes, disk_full: state.disk_full, ..state.stats }
    }

    /// Writes out everything that is queued, then ends the writer.
    ///
    /// # Errors
    /// `Stopped` where something never became durable.
    pub async fn close(&self) -> Result<(), EngineError> {
        self.inner.state.borrow_mut().closing = true;
        self.inner.work.raise();
        loop {
            let wait = self.inner.progress.wait();
            {
                let state = self.inner.state.borrow();
                if let Some(why) = &state.stopped {
                    return Err(EngineError::Stopped(why.clone()));
                }
                if state.ended {
                    return Ok(());
                }
            }
            wait.await;
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.inner.state.borrow_mut().closing = true;
        self.inner.work.raise();
    }
}

impl State {
    fn from(found: WalReader, config: &WalConfig) -> State {
        let mut ring = Ring { segments: found.segments, ..Ring::default() };
        ring.current = found.plan.tail.map(|at| (at.segment, at.block));
        ring.release(config.released);
        let number_next = ring.segments.iter().map(|s| s.number + 1).max().unwrap_or(1);
        State {
            ring,
            lap_next: found.plan.lap_max + 1,
            incarnation: found.plan.incarnation_max + 1,
            number_next,
            group_bytes_max: GROUP_BYTES_MAX.min((config.segment_bytes / BLOCK_BYTES - 1) * WAL_BLOCK_PAYLOAD_BYTES),
            next: found.plan.last + 1,
            durable: found.plan.last,
            urgent: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            ceiling: found.ceiling,
            ceiling_durable: found.ceiling,
            preparing: false,
            disk_full: false,
            closing: false,
            ended: false,
            stopped: None,
            hook: None,
            stats: WalStats::default(),
        }
    }

    fn may_append(&self, bytes: usize, config: &WalConfig) -> Result<(), EngineError> {
        let blocks = blocks_of(GROUP_HEADER_BYTES + bytes + FRAME_BYTES) as u64;
        if bytes > RECORD_BYTES_MAX || blocks >= (config.segment_bytes / BLOCK_BYTES) as u64 {
            return Err(EngineError::TooLarge);
        }
        if let Some(why) = &self.stopped {
            return Err(EngineError::Stopped(why.clone()));
        }
        if self.closing {
            return Err(EngineError::Stopped("closed".into()));
        }
        if !self.pending.is_empty() && self.pending_bytes + bytes > config.pending_bytes_max {
            return Err(EngineError::Overloaded);
        }
        if self.has_room(bytes, config) {
            Ok(())
        } else if self.disk_full {
            Err(EngineError::DiskFull)
        } else {
            Err(EngineError::Overloaded)
        }
    }

    /// All groups that wait, and a record of `bytes` behind them, find room: what was accepted must never wait for a release.
    fn has_room(&self, bytes: usize, config: &WalConfig) -> bool {
        let whole = (config.segment_bytes / BLOCK_BYTES) as u32;
        let growth = if self.disk_full { 0 } else { config.segments_max.saturating_sub(self.ring.segments.len()) };
        let free = self.ring.free.iter().map(|&index| self.ring.segments[index].blocks);
        if free.clone().filter(|&blocks| blocks >= whole).count() + growth > self.pending.len() {
            return true;
        }
        let mut bins: VecDeque<u32> = free.chain(std::iter::repeat_n(whole, growth)).collect();
        let mut left = self.ring.current.map_or(0, |(index, at)| self.ring.segments[index].blocks - at);
        let mut groups: Vec<usize> = self.pending.iter().map(|group| group.payload.len()).collect();
        match groups.last_mut() {
            Some(last) if *last + bytes + FRAME_BYTES <= self.group_bytes_max => *last += bytes + FRAME_BYTES,
            _ => groups.push(GROUP_HEADER_BYTES + bytes + FRAME_BYTES),
        }
        groups.into_iter().all(|payload| {
            let blocks = blocks_of(payload) as u32;
            if blocks > left {
                let Some(bin) = bins.iter().position(|&bin| bin > blocks) else { return false };
                left = bins.remove(bin).expect("just found") - 1;
            }
            left -= blocks;
            true
        })
    }

    fn push(&mut self, record: &[u8], now: Mono) -> Seq {
        let seq = self.next;
        self.next += 1;
        let joins = self.pending.back().is_some_and(|last| last.payload.len() + record.len() + FRAME_BYTES <= self.group_bytes_max);
        if !joins {
            let mut payload = Vec::new();
            start_payload(&mut payload);
            self.pending.push_back(Pending { payload, first: seq, records: 0, since: now });
        }
        let last = self.pending.back_mut().expect("just made");
        let before = last.payload.len();
        put_framed(&mut last.payload, record);
        last.records += 1;
        self.pending_bytes += last.payload.len() - before;
        self.stats.records += 1;
        self.stats.record_bytes += record.len() as u64;
        seq
    }

    /// When the first pending group must go out; `None`: there is none.
    fn due(&self) -> Option<Mono> {
        let front = self.pending.front()?;
        let at_once = self.urgent >= front.first || self.closing || self.pending.len() > 1;
        Some(if at_once { Mono(0) } else { front.since.plus(INTERVAL) })
    }

    /// Takes the first pending group out, if there is room for it on the disk.
    fn launch(&mut self) -> Option<Launch> {
        let blocks = blocks_of(self.pending.front()?.payload.len()) as u32;
        let (index, start, new_lap) = self.ring.place(blocks, self.lap_next)?;
        self.lap_next += u64::from(new_lap);
        let Pending { mut payload, first, records, .. } = self.pending.pop_front().expect("looked at above");
        self.pending_bytes -= payload.len() - GROUP_HEADER_BYTES;
        set_ceiling(&mut payload, self.ceiling);
        let segment = &mut self.ring.segments[index];
        let head = GroupHead { lap: segment.lap, incarnation: self.incarnation, first, blocks, records };
        segment.last = head.last();
        Some(Launch { segment: segment.clone(), start, head, payload, ceiling: self.ceiling })
    }
}

impl Inner {
    /// The writer: one group after the other.
    async fn run(self: Rc<Self>) {
        while let Some(launch) = self.next_launch().await {
            let last = launch.head.last();
            let ceiling = launch.ceiling;
            match self.write(launch).await {
                Ok(bytes) => self.done(last, ceiling, bytes),
                Err(error) => {
                    self.stop(format!("writing the log: {error}"));
                    break;
                }
            }
            self.prepare_ahead();
        }
        self.state.borrow_mut().ended = true;
        self.progress.raise();
    }

    async fn write(&self, launch: Launch) -> std::io::Result<u64> {
        let Launch { segment, start, head, payload, .. } = launch;
        let bytes = head.blocks as usize * BLOCK_BYTES;
        let mut buf = self.io.buf_to_fill(bytes);
        fill_group(&mut buf, &payload, &head, segment.seed, start);
        let sync = self.config.planted != Some(Planted::SyncSkipped);
        self.io.write(&segment.file, u64::from(start) * BLOCK_BYTES as u64, buf, sync).await?;
        Ok(bytes as u64)
    }

    fn done(&self, last: Seq, ceiling: u64, bytes: u64) {
        let hook = {
            let mut state = self.state.borrow_mut();
            state.durable = last;
            state.ceiling_durable = state.ceiling_durable.max(ceiling);
            state.stats.groups += 1;
            state.stats.written_bytes += bytes;
            state.hook.clone()
        };
        self.progress.raise();
        if let Some(hook) = hook {
            hook(Ok(last));
        }
    }

    fn stop(&self, why: String) {
        let hook = {
            let mut state = self.state.borrow_mut();
            state.stopped.get_or_insert(why.clone());
            state.pending.clear();
            state.pending_bytes = 0;
            state.hook.clone()
        };
        self.progress.raise();
        self.work.raise();
        if let Some(hook) = hook {
            hook(Err(why));
        }
    }

    /// Waits for a group that is due and has room. `None`: the log ends.
    async fn next_launch(self: &Rc<Self>) -> Option<Launch> {
        loop {
            let wait = self.work.wait();
            let due = {
                let mut state = self.state.borrow_mut();
                if state.stopped.is_some() {
                    return None;
                }
                let due = state.due();
                if due.is_some_and(|at| at <= self.io.now())
                    && let Some(launch) = state.launch()
                {
                    return Some(launch);
                }
                if due.is_none() && state.closing {
                    return None;
                }
                if state.closing && (state.disk_full || state.ring.segments.len() >= self.config.segments_max) {
                    drop(state);
                    self.stop("no room in the log for what was queued when it closed".into());
                    return None;
                }
                due.filter(|&at| at > self.io.now())
            };
            self.prepare_ahead();
            match due {
                Some(at) => race(wait, self.io.sleep_until(at)).await,
                None => wait.await,
            }
        }
    }

    /// Prepares a segment in the background if too few are ready.
    fn prepare_ahead(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        let enough = state.ring.free.len() >= SEGMENTS_AHEAD || state.ring.segments.len() >= self.config.segments_max;
        if enough || state.preparing || state.stopped.is_some() || (state.closing && state.pending.is_empty()) {
            return;
        }
        state.preparing = true;
        drop(state);
        let inner = self.clone();
        drop(self.io.spawn(Class::Foreground, async move { inner.prepare_until_done().await }));
    }

    async fn prepare_until_done(&self) {
        loop {
            {
                let state = self.state.borrow();
                let enough = !state.ring.free.is_empty() || state.ring.segments.len() >= self.config.segments_max;
                if enough || state.stopped.is_some() || (state.closing && state.pending.is_empty()) {
                    break;
                }
            }
            match self.prepare_one().await {
                Ok(()) => self.work.raise(),
                Err(error) if is_disk_full(&error) => {
                    self.state.borrow_mut().disk_full = true;
                    self.work.raise();
                    self.io.sleep(DISK_FULL_RETRY).await;
                }
                Err(error) => {
                    self.stop(format!("preparing a segment of the log: {error}"));
                    break;
                }
            }
        }
        let mut state = self.state.borrow_mut();
        state.preparing = false;
        state.disk_full = state.disk_full && state.ring.free.is_empty();
        drop(state);
        self.work.raise();
    }

    async fn prepare_one(&self) -> std::io::Result<()> {
        let number = {
            let mut state = self.state.borrow_mut();
            state.number_next += 1;
            state.number_next - 1
        };
        let segment = prepare(&self.io, &self.dir, number, self.config.segment_bytes, self.config.identity).await?;
        let mut state = self.state.borrow_mut();
        state.stats.prepared_bytes += segment.bytes();
        let index = state.ring.segments.len();
        state.ring.segments.push(segment);
        state.ring.free.push_back(index);
        Ok(())
    }
}
