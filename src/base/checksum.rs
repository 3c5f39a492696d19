//! Checksums and hashes: xxh3 for both. Checksums guard against rot and torn writes, not against an enemy.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The checksum of a block of bytes on disk or in a peer frame.
#[inline]
pub fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The 64-bit hash that tokens and filters use. Part of the disk format: it never changes.
#[inline]
pub fn hash64(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// A hash whose seed a client cannot know, for tables in memory.
#[inline]
pub fn hash64_seeded(bytes: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(bytes, seed)
}

/// CRC16/XMODEM (polynomial 0x1021, start 0), as Redis Cluster uses for slots (cluster specification, appendix A). Eight bytes at a time:
/// byte by byte, each would wait for the last one's lookup.
pub fn crc16(bytes: &[u8]) -> u16 {
    static TABLES: [[u16; 256]; 8] = crc16_tables();
    let (eights, rest) = bytes.as_chunks::<8>();
    let crc = eights.iter().fold(0u16, |crc, b| {
        let at = |table: usize, byte: u8| TABLES[table][usize::from(byte)];
        let (high, low) = (b[0] ^ (crc >> 8) as u8, b[1] ^ crc as u8);
        (at(7, high) ^ at(6, low)) ^ (at(5, b[2]) ^ at(4, b[3])) ^ (at(3, b[4]) ^ at(2, b[5])) ^ (at(1, b[6]) ^ at(0, b[7]))
    });
    rest.iter().fold(crc, |crc, &byte| (crc << 8) ^ TABLES[0][usize::from((crc >> 8) as u8 ^ byte)])
}

/// Of table k, entry i: what byte i does to the sum when k more bytes follow.
const fn crc16_tables() -> [[u16; 256]; 8] {
    let mut tables = [[0u16; 256]; 8];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        tables[0][index] = crc;
        index += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut index = 0;
        while index < 256 {
            let before = tables[table - 1][index];
            tables[table][index] = (before << 8) ^ tables[0][(before >> 8) as usize];
            index += 1;
        }
        table += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc16_matches_the_check_value_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(crc16(b""), 0);
    }

    #[test]
    fn crc16_of_every_length_is_the_polynomial_division() {
        let bytes: Vec<u8> = (0..100u32).map(|i| (i * 151 + 7) as u8).collect();
        for len in 0..bytes.len() {
            let divided = bytes[..len].iter().fold(0u16, |crc, &byte| {
                let shift = |crc: u16, _| if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
                (0..8).fold(crc ^ u16::from(byte) << 8, shift)
            });
            assert_eq!(crc16(&bytes[..len]), divided, "{len} bytes");
        }
    }
}
