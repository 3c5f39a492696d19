//! The bytes of a log of hints: small records under numbers of their own, which the engine does not look into. `docs/format.md`, section
//! Hints, is this file in prose.
//!
//! `hints-<n>.log` is one segment: block 0 is its header, then groups of frames, each group from a fresh block on. Nothing is written over,
//! so a frame whose checksum fits is one that was written here; what does not fit is skipped up to the next block.

use super::Identity;
use crate::base::checksum::hash64_seeded;
use crate::base::codec::{Malformed, Reader, is_zero};
use crate::limits::BLOCK_BYTES;
use std::ops::Range;

const MAGIC: [u8; 8] = *b"RINGKVHL";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;
/// Before the bytes of a frame.
pub const FRAME_BYTES: usize = 20;

/// A segment's file.
pub fn file_name(segment: u64) -> String {
    format!("hints-{segment}.log")
}

/// The number in a segment's file name.
pub fn segment_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix("hints-")?.strip_suffix(".log")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Header: block 0.
//
//   magic 8 | version u32 | zero u32 | required features u64 | optional features u64 | cluster u64 | node u64 | segment u64
//   | checksum u64 of all before it | zeros
//
// Frame: checksum u64 of the rest, seeded with identity, segment and offset | number u64 | length u32 | bytes. A group ends with zeros.

/// The header's block.
pub fn header_block(identity: Identity, segment: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4 + 8 + 8]);
    [identity.cluster, identity.node, segment].iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    assert_eq!(out.len(), HEADER_BYTES);
    let sum = hash64_seeded(&out, 0);
    out.extend_from_slice(&sum.to_le_bytes());
    out.resize(BLOCK_BYTES, 0);
    out
}

fn seed(identity: Identity, segment: u64, offset: u64) -> u64 {
    let words = [identity.cluster, identity.node, segment, offset];
    hash64_seeded(&words.map(u64::to_le_bytes).concat(), 0)
}

/// Appends a frame to a group that begins at `start` of its file.
pub fn put_frame(group: &mut Vec<u8>, identity: Identity, segment: u64, start: u64, number: u64, bytes: &[u8]) {
    let at = group.len();
    group.extend_from_slice(&[0; 8]);
    group.extend_from_slice(&number.to_le_bytes());
    group.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    group.extend_from_slice(bytes);
    let sum = hash64_seeded(&group[at + 8..], seed(identity, segment, start + at as u64));
    group[at..at + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Takes the frame apart that stands at `offset` of its file and at the front of `bytes`: its number and its bytes.
///
/// # Errors
/// It was not written there.
pub fn parse_frame(bytes: &[u8], identity: Identity, segment: u64, offset: u64) -> Result<(u64, &[u8]), Malformed> {
    let mut reader = Reader::new(bytes);
    let (sum, number, len) = (reader.u64()?, reader.u64()?, reader.u32()? as usize);
    let content = reader.take(len)?;
    if sum != hash64_seeded(&bytes[8..FRAME_BYTES + len], seed(identity, segment, offset)) {
        return Err(Malformed("checksum of a hint"));
    }
    Ok((number, content))
}

/// What a segment holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Number and where its bytes lie in the file.
    pub found: Vec<(u64, Range<usize>)>,
    /// Blocks with something in them that is no frame: a torn tail, or rot.
    pub damaged_blocks: u64,
}

/// Reads a whole segment.
///
/// # Errors
/// It has no header of this node, or one of a later format.
pub fn read_segment(file: &[u8], identity: Identity, segment: u64) -> Result<Frames, Malformed> {
    let header = header_block(identity, segment);
    if file.get(..BLOCK_BYTES) != Some(&header[..]) {
        return Err(Malformed("no header of this log of hints"));
    }
    let (mut frames, mut at) = (Frames::default(), BLOCK_BYTES);
    while at < file.len() {
        let rest = &file[at..];
        let block_end = (at + 1).next_multiple_of(BLOCK_BYTES).min(file.len());
        match parse_frame(rest, identity, segment, at as u64) {
            Ok((number, bytes)) => {
                let start = at + FRAME_BYTES;
                frames.found.push((number, start..start + bytes.len()));
                at = start + bytes.len();
            }
            Err(_) => {
                frames.damaged_blocks += u64::from(!is_zero(&file[at..block_end]));
                at = block_end;
            }
        }
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity { cluster: 7, node: 9 };

    fn file() -> Vec<u8> {
        let mut file = header_block(IDENTITY, 3);
        for group in 0..3u64 {
            let (start, mut bytes) = (file.len() as u64, Vec::new());
            for number in 0..=group {
                put_frame(&mut bytes, IDENTITY, 3, start, group * 10 + number, &vec![number as u8; 3000]);
            }
            bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
            file.extend_from_slice(&bytes);
        }
        file
    }

    #[test]
    fn the_bytes_are_frozen() {
        assert_eq!(hash64_seeded(&file(), 0), FROZEN, "the format changed: raise its version and keep reading the old one");
        assert_eq!((segment_of("hints-3.log"), segment_of("hints-03.log"), file_name(3).as_str()), (Some(3), None, "hints-3.log"));
    }
    const FROZEN: u64 = 4_606_917_799_994_865_328;

    #[test]
    fn frames_are_found_and_damage_costs_only_what_it_touches() {
        let whole = file();
        let numbers = |file: &[u8]| -> Vec<u64> {
            read_segment(file, IDENTITY, 3).map_or(Vec::new(), |frames| frames.found.iter().map(|(number, _)| *number).collect())
        };
        let frames = read_segment(&whole, IDENTITY, 3).unwrap();
        assert!(frames.damaged_blocks == 0 && frames.found.iter().all(|(number, at)| whole[at.clone()] == vec![(number % 10) as u8; 3000]));
        assert_eq!(numbers(&whole), [0, 10, 11, 20, 21, 22]);
        let mut rotten = whole.clone();
        rotten[2 * BLOCK_BYTES + 100] ^= 1;
        assert_eq!(numbers(&rotten), [0, 20, 21, 22], "the rest of its group goes with it");
        assert_eq!(numbers(&whole[..whole.len() - BLOCK_BYTES]), [0, 10, 11, 20, 21]);
        assert!(read_segment(&whole, IDENTITY, 4).is_err() && read_segment(&[], IDENTITY, 3).is_err());
        for at in 0..whole.len() {
            if at % 97 == 0 {
                let mut damaged = whole[..whole.len() - at % 5000].to_vec();
                let at = at % damaged.len();
                damaged[at] ^= 0xFF;
                let _ = read_segment(&damaged, IDENTITY, 3);
            }
        }
    }
}
