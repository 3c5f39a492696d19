//! A table's block under codec 1: the length of its content, then that content as one LZ4 block without a frame.
//!
//!   raw length u32 | LZ4 block

use crate::base::codec::{Malformed, Reader};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

/// Longer content stays raw: packing this takes about a slice (`SLICE_US`), and a core does nothing else meanwhile.
pub const PACK_BYTES_MAX: usize = 128 * 1024;
/// No reader takes more for a block's content, so that a forged length costs no memory. Above what is written, for later writers.
pub const RAW_BYTES_MAX: usize = 1024 * 1024;
/// What one byte of an LZ4 block can stand for, at most (a length byte of a match).
const EXPANSION_MAX: usize = 255;
/// Packed bytes are kept only if they are this share (of 8) of the content at most: less is not worth unpacking it at every read.
const WORTH_OF_8: usize = 7;
const LENGTH_BYTES: usize = 4;

const _: () = assert!(PACK_BYTES_MAX <= RAW_BYTES_MAX);

/// Packs blocks, one after another.
pub struct Packer {
    table: CompressTable,
    out: Vec<u8>,
}

impl Default for Packer {
    fn default() -> Packer {
        Packer { table: CompressTable::small(), out: Vec::new() }
    }
}

impl Packer {
    /// The content as it is stored; None where it had better stay raw.
    pub fn pack(&mut self, content: &[u8]) -> Option<&[u8]> {
        if content.is_empty() || content.len() > PACK_BYTES_MAX {
            return None;
        }
        self.out.clear();
        self.out.extend_from_slice(&(content.len() as u32).to_le_bytes());
        self.out.resize(LENGTH_BYTES + get_maximum_output_size(content.len()), 0);
        let packed = compress_into_with_table(content, &mut self.out[LENGTH_BYTES..], &mut self.table).ok()?;
        let stored = LENGTH_BYTES + packed;
        (stored * 8 <= content.len() * WORTH_OF_8).then(|| &self.out[..stored])
    }
}

/// Puts the content of packed bytes into `out`, in place of what is there.
///
/// # Errors
/// They are not what `pack` gives; `out` is then empty.
pub fn unpack(stored: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.clear();
    let mut reader = Reader::new(stored);
    let (raw, packed) = (reader.u32()? as usize, reader.rest());
    if raw > RAW_BYTES_MAX || raw > packed.len().saturating_mul(EXPANSION_MAX) {
        return Err(Malformed("a packed block says that it is longer than it can be"));
    }
    out.resize(raw, 0);
    if decompress_into(packed, out).ok() != Some(raw) {
        out.clear();
        return Err(Malformed("a packed block does not unpack"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;

    fn text(bytes: usize) -> Vec<u8> {
        (0..).flat_map(|n: u32| format!("{{\"user\":{n},\"name\":\"somebody\"}},").into_bytes()).take(bytes).collect()
    }

    #[test]
    fn what_is_packed_comes_back_and_what_is_not_worth_it_stays() {
        let (mut packer, mut out) = (Packer::default(), Vec::new());
        for bytes in [100, 4096, 5120, 65_534, 65_535, 70_000, PACK_BYTES_MAX] {
            let content = text(bytes);
            let packed = packer.pack(&content).expect("text packs").to_vec();
            assert!(packed.len() * 8 <= bytes * 7);
            unpack(&packed, &mut out).unwrap();
            assert_eq!(out, content);
        }
        let mut noise = vec![0; 4096];
        Prng::new(1).fill(&mut noise);
        assert!(packer.pack(&noise).is_none() && packer.pack(b"").is_none() && packer.pack(b"tiny").is_none());
        assert!(packer.pack(&text(PACK_BYTES_MAX + 1)).is_none());
    }

    #[test]
    fn a_length_that_cannot_be_costs_no_memory_and_damage_is_an_error_or_other_bytes() {
        let (mut packer, mut out) = (Packer::default(), Vec::new());
        let packed = packer.pack(&text(4096)).unwrap().to_vec();
        for length in [u32::MAX, RAW_BYTES_MAX as u32 + 1, packed.len() as u32 * 255, 4095, 4097, 0] {
            let forged = [&length.to_le_bytes()[..], &packed[4..]].concat();
            let mut fresh = Vec::new();
            assert!(unpack(&forged, &mut fresh).is_err(), "{length}");
            assert!(fresh.is_empty() && fresh.capacity() <= RAW_BYTES_MAX);
        }
        for end in 0..packed.len() {
            assert!(unpack(&packed[..end], &mut out).is_err(), "{end}");
        }
        let mut prng = Prng::new(2);
        for _ in 0..20_000 {
            let mut bytes = packed.clone();
            let at = prng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << prng.below(8);
            if unpack(&bytes, &mut out).is_ok() {
                assert!(out.len() <= RAW_BYTES_MAX);
            }
        }
    }
}
