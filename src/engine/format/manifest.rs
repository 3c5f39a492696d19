//! The bytes of a manifest: which tables a shard's tree is made of, and the few numbers that must outlive the process.
//! `docs/format.md`, section Manifest, is this file in prose.
//!
//! `MANIFEST-<n>` is a log: block 0 is its header, then groups of edits, each in whole blocks and durable before the next is written.
//! `CURRENT` names the manifest in force. A group that is cut short at the end was never acknowledged: a torn tail. A bad group with
//! a good, later one behind it is rot.

use super::Identity;
use crate::base::checksum::hash64_seeded;
use crate::base::codec::{Malformed, Reader, is_zero, put_bytes, put_varint};
use crate::base::record::{NamespaceId, Version};
use crate::engine::vnode_set::VnodeSet;
use crate::limits::BLOCK_BYTES;

/// Names a table for a node's life: the shard that wrote it and a number that this shard never uses again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    pub shard: u16,
    pub number: u64,
}

impl TableId {
    /// The file's name in the folder of tables.
    pub fn file_name(self) -> String {
        format!("{:03}-{:010}.table", self.shard, self.number)
    }

    /// The reverse of `file_name`.
    pub fn from_file_name(name: &str) -> Option<TableId> {
        let (shard, number) = name.strip_suffix(".table")?.split_once('-')?;
        let id = TableId { shard: shard.parse().ok()?, number: number.parse().ok()? };
        (id.file_name() == name).then_some(id)
    }
}

/// Where in the tree a run lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// One run a flush.
    #[default]
    Zero = 0,
    /// Tiered: merged flushes.
    One = 1,
    /// One sorted run.
    Last = 2,
}

/// What a reference to a table is valid for, of what the table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub vnodes: VnodeSet,
    /// Of these vnodes everything below this place is void.
    pub from: Vec<u8>,
}

/// One table of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRecord {
    pub id: TableId,
    pub level: Level,
    /// Rises with time; the tables of one run do not overlap.
    pub run: u64,
    /// Of the whole file.
    pub bytes: u64,
    pub entries: u64,
    /// First and last place in it.
    pub first: Vec<u8>,
    pub last: Vec<u8>,
    /// Everything below this place is void: a merge has carried it elsewhere. Empty: all is valid.
    pub from: Vec<u8>,
    /// First and last vnode in it.
    pub vnodes: (u32, u32),
    /// The log records it holds: void for a vnode whose drop sequence lies above the last.
    pub seqs: (u64, u64),
    /// The vnodes for which this reference is valid, none of them twice; empty: all that the table holds. A table that comes from another
    /// list of cores holds vnodes that this shard never owned, or that another one has carried elsewhere.
    pub parts: Vec<Part>,
    /// Other shards refer to the same file: it is never given back in parts.
    pub shared: bool,
    /// A snapshot links the file: it is never given back in parts.
    pub linked: bool,
}

impl TableRecord {
    /// The first place of a vnode that is valid here, or one below it; None where nothing of the vnode is.
    #[inline]
    pub fn start_of(&self, vnode: u32) -> Option<&[u8]> {
        let start = (&self.first[..]).max(&self.from[..]);
        if self.parts.is_empty() {
            return Some(start);
        }
        self.parts.iter().find(|part| part.vnodes.contains(vnode)).map(|part| start.max(&part.from[..]))
    }

    /// What is stored here at this place of the vnode is valid.
    #[inline]
    pub fn is_valid(&self, place: &[u8], vnode: u32) -> bool {
        self.start_of(vnode).is_some_and(|start| start <= place)
    }
}

/// What a shard must remember about a vnode of a namespace (PROTOCOL.md "Leader of a vnode", "Forgetting the dead", "Moves").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnodeRecord {
    /// In the system's namespace: the topology's epoch at which this node began to hold the vnode, or ceased to.
    pub incarnation: u64,
    /// Cells of log records below are void.
    pub drop_seq: u64,
    pub fence: Version,
    pub floor: Version,
    /// The highest term promised.
    pub term: u32,
    /// Until when a lease was granted, wall clock in ms.
    pub lease_until_ms: u64,
}

/// A merge under way: its inputs are consumed from the front, a slice at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergeRecord {
    pub inputs: Vec<u64>,
    pub level: Level,
    /// The run that it grows.
    pub run: u64,
    /// All places below are merged: what the inputs hold of them is void.
    pub done: Vec<u8>,
}

/// One change of a manifest's state. A group of them takes effect whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    AddTable(TableRecord),
    RemoveTable(TableId),
    RaiseFrom {
        id: TableId,
        from: Vec<u8>,
    },
    LinkTable(TableId),
    /// The log may reuse what lies below.
    Released(u64),
    /// No stamp was given at or above.
    ClockCeiling(u64),
    /// Replaces the records of the vnodes `first..=last` of a namespace.
    Vnodes {
        namespace: NamespaceId,
        first: u32,
        last: u32,
        record: VnodeRecord,
    },
    /// Table and run numbers below these are used.
    Numbers {
        table: u64,
        run: u64,
    },
    /// A merge begins, or (none) it has ended.
    Merge(Option<MergeRecord>),
}

const MAGIC: [u8; 8] = *b"RINGKVMF";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;
const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"RKMG");
const GROUP_HEADER_BYTES: usize = 48;
/// The largest group's payload.
pub const GROUP_BYTES_MAX: usize = 16 * 1024 * 1024;
const INPUTS_MAX: u64 = 4096;
/// Most parts of a reference: one for each shard that a table comes from.
const PARTS_MAX: u64 = 65_536;

// ---------------------------------------------------------------------------------------------------------------------------------
// Header: block 0.
//
//   magic 8 | version u32 | zero u32 | required features u64 | optional features u64 | cluster u64 | node u64 | manifest number u64
//   | checksum u64 of all before it | zeros

/// The header's block.
pub fn header_block(identity: Identity, number: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4 + 8 + 8]);
    for word in [identity.cluster, identity.node, number] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    assert_eq!(out.len(), HEADER_BYTES);
    let sum = hash64_seeded(&out, 0);
    out.extend_from_slice(&sum.to_le_bytes());
    out.resize(BLOCK_BYTES, 0);
    out
}

/// What is wrong with a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Bytes at this offset are not what was written.
    Damaged(u64, Malformed),
    /// A format version or feature that this build does not know.
    TooNew,
}

fn check_header(file: &[u8], identity: Identity, number: u64) -> Result<(), Bad> {
    let damaged = |what| Bad::Damaged(0, Malformed(what));
    let covered = file.get(..HEADER_BYTES).ok_or(damaged("ends within the header"))?;
    let sum = file.get(HEADER_BYTES..HEADER_BYTES + 8).ok_or(damaged("ends within the header"))?;
    if covered[..8] != MAGIC {
        return Err(damaged("no header of a manifest"));
    }
    if sum != hash64_seeded(covered, 0).to_le_bytes() {
        return Err(damaged("checksum of the header"));
    }
    let word = |at: usize| u64::from_le_bytes(covered[at..at + 8].try_into().expect("8 bytes"));
    if word(8) != u64::from(VERSION) || word(16) != 0 {
        return Err(Bad::TooNew);
    }
    if (word(32), word(40)) != (identity.cluster, identity.node) {
        return Err(damaged("manifest of another node"));
    }
    if word(48) != number { Err(damaged("manifest under another's name")) } else { Ok(()) }
}

/// Whose manifest this is and its number, for a tool that does not know.
pub fn peek_header(file: &[u8]) -> Result<(Identity, u64), Malformed> {
    let mut reader = Reader::new(file);
    reader.take(32)?;
    let (identity, number) = (Identity { cluster: reader.u64()?, node: reader.u64()? }, reader.u64()?);
    match check_header(file, identity, number) {
        Ok(()) => Ok((identity, number)),
        Err(Bad::Damaged(_, what)) => Err(what),
        Err(Bad::TooNew) => Err(Malformed("a later format of the manifest")),
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Groups: whole blocks.
//
//   checksum u64 of the rest and the payload, seeded with identity and manifest number | magic u32 | version u8 | codec u8 (0) | zero u16
//   | key id u32 (0) | payload bytes u32 | group number u64 | room for an encryption tag 16 | payload: edits | zeros

fn seed(identity: Identity, number: u64) -> u64 {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&identity.cluster.to_le_bytes());
    bytes[8..16].copy_from_slice(&identity.node.to_le_bytes());
    bytes[16..].copy_from_slice(&number.to_le_bytes());
    hash64_seeded(&bytes, 0)
}

/// A group in whole blocks. `group` counts from 0 in each manifest.
pub fn group_blocks(identity: Identity, number: u64, group: u64, edits: &[Edit]) -> Vec<u8> {
    let mut out = vec![0; GROUP_HEADER_BYTES];
    edits.iter().for_each(|edit| put_edit(&mut out, edit));
    let payload = out.len() - GROUP_HEADER_BYTES;
    assert!(payload <= GROUP_BYTES_MAX, "a group of {payload} bytes");
    out[8..12].copy_from_slice(&GROUP_MAGIC.to_le_bytes());
    out[12] = VERSION as u8;
    out[20..24].copy_from_slice(&(payload as u32).to_le_bytes());
    out[24..32].copy_from_slice(&group.to_le_bytes());
    let sum = hash64_seeded(&out[8..], seed(identity, number));
    out[..8].copy_from_slice(&sum.to_le_bytes());
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    out
}

/// The number, payload and blocks of a whole group.
fn check_group(bytes: &[u8], seed: u64) -> Result<(u64, &[u8], usize), Malformed> {
    let mut reader = Reader::new(bytes);
    let sum = reader.u64()?;
    if reader.u32()? != GROUP_MAGIC {
        return Err(Malformed("no group of edits"));
    }
    let (version, codec, zero, key) = (reader.u8()?, reader.u8()?, reader.u16()?, reader.u32()?);
    let (len, group) = (reader.u32()? as usize, reader.u64()?);
    if len > GROUP_BYTES_MAX {
        return Err(Malformed("group too large"));
    }
    let covered = bytes.get(8..GROUP_HEADER_BYTES + len).ok_or(Malformed("group cut short"))?;
    if sum != hash64_seeded(covered, seed) {
        return Err(Malformed("checksum of a group"));
    }
    if (u32::from(version), codec, zero, key) != (VERSION, 0, 0, 0) {
        return Err(Malformed("group of an unknown version or codec"));
    }
    Ok((group, &bytes[GROUP_HEADER_BYTES..GROUP_HEADER_BYTES + len], (GROUP_HEADER_BYTES + len).div_ceil(BLOCK_BYTES)))
}

/// A manifest, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    pub edits: Vec<Edit>,
    /// The next group's number, and where it goes.
    pub next_group: u64,
    pub end_bytes: u64,
    /// A group at the end was cut short. It was never acknowledged.
    pub torn: bool,
}

/// A group where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundGroup {
    pub number: u64,
    pub edits: Vec<Edit>,
    /// With the zeros behind it.
    pub bytes: u64,
}

/// Every group with its offset, and every block that is neither of one nor zero: for a tool that goes on behind damage.
pub fn groups(file: &[u8], identity: Identity, number: u64) -> Vec<(u64, Result<FoundGroup, Malformed>)> {
    let (seed, mut at, mut found) = (seed(identity, number), BLOCK_BYTES, Vec::new());
    while let Some(rest) = file.get(at..).filter(|rest| !rest.is_empty()) {
        let mut step = BLOCK_BYTES;
        let group = check_group(rest, seed).and_then(|(number, payload, blocks)| {
            step = blocks * BLOCK_BYTES;
            let (mut reader, mut edits) = (Reader::new(payload), Vec::new());
            while !reader.is_empty() {
                edits.push(parse_edit(&mut reader)?);
            }
            Ok(FoundGroup { number, edits, bytes: step as u64 })
        });
        if group.is_ok() || rest[..step.min(rest.len())].iter().any(|&byte| byte != 0) {
            found.push((at as u64, group));
        }
        at += step;
    }
    found
}

/// Reads a whole manifest.
///
/// # Errors
/// Damage that is not a torn tail, with its offset.
pub fn replay(file: &[u8], identity: Identity, number: u64) -> Result<Replay, Bad> {
    check_header(file, identity, number)?;
    let seed = seed(identity, number);
    let mut found = Replay { end_bytes: BLOCK_BYTES as u64, ..Replay::default() };
    while let Some(rest) = file.get(found.end_bytes as usize..).filter(|rest| !rest.is_empty()) {
        let bad = match check_group(rest, seed) {
            Ok((group, payload, blocks)) if group == found.next_group => {
                let mut reader = Reader::new(payload);
                while !reader.is_empty() {
                    let edit = parse_edit(&mut reader).map_err(|what| Bad::Damaged(found.end_bytes, what))?;
                    found.edits.push(edit);
                }
                found.next_group += 1;
                found.end_bytes += (blocks * BLOCK_BYTES) as u64;
                continue;
            }
            Ok(_) => return Err(Bad::Damaged(found.end_bytes, Malformed("a group is missing"))),
            Err(bad) => bad,
        };
        // What was never written holds no group.
        let written = rest.chunks(BLOCK_BYTES).rposition(|block| !is_zero(block)).map_or(0, |last| last + 1);
        if (1..written).any(|index| check_group(&rest[index * BLOCK_BYTES..], seed).is_ok()) {
            return Err(Bad::Damaged(found.end_bytes, bad));
        }
        found.torn = written > 0;
        return Ok(found);
    }
    Ok(found)
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Edits. Integers are varints unless said otherwise, byte strings stand behind a varint length, versions are 16 bytes BE.
//
//   1 add: table, level u8, run, bytes, entries, first, last, from, vnode first, last, seq first, last, flags u8 (1 shared, 2 linked),
//     count of parts, each: from, vnodes
//   2 remove: table | 3 from: table, bytes | 4 link: table | 5 released: seq | 6 clock ceiling
//   7 vnodes: namespace, first, last, incarnation, drop seq, fence, floor, term, lease until | 8 numbers: table, run
//   9 merge under way: level u8, run, done, count, inputs | 10 merge ended
//   a table: shard, number | vnodes: first of the bitmap, bitmap

fn put_table(out: &mut Vec<u8>, id: TableId) {
    put_varint(out, u64::from(id.shard));
    put_varint(out, id.number);
}

fn put_record(out: &mut Vec<u8>, record: &TableRecord) {
    put_table(out, record.id);
    out.push(record.level as u8);
    [record.run, record.bytes, record.entries].into_iter().for_each(|number| put_varint(out, number));
    [&record.first, &record.last, &record.from].into_iter().for_each(|place| put_bytes(out, place));
    [u64::from(record.vnodes.0), u64::from(record.vnodes.1), record.seqs.0, record.seqs.1]
        .into_iter()
        .for_each(|number| put_varint(out, number));
    out.push(u8::from(record.shared) | u8::from(record.linked) << 1);
    put_varint(out, record.parts.len() as u64);
    for part in &record.parts {
        put_bytes(out, &part.from);
        part.vnodes.put(out);
    }
}

/// Appends an edit.
pub fn put_edit(out: &mut Vec<u8>, edit: &Edit) {
    match edit {
        Edit::AddTable(record) => {
            out.push(1);
            put_record(out, record);
        }
        Edit::RemoveTable(id) => {
            out.push(2);
            put_table(out, *id);
        }
        Edit::RaiseFrom { id, from } => {
            out.push(3);
            put_table(out, *id);
            put_bytes(out, from);
        }
        Edit::LinkTable(id) => {
            out.push(4);
            put_table(out, *id);
        }
        Edit::Released(seq) => {
            out.push(5);
            put_varint(out, *seq);
        }
        Edit::ClockCeiling(hlc) => {
            out.push(6);
            put_varint(out, *hlc);
        }
        Edit::Vnodes { namespace, first, last, record } => {
            out.push(7);
            [*namespace, *first, *last].into_iter().for_each(|number| put_varint(out, u64::from(number)));
            [record.incarnation, record.drop_seq].into_iter().for_each(|number| put_varint(out, number));
            [record.fence, record.floor].into_iter().for_each(|version| out.extend_from_slice(&version.to_bytes()));
            [u64::from(record.term), record.lease_until_ms].into_iter().for_each(|number| put_varint(out, number));
        }
        Edit::Numbers { table, run } => {
            out.push(8);
            [*table, *run].into_iter().for_each(|number| put_varint(out, number));
        }
        Edit::Merge(Some(merge)) => {
            out.extend_from_slice(&[9, merge.level as u8]);
            put_varint(out, merge.run);
            put_bytes(out, &merge.done);
            put_varint(out, merge.inputs.len() as u64);
            merge.inputs.iter().for_each(|&run| put_varint(out, run));
        }
        Edit::Merge(None) => out.push(10),
    }
}

fn u32_of(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    u32::try_from(reader.varint()?).map_err(|_| Malformed("number too large"))
}

fn table_of(reader: &mut Reader<'_>) -> Result<TableId, Malformed> {
    let shard = u16::try_from(reader.varint()?).map_err(|_| Malformed("number too large"))?;
    Ok(TableId { shard, number: reader.varint()? })
}

fn level_of(reader: &mut Reader<'_>) -> Result<Level, Malformed> {
    match reader.u8()? {
        0 => Ok(Level::Zero),
        1 => Ok(Level::One),
        2 => Ok(Level::Last),
        _ => Err(Malformed("unknown level")),
    }
}

fn record_of(reader: &mut Reader<'_>) -> Result<TableRecord, Malformed> {
    let mut record = TableRecord { id: table_of(reader)?, level: level_of(reader)?, ..TableRecord::default() };
    (record.run, record.bytes, record.entries) = (reader.varint()?, reader.varint()?, reader.varint()?);
    record.first = reader.bytes()?.to_vec();
    record.last = reader.bytes()?.to_vec();
    record.from = reader.bytes()?.to_vec();
    record.vnodes = (u32_of(reader)?, u32_of(reader)?);
    record.seqs = (reader.varint()?, reader.varint()?);
    let flags = reader.u8()?;
    if flags > 3 || record.first > record.last {
        return Err(Malformed("impossible table"));
    }
    (record.shared, record.linked) = (flags & 1 != 0, flags & 2 != 0);
    let count = reader.varint()?;
    if count > PARTS_MAX {
        return Err(Malformed("too many parts of a table"));
    }
    for _ in 0..count {
        let from = reader.bytes()?.to_vec();
        record.parts.push(Part { from, vnodes: VnodeSet::parse(reader)? });
    }
    Ok(record)
}

/// Takes one edit.
pub fn parse_edit(reader: &mut Reader<'_>) -> Result<Edit, Malformed> {
    Ok(match reader.u8()? {
        1 => Edit::AddTable(record_of(reader)?),
        2 => Edit::RemoveTable(table_of(reader)?),
        3 => Edit::RaiseFrom { id: table_of(reader)?, from: reader.bytes()?.to_vec() },
        4 => Edit::LinkTable(table_of(reader)?),
        5 => Edit::Released(reader.varint()?),
        6 => Edit::ClockCeiling(reader.varint()?),
        7 => {
            let (namespace, first, last) = (u32_of(reader)?, u32_of(reader)?, u32_of(reader)?);
            if first > last {
                return Err(Malformed("impossible range of vnodes"));
            }
            let (incarnation, drop_seq) = (reader.varint()?, reader.varint()?);
            let (fence, floor) = (Version::from_bytes(reader.array()?), Version::from_bytes(reader.array()?));
            let (term, lease_until_ms) = (u32_of(reader)?, reader.varint()?);
            Edit::Vnodes { namespace, first, last, record: VnodeRecord { incarnation, drop_seq, fence, floor, term, lease_until_ms } }
        }
        8 => Edit::Numbers { table: reader.varint()?, run: reader.varint()? },
        9 => {
            let (level, run) = (level_of(reader)?, reader.varint()?);
            let (done, count) = (reader.bytes()?.to_vec(), reader.varint()?);
            if count > INPUTS_MAX {
                return Err(Malformed("too many inputs of a merge"));
            }
            let inputs = (0..count).map(|_| reader.varint()).collect::<Result<_, _>>()?;
            Edit::Merge(Some(MergeRecord { inputs, level, run, done }))
        }
        10 => Edit::Merge(None),
        _ => return Err(Malformed("unknown edit")),
    })
}

/// For a fuzzer: any bytes give edits or an error; edits that were read are written the same again.
pub fn fuzz(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    while let Ok(edit) = parse_edit(&mut reader) {
        let mut again = Vec::new();
        put_edit(&mut again, &edit);
        assert_eq!(parse_edit(&mut Reader::new(&again)), Ok(edit));
    }
    let identity = Identity { cluster: 1, node: 2 };
    let mut file = header_block(identity, 3);
    file.extend_from_slice(bytes);
    drop(replay(&file, identity, 3));
    drop(replay(bytes, identity, 3));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;

    const IDENTITY: Identity = Identity { cluster: 7, node: 9 };

    fn examples() -> Vec<Edit> {
        let id = TableId { shard: 3, number: 500 };
        let record = TableRecord {
            id,
            level: Level::One,
            run: 17,
            bytes: 1 << 26,
            entries: 60_000,
            first: b"aa".to_vec(),
            last: b"zz".to_vec(),
            from: b"m".to_vec(),
            vnodes: (1, 4095),
            seqs: (100, 2000),
            parts: vec![Part { vnodes: VnodeSet::of([3, 9, 700].into_iter()), from: b"m".to_vec() }, Part::default()],
            shared: true,
            linked: false,
        };
        let fence = Version::put(5, 1);
        let vnode = VnodeRecord { incarnation: 2, drop_seq: 77, fence, floor: Version::put(4, 1), term: 12, lease_until_ms: 1 << 40 };
        vec![
            Edit::AddTable(record),
            Edit::RemoveTable(id),
            Edit::RaiseFrom { id, from: b"n".to_vec() },
            Edit::LinkTable(id),
            Edit::Released(1 << 33),
            Edit::ClockCeiling(1 << 60),
            Edit::Vnodes { namespace: 1, first: 0, last: 4095, record: vnode },
            Edit::Numbers { table: 501, run: 18 },
            Edit::Merge(Some(MergeRecord { inputs: vec![3, 4, 5], level: Level::Last, run: 6, done: b"k".to_vec() })),
            Edit::Merge(None),
        ]
    }

    fn file_of(groups: u64) -> Vec<u8> {
        let mut file = header_block(IDENTITY, 4);
        (0..groups).for_each(|group| file.extend_from_slice(&group_blocks(IDENTITY, 4, group, &examples())));
        file
    }

    #[test]
    fn the_bytes_are_frozen() {
        let hash = hash64_seeded(&file_of(2), 0);
        assert_eq!(hash, FROZEN, "the format changed: raise its version and keep reading the old one");
    }
    const FROZEN: u64 = 9_301_557_379_807_479_942;

    #[test]
    fn edits_round_trip_and_groups_replay_in_order() {
        let replay = replay(&file_of(3), IDENTITY, 4).unwrap();
        assert_eq!(replay.edits, [examples(), examples(), examples()].concat());
        assert_eq!((replay.next_group, replay.torn, replay.end_bytes), (3, false, 4 * BLOCK_BYTES as u64));
        assert_eq!(TableId::from_file_name("003-0000000500.table"), Some(TableId { shard: 3, number: 500 }));
        assert_eq!(TableId::from_file_name("3-500.table"), None);
    }

    #[test]
    fn a_torn_last_group_is_cut_and_damage_before_a_good_one_is_an_error() {
        let whole = file_of(3);
        for at in [0, 9, 21, 60] {
            let mut torn = whole.clone();
            torn[3 * BLOCK_BYTES + at] ^= 1;
            let found = replay(&torn, IDENTITY, 4).unwrap();
            assert!(found.torn && found.next_group == 2 && found.end_bytes == 3 * BLOCK_BYTES as u64);
            let mut rotten = whole.clone();
            rotten[2 * BLOCK_BYTES + at] ^= 1;
            assert!(matches!(replay(&rotten, IDENTITY, 4), Err(Bad::Damaged(8192, _))));
        }
        let mut zeros = whole.clone();
        zeros[3 * BLOCK_BYTES..].fill(0);
        assert!(!replay(&zeros, IDENTITY, 4).unwrap().torn);
        let missing = [&whole[..2 * BLOCK_BYTES], &whole[3 * BLOCK_BYTES..]].concat();
        assert!(matches!(replay(&missing, IDENTITY, 4), Err(Bad::Damaged(8192, _))));
        assert!(replay(&whole, Identity { cluster: 7, node: 8 }, 4).is_err() && replay(&whole, IDENTITY, 5).is_err());
        assert_eq!(peek_header(&whole).map(|(identity, _)| identity), Ok(IDENTITY));
    }

    #[test]
    fn any_bytes_give_an_error_and_never_a_panic() {
        let mut prng = Prng::new(1);
        let whole = file_of(2);
        for _ in 0..20_000 {
            let mut bytes = vec![0; prng.below(80) as usize];
            prng.fill(&mut bytes);
            if let Some(first) = bytes.first_mut() {
                *first %= 12;
            }
            fuzz(&bytes);
        }
        for _ in 0..300 {
            let mut bytes = whole.clone();
            let at = prng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << prng.below(8);
            bytes.truncate(prng.below(bytes.len() as u64 + 1) as usize);
            drop(replay(&bytes, IDENTITY, 4));
        }
    }
}
