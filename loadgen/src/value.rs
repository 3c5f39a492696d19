//! Values that prove themselves: 32 bytes that name the key and the write, under a checksum, then filler that follows from them.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | magic |
//! | 4..8 | run: which run of the generator wrote it |
//! | 8..16 | key number |
//! | 16..20 | sequence: the how manieth write of this key in this run |
//! | 20..24 | writer: the connection |
//! | 24..32 | xxh3 of the first 24 bytes and of the length |
//!
//! The filler is a stretch of a fixed pool of random bytes; where it begins follows from the header. The pool's length is a prime, so
//! that no two chunks of a large value are alike. A value too short for a header is filler only and proves nothing.

use crate::sizes::Sizes;
use ringkv::base::{checksum::checksum, prng::Prng};

/// What a value needs to prove itself.
pub const HEADER_BYTES: usize = 32;
const MAGIC: u32 = 0x4756_4B52;
const POOL_BYTES: usize = 1_048_573;

/// Who wrote a value, and when in the order of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub run: u32,
    pub key: u64,
    pub seq: u32,
    pub writer: u32,
}

/// Makes and judges values. One a process is enough: it does not change.
pub struct Values {
    pool: Vec<u8>,
    sizes: Sizes,
}

impl Values {
    pub fn new(sizes: Sizes) -> Values {
        // Fixed, so that any run can judge the values of any other.
        let mut pool = vec![0; POOL_BYTES];
        Prng::new(0x504F_4F4C).fill(&mut pool);
        Values { pool, sizes }
    }

    /// Replaces what is in `out` by the value of this write.
    pub fn write(&self, stamp: Stamp, out: &mut Vec<u8>) {
        out.clear();
        let base = mix(u64::from(stamp.run) << 32 | u64::from(stamp.seq), stamp.key);
        let len = self.sizes.at(base);
        if len >= HEADER_BYTES {
            out.extend_from_slice(&MAGIC.to_le_bytes());
            out.extend_from_slice(&stamp.run.to_le_bytes());
            out.extend_from_slice(&stamp.key.to_le_bytes());
            out.extend_from_slice(&stamp.seq.to_le_bytes());
            out.extend_from_slice(&stamp.writer.to_le_bytes());
            out.extend_from_slice(&proof_of(&out[..24], len).to_le_bytes());
        }
        let mut at = start_of(base);
        while out.len() < len {
            let piece = &self.pool[at..self.pool.len().min(at + len - out.len())];
            out.extend_from_slice(piece);
            at = 0;
        }
    }

    /// Who wrote this value.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn read(&self, value: &[u8]) -> Result<Stamp, &'static str> {
        let (header, filler) = value.split_first_chunk::<HEADER_BYTES>().ok_or("too short for a header")?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if word(0) != MAGIC {
            return Err("not a value of this generator");
        }
        if long(24) != proof_of(&header[..24], value.len()) {
            return Err("header or length does not match its checksum");
        }
        let stamp = Stamp { run: word(4), key: long(8), seq: word(16), writer: word(20) };
        let mut at = start_of(mix(u64::from(stamp.run) << 32 | u64::from(stamp.seq), stamp.key));
        let mut rest = filler;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(self.pool.len() - at));
            if piece != &self.pool[at..at + piece.len()] {
                return Err("filler does not follow from its header");
            }
            (rest, at) = (after, 0);
        }
        Ok(stamp)
    }
}

fn proof_of(head: &[u8], len: usize) -> u64 {
    checksum(head) ^ (len as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn start_of(base: u64) -> usize {
    ((u128::from(base) * POOL_BYTES as u128) >> 64) as usize
}

/// A hash of two numbers.
#[inline]
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9E37_79B9_7F4A_7C15) * u128::from(b.wrapping_mul(2) ^ 0x9FB2_1C65_1E98_DF25);
    ((product >> 64) as u64 ^ product as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_prove_their_key_and_their_write() {
        for bytes_max in [32, 33, 100, 4096, 3_000_000] {
            let values = Values::new(Sizes::uniform(32, bytes_max));
            let mut out = Vec::new();
            for seq in 0..4 {
                let stamp = Stamp { run: 9, key: 123 + u64::from(seq), seq, writer: 5 };
                values.write(stamp, &mut out);
                assert!((32..=bytes_max).contains(&out.len()));
                assert_eq!(values.read(&out), Ok(stamp));
            }
        }
    }

    #[test]
    fn any_changed_byte_and_any_cut_is_seen() {
        let values = Values::new(Sizes::uniform(200, 200));
        let mut out = Vec::new();
        values.write(Stamp { run: 1, key: 2, seq: 3, writer: 4 }, &mut out);
        for at in 0..out.len() {
            out[at] ^= 0x10;
            assert!(values.read(&out).is_err(), "byte {at}");
            out[at] ^= 0x10;
            assert!(values.read(&out[..at]).is_err(), "cut to {at}");
        }
    }

    #[test]
    fn chunks_of_a_large_value_cannot_change_places() {
        let values = Values::new(Sizes::uniform(262_144, 262_144));
        let mut out = Vec::new();
        values.write(Stamp { run: 1, key: 2, seq: 3, writer: 4 }, &mut out);
        let (first, second) = out.split_at_mut(131_072);
        first[65_536..].swap_with_slice(&mut second[..65_536]);
        assert!(values.read(&out).is_err());
    }

    #[test]
    fn short_values_are_filler_only() {
        let values = Values::new(Sizes::uniform(8, 8));
        let mut out = Vec::new();
        values.write(Stamp { run: 1, key: 2, seq: 3, writer: 4 }, &mut out);
        assert_eq!(out.len(), 8);
        assert!(values.read(&out).is_err());
    }
}
