//! The ring of segment files: which are free, which hold what is not in tables yet, and how a new one is prepared ahead.
//!
//! A segment is made whole (zeros, header, sync) under a temporary name, then renamed and its folder synced, so that a durable write into
//! it
//! never waits for the file system's own records (ANCHORS.md, "The disk": 80 against 140 µs).

use super::format::Identity;
use super::format::wal::{SegmentSeed, put_segment_header};
use crate::io::op::OpenHow;
use crate::io::{File, Io};
use crate::limits::BLOCK_BYTES;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Bytes that preparing writes at a time.
const PREPARE_BYTES: usize = 1024 * 1024;

/// One segment file, open.
#[derive(Clone)]
pub struct Segment {
    pub file: File,
    pub path: PathBuf,
    pub number: u64,
    pub blocks: u32,
    pub seed: SegmentSeed,
    /// Of its current content; 0: none that counts.
    pub lap: u64,
    /// The highest sequence in it.
    pub last: u64,
}

impl Segment {
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES as u64
    }
}

/// All segments of a log.
#[derive(Default)]
pub struct Ring {
    pub segments: Vec<Segment>,
    pub free: VecDeque<usize>,
    /// The one being written, and its next block.
    pub current: Option<(usize, u32)>,
}

impl Ring {
    /// Blocks that can still be written without another segment being prepared or released.
    pub fn room_blocks(&self) -> u64 {
        let free: u64 = self.free.iter().map(|&index| u64::from(self.segments[index].blocks) - 1).sum();
        free + self.current.map_or(0, |(index, at)| u64::from(self.segments[index].blocks - at))
    }

    /// Takes room for a group of `blocks`: in the current segment, or in a free one, which becomes the current one under `lap`.
    /// `None`: there is no room. True: a new lap was begun.
    pub fn place(&mut self, blocks: u32, lap: u64) -> Option<(usize, u32, bool)> {
        if let Some((index, at)) = self.current
            && at + blocks <= self.segments[index].blocks
        {
            self.current = Some((index, at + blocks));
            return Some((index, at, false));
        }
        let fits = self.free.iter().position(|&index| self.segments[index].blocks > blocks)?;
        let index = self.free.remove(fits).expect("just found");
        if let Some((old, _)) = self.current.replace((index, 1 + blocks))
            && self.segments[old].last == 0
        {
            self.free.push_back(old);
        }
        let segment = &mut self.segments[index];
        (segment.lap, segment.last) = (lap, 0);
        Some((index, 1, true))
    }

    /// Everything up to `upto` is in tables: segments that hold nothing else are free again. How many.
    pub fn release(&mut self, upto: u64) -> usize {
        let mut freed = 0;
        for index in 0..self.segments.len() {
            let busy = self.current.is_some_and(|(current, _)| current == index) || self.free.contains(&index);
            if !busy && self.segments[index].last <= upto {
                self.free.push_back(index);
                freed += 1;
            }
        }
        freed
    }

    /// Bytes of the segments that hold something that is not released.
    pub fn live_bytes(&self) -> u64 {
        let all: u64 = self.segments.iter().map(Segment::bytes).sum();
        all - self.free.iter().map(|&index| self.segments[index].bytes()).sum::<u64>()
    }
}

/// A segment's file.
pub fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("wal-{number}.seg"))
}

/// The number in a segment's file name.
pub fn segment_number(name: &str) -> Option<u64> {
    name.strip_prefix("wal-")?.strip_suffix(".seg")?.parse().ok()
}

/// Makes a segment file, zero-filled and durable, name included. What it left behind after an error is removed when the log is opened.
pub async fn prepare(io: &Io, dir: &Path, number: u64, bytes: usize, identity: Identity) -> std::io::Result<Segment> {
    let temporary = dir.join(format!("wal-{number}.new"));
    let _ = io.remove(&temporary).await;
    let file = io.open(&temporary, OpenHow::Create).await?;
    let filled = fill(io, &file, number, bytes, identity).await;
    if let Err(error) = filled {
        let _ = io.remove(&temporary).await;
        return Err(error);
    }
    let path = segment_path(dir, number);
    io.rename(&temporary, &path).await?;
    io.sync_dir(dir).await?;
    let blocks = (bytes / BLOCK_BYTES) as u32;
    Ok(Segment { file, path, number, blocks, seed: SegmentSeed::new(identity, number), lap: 0, last: 0 })
}

async fn fill(io: &Io, file: &File, number: u64, bytes: usize, identity: Identity) -> std::io::Result<()> {
    let mut header = Vec::new();
    put_segment_header(&mut header, identity, number, bytes as u64);
    let mut buf = io.buf(PREPARE_BYTES.min(bytes));
    buf[..header.len()].copy_from_slice(&header);
    for offset in (0..bytes).step_by(PREPARE_BYTES) {
        buf.truncate(PREPARE_BYTES.min(bytes - offset));
        buf = io.write(file, offset as u64, buf, false).await?;
        buf[..header.len()].fill(0);
    }
    io.sync(file).await
}
