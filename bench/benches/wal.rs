//! The bytes of the log: a put as a batch record, a group laid out in checksummed blocks, both read back as a recovery does.

use bench::Suite;
use ringkv::base::record::{Cell, Kind, NAMESPACE_DEFAULT, Version, token_of};
use ringkv::engine::format::Identity;
use ringkv::engine::format::put_place;
use ringkv::engine::format::wal::{
    GroupHead, Record, SegmentSeed, block_payload, blocks_of, fill_group, parse_block, parse_payload, parse_record, put_batch_cell,
    put_framed, start_batch, start_payload,
};
use ringkv::limits::BLOCK_BYTES;
use std::hint::black_box;

/// Puts in a group.
const PUTS: usize = 64;

fn put_record(value: &[u8], record: &mut Vec<u8>, place: &mut Vec<u8>, scratch: &mut Vec<u8>) {
    let key = b"key:000000123456";
    record.clear();
    place.clear();
    start_batch(record);
    put_place(place, NAMESPACE_DEFAULT, token_of(key), key, Kind::Head, &[]);
    put_batch_cell(record, 0, place, scratch, &Cell::value(Version::put(7, 1), value));
}

fn main() {
    let suite = Suite::new("wal");
    let (mut record, mut place, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    for bytes in [100, 1024] {
        let value = vec![7u8; bytes];
        suite.run(&format!("record of a put of {bytes} B"), 1, || put_record(black_box(&value), &mut record, &mut place, &mut scratch));
        put_record(&value, &mut record, &mut place, &mut scratch);
        let mut payload = Vec::new();
        suite.run(&format!("group payload of puts of {bytes} B"), PUTS, || {
            payload.clear();
            start_payload(&mut payload);
            (0..PUTS).for_each(|_| put_framed(&mut payload, black_box(&record)));
        });
        payload.clear();
        start_payload(&mut payload);
        (0..PUTS).for_each(|_| put_framed(&mut payload, &record));
        group(&suite, bytes, &payload);
    }
}

fn group(suite: &Suite, bytes: usize, payload: &[u8]) {
    let seed = SegmentSeed::new(Identity { cluster: 1, node: 2 }, 3);
    let head = GroupHead { lap: 1, incarnation: 1, first: 1, blocks: blocks_of(payload.len()) as u32, records: PUTS as u32 };
    let mut blocks = vec![0; head.blocks as usize * BLOCK_BYTES];
    suite.run(&format!("blocks of puts of {bytes} B"), PUTS, || fill_group(&mut blocks, black_box(payload), &head, seed, 9));
    fill_group(&mut blocks, payload, &head, seed, 9);
    suite.run(&format!("read back puts of {bytes} B"), PUTS, || {
        let mut whole = Vec::with_capacity(payload.len());
        for (index, block) in blocks.chunks(BLOCK_BYTES).enumerate() {
            let head = parse_block(black_box(block), seed, 9 + index as u32).unwrap().unwrap();
            whole.extend_from_slice(block_payload(block, &head));
        }
        let (_, mut framed) = parse_payload(&whole).unwrap();
        let mut cells = 0;
        while let Some(record) = framed.next_record().unwrap() {
            let Record::Batch(mut batch) = parse_record(record).unwrap() else { panic!("not a batch") };
            while batch.next_cell().unwrap().is_some() {
                cells += 1;
            }
        }
        assert_eq!(cells, PUTS);
    });
}
