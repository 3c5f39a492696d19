//! What the fuzzer calls (`fuzz/`), and every check for a small budget (`tests/fuzz_budget.rs`): bytes that a peer or a disk could hold.

use super::hints::Record;
use super::merkle::{Level, Tree};
use super::topology_codec::{decode, encode};
use crate::base::checksum::checksum;
use crate::base::codec::Reader;
use crate::limits::LEAVES_LOG2_MAX;

/// A topology: what decodes survives another round. Also with the checksum mended, behind which the fuzzer would see nothing.
pub fn topology(bytes: &[u8]) {
    let round = |bytes: &[u8]| {
        let Ok(topology) = decode(bytes) else { return };
        let mut out = Vec::new();
        encode(&topology, &mut out);
        assert_eq!(decode(&out).as_ref(), Ok(&topology));
        let vnode = topology.vnodes() - 1;
        assert!(!topology.replicas(vnode, 3).owners.is_empty());
    };
    round(bytes);
    if let Some((body, _)) = bytes.split_last_chunk::<8>() {
        round(&[body, &checksum(body).to_le_bytes()].concat());
    }
}

/// A level of a hash tree: what decodes survives another round, and any tree can be compared with it.
pub fn merkle(bytes: &[u8]) {
    let Ok(level) = Level::decode(&mut Reader::new(bytes)) else { return };
    let mut out = Vec::new();
    level.encode(&mut out);
    assert_eq!(Level::decode(&mut Reader::new(&out)).as_ref(), Ok(&level));
    for leaves_log2 in [0, 3, LEAVES_LOG2_MAX] {
        let differing = Tree::new(1, 2, leaves_log2).differing(&level);
        assert!(differing.len() == level.nodes.len(), "nothing is known of the tree");
    }
}

/// A log of hints, with its checksums as they are, and the first one mended.
pub fn hints(bytes: &[u8]) {
    let read = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        while let Ok(record) = Record::decode(&mut reader) {
            let mut out = Vec::new();
            record.encode(&mut out);
            assert_eq!(Record::decode(&mut Reader::new(&out)), Ok(record));
        }
    };
    read(bytes);
    if let Some(body) = bytes.get(12..) {
        read(&[&(body.len() as u32).to_le_bytes()[..], &checksum(body).to_le_bytes(), body].concat());
    }
}
