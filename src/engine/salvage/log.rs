//! The log: every whole group that no table holds, as tables.

use super::*;
use crate::engine::format::wal::{Record, SegmentSeed, VnodesRecord, parse_payload, parse_record};
use crate::engine::pieces::{FoundGroup, group_payload, segment_blocks, whole_groups};
use crate::engine::wal_plan::Seen;
use crate::io::File;

/// What is sound of a shard's log.
pub(super) struct FoundLog {
    segments: Vec<(String, File, SegmentSeed)>,
    /// In order of sequence: which segment, and where.
    groups: Vec<(usize, FoundGroup)>,
    released: u64,
    /// The greatest sequence that any block names.
    pub last: u64,
}

impl Salvage<'_> {
    /// Looks for whole groups above `released`, and says what is missing between them.
    pub(super) async fn find_log(&mut self, source: &Path, name: &str, released: u64, core: u16) -> FoundLog {
        let mut log = FoundLog { segments: Vec::new(), groups: Vec::new(), released, last: released };
        let (mut damaged, mut any_newer) = (Vec::new(), released);
        for entry in self.io.list(source).await.unwrap_or_default() {
            let Some(number) = segment_number(&entry.name) else { continue };
            let (file, seed) = (format!("{name}/{}", entry.name), SegmentSeed::new(self.layout.identity, number));
            let (open, seen) = match segment_blocks(self.io, &source.join(&entry.name), seed).await {
                Ok(found) => found,
                Err(error) => {
                    self.report.lost.push(self.log_lost(&file, (0, 0), error.to_string(), core));
                    continue;
                }
            };
            for seen in &seen {
                if let Seen::Whole(head) = seen {
                    any_newer = any_newer.max(head.group.last());
                }
            }
            damaged.extend(damaged_runs(&seen).into_iter().map(|(start, end)| (file.clone(), start, end)));
            let segment = log.segments.len();
            log.groups.extend(whole_groups(&seen).into_iter().filter(|group| group.head.last() > released).map(|group| (segment, group)));
            log.segments.push((file, open, seed));
        }
        log.last = any_newer;
        log.groups.sort_by_key(|(_, group)| (group.head.first, group.head.lap, group.head.incarnation));
        self.say_gaps(&log, released, &damaged, core);
        log
    }

    fn log_lost(&self, file: &str, (offset, bytes): (u64, u64), why: String, core: u16) -> Lost {
        let why = format!("{why}; it may have held the newest of any key of core {core} (each {}th vnode)", self.layout.cores);
        Lost { file: file.to_owned(), offset, bytes, why, core: Some(core), is_suspect: true, ..Lost::default() }
    }

    /// Sequences are dense: what is missing between the groups was acknowledged and is lost, and lies in what is damaged.
    fn say_gaps(&mut self, log: &FoundLog, released: u64, damaged: &[(String, u64, u64)], core: u16) {
        let (mut expected, mut gaps) = (released + 1, Vec::new());
        for (_, group) in &log.groups {
            // Without a manifest nobody knows where the log begins.
            if group.head.first > expected && !self.unruled.contains(&core) {
                gaps.push((expected, group.head.first - 1));
            }
            expected = expected.max(group.head.last() + 1);
        }
        let tail = log.last >= expected;
        if gaps.is_empty() && !tail && damaged.is_empty() {
            return;
        }
        let missing = gaps.iter().map(|(first, last)| format!("{first} to {last}")).collect::<Vec<_>>().join(", ");
        let why = match (gaps.is_empty(), tail || !damaged.is_empty()) {
            (false, _) => format!("damaged blocks of a log in which the records {missing} are missing"),
            _ => format!("damaged blocks of the log: what a crash tore, never acknowledged, or records from {expected} on"),
        };
        for (file, start, end) in damaged {
            self.report.lost.push(self.log_lost(file, (*start, end - start), why.clone(), core));
        }
        if damaged.is_empty() {
            let what = if gaps.is_empty() { format!("from {expected} on, of a group that is not whole") } else { missing };
            let file = format!("{}/wal", shard_name(self.layout.generation, core));
            self.report.lost.push(self.log_lost(&file, (0, 0), format!("the records {what}, are missing"), core));
        }
    }

    /// Writes the found groups as tables of level 0. Gives the greatest clock that they name.
    pub(super) async fn write_log(&mut self, log: &FoundLog, name: &str, tables: &Tables) -> Result<u64, EngineError> {
        let mut memtable = self.memtable();
        let (mut newest, mut records, mut last, mut vnodes) = (0, 0u64, log.released, Vec::new());
        for (segment, group) in &log.groups {
            let (file, open, seed) = &log.segments[*segment];
            let Some(payload) = group_payload(self.io, open, *seed, group).await else {
                self.log_group_lost(file, group);
                continue;
            };
            match take_group(&payload, group, last, &mut memtable, self.layout.vnodes, &mut vnodes) {
                Ok(ceiling) => newest = newest.max(ceiling),
                Err(what) => {
                    self.log_group_lost(file, group);
                    self.say(format!("{file} at {}: {}", group.offset(), what.0));
                }
            }
            (records, last) = (records + u64::from(group.head.records), last.max(group.head.last()));
            if memtable.bytes() >= MEMTABLE_BYTES {
                let full = std::mem::replace(&mut memtable, self.memtable());
                tables.flush(&full, 0).await?;
            }
        }
        if !memtable.is_empty() {
            tables.flush(&memtable, 0).await?;
        }
        let edits = |one: &VnodesRecord| (one.namespace, one.first, one.last.min(self.layout.vnodes - 1), one.record);
        let edits = vnodes.iter().map(edits).filter(|(_, first, last, _)| first <= last);
        let edits: Vec<Edit> = edits.map(|(namespace, first, last, record)| Edit::Vnodes { namespace, first, last, record }).collect();
        if !edits.is_empty() {
            tables.manifest().commit(edits, |_| ()).await?;
        }
        self.say(format!("{name}: {} groups of the log, {records} records that were in no table", log.groups.len()));
        Ok(newest)
    }

    fn memtable(&self) -> Memtable {
        let vnodes = self.layout.vnodes;
        Memtable::new(MemtableConfig { vnodes, hash_seed: self.io.random_u64(), chunk_bytes: 1 << 20 })
    }

    fn log_group_lost(&mut self, file: &str, group: &FoundGroup) {
        let why = format!("the records {} to {} cannot be taken apart", group.head.first, group.head.last());
        let core = file.split_once("-s").and_then(|(_, rest)| rest.split_once('/')?.0.parse().ok()).unwrap_or(0);
        let bytes = u64::from(group.head.blocks) * BLOCK_BYTES as u64;
        let lost = self.log_lost(file, (group.offset(), bytes), why, core);
        self.report.lost.push(lost);
    }
}

/// Runs of damaged blocks: where each begins and ends.
fn damaged_runs(seen: &[Seen]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for at in (1..seen.len()).filter(|&at| seen[at] == Seen::Damaged) {
        let offset = (at * BLOCK_BYTES) as u64;
        match runs.last_mut() {
            Some(run) if run.1 == offset => run.1 += BLOCK_BYTES as u64,
            _ => runs.push((offset, offset + BLOCK_BYTES as u64)),
        }
    }
    runs
}

/// Joins a group's cells above sequence `after` in; all of its records are looked at first, so that it counts whole or not at all.
fn take_group(
    payload: &[u8],
    group: &FoundGroup,
    after: u64,
    memtable: &mut Memtable,
    vnodes_of_ring: u32,
    vnodes: &mut Vec<VnodesRecord>,
) -> Result<u64, Malformed> {
    let mut records = Vec::new();
    let (mut newest, mut framed) = parse_payload(payload)?;
    while let Some(record) = framed.next_record()? {
        if let Record::Batch(mut batch) = parse_record(record)? {
            while batch.next_cell()?.is_some() {}
        }
        records.push(record);
    }
    if records.len() as u64 != u64::from(group.head.records) {
        return Err(Malformed("not as many records as the group says"));
    }
    for (seq, record) in (group.head.first..).zip(records).filter(|(seq, _)| *seq > after) {
        match parse_record(record)? {
            Record::Batch(mut batch) => {
                while let Some(cell) = batch.next_cell()? {
                    newest = newest.max(cell.cell.newest().hlc());
                    memtable.insert(cell.place, &cell.cell, seq);
                }
            }
            Record::Vnodes(record) => {
                // Cells of earlier records are void, also those that wait here.
                for vnode in record.first..=record.last.min(vnodes_of_ring - 1) {
                    memtable.void_below(record.namespace, vnode, record.record.drop_seq);
                }
                vnodes.push(record);
            }
            Record::Ceiling(hlc) => newest = newest.max(hlc),
        }
    }
    Ok(newest)
}
