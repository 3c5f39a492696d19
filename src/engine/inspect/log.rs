//! A segment of the log: its groups where they lie, newest lap or stale, and what their records are.

use super::{Line, Telling, identity_facts, layout_near, version_text};
use crate::base::record::NAMESPACE_SYSTEM;
use crate::engine::EngineError;
use crate::engine::format::wal::{Record, SegmentSeed, WAL_BLOCK_HEADER_BYTES, WAL_BLOCK_PAYLOAD_BYTES, parse_payload, parse_record};
use crate::engine::format::wal::{peek_segment, segment_bytes};
use crate::engine::pieces::{FoundGroup, group_payload, segment_blocks, whole_groups};
use crate::engine::wal_plan::Seen;
use crate::engine::wal_segments::segment_number;
use crate::io::op::OpenHow;
use crate::io::{File, Io};
use crate::limits::BLOCK_BYTES;
use std::path::Path;

pub(super) async fn tell(io: &Io, path: &Path, telling: &mut Telling) -> Result<(), EngineError> {
    let head = {
        let file = io.open(path, OpenHow::Read).await?;
        io.read(&file, 0, BLOCK_BYTES).await.map(|buf| buf.to_vec()).unwrap_or_default()
    };
    let found = match peek_segment(&head) {
        Ok(found) => {
            let line = Line::new("WAL segment").with("number", found.1).with("bytes", segment_bytes(&head));
            telling.say(identity_facts(line, found.0));
            Some(found)
        }
        Err(what) => {
            telling.damaged(0, what.0);
            let number = path.file_name().and_then(|name| segment_number(&name.to_string_lossy()));
            layout_near(io, path).await.map(|layout| layout.identity).zip(number)
        }
    };
    let Some((identity, number)) = found else {
        telling
            .say(Line::new("not read").with("piece", "blocks").with("why", "without the header or LAYOUT their checksums are not known"));
        return Ok(());
    };
    let seed = SegmentSeed::new(identity, number);
    let (file, seen) = segment_blocks(io, path, seed).await?;
    let groups = whole_groups(&seen);
    let lap = groups.iter().map(|group| group.head.lap).max().unwrap_or(0);
    for group in &groups {
        tell_group(io, &file, seed, group, lap, telling).await;
    }
    tell_rest(&seen, &groups, lap, telling);
    Ok(())
}

async fn tell_group(io: &Io, file: &File, seed: SegmentSeed, group: &FoundGroup, lap: u64, telling: &mut Telling) {
    let head = group.head;
    let payload = group_payload(io, file, seed, group).await;
    let parsed = payload.as_deref().map(parse_payload);
    let Some(Ok((ceiling, mut records))) = parsed else {
        return telling.damaged(group.offset(), "the group's payload is none");
    };
    telling.one(|| {
        let line = Line::new("group").with("offset", group.offset()).with("blocks", head.blocks).with("lap", head.lap);
        let line = line.with("incarnation", head.incarnation).with("first record", head.first).with("last record", head.last());
        line.with("clock ceiling", ceiling).with("is", if head.lap == lap { "of the newest lap" } else { "stale" })
    });
    let payload_bytes = payload.as_ref().map_or(0, Vec::len);
    let (mut seq, mut at) = (head.first, 8);
    loop {
        match records.next_record() {
            Ok(Some(record)) => {
                let start = payload_bytes - records.left() - record.len();
                let offset = group.offset() + offset_in_blocks(start);
                telling.one(|| Line::new("  record").with("offset", offset).with("seq", seq).with("bytes", record.len() as u64));
                tell_record(record, offset, telling);
                (seq, at) = (seq + 1, start + record.len());
            }
            Ok(None) if seq == head.first + u64::from(head.records) => return,
            Ok(None) => return telling.damaged(group.offset(), "not as many records as the group says"),
            Err(what) => return telling.damaged(group.offset() + offset_in_blocks(at), what.0),
        }
    }
}

/// Where a byte of a group's payload lies, counted from the group's first block.
fn offset_in_blocks(at: usize) -> u64 {
    (at / WAL_BLOCK_PAYLOAD_BYTES * BLOCK_BYTES + WAL_BLOCK_HEADER_BYTES + at % WAL_BLOCK_PAYLOAD_BYTES) as u64
}

fn tell_record(record: &[u8], offset: u64, telling: &mut Telling) {
    match parse_record(record) {
        Ok(Record::Batch(mut batch)) => {
            let (mut cells, mut system) = (0u64, 0u64);
            loop {
                match batch.next_cell() {
                    Ok(Some(cell)) => {
                        cells += 1;
                        system += u64::from(cell.place.starts_with(&NAMESPACE_SYSTEM.to_be_bytes()));
                        if telling.options.cells {
                            let mut bytes = Vec::new();
                            crate::engine::format::put_cell(&mut bytes, &cell.cell);
                            let place = cell.place.to_vec();
                            telling.cell(&place, &bytes, |line| line);
                        }
                    }
                    Ok(None) => break,
                    Err(what) => return telling.damaged(offset, what.0),
                }
            }
            telling.one(|| Line::new("  batch").with("cells", cells).with("of the system's namespace", system));
        }
        Ok(Record::Vnodes(vnodes)) => telling.one(|| {
            let line = Line::new("  vnodes").with("namespace", vnodes.namespace).with("first", vnodes.first).with("last", vnodes.last);
            line.with("drop sequence", vnodes.record.drop_seq).with("floor", version_text(vnodes.record.floor))
        }),
        Ok(Record::Ceiling(hlc)) => telling.one(|| Line::new("  clock ceiling").with("hlc", hlc)),
        Err(what) => telling.damaged(offset, what.0),
    }
}

/// What lies between and behind the whole groups, and the sums.
fn tell_rest(seen: &[Seen], groups: &[FoundGroup], lap: u64, telling: &mut Telling) {
    let mut is_whole = vec![false; seen.len()];
    for group in groups {
        is_whole[group.start as usize..(group.start + group.head.blocks) as usize].fill(true);
    }
    let mut at = 1;
    while at < seen.len() {
        let is_bad = |at: usize| !is_whole[at] && matches!(&seen[at], Seen::Damaged | Seen::Whole(_));
        if !is_bad(at) {
            at += 1;
            continue;
        }
        let end = (at..seen.len()).find(|&at| !is_bad(at)).unwrap_or(seen.len());
        let any_damaged = seen[at..end].contains(&Seen::Damaged);
        let newest = seen[at..end].iter().any(|seen| matches!(seen, Seen::Whole(head) if head.group.lap == lap));
        let (offset, blocks) = ((at * BLOCK_BYTES) as u64, (end - at) as u64);
        if any_damaged {
            telling.is_sound = false;
        }
        let what = match (any_damaged, newest) {
            (true, _) => "damaged: rot, or what a crash tore, which verify tells apart",
            (false, true) => "parts of groups that are not whole",
            (false, false) => "parts of stale groups",
        };
        telling.say(Line::new("blocks").with("offset", offset).with("blocks", blocks).with("are", what));
        at = end;
    }
    let newest: Vec<_> = groups.iter().filter(|group| group.head.lap == lap).collect();
    let records: u64 = newest.iter().map(|group| u64::from(group.head.records)).sum();
    let end = newest.last().map_or(BLOCK_BYTES as u64, |group| group.offset() + u64::from(group.head.blocks) * BLOCK_BYTES as u64);
    let zero = seen.iter().skip(1).filter(|seen| **seen == Seen::Zero).count() as u64;
    let line = Line::new("holds").with("lap", lap).with("groups", newest.len() as u64).with("records", records);
    let line = line.with("last record", newest.last().map_or(0, |group| group.head.last())).with("ends at", end);
    telling.say(line.with("stale groups", (groups.len() - newest.len()) as u64).with("blocks never written", zero));
}
