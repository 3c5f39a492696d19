//! The bytes of the write-ahead log: segments, blocks, groups and records. `docs/format.md`,
//! section Write-ahead log, is this file in prose.
//!
//! A segment file is a ring's place: block 0 is its header, the rest is written front to back, once a **lap**. A **group** is what one
//! durable write carries: whole blocks, each with a header of its own that names the group, so that any subset of them may be missing and
//! be noticed. The group's payload runs through the blocks behind their headers: a clock ceiling, then records.

use super::manifest::VnodeRecord;
use super::{Identity, key_prefix_len, parse_cell, parse_place, put_cell};
use crate::base::checksum::hash64_seeded;
use crate::base::codec::{Malformed, Reader, is_zero, put_bytes, put_varint};
use crate::base::record::{Cell, NamespaceId, Version};
use crate::limits::{BLOCK_BYTES, VALUE_BYTES_MAX};

// ---------------------------------------------------------------------------------------------------------------------------------
// Segment header: block 0 of a file, written once, when the file is made.
//
//   magic 8 | version u32 | zero u32 | required features u64 | optional features u64 | cluster u64 | node u64 | segment number u64
//   | segment bytes u64 | checksum u64 of all before it | zeros

const SEGMENT_MAGIC: [u8; 8] = *b"RINGKVWL";
const SEGMENT_VERSION: u32 = 1;
const SEGMENT_HEADER_BYTES: usize = 64;

/// Appends a segment's header (without the zeros up to the block's end).
pub fn put_segment_header(out: &mut Vec<u8>, identity: Identity, number: u64, segment_bytes: u64) {
    let start = out.len();
    out.extend_from_slice(&SEGMENT_MAGIC);
    out.extend_from_slice(&SEGMENT_VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4 + 8 + 8]);
    for word in [identity.cluster, identity.node, number, segment_bytes] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    assert_eq!(out.len() - start, SEGMENT_HEADER_BYTES);
    out.extend_from_slice(&hash64_seeded(&out[start..], 0).to_le_bytes());
}

/// Why a segment's header is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadSegment {
    Damaged(Malformed),
    /// A format version or feature that this build does not know.
    TooNew,
}

/// Checks a segment's header.
pub fn check_segment_header(block: &[u8], identity: Identity, number: u64) -> Result<(), BadSegment> {
    let damaged = |what| BadSegment::Damaged(Malformed(what));
    let mut reader = Reader::new(block);
    let covered = reader.take(SEGMENT_HEADER_BYTES).map_err(BadSegment::Damaged)?;
    let sum = reader.u64().map_err(BadSegment::Damaged)?;
    if covered[..8] != SEGMENT_MAGIC {
        return Err(damaged("no header of a WAL segment"));
    }
    if sum != hash64_seeded(covered, 0) {
        return Err(damaged("checksum of the segment header"));
    }
    let word = |at: usize| u64::from_le_bytes(covered[at..at + 8].try_into().expect("8 bytes"));
    if word(8) != u64::from(SEGMENT_VERSION) || word(16) != 0 {
        return Err(BadSegment::TooNew);
    }
    if (word(32), word(40)) != (identity.cluster, identity.node) {
        return Err(damaged("segment of another node"));
    }
    if word(48) != number { Err(damaged("segment under another's name")) } else { Ok(()) }
}

/// Whose segment this is and its number, for a tool that does not know.
pub fn peek_segment(block: &[u8]) -> Result<(Identity, u64), Malformed> {
    let word = |at: usize| block.get(at..at + 8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
    let (cluster, node, number) = (word(32), word(40), word(48));
    let found = cluster.zip(node).zip(number).map(|((cluster, node), number)| (Identity { cluster, node }, number));
    let (identity, number) = found.ok_or(Malformed("ends within the header"))?;
    match check_segment_header(block, identity, number) {
        Ok(()) => Ok((identity, number)),
        Err(BadSegment::Damaged(what)) => Err(what),
        Err(BadSegment::TooNew) => Err(Malformed("a later format of the log")),
    }
}

/// The length that a header which was checked says its segment has.
pub fn segment_bytes(header: &[u8]) -> u64 {
    u64::from_le_bytes(header[56..64].try_into().expect("8 bytes"))
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Blocks.
//
//   checksum u64 of the rest of the block, seeded with identity, segment number and block number
//   magic u32 | version u8 | codec u8 (0) | payload bytes used u16 | key id u32 (0) | incarnation u32 | lap u64 | first sequence u64
//   | group blocks u32 | index in group u32 | records in group u32 | zero u32 | room for an encryption tag 16 | payload, zeros

const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"RKWB");
const BLOCK_VERSION: u8 = 1;
/// Bytes of a block before its payload.
pub const WAL_BLOCK_HEADER_BYTES: usize = 72;
/// Payload bytes of a block.
pub const WAL_BLOCK_PAYLOAD_BYTES: usize = BLOCK_BYTES - WAL_BLOCK_HEADER_BYTES;
/// Bytes of a group's payload before its first record: the clock ceiling.
pub const GROUP_HEADER_BYTES: usize = 8;
/// The largest record: a value of the largest size, its key, and what its chunks need around them.
pub const RECORD_BYTES_MAX: usize = VALUE_BYTES_MAX + 1024 * 1024;
const _: () = assert!(WAL_BLOCK_PAYLOAD_BYTES <= u16::MAX as usize);

/// What seeds the checksums of one segment's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSeed(u64);

impl SegmentSeed {
    pub fn new(identity: Identity, number: u64) -> SegmentSeed {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&identity.cluster.to_le_bytes());
        bytes[8..16].copy_from_slice(&identity.node.to_le_bytes());
        bytes[16..].copy_from_slice(&number.to_le_bytes());
        SegmentSeed(hash64_seeded(&bytes, 0))
    }

    fn block(self, number: u32) -> u64 {
        self.0 ^ u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// What all blocks of a group say alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupHead {
    /// Rises by one every time a segment file is begun anew.
    pub lap: u64,
    /// Rises by one every time the log is opened: remains of a torn group never combine with a later one.
    pub incarnation: u32,
    /// Sequence of the group's first record.
    pub first: u64,
    pub blocks: u32,
    pub records: u32,
}

impl GroupHead {
    /// Sequence of the group's last record.
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.records) - 1
    }
}

/// A whole block's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHead {
    pub group: GroupHead,
    pub index: u32,
    /// Payload bytes.
    pub used: u16,
}

/// How many blocks a group's payload takes.
pub fn blocks_of(payload_bytes: usize) -> usize {
    payload_bytes.div_ceil(WAL_BLOCK_PAYLOAD_BYTES)
}

/// Lays `payload` out in `blocks` (exactly `head.blocks` long) for a group that starts at block `start` of its segment.
pub fn fill_group(blocks: &mut [u8], payload: &[u8], head: &GroupHead, seed: SegmentSeed, start: u32) {
    assert_eq!(blocks.len(), head.blocks as usize * BLOCK_BYTES);
    assert_eq!(blocks_of(payload.len()), head.blocks as usize);
    for (index, (block, part)) in blocks.chunks_exact_mut(BLOCK_BYTES).zip(payload.chunks(WAL_BLOCK_PAYLOAD_BYTES)).enumerate() {
        block[..WAL_BLOCK_HEADER_BYTES].fill(0);
        block[WAL_BLOCK_HEADER_BYTES + part.len()..].fill(0);
        block[8..12].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
        block[12] = BLOCK_VERSION;
        block[14..16].copy_from_slice(&(part.len() as u16).to_le_bytes());
        block[20..24].copy_from_slice(&head.incarnation.to_le_bytes());
        block[24..32].copy_from_slice(&head.lap.to_le_bytes());
        block[32..40].copy_from_slice(&head.first.to_le_bytes());
        block[40..44].copy_from_slice(&head.blocks.to_le_bytes());
        block[44..48].copy_from_slice(&(index as u32).to_le_bytes());
        block[48..52].copy_from_slice(&head.records.to_le_bytes());
        block[WAL_BLOCK_HEADER_BYTES..WAL_BLOCK_HEADER_BYTES + part.len()].copy_from_slice(part);
        let sum = hash64_seeded(&block[8..], seed.block(start + index as u32));
        block[..8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Takes block `number` of a segment apart. `None`: never written (all zeros).
pub fn parse_block(block: &[u8], seed: SegmentSeed, number: u32) -> Result<Option<BlockHead>, Malformed> {
    if block.len() != BLOCK_BYTES {
        return Err(Malformed("block cut short"));
    }
    if block[..16] == [0; 16] && is_zero(block) {
        return Ok(None);
    }
    let mut reader = Reader::new(block);
    if reader.u64()? != hash64_seeded(&block[8..], seed.block(number)) {
        return Err(Malformed("checksum of a WAL block"));
    }
    parse_block_head(reader).map(Some)
}

/// The fields behind the checksum.
fn parse_block_head(mut reader: Reader<'_>) -> Result<BlockHead, Malformed> {
    if reader.u32()? != BLOCK_MAGIC {
        return Err(Malformed("no magic of a WAL block"));
    }
    let (version, codec, used, key) = (reader.u8()?, reader.u8()?, reader.u16()?, reader.u32()?);
    if version != BLOCK_VERSION || codec != 0 || key != 0 {
        return Err(Malformed("WAL block of a later format"));
    }
    let (incarnation, lap, first) = (reader.u32()?, reader.u64()?, reader.u64()?);
    let (blocks, index, records) = (reader.u32()?, reader.u32()?, reader.u32()?);
    if index >= blocks || records == 0 || first == 0 || first.checked_add(u64::from(records)).is_none() {
        return Err(Malformed("WAL block that contradicts itself"));
    }
    if usize::from(used) > WAL_BLOCK_PAYLOAD_BYTES || used == 0 {
        return Err(Malformed("WAL block with too much in it"));
    }
    Ok(BlockHead { group: GroupHead { lap, incarnation, first, blocks, records }, index, used })
}

/// The payload of a block that `parse_block` accepted.
pub fn block_payload<'a>(block: &'a [u8], head: &BlockHead) -> &'a [u8] {
    &block[WAL_BLOCK_HEADER_BYTES..WAL_BLOCK_HEADER_BYTES + usize::from(head.used)]
}

/// Starts a group's payload: the ceiling comes at launch (`set_ceiling`).
pub fn start_payload(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; GROUP_HEADER_BYTES]);
}

/// Sets the clock ceiling of a group's payload: this node stamps nothing above it before another group says a higher one.
pub fn set_ceiling(payload: &mut [u8], ceiling: u64) {
    payload[..GROUP_HEADER_BYTES].copy_from_slice(&ceiling.to_le_bytes());
}

/// Appends a record to a group's payload.
pub fn put_framed(payload: &mut Vec<u8>, record: &[u8]) {
    put_bytes(payload, record);
}

/// A group's payload: the clock ceiling, and the records in order.
pub fn parse_payload(payload: &[u8]) -> Result<(u64, Framed<'_>), Malformed> {
    let mut reader = Reader::new(payload);
    Ok((reader.u64()?, Framed { reader }))
}

/// The records of a group.
pub struct Framed<'a> {
    reader: Reader<'a>,
}

impl<'a> Framed<'a> {
    /// Bytes that are not read yet.
    pub fn left(&self) -> usize {
        self.reader.rest().len()
    }

    /// The next record, if there is one.
    pub fn next_record(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        if self.reader.is_empty() { Ok(None) } else { self.reader.bytes().map(Some) }
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Records. The group gives the length.
//
//   batch:    1 | cells: varint bytes shared with the place before | varint rest, rest | varint cell, cell
//   vnodes:   2 | namespace u32 | first vnode u32 | last vnode u32 | incarnation u64 | drop sequence u64 | fence 16 BE | floor 16 BE
//               | promised term u32 | lease granted until u64 (ms since 1970)
//   ceiling:  3 | hlc u64

const RECORD_BATCH: u8 = 1;
const RECORD_VNODES: u8 = 2;
const RECORD_CEILING: u8 = 3;

/// What must be remembered of the vnodes `first..=last` of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VnodesRecord {
    pub namespace: NamespaceId,
    pub first: u32,
    pub last: u32,
    pub record: VnodeRecord,
}

/// A record, taken apart as far as its kind.
pub enum Record<'a> {
    Batch(BatchReader<'a>),
    Vnodes(VnodesRecord),
    Ceiling(u64),
}

/// Starts a batch.
pub fn start_batch(out: &mut Vec<u8>) {
    out.push(RECORD_BATCH);
}

/// Appends a cell whose place shares its first `shared` bytes with the place before it.
pub fn put_batch_cell(out: &mut Vec<u8>, shared: usize, rest: &[u8], scratch: &mut Vec<u8>, cell: &Cell<'_>) {
    put_varint(out, shared as u64);
    put_bytes(out, rest);
    scratch.clear();
    put_cell(scratch, cell);
    put_bytes(out, scratch);
}

/// Appends a vnodes record.
pub fn put_vnodes(out: &mut Vec<u8>, vnodes: &VnodesRecord) {
    out.push(RECORD_VNODES);
    for word in [vnodes.namespace, vnodes.first, vnodes.last] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let VnodeRecord { incarnation, drop_seq, fence, floor, term, lease_until_ms } = vnodes.record;
    out.extend_from_slice(&incarnation.to_le_bytes());
    out.extend_from_slice(&drop_seq.to_le_bytes());
    out.extend_from_slice(&fence.to_bytes());
    out.extend_from_slice(&floor.to_bytes());
    out.extend_from_slice(&term.to_le_bytes());
    out.extend_from_slice(&lease_until_ms.to_le_bytes());
}

/// Appends a ceiling record: nothing but a reason for a group.
pub fn put_ceiling(out: &mut Vec<u8>, hlc: u64) {
    out.push(RECORD_CEILING);
    out.extend_from_slice(&hlc.to_le_bytes());
}

/// Takes a record apart.
pub fn parse_record(record: &[u8]) -> Result<Record<'_>, Malformed> {
    let mut reader = Reader::new(record);
    match reader.u8()? {
        RECORD_BATCH => Ok(Record::Batch(BatchReader { reader, place: Vec::new() })),
        RECORD_VNODES => {
            let (namespace, first, last) = (reader.u32()?, reader.u32()?, reader.u32()?);
            let (incarnation, drop_seq) = (reader.u64()?, reader.u64()?);
            let (fence, floor) = (Version::from_bytes(reader.array()?), Version::from_bytes(reader.array()?));
            let (term, lease_until_ms) = (reader.u32()?, reader.u64()?);
            reader.end()?;
            if first > last {
                return Err(Malformed("vnodes in the wrong order"));
            }
            let record = VnodeRecord { incarnation, drop_seq, fence, floor, term, lease_until_ms };
            Ok(Record::Vnodes(VnodesRecord { namespace, first, last, record }))
        }
        RECORD_CEILING => {
            let hlc = reader.u64()?;
            reader.end()?;
            Ok(Record::Ceiling(hlc))
        }
        _ => Err(Malformed("unknown kind of WAL record")),
    }
}

/// The cells of a batch.
pub struct BatchReader<'a> {
    reader: Reader<'a>,
    place: Vec<u8>,
}

/// A cell of a batch, checked.
pub struct BatchCell<'a> {
    /// The encoded place.
    pub place: &'a [u8],
    /// How much of it names the key.
    pub prefix_len: usize,
    /// The encoded cell.
    pub bytes: &'a [u8],
    pub cell: Cell<'a>,
}

impl BatchReader<'_> {
    /// The next cell, if there is one. What it borrows lives until the next call.
    pub fn next_cell(&mut self) -> Result<Option<BatchCell<'_>>, Malformed> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let shared = usize::try_from(self.reader.varint()?).map_err(|_| Malformed("shared prefix too long"))?;
        let rest = self.reader.bytes()?;
        let bytes = self.reader.bytes()?;
        let place: &[u8] = {
            if shared > self.place.len() {
                return Err(Malformed("shared prefix longer than the place before"));
            }
            self.place.truncate(shared);
            self.place.extend_from_slice(rest);
            &self.place
        };
        parse_place(place)?;
        let cell = parse_cell(bytes)?;
        Ok(Some(BatchCell { place, prefix_len: key_prefix_len(place)?, bytes, cell }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::put_place;
    use super::*;
    use crate::base::record::Kind;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn example_batch() -> Vec<u8> {
        let (mut record, mut scratch, mut place) = (Vec::new(), Vec::new(), Vec::new());
        start_batch(&mut record);
        put_place(&mut place, 1, 0x0102_0304_0506_0708, b"key", Kind::Head, b"");
        put_batch_cell(&mut record, 0, &place, &mut scratch, &Cell::value(Version::put(5, 6), b"value"));
        let shared = key_prefix_len(&place).unwrap();
        put_batch_cell(&mut record, shared, b"\x02f", &mut scratch, &Cell::tombstone(Version::put(7, 6)));
        record
    }

    #[test]
    fn the_bytes_of_records_are_frozen() {
        let record = example_batch();
        let expected = concat!(
            "01",
            "00",
            "12000000010102030405060708",
            "6b6579000100",
            "16",
            "1100000000000000050006000000000000",
            "76616c7565",
            "11",
            "020266",
            "11",
            "1600000000000000070006000000000000",
        );
        assert_eq!(hex(&record), expected);
        let mut out = Vec::new();
        let v = Version::put(1, 2);
        let record = VnodeRecord { incarnation: 4, drop_seq: 5, fence: v, floor: Version::put(6, 7), term: 9, lease_until_ms: 10 };
        put_vnodes(&mut out, &VnodesRecord { namespace: 1, first: 2, last: 3, record });
        put_ceiling(&mut out, 77);
        let expected = concat!(
            "02",
            "01000000",
            "02000000",
            "03000000",
            "0400000000000000",
            "0500000000000000",
            "00000000000000010002000000000000",
            "00000000000000060007000000000000",
            "09000000",
            "0a00000000000000",
            "034d00000000000000",
        );
        assert_eq!(hex(&out), expected);
    }

    #[test]
    fn the_bytes_of_a_block_and_of_a_segment_header_are_frozen() {
        let identity = Identity { cluster: 1, node: 2 };
        let mut payload = Vec::new();
        start_payload(&mut payload);
        set_ceiling(&mut payload, 0x1122);
        put_framed(&mut payload, &example_batch());
        let head = GroupHead { lap: 3, incarnation: 4, first: 5, blocks: 1, records: 1 };
        let mut block = vec![0; BLOCK_BYTES];
        fill_group(&mut block, &payload, &head, SegmentSeed::new(identity, 6), 7);
        assert_eq!(
            hex(&block[..80]),
            concat!(
                "6e6060411aa97aad",
                "524b5742",
                "0100",
                "4b00",
                "00000000",
                "04000000",
                "0300000000000000",
                "0500000000000000",
                "01000000",
                "00000000",
                "01000000",
                "00000000",
                "00000000000000000000000000000000",
                "2211000000000000"
            )
        );
        let mut header = Vec::new();
        put_segment_header(&mut header, identity, 6, 1 << 20);
        assert_eq!(
            hex(&header),
            concat!(
                "52494e474b56574c010000000000000000000000000000000000000000000000",
                "01000000000000000200000000000000060000000000000000001000000000007e1efeba3eb6bfcf",
            )
        );
        assert_eq!(check_segment_header(&header, identity, 6), Ok(()));
        assert!(check_segment_header(&header, identity, 7).is_err());
        assert!(check_segment_header(&header, Identity { cluster: 1, node: 3 }, 6).is_err());
    }

    #[test]
    fn a_group_reads_back_from_its_blocks_and_any_flipped_bit_is_noticed() {
        let seed = SegmentSeed::new(Identity::default(), 1);
        let mut payload = Vec::new();
        start_payload(&mut payload);
        let records: Vec<Vec<u8>> = (0..9usize).map(|n| vec![n as u8; n * 1000]).collect();
        records.iter().for_each(|r| put_framed(&mut payload, r));
        let blocks = blocks_of(payload.len()) as u32;
        let head = GroupHead { lap: 1, incarnation: 1, first: 10, blocks, records: 9 };
        let mut bytes = vec![0; blocks as usize * BLOCK_BYTES];
        fill_group(&mut bytes, &payload, &head, seed, 1);
        let mut back = Vec::new();
        for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let parsed = parse_block(block, seed, 1 + index as u32).unwrap().unwrap();
            assert_eq!((parsed.group, parsed.index), (head, index as u32));
            back.extend_from_slice(block_payload(block, &parsed));
            assert!(parse_block(block, seed, 2 + index as u32).is_err(), "a block in another's place");
            for at in [0, 8, 30, 71, 72, 4095] {
                let mut bad = block.to_vec();
                bad[at] ^= 0x10;
                assert!(parse_block(&bad, seed, 1 + index as u32).is_err());
            }
        }
        let (_, mut framed) = parse_payload(&back).unwrap();
        for record in &records {
            assert_eq!(framed.next_record().unwrap(), Some(&record[..]));
        }
        assert_eq!(framed.next_record(), Ok(None));
        assert_eq!(parse_block(&[0; BLOCK_BYTES], seed, 1), Ok(None));
    }

    #[test]
    fn a_batch_reads_back_and_damage_is_an_error() {
        let record = example_batch();
        let Record::Batch(mut batch) = parse_record(&record).unwrap() else { panic!("a batch") };
        let first = batch.next_cell().unwrap().unwrap();
        assert_eq!(first.cell, Cell::value(Version::put(5, 6), b"value"));
        let second = batch.next_cell().unwrap().unwrap();
        assert_eq!(parse_place(second.place).unwrap().element, b"f");
        assert!(batch.next_cell().unwrap().is_none());
        for cut in 1..record.len() {
            let Ok(Record::Batch(mut batch)) = parse_record(&record[..cut]) else { panic!("still a batch") };
            while let Ok(Some(_)) = batch.next_cell() {}
        }
        assert!(parse_record(&[]).is_err() && parse_record(&[9]).is_err() && parse_record(&[3, 1]).is_err());
    }
}
