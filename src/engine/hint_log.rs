//! The log of hints of one core: records that the engine does not look into (`cluster::hints::Record`), kept under numbers of the caller
//! until they are done with.
//!
//! **What is promised.** A hint is durable when the `flush` that wrote it has returned, not before: a hint only makes repair faster, so no
//! write waits for it. The owner calls `maintain` every few ten milliseconds; a crash loses what came since. What is done is not noted on
//! the disk: a segment goes when all of its hints are done, and after a restart those of the others come again, which changes nothing where
//! they are stored. A hint that the disk has lost is gone, counted, and left to repair.
//!
//! **Segments** are written from front to end, never over, and never after a restart; so a torn tail is cut by not being read. Where a few
//! hints that nobody takes keep old segments alive, they are written anew at the log's end as soon as the files are more than twice what is
//! kept. Hints of a folder that moves to another list of cores are lost with it.

use super::format::Identity;
use super::format::hints::{FRAME_BYTES, file_name, header_block, parse_frame, put_frame, read_segment, segment_of};
use super::manifest::{Turns, read_file};
use super::{EngineError, is_disk_full};
use crate::io::op::OpenHow;
use crate::io::{File, Io};
use crate::limits::BLOCK_BYTES;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Hints that wait to be written, in bytes; more are not taken, except one alone.
const FRESH_BYTES_MAX: usize = 4 << 20;
/// A group ends at about so many bytes.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// Of the hints of an old segment so many bytes are written anew at a time.
const RENEW_BYTES: usize = 256 << 10;

/// How a log of hints is kept.
#[derive(Clone, Copy, Debug)]
pub struct HintLogConfig {
    pub identity: Identity,
    /// A segment that is this long gets no further group.
    pub segment_bytes: u64,
    /// Of all files and of what waits to be in one; headers, and what is being written anew, may lie beyond. To hold so many bytes of hints
    /// it takes twice as much, and some segments.
    pub bytes_max: u64,
}

/// There is no room for a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintLogFull;

/// What is kept, and what happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HintLogFigures {
    pub hints: usize,
    /// Of the files.
    pub bytes: u64,
    pub segments: usize,
    pub groups: u64,
    /// Hints that a failed write or rot has lost.
    pub lost: u64,
    /// At the start: blocks that held something else than hints, a torn tail among them.
    pub damaged_blocks: u64,
}

#[derive(Clone, Copy, Debug)]
struct At {
    segment: u64,
    /// Of its frame.
    offset: u64,
    len: u32,
}

impl At {
    fn end(&self) -> u64 {
        self.offset + (FRAME_BYTES + self.len as usize) as u64
    }
}

/// One read brings so many bytes of hints that lie side by side.
const READ_BYTES_MAX: u64 = 128 * 1024;

struct Segment {
    file: File,
    /// Where the next group goes.
    bytes: u64,
    /// Hints in it that are not done, and the bytes of their frames.
    live: usize,
    live_bytes: u64,
    /// All that was written into it.
    numbers: Vec<u64>,
}

#[derive(Default)]
struct State {
    segments: BTreeMap<u64, Segment>,
    /// The one that is being written.
    current: Option<u64>,
    next_segment: u64,
    index: BTreeMap<u64, At>,
    /// Not written yet, or being written anew.
    fresh: BTreeMap<u64, Vec<u8>>,
    fresh_bytes: usize,
    figures: HintLogFigures,
}

impl State {
    fn files_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    fn keep(&mut self, number: u64, bytes: Vec<u8>) {
        self.fresh_bytes += bytes.len() + FRAME_BYTES;
        if let Some(old) = self.fresh.insert(number, bytes) {
            self.fresh_bytes -= old.len() + FRAME_BYTES;
        }
    }

    fn take_fresh(&mut self, number: u64) -> bool {
        let taken = self.fresh.remove(&number);
        self.fresh_bytes -= taken.as_ref().map_or(0, |bytes| bytes.len() + FRAME_BYTES);
        taken.is_some()
    }

    fn set_index(&mut self, number: u64, at: At) {
        self.drop_index(number);
        let segment = self.segments.get_mut(&at.segment).expect("written into it just now");
        (segment.live, segment.live_bytes) = (segment.live + 1, segment.live_bytes + u64::from(at.len));
        segment.numbers.push(number);
        self.index.insert(number, at);
    }

    fn drop_index(&mut self, number: u64) -> bool {
        let Some(old) = self.index.remove(&number) else { return false };
        if let Some(segment) = self.segments.get_mut(&old.segment) {
            (segment.live, segment.live_bytes) = (segment.live - 1, segment.live_bytes - u64::from(old.len));
        }
        true
    }

    /// What goes into the next group.
    fn next_group(&self) -> Vec<(u64, Vec<u8>)> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        for (number, hint) in &self.fresh {
            bytes += hint.len();
            if bytes > GROUP_BYTES_MAX && !group.is_empty() {
                break;
            }
            group.push((*number, hint.clone()));
        }
        group
    }
}

/// One core's log of hints.
pub struct HintLog {
    io: Io,
    dir: PathBuf,
    config: HintLogConfig,
    state: RefCell<State>,
    turns: Turns,
}

impl HintLog {
    /// Opens the log in a shard's folder and hands every hint in it to `found`, oldest segment first, which says whether it is kept.
    ///
    /// # Errors
    /// Of the disk. Damage is none: what it touches is lost and counted.
    pub async fn open(
        io: &Io,
        dir: &Path,
        config: HintLogConfig,
        found: &mut impl FnMut(u64, &[u8]) -> bool,
    ) -> Result<HintLog, EngineError> {
        let entries = io.list(dir).await?;
        let mut segments: Vec<(u64, u64)> = entries.iter().filter_map(|entry| Some((segment_of(&entry.name)?, entry.bytes))).collect();
        segments.sort_unstable();
        let mut state = State { next_segment: segments.last().map_or(1, |(last, _)| last.saturating_add(1)), ..State::default() };
        for (segment, bytes) in segments {
            let path = dir.join(file_name(segment));
            if bytes == 0 {
                // A crash as it was made.
                io.remove(&path).await?;
                continue;
            }
            let bytes = read_file(io, &path).await?;
            let Ok(frames) = read_segment(&bytes, config.identity, segment) else {
                // A crash before its header was durable, or rot in it.
                state.figures.damaged_blocks += (bytes.len() / BLOCK_BYTES) as u64;
                io.remove(&path).await?;
                continue;
            };
            state.figures.damaged_blocks += frames.damaged_blocks;
            let file = io.open(&path, OpenHow::Read).await?;
            let empty = Segment { file, bytes: bytes.len() as u64, live: 0, live_bytes: 0, numbers: Vec::new() };
            state.segments.insert(segment, empty);
            for (number, at) in frames.found {
                // A crash while it was written anew leaves it twice.
                if !state.index.contains_key(&number) && found(number, &bytes[at.clone()]) {
                    let (offset, len) = ((at.start - FRAME_BYTES) as u64, at.len() as u32);
                    state.set_index(number, At { segment, offset, len });
                }
                if io.slice_is_over() {
                    io.yield_now().await;
                }
            }
        }
        let log = HintLog { io: io.clone(), dir: dir.to_owned(), config, state: RefCell::new(state), turns: Turns::default() };
        log.reap().await?;
        Ok(log)
    }

    /// Takes a hint under a number that no other has. It can be read at once; see the head of this file for when it is durable.
    ///
    /// # Errors
    /// No room: it is not kept.
    pub fn append(&self, number: u64, bytes: &[u8]) -> Result<(), HintLogFull> {
        let mut state = self.state.borrow_mut();
        let wait = state.fresh_bytes + bytes.len() + FRAME_BYTES;
        let is_over = state.files_bytes() + (wait + BLOCK_BYTES) as u64 > self.config.bytes_max;
        if is_over || wait > FRESH_BYTES_MAX && !state.fresh.is_empty() {
            return Err(HintLogFull);
        }
        state.keep(number, bytes.to_vec());
        Ok(())
    }

    /// Reads a hint. `None`: it is done, or lost; then it is done from now on.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn read(&self, number: u64) -> Result<Option<Vec<u8>>, EngineError> {
        let mut read = None;
        self.read_each(&[number], &mut |_, bytes| read = bytes.map(<[u8]>::to_vec)).await?;
        Ok(read)
    }

    /// Hints, in the order in which they were appended: neighbours on disk are read at once. `each` gets what `read` gives.
    ///
    /// # Errors
    /// Of the disk; then some have had no turn.
    pub async fn read_each(&self, numbers: &[u64], each: &mut dyn FnMut(u64, Option<&[u8]>)) -> Result<(), EngineError> {
        let mut left = numbers;
        while let Some((&number, behind)) = left.split_first() {
            let fresh = self.state.borrow().fresh.get(&number).cloned();
            if let Some(bytes) = fresh {
                each(number, Some(&bytes));
                left = behind;
                continue;
            }
            let Some((file, run)) = self.run_of(left) else {
                each(number, None);
                left = behind;
                continue;
            };
            left = &left[run.len()..];
            let first = run[0].1.offset / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
            let end = run[run.len() - 1].1.end();
            let buf = self.io.read(&file, first, ((end - first) as usize).next_multiple_of(BLOCK_BYTES)).await?;
            for (number, at) in run {
                let frame = buf.get((at.offset - first) as usize..).unwrap_or_default();
                match parse_frame(frame, self.config.identity, at.segment, at.offset) {
                    Ok((of, bytes)) if of == number => each(number, Some(bytes)),
                    _ => {
                        let mut state = self.state.borrow_mut();
                        state.figures.lost += u64::from(state.drop_index(number));
                        drop(state);
                        each(number, None);
                    }
                }
            }
        }
        Ok(())
    }

    /// The first of some hints that are on disk, and those behind it that one read brings with it. None: it is not there.
    fn run_of(&self, numbers: &[u64]) -> Option<(File, Vec<(u64, At)>)> {
        let state = self.state.borrow();
        let first = *state.index.get(numbers.first()?)?;
        let mut run: Vec<(u64, At)> = Vec::new();
        for number in numbers {
            let Some(at) = state.index.get(number).filter(|_| !state.fresh.contains_key(number)) else { break };
            let follows = at.segment == first.segment && run.last().is_none_or(|(_, before)| at.offset >= before.end());
            if !follows || at.end() - first.offset > READ_BYTES_MAX && !run.is_empty() {
                break;
            }
            run.push((*number, *at));
        }
        Some((state.segments[&first.segment].file.clone(), run))
    }

    /// A hint is done with. Its segment's file goes with the last of them, at the next `maintain`.
    pub fn done(&self, number: u64) {
        let mut state = self.state.borrow_mut();
        state.take_fresh(number);
        state.drop_index(number);
    }

    /// Whether something waits for `flush`.
    pub fn has_fresh(&self) -> bool {
        !self.state.borrow().fresh.is_empty()
    }

    /// What is kept.
    pub fn figures(&self) -> HintLogFigures {
        let state = self.state.borrow();
        let anew = state.fresh.keys().filter(|number| state.index.contains_key(number)).count();
        HintLogFigures {
            hints: state.index.len() + state.fresh.len() - anew,
            bytes: state.files_bytes(),
            segments: state.segments.len(),
            ..state.figures
        }
    }

    /// Writes what waits, removes files without hints, and writes anew a part of what keeps an old file alive. One at a time.
    ///
    /// # Errors
    /// As `flush`.
    pub async fn maintain(&self) -> Result<(), EngineError> {
        self.renew().await?;
        self.flush().await?;
        self.reap().await
    }

    /// Makes everything durable that was appended before.
    ///
    /// # Errors
    /// Of the disk (`DiskFull` apart): hints that could not be written are lost and counted; the log goes on in another file.
    pub async fn flush(&self) -> Result<(), EngineError> {
        let _turn = self.turns.take().await;
        loop {
            let group = self.state.borrow().next_group();
            if group.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.write_group(&group).await {
                let mut state = self.state.borrow_mut();
                for (number, _) in &group {
                    // What was to be written anew is still where it was.
                    state.figures.lost += u64::from(state.take_fresh(*number) && !state.index.contains_key(number));
                }
                state.current = None;
                return Err(error);
            }
        }
    }

    async fn write_group(&self, group: &[(u64, Vec<u8>)]) -> Result<(), EngineError> {
        let full = |error| if is_disk_full(&error) { EngineError::DiskFull } else { EngineError::Io(error) };
        let segment = self.segment_to_write().await.map_err(full)?;
        let (file, start) = {
            let state = self.state.borrow();
            let segment = &state.segments[&segment];
            (segment.file.clone(), segment.bytes)
        };
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        for (number, hint) in group {
            places.push(At { segment, offset: start + bytes.len() as u64, len: hint.len() as u32 });
            put_frame(&mut bytes, self.config.identity, segment, start, *number, hint);
        }
        let mut buf = self.io.buf(bytes.len());
        buf[..bytes.len()].copy_from_slice(&bytes);
        let end = start + bytes.len().next_multiple_of(BLOCK_BYTES) as u64;
        self.io.write(&file, start, buf, true).await.map_err(full)?;
        let mut state = self.state.borrow_mut();
        state.segments.get_mut(&segment).expect("the current one stays").bytes = end;
        state.figures.groups += 1;
        for ((number, _), at) in group.iter().zip(places) {
            // Else it was done meanwhile.
            if state.take_fresh(*number) {
                state.set_index(*number, at);
            }
        }
        Ok(())
    }

    /// The current segment, or a new one.
    async fn segment_to_write(&self) -> std::io::Result<u64> {
        let number = {
            let mut state = self.state.borrow_mut();
            if let Some(current) = state.current.filter(|current| state.segments[current].bytes < self.config.segment_bytes) {
                return Ok(current);
            }
            state.current = None;
            state.next_segment += 1;
            state.next_segment - 1
        };
        let path = self.dir.join(file_name(number));
        let made = self.make_segment(&path, number).await;
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                let _ = self.io.remove(&path).await;
                return Err(error);
            }
        };
        let mut state = self.state.borrow_mut();
        let empty = Segment { file, bytes: BLOCK_BYTES as u64, live: 0, live_bytes: 0, numbers: Vec::new() };
        state.segments.insert(number, empty);
        state.current = Some(number);
        Ok(number)
    }

    async fn make_segment(&self, path: &Path, number: u64) -> std::io::Result<File> {
        let file = self.io.open(path, OpenHow::Create).await?;
        let mut buf = self.io.buf(BLOCK_BYTES);
        buf.copy_from_slice(&header_block(self.config.identity, number));
        self.io.write(&file, 0, buf, true).await?;
        self.io.sync_dir(&self.dir).await?;
        Ok(file)
    }

    /// Removes the files of segments whose hints are all done.
    async fn reap(&self) -> Result<(), EngineError> {
        loop {
            let dead = {
                let mut state = self.state.borrow_mut();
                let is_dead = |(number, segment): &(&u64, &Segment)| segment.live == 0 && state.current != Some(**number);
                let Some(number) = state.segments.iter().find(is_dead).map(|(number, _)| *number) else { return Ok(()) };
                state.segments.remove(&number);
                number
            };
            self.io.remove(&self.dir.join(file_name(dead))).await?;
        }
    }

    /// Where files are more than twice what is kept: takes a part of the emptiest old segment's hints to be written again.
    async fn renew(&self) -> Result<(), EngineError> {
        let (segment, numbers) = {
            let state = self.state.borrow();
            let kept: u64 = state.segments.values().map(|segment| segment.live_bytes).sum();
            if state.files_bytes() <= 2 * kept + 2 * self.config.segment_bytes {
                return Ok(());
            }
            let old = state.segments.iter().filter(|(number, _)| state.current != Some(**number));
            let Some((number, segment)) = old.min_by_key(|(_, segment)| segment.live_bytes * 1000 / segment.bytes) else { return Ok(()) };
            (*number, segment.numbers.clone())
        };
        let (mut bytes, mut seen) = (0, BTreeSet::new());
        for number in numbers {
            let is_there = self.state.borrow().index.get(&number).is_some_and(|at| at.segment == segment);
            if !is_there || !seen.insert(number) {
                continue;
            }
            if let Some(hint) = self.read(number).await? {
                let mut state = self.state.borrow_mut();
                // Not if it was done while it was read.
                if state.index.contains_key(&number) {
                    bytes += hint.len();
                    state.keep(number, hint);
                }
            }
            if bytes >= RENEW_BYTES {
                break;
            }
        }
        Ok(())
    }
}
