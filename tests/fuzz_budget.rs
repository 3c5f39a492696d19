//! Every fuzz target for a small fixed budget: noise, and valid bytes with damage in them. `fuzz/` runs the same functions for as long as
//! one likes. A failure prints the bytes.

use ringkv::base::prng::Prng;
use ringkv::base::record::{Cell, Kind, Version};
use ringkv::cluster::gossip;
use ringkv::cluster::hints::Record;
use ringkv::cluster::merkle::Level;
use ringkv::cluster::topology::{Change, NodeSpec, Proposal, Topology};
use ringkv::cluster::topology_codec::encode;
use ringkv::engine::format::block::BlockBuilder;
use ringkv::engine::format::lz4::Packer;
use ringkv::engine::format::manifest::{Edit, MergeRecord, TableId, TableRecord, VnodeRecord, group_blocks, header_block, put_edit};
use ringkv::engine::format::table::{Bounds, Footer, Header, PropertiesDraft, VolatileAt, VolatileEntry, VolatilePage, put_volatile, seal};
use ringkv::engine::format::table_index::IndexBuilder;
use ringkv::engine::format::wal::{
    GroupHead, SegmentSeed, VnodesRecord, fill_group, put_batch_cell, put_ceiling, put_framed, put_segment_header, put_vnodes, start_batch,
    start_payload,
};
use ringkv::engine::format::{Identity, put_cell, put_place};
use ringkv::{cluster, engine, wire};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

const IDENTITY: Identity = Identity { cluster: 1, node: 2 };
/// Of one target: it ends at the first of the two.
const ROUNDS: u32 = 20_000;
const TIME_MAX: Duration = Duration::from_millis(1200);
const ROUNDS_MIN: u32 = 1000;

fn damage(prng: &mut Prng, bytes: &mut Vec<u8>) {
    for _ in 0..1 + prng.below(4) {
        let at = prng.below(bytes.len() as u64 + 1) as usize;
        match prng.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, prng.next_u64() as u8),
            2 if at < bytes.len() => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][prng.below(5) as usize],
            3 => {
                let copy = bytes[at..bytes.len().min(at + prng.below(16) as usize)].to_vec();
                bytes.splice(at..at, copy);
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << prng.below(8),
            _ => {}
        }
    }
}

fn run(name: &str, target: fn(&[u8]), seeds: &[Vec<u8>]) {
    let (mut prng, began) = (Prng::new(0xF022 + name.len() as u64), Instant::now());
    let call = |bytes: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("target {name}: {hex}");
        }
    };
    call(&[]);
    seeds.iter().for_each(|seed| call(seed));
    for round in 0..ROUNDS {
        if round >= ROUNDS_MIN && began.elapsed() > TIME_MAX {
            break;
        }
        let mut bytes;
        if round % 4 == 0 {
            bytes = vec![0; prng.below(300) as usize];
            prng.fill(&mut bytes);
        } else {
            bytes = seeds[prng.below(seeds.len() as u64) as usize].clone();
            damage(&mut prng, &mut bytes);
        }
        call(&bytes);
    }
}

/// The frames of the protocol's test vectors.
fn frames() -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/native.txt")).expect("the vectors are there");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let hex = |line: &str| line.split('|').nth(1).expect("name | hex | meaning").trim().to_owned();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    lines.map(|line| hex(line).as_bytes().chunks(2).map(byte).collect()).collect()
}

fn place(number: u32) -> Vec<u8> {
    let mut place = Vec::new();
    put_place(&mut place, 1, u64::from(number) << 50, format!("key {number}").as_bytes(), Kind::Head, b"");
    place
}

fn records() -> Vec<Vec<u8>> {
    let (mut batch, mut scratch, mut vnodes, mut ceiling) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    start_batch(&mut batch);
    for number in 0..5 {
        let version = Version::put(u64::from(number) + 5, 6);
        let cell = if number == 3 { Cell::tombstone(version) } else { Cell::value(version, b"value") };
        put_batch_cell(&mut batch, 0, &place(number), &mut scratch, &cell);
        put_batch_cell(&mut batch, place(number).len() - 1, b"\x02field", &mut scratch, &Cell::expire(version, 77));
    }
    put_vnodes(&mut vnodes, &VnodesRecord { namespace: 1, first: 2, last: 3, record: VnodeRecord { term: 4, ..VnodeRecord::default() } });
    put_ceiling(&mut ceiling, 99);
    vec![batch, vnodes, ceiling]
}

fn wal_blocks() -> Vec<Vec<u8>> {
    let (mut payload, mut header) = (Vec::new(), Vec::new());
    start_payload(&mut payload);
    records().iter().for_each(|record| put_framed(&mut payload, record));
    let head = GroupHead { lap: 1, incarnation: 1, first: 1, blocks: 1, records: 3 };
    let mut block = vec![0; 4096];
    fill_group(&mut block, &payload, &head, SegmentSeed::new(IDENTITY, 1), 1);
    put_segment_header(&mut header, IDENTITY, 1, 1 << 20);
    vec![payload, block, header]
}

fn table_block() -> Vec<u8> {
    let (mut block, mut out, mut cell) = (BlockBuilder::default(), Vec::new(), Vec::new());
    put_cell(&mut cell, &Cell::value(Version::put(1, 2), b"value"));
    (0..100).for_each(|number| block.add(&place(number), &cell));
    block.finish(1, 2, &mut out);
    // Readers take the content from in front of the trailer.
    out.truncate(out.len() - 14);
    out
}

fn table_parts() -> Vec<Vec<u8>> {
    let (mut index, mut draft) = (IndexBuilder::new(64), PropertiesDraft { vnodes: 64, ..PropertiesDraft::default() });
    let (mut volatile, mut at) = (Vec::new(), VolatileAt::default());
    for number in 0..200u32 {
        index.add(if number == 0 { Vec::new() } else { place(number) }.as_slice(), 4000 + number * 13 % 700);
        let (least, greatest) = (Version::put(u64::from(number) << 30, 1), Version::put(1 << 60, 1));
        draft.bounds.push(Bounds { namespace: 1, vnode: number, least, greatest });
        put_volatile(&mut volatile, &mut at, &VolatileEntry { deadline_ms: u64::from(number), version: greatest, place: &place(number) });
    }
    draft.pages.push(VolatilePage { first_deadline_ms: 7, bytes: 0 });
    let (mut properties, mut header, mut footer, mut sealed) = (Vec::new(), Vec::new(), Vec::new(), b"content".to_vec());
    draft.put(&mut properties);
    Header::new(IDENTITY, 1).put(&mut header);
    Footer { bytes: 4096, ..Footer::default() }.put(&mut footer);
    seal(&mut sealed, 0, 1, 2);
    let filter = [&[7u8][..], &[0x5A; 300]].concat();
    let packed = Packer::default().pack(&table_block()).expect("places pack").to_vec();
    vec![packed, table_block(), index.finish(), properties, volatile, header, footer, sealed, filter]
}

fn manifests() -> Vec<Vec<u8>> {
    let id = TableId { shard: 3, number: 500 };
    let record = TableRecord { id, first: place(1), last: place(9), entries: 7, ..TableRecord::default() };
    let edits = vec![
        Edit::AddTable(record),
        Edit::RaiseFrom { id, from: place(2) },
        Edit::LinkTable(id),
        Edit::RemoveTable(id),
        Edit::Released(1 << 33),
        Edit::ClockCeiling(1 << 60),
        Edit::Vnodes { namespace: 1, first: 0, last: 4095, record: VnodeRecord::default() },
        Edit::Numbers { table: 501, run: 18 },
        Edit::Merge(Some(MergeRecord { inputs: vec![3, 4, 5], run: 6, done: place(4), ..MergeRecord::default() })),
        Edit::Merge(None),
    ];
    let mut plain = Vec::new();
    edits.iter().for_each(|edit| put_edit(&mut plain, edit));
    let groups: Vec<u8> = (0..2).flat_map(|group| group_blocks(IDENTITY, 3, group, &edits)).collect();
    vec![plain, [header_block(IDENTITY, 3), groups.clone()].concat(), groups]
}

fn topologies() -> Vec<Vec<u8>> {
    let spec = |id: u64| NodeSpec {
        id,
        native: format!("10.0.0.{id}:7400"),
        gossip: format!("10.0.0.{id}:7490"),
        cores: 2,
        weight: 2,
        rack: format!("r{}", id % 2),
    };
    let settled = Topology::found(1, 16, (1..=3).map(spec).collect()).expect("a sound cluster");
    let join = Proposal { cluster: 1, vnodes: 16, epoch: 1, change: Change::Join(spec(4)) };
    let moving = settled.apply(&join).expect("a sound join");
    let bytes = |topology: &Topology| {
        let mut out = Vec::new();
        encode(topology, &mut out);
        out
    };
    vec![bytes(&settled), bytes(&moving)]
}

/// One message of each kind: its kind, and its frame behind the header with and without the checksum.
fn peers() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for message in wire::peer::examples() {
        let mut frame = Vec::new();
        wire::peer::encode(&mut frame, 1, wire::peer::Head { epoch: 3, deadline_ms: 900 }, &message);
        out.push([&frame[4..6], &frame[16..]].concat());
        out.push([&frame[4..6], &frame[16..frame.len() - 8]].concat());
    }
    out
}

/// One message of repair and forgetting of each kind.
fn repairs() -> Vec<Vec<u8>> {
    let bytes = |message| {
        let mut body = Vec::new();
        let kind = wire::peer_repair::encode_body(&mut body, wire::peer::Head { epoch: 3, deadline_ms: 900 }, &message);
        [&kind.to_le_bytes()[..], &body].concat()
    };
    wire::peer_repair::examples().into_iter().map(bytes).collect()
}

/// One message of moves of each kind.
fn moves() -> Vec<Vec<u8>> {
    let bytes = |message| {
        let mut body = Vec::new();
        let kind = wire::peer_moves::encode_body(&mut body, wire::peer::Head { epoch: 3, deadline_ms: 900 }, &message);
        [&kind.to_le_bytes()[..], &body].concat()
    };
    wire::peer_moves::examples().into_iter().map(bytes).collect()
}

fn levels() -> Vec<Vec<u8>> {
    let level = |log2: u8, step: usize| {
        let nodes = (0..1u32 << log2).step_by(step).map(|index| (index, (index % 3 > 0).then_some(u128::from(index) << 64))).collect();
        let mut out = Vec::new();
        Level { log2, nodes }.encode(&mut out);
        out
    };
    vec![level(0, 1), level(4, 1), level(10, 37)]
}

fn hints() -> Vec<Vec<u8>> {
    let mut log = Vec::new();
    for number in 1..4 {
        let (place, mut cell) = (place(number as u32), Vec::new());
        put_cell(&mut cell, &Cell::value(Version::put(number, 2), b"value"));
        Record { number, peer: 2, written_ms: 1 << 40, namespace: 1, vnode: 3, place: &place, cell: &cell }.encode(&mut log);
    }
    vec![log[..log.len() / 3].to_vec(), log]
}

#[test]
fn no_target_falls_within_its_budget() {
    let began = Instant::now();
    let frames = frames();
    let bodies: Vec<Vec<u8>> = frames.iter().map(|frame| [&frame[4..6], &frame[16..]].concat()).collect();
    run("frame", wire::fuzz::frame, &frames);
    run("body", wire::fuzz::body, &bodies);
    run("wal_block", engine::fuzz::wal_block, &wal_blocks());
    run("wal_record", engine::fuzz::wal_record, &records());
    run("table_block", engine::fuzz::table_block, &[table_block()]);
    run("table", engine::fuzz::table, &table_parts());
    run("manifest", engine::fuzz::manifest, &manifests());
    run("topology", cluster::fuzz::topology, &topologies());
    run("peer", wire::fuzz::peer, &peers());
    run("peer_repair", wire::fuzz::peer_repair, &repairs());
    run("peer_moves", wire::fuzz::peer_moves, &moves());
    run("merkle", cluster::fuzz::merkle, &levels());
    run("hints", cluster::fuzz::hints, &hints());
    run("gossip", gossip::fuzz::message, &gossip::fuzz::examples());
    assert!(began.elapsed() < Duration::from_secs(30), "13 targets of at most {TIME_MAX:?} each took {:?}", began.elapsed());
}

#[test]
fn every_target_is_wrapped_for_cargo_fuzz() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/fuzz_targets");
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let wanted = [
        "body.rs",
        "frame.rs",
        "gossip.rs",
        "hints.rs",
        "manifest.rs",
        "merkle.rs",
        "peer.rs",
        "peer_moves.rs",
        "peer_repair.rs",
        "table.rs",
        "table_block.rs",
        "topology.rs",
        "wal_block.rs",
        "wal_record.rs",
    ];
    assert_eq!(names, wanted);
}
