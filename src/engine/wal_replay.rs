//! Opening a log: a first pass sees every block's header, a pure plan decides (`wal_plan`), a second pass replays in large reads.

use super::format::Identity;
use super::format::wal::{
    BadSegment, BlockHead, SegmentSeed, block_payload, check_segment_header, parse_block, parse_payload, segment_bytes,
};
use super::wal_plan::{Plan, PlannedGroup, Seen, SegmentScan};
use super::wal_segments::{Segment, segment_number};
use super::{EngineError, Planted};
use crate::base::codec::Malformed;
use crate::io::buffer::Buf;
use crate::io::op::OpenHow;
use crate::io::{File, Io};
use crate::limits::BLOCK_BYTES;
use std::path::Path;

/// Bytes of one read.
const READ_BYTES: usize = 1024 * 1024;

/// Takes a record at its sequence.
pub type Replay<'a> = dyn FnMut(u64, &[u8]) -> Result<(), EngineError> + 'a;

/// A log that is being replayed, group by group, so that what takes the records can make room in between.
pub struct WalReader {
    io: Io,
    pub segments: Vec<Segment>,
    pub plan: Plan,
    /// The highest clock ceiling that any replayed group says.
    pub ceiling: u64,
    pub records: u64,
    pub bytes: u64,
    released: u64,
    next: usize,
    payload: Vec<u8>,
    buf: Option<Buf>,
    buf_of: (usize, u32),
}

impl WalReader {
    /// Opens every segment of `dir` and decides what counts. Changes nothing on the disk.
    ///
    /// # Errors
    /// `Corrupt` with file and offset where something acknowledged is damaged; `Unsupported`; I/O errors.
    pub async fn open(io: &Io, dir: &Path, identity: Identity, released: u64, planted: Option<Planted>) -> Result<WalReader, EngineError> {
        WalReader::open_how(io, dir, (identity, released), planted, OpenHow::ReadWrite).await
    }

    /// The same for somebody who will not write, perhaps must not.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_to_read(io: &Io, dir: &Path, identity: Identity, released: u64) -> Result<WalReader, EngineError> {
        WalReader::open_how(io, dir, (identity, released), None, OpenHow::Read).await
    }

    async fn open_how(
        io: &Io,
        dir: &Path,
        (identity, released): (Identity, u64),
        planted: Option<Planted>,
        how: OpenHow,
    ) -> Result<WalReader, EngineError> {
        let (mut segments, mut scans) = (Vec::new(), Vec::new());
        for entry in io.list(dir).await? {
            let Some(number) = segment_number(&entry.name) else { continue };
            let path = dir.join(&entry.name);
            let file = io.open(&path, how).await?;
            let blocks = (entry.bytes / BLOCK_BYTES as u64) as u32;
            let seed = SegmentSeed::new(identity, number);
            scans.push(scan(io, &file, &path, blocks, number, identity).await?);
            segments.push(Segment { file, path, number, blocks, seed, lap: 0, last: 0 });
        }
        let accept_torn = planted == Some(Planted::TornTailAccepted);
        let plan = super::wal_plan::plan(&scans, released, accept_torn).map_err(|gap| EngineError::Corrupt {
            file: segments[gap.at.segment].path.display().to_string(),
            offset: u64::from(gap.at.block) * BLOCK_BYTES as u64,
            what: format!("the log goes on at sequence {} where {} is due", gap.found, gap.expected),
        })?;
        for (segment, (scan, &last)) in segments.iter_mut().zip(scans.iter().zip(&plan.last_of)) {
            (segment.lap, segment.last) = (scan.lap(), last);
        }
        let io = io.clone();
        let (next, payload, buf, buf_of) = (0, Vec::new(), None, (0, 0));
        Ok(WalReader { io, segments, plan, ceiling: 0, records: 0, bytes: 0, released, next, payload, buf, buf_of })
    }

    /// Of so many parts of the groups, of about equal length, only one is read.
    pub fn keep_part(&mut self, part: u32, parts: u32) {
        let (part, parts) = (u64::from(part), u64::from(parts));
        let blocks: u64 = self.plan.groups.iter().map(|group| u64::from(group.blocks)).sum();
        let mut before = 0;
        self.plan.groups.retain(|group| {
            let begins_in = before * parts / blocks;
            before += u64::from(group.blocks);
            begins_in == part
        });
    }

    /// Hands the records of the next group on. False: there is none.
    ///
    /// # Errors
    /// Those of `replay`; `Corrupt` where a group does not hold what it says; I/O errors.
    pub async fn next_group(&mut self, replay: &mut Replay<'_>) -> Result<bool, EngineError> {
        let Some(group) = self.plan.groups.get(self.next).copied() else { return Ok(false) };
        self.next += 1;
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        self.gather(&group, &mut payload).await?;
        let ceiling = match replay_group(&payload, &group, self.released, replay) {
            Ok(ceiling) => ceiling,
            Err(Stop::Engine(error)) => return Err(error),
            Err(Stop::Malformed(_)) if group.torn => 0,
            Err(Stop::Malformed(what)) => return Err(self.corrupt(group.segment, group.start, what)),
        };
        self.payload = payload;
        self.ceiling = self.ceiling.max(ceiling);
        self.records += u64::from(group.records);
        self.bytes += u64::from(group.blocks) * BLOCK_BYTES as u64;
        if self.io.slice_is_over() {
            self.io.yield_now().await;
        }
        Ok(true)
    }

    /// Before the log is written to again: half-made segments go, and what a killed process may have left in the disk's cache only becomes
    /// durable: the last group, one at a time being in flight, and the names of segments that hold nothing yet. Both are written anew,
    /// since what a sync has failed for once is brought to the disk by no later one.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn settle(&self, dir: &Path) -> Result<(), EngineError> {
        for entry in self.io.list(dir).await? {
            if entry.name.starts_with("wal-") && entry.name.ends_with(".new") {
                self.io.remove(&dir.join(&entry.name)).await?;
            }
        }
        for segment in self.segments.iter().filter(|segment| segment.lap == 0) {
            let new = segment.path.with_extension("new");
            self.io.rename(&segment.path, &new).await?;
            self.io.rename(&new, &segment.path).await?;
        }
        self.io.sync_dir(dir).await?;
        if let Some(group) = self.plan.groups.last() {
            let file = &self.segments[group.segment].file;
            let (mut at, end) = (group.start, group.start + group.blocks);
            while at < end {
                let (offset, blocks) = (u64::from(at) * BLOCK_BYTES as u64, (end - at).min((READ_BYTES / BLOCK_BYTES) as u32));
                let buf = self.io.read(file, offset, blocks as usize * BLOCK_BYTES).await?;
                self.io.write(file, offset, buf, true).await?;
                at += blocks;
            }
        }
        if let Some(at) = self.plan.tail {
            self.io.sync(&self.segments[at.segment].file).await?;
        }
        Ok(())
    }

    async fn block(&mut self, segment: usize, number: u32) -> Result<&[u8], EngineError> {
        let (of, start) = self.buf_of;
        let held = self.buf.as_ref().map_or(0, |buf| buf.len() / BLOCK_BYTES) as u32;
        if of != segment || number < start || number >= start + held {
            let offset = u64::from(number) * BLOCK_BYTES as u64;
            let bytes = READ_BYTES.min((self.segments[segment].bytes() - offset) as usize);
            self.buf = None;
            self.buf = Some(self.io.read(&self.segments[segment].file, offset, bytes).await?);
            self.buf_of = (segment, number);
        }
        let at = (number - self.buf_of.1) as usize * BLOCK_BYTES;
        if self.buf.as_ref().is_none_or(|buf| buf.len() < at + BLOCK_BYTES) {
            return Err(self.corrupt(segment, number, Malformed("segment cut short")));
        }
        Ok(&self.buf.as_ref().expect("just looked at")[at..at + BLOCK_BYTES])
    }

    /// Appends a group's payload.
    async fn gather(&mut self, group: &PlannedGroup, payload: &mut Vec<u8>) -> Result<(), EngineError> {
        let seed = self.segments[group.segment].seed;
        for index in 0..group.blocks {
            let number = group.start + index;
            let block = self.block(group.segment, number).await?;
            match parse_block(block, seed, number) {
                Ok(Some(head)) if head.group.first == group.first && head.index == index => {
                    payload.extend_from_slice(block_payload(block, &head));
                }
                _ if group.torn => payload.extend_from_slice(block_payload(block, &whole_block())),
                _ => return Err(self.corrupt(group.segment, number, Malformed("block changed between two reads"))),
            }
        }
        Ok(())
    }

    fn corrupt(&self, segment: usize, block: u32, what: Malformed) -> EngineError {
        EngineError::corrupt(&self.segments[segment].path.display().to_string(), u64::from(block) * BLOCK_BYTES as u64, what)
    }
}

/// The first pass over one segment.
async fn scan(io: &Io, file: &File, path: &Path, blocks: u32, number: u64, identity: Identity) -> Result<SegmentScan, EngineError> {
    let name = path.display().to_string();
    let mut seen = Vec::with_capacity(blocks as usize);
    let seed = SegmentSeed::new(identity, number);
    let bytes = u64::from(blocks) * BLOCK_BYTES as u64;
    let mut offset = 0;
    while offset < bytes {
        let buf = io.read(file, offset, READ_BYTES.min((bytes - offset) as usize)).await?;
        for block in buf.chunks_exact(BLOCK_BYTES) {
            let number_in = seen.len() as u32;
            if number_in == 0 {
                check_segment_header(block, identity, number).map_err(|bad| match bad {
                    BadSegment::Damaged(what) => EngineError::corrupt(&name, 0, what),
                    BadSegment::TooNew => EngineError::Unsupported { file: name.clone(), what: "a later WAL format".into() },
                })?;
                if segment_bytes(block) != bytes {
                    return Err(EngineError::corrupt(&name, bytes, Malformed("not as long as its header says")));
                }
                seen.push(Seen::Zero);
                continue;
            }
            seen.push(match parse_block(block, seed, number_in) {
                Ok(None) => Seen::Zero,
                Ok(Some(head)) => Seen::Whole(head),
                Err(_) => Seen::Damaged,
            });
        }
        if buf.is_empty() {
            return Err(EngineError::corrupt(&name, offset, Malformed("segment cut short")));
        }
        offset += buf.len() as u64;
        io.yield_now().await;
    }
    if seen.is_empty() {
        return Err(EngineError::corrupt(&name, 0, Malformed("empty segment")));
    }
    Ok(SegmentScan { blocks: seen })
}

enum Stop {
    Malformed(Malformed),
    Engine(EngineError),
}

/// Hands the records of one group on. Its clock ceiling.
fn replay_group(payload: &[u8], group: &PlannedGroup, released: u64, replay: &mut Replay<'_>) -> Result<u64, Stop> {
    let (ceiling, mut framed) = parse_payload(payload).map_err(Stop::Malformed)?;
    let mut seq = group.first;
    while let Some(record) = framed.next_record().map_err(Stop::Malformed)? {
        if seq >= group.first + u64::from(group.records) {
            return Err(Stop::Malformed(Malformed("more records than the group says")));
        }
        if seq > released {
            replay(seq, record).map_err(Stop::Engine)?;
        }
        seq += 1;
    }
    let whole = seq == group.first + u64::from(group.records);
    if whole { Ok(ceiling) } else { Err(Stop::Malformed(Malformed("fewer records than the group says"))) }
}

/// The planted bug reads whatever lies where a torn block should be.
fn whole_block() -> BlockHead {
    BlockHead { group: Default::default(), index: 0, used: super::format::wal::WAL_BLOCK_PAYLOAD_BYTES as u16 }
}
