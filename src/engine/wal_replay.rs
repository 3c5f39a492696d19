//! Opening a log: a first pass sees every block's header, a pure plan decides (`wal_plan`), a second pass replays in large reads.

use super::format::wal::{
    BadSegment, BlockHead, SegmentSeed, WalIdentity, block_payload, check_segment_header, parse_block, parse_payload,
};
use super::wal_plan::{Plan, PlannedGroup, Seen, SegmentScan};
use super::wal_segments::{Segment, segment_number};
use super::{EngineError, Planted};
use crate::base::codec::Malformed;
use crate::io::op::OpenHow;
use crate::io::{File, Io};
use crate::limits::BLOCK_BYTES;
use std::path::Path;

/// Bytes of one read.
const READ_BYTES: usize = 1024 * 1024;

/// Takes a record at its sequence.
pub type Replay<'a> = dyn FnMut(u64, &[u8]) -> Result<(), EngineError> + 'a;

/// What a log held.
pub struct Found {
    pub segments: Vec<Segment>,
    pub plan: Plan,
    /// The highest clock ceiling that any replayed group says.
    pub ceiling: u64,
    pub records: u64,
    pub bytes: u64,
}

/// Opens every segment of `dir`, removes half-made ones, and replays what lies above `released`.
pub async fn recover(
    io: &Io,
    dir: &Path,
    identity: WalIdentity,
    released: u64,
    planted: Option<Planted>,
    replay: &mut Replay<'_>,
) -> Result<Found, EngineError> {
    let (mut segments, mut scans) = (Vec::new(), Vec::new());
    for entry in io.list(dir).await? {
        if entry.name.starts_with("wal-") && entry.name.ends_with(".new") {
            io.remove(&dir.join(&entry.name)).await?;
        }
        let Some(number) = segment_number(&entry.name) else { continue };
        let path = dir.join(&entry.name);
        let file = io.open(&path, OpenHow::ReadWrite).await?;
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
    let mut found = Found { segments, plan, ceiling: 0, records: 0, bytes: 0 };
    replay_all(io, &mut found, released, replay).await?;
    if let Some(at) = found.plan.tail {
        // A killed process may have left its last group in the disk's cache only; from here on it counts as durable.
        io.sync(&found.segments[at.segment].file).await?;
    }
    Ok(found)
}

/// The first pass over one segment.
async fn scan(io: &Io, file: &File, path: &Path, blocks: u32, number: u64, identity: WalIdentity) -> Result<SegmentScan, EngineError> {
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

/// The second pass: the planned groups, segment by segment in order of sequence.
async fn replay_all(io: &Io, found: &mut Found, released: u64, replay: &mut Replay<'_>) -> Result<(), EngineError> {
    let groups = std::mem::take(&mut found.plan.groups);
    let mut payload = Vec::new();
    for run in groups.chunk_by(|a, b| a.segment == b.segment) {
        let segment = found.segments[run[0].segment].clone();
        let mut reader = BlockReader { io, segment: &segment, buf: None, buf_start: 0 };
        for group in run {
            payload.clear();
            gather(&mut reader, group, &mut payload).await?;
            let counted = replay_group(&payload, group, released, replay);
            let ceiling = match counted {
                Ok(ceiling) => ceiling,
                Err(Stop::Engine(error)) => return Err(error),
                Err(Stop::Malformed(_)) if group.torn => 0,
                Err(Stop::Malformed(what)) => return Err(reader.corrupt(group.start, what)),
            };
            found.ceiling = found.ceiling.max(ceiling);
            found.records += u64::from(group.records);
            found.bytes += u64::from(group.blocks) * BLOCK_BYTES as u64;
        }
    }
    found.plan.groups = groups;
    Ok(())
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

/// Reads a segment's blocks in large pieces.
struct BlockReader<'a> {
    io: &'a Io,
    segment: &'a Segment,
    buf: Option<crate::io::buffer::Buf>,
    buf_start: u32,
}

impl BlockReader<'_> {
    async fn block(&mut self, number: u32) -> Result<&[u8], EngineError> {
        let in_buf = |buf: &crate::io::buffer::Buf, start: u32| number >= start && (number - start) as usize * BLOCK_BYTES < buf.len();
        if !self.buf.as_ref().is_some_and(|buf| in_buf(buf, self.buf_start)) {
            let offset = u64::from(number) * BLOCK_BYTES as u64;
            let bytes = READ_BYTES.min((self.segment.bytes() - offset) as usize);
            self.buf = None;
            self.buf = Some(self.io.read(&self.segment.file, offset, bytes).await?);
            self.buf_start = number;
        }
        let at = (number - self.buf_start) as usize * BLOCK_BYTES;
        let block = self.buf.as_ref().and_then(|buf| buf.get(at..at + BLOCK_BYTES));
        block.ok_or_else(|| EngineError::corrupt(&self.segment.path.display().to_string(), 0, Malformed("segment cut short")))
    }

    fn corrupt(&self, block: u32, what: Malformed) -> EngineError {
        EngineError::corrupt(&self.segment.path.display().to_string(), u64::from(block) * BLOCK_BYTES as u64, what)
    }
}

/// Appends a group's payload.
async fn gather(reader: &mut BlockReader<'_>, group: &PlannedGroup, payload: &mut Vec<u8>) -> Result<(), EngineError> {
    for index in 0..group.blocks {
        let number = group.start + index;
        let seed = reader.segment.seed;
        let block = reader.block(number).await?;
        match parse_block(block, seed, number) {
            Ok(Some(head)) if head.group.first == group.first && head.index == index => {
                payload.extend_from_slice(block_payload(block, &head));
            }
            _ if group.torn => payload.extend_from_slice(block_payload(block, &whole_block())),
            _ => return Err(reader.corrupt(number, Malformed("block changed between two reads"))),
        }
    }
    Ok(())
}

/// The planted bug reads whatever lies where a torn block should be.
fn whole_block() -> BlockHead {
    BlockHead { group: Default::default(), index: 0, used: super::format::wal::WAL_BLOCK_PAYLOAD_BYTES as u16 }
}
