//! Hashes, tokens and random numbers: what every request pays.

use bench::Suite;
use ringkv::base::checksum::{checksum, crc16, hash64};
use ringkv::base::codec::{Reader, put_varint};
use ringkv::base::prng::Prng;
use ringkv::base::record::token_of;
use std::hint::black_box;

fn main() {
    let suite = Suite::new("base");
    let key = b"key:000000123456";
    suite.run("hash64 of 16 B", 1, || hash64(black_box(key)));
    suite.run("crc16 of 16 B", 1, || crc16(black_box(key)));
    suite.run("token of 16 B", 1, || token_of(black_box(key)));
    for bytes in [4096, 65_536] {
        let block = vec![7u8; bytes];
        suite.run(&format!("checksum of {bytes} B"), 1, || checksum(black_box(&block)));
    }
    let mut random = Prng::new(1);
    suite.run("prng", 1, || random.next_u64());
    suite.run("prng exponential", 1, || random.exponential(1.0));
    let mut varints = Vec::new();
    (0..1000u64).for_each(|i| put_varint(&mut varints, i * i * 31));
    suite.run("varint read", 1000, || {
        let mut reader = Reader::new(black_box(&varints));
        (0..1000).map(|_| reader.varint().unwrap()).sum::<u64>()
    });
}
