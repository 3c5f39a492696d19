//! How a cluster begins: each founder is started with the same list of all founders, and what they were told names the cluster.

use super::gossip::CLUSTER_UNKNOWN;
use super::gossip::member::Address;
use crate::base::checksum::hash64;

/// One of the nodes that a cluster begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Founder {
    /// Not 0.
    pub node: u64,
    /// Where clients and peers connect.
    pub native: Address,
}

/// The id of the cluster that these found, each with so many cores: the same for whoever is told the same, in whatever order. Founders that
/// were told different things are of different clusters, and gossip refuses them with a sentence.
pub fn founding_id(founders: &[Founder], vnodes: u32, cores: u16) -> u64 {
    let mut sorted = founders.to_vec();
    sorted.sort_unstable();
    let mut bytes = b"ringkv founders 1".to_vec();
    bytes.extend_from_slice(&vnodes.to_le_bytes());
    bytes.extend_from_slice(&cores.to_le_bytes());
    for Founder { node, native } in &sorted {
        bytes.extend_from_slice(&node.to_le_bytes());
        bytes.extend_from_slice(&native.ip);
        bytes.extend_from_slice(&native.port.to_le_bytes());
    }
    match hash64(&bytes) {
        CLUSTER_UNKNOWN => !CLUSTER_UNKNOWN,
        id => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founder(node: u64, last: u8, port: u16) -> Founder {
        Founder { node, native: Address::v4([10, 0, 0, last], port) }
    }

    #[test]
    fn the_same_list_in_any_order_is_the_same_cluster() {
        let [a, b, c] = [founder(1, 1, 7400), founder(2, 2, 7400), founder(3, 3, 7400)];
        let id = founding_id(&[a, b, c], 4096, 4);
        assert!([[a, c, b], [c, b, a], [b, c, a]].iter().all(|list| founding_id(list, 4096, 4) == id));
    }

    #[test]
    fn whatever_differs_makes_another_cluster() {
        let list = |port| [founder(1, 1, 7400), founder(2, 2, port)];
        let ids = [
            founding_id(&list(7400), 4096, 4),
            founding_id(&list(7401), 4096, 4),
            founding_id(&list(7400), 1024, 4),
            founding_id(&list(7400), 4096, 8),
            founding_id(&list(7400)[..1], 4096, 4),
            founding_id(&[founder(1, 1, 7400), founder(3, 2, 7400)], 4096, 4),
            founding_id(&[founder(1, 2, 7400), founder(2, 1, 7400)], 4096, 4),
        ];
        assert!(ids.iter().enumerate().all(|(at, id)| *id != CLUSTER_UNKNOWN && !ids[..at].contains(id)));
    }

    /// It is in the header of every file of a founder, so it must not change with the program.
    #[test]
    fn the_id_stays_what_it_is() {
        assert_eq!(founding_id(&[founder(1, 1, 7400), founder(2, 2, 7400)], 4096, 4), 0xEB74_290B_7113_C189);
    }
}
