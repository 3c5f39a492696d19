//! What a fuzzer calls: bytes that nobody of ours wrote must give an error, never a panic, never a loop. Plain functions: `fuzz/` wraps
//! them for cargo-fuzz, `tests/fuzz_budget.rs` runs them in every check.

mod table;

pub use super::format::manifest::fuzz as manifest;
pub use table::{block as table_block, table};

use super::format::Identity;
use super::format::wal::{Record, SegmentSeed, check_segment_header, parse_block, parse_payload, parse_record};

/// A block of the log, its segment's header, and the payload of a group.
pub fn wal_block(bytes: &[u8]) {
    let identity = Identity { cluster: 1, node: 2 };
    let _ = check_segment_header(bytes, identity, 1);
    let _ = parse_block(bytes, SegmentSeed::new(identity, 1), 1);
    if let Ok((_, mut framed)) = parse_payload(bytes) {
        while let Ok(Some(record)) = framed.next_record() {
            wal_record(record);
        }
    }
}

/// A record of the log.
pub fn wal_record(bytes: &[u8]) {
    if let Ok(Record::Batch(mut batch)) = parse_record(bytes) {
        while let Ok(Some(cell)) = batch.next_cell() {
            assert!(cell.prefix_len <= cell.place.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;

    #[test]
    fn random_and_damaged_bytes_never_panic() {
        let mut prng = Prng::new(9);
        let mut record = vec![1, 0, 17];
        record.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, b'k', 0, 1, 0, 0, 3, 6, 1, 2]);
        for _ in 0..20_000 {
            let mut bytes = if prng.one_in(2) { record.clone() } else { vec![0; prng.below(300) as usize] };
            let damage = 1 + prng.below(4) as usize;
            if bytes.is_empty() {
                continue;
            }
            for _ in 0..damage {
                let at = prng.below(bytes.len() as u64) as usize;
                bytes[at] = prng.next_u64() as u8;
            }
            wal_block(&bytes);
            wal_record(&bytes);
        }
    }
}
