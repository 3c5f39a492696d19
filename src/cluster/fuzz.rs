//! What the fuzzer calls (`fuzz/`), and every check for a small budget (`tests/fuzz_budget.rs`): bytes that a peer or a disk could hold.

use super::topology_codec::{decode, encode};
use crate::base::checksum::checksum;

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
