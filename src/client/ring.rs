//! Where a command goes: to the core that has its key, of the node that owns it first. The places of a client's connections are numbered
//! through, node by node and core by core. No I/O, no clock.

use super::answer::{ClientError, ServerInfo};
use super::request::ClientConfig;
use crate::base::record::{core_of, token_of, vnode_of};
use crate::wire::command::{CORE_ANY, Command};

/// A node as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    id: u64,
    /// `host:port`, as the cluster knows it.
    address: String,
    cores: u16,
    /// The place of its first core.
    first: usize,
}

/// The places of a client's connections, and which of them a key's owner has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ring {
    members: Vec<Member>,
    /// For each vnode an index into `members`; empty: all are the first one's.
    owners: Vec<u16>,
    vnodes: u32,
    /// Of the node that told: commands without keys are for it.
    home: usize,
    /// One connection carries everything.
    is_single: bool,
}

impl Ring {
    /// As a hello told. What does not add up in its list of nodes leaves the node alone that said it.
    pub(super) fn of(server: &ServerInfo, config: &ClientConfig) -> Ring {
        let mut first = 0;
        let mut member = |id, address, cores| {
            let at = first;
            first += usize::from(cores);
            Member { id, address, cores, first: at }
        };
        let makes_sense = server.owners.len() == server.vnodes as usize
            && server.owners.iter().all(|&owner| usize::from(owner) < server.nodes.len())
            && server.nodes.iter().all(|node| node.cores > 0 && node.port > 0);
        let is_ring = makes_sense && config.follow_ring && !config.single_connection;
        let home = server.nodes.iter().position(|node| node.id == server.node_id).filter(|_| is_ring);
        let (members, owners) = match home {
            Some(_) => {
                let members = server.nodes.iter().map(|node| {
                    let is_bare_v6 = node.host.contains(':') && !node.host.starts_with('[');
                    let host = if is_bare_v6 { format!("[{}]", node.host) } else { node.host.clone() };
                    member(node.id, format!("{host}:{}", node.port), node.cores)
                });
                (members.collect(), server.owners.clone())
            }
            None => (vec![member(server.node_id, String::new(), server.cores)], Vec::new()),
        };
        Ring { members, owners, vnodes: server.vnodes, home: home.unwrap_or(0), is_single: config.single_connection }
    }

    /// Whether what a server says changes what is known: every node of a cluster says the same of an epoch, but a node alone may have
    /// started anew.
    pub(super) fn is_news(&self, told: &ServerInfo, known: &ServerInfo) -> bool {
        told.cluster_id != known.cluster_id || told.epoch > known.epoch || told.epoch == known.epoch && !self.is_cluster()
    }

    /// How many places there are.
    pub(super) fn places(&self) -> usize {
        let last = self.members.last().expect("a ring has a node");
        if self.is_single { 1 } else { last.first + usize::from(last.cores) }
    }

    /// There are several nodes, each of which answers any key.
    pub(super) fn is_cluster(&self) -> bool {
        self.members.len() > 1
    }

    /// The place of a node's core; none where the ring has no such node or core.
    pub(super) fn place_at(&self, node: u64, core: u16) -> Option<usize> {
        let member = self.members.iter().find(|member| member.id == node && core < member.cores)?;
        if self.is_single { Some(0) } else { Some(member.first + usize::from(core)) }
    }

    /// The node and the core of a place.
    pub(super) fn target(&self, place: usize) -> (u64, u16) {
        let member = self.member_of(place);
        (member.id, if self.is_single { CORE_ANY } else { (place - member.first) as u16 })
    }

    /// Where the node of a place is reached; of a node alone nobody has said.
    pub(super) fn address(&self, place: usize) -> &str {
        &self.member_of(place).address
    }

    /// Where the nodes are reached.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter(|_| self.is_cluster()).map(|member| member.address.as_str())
    }

    fn member_of(&self, place: usize) -> &Member {
        &self.members[self.members.partition_point(|member| member.first <= place) - 1]
    }

    /// Places that can stand in for one without a connection: the other nodes' cores of its number first, so that what a node had is spread
    /// as evenly as it was there.
    pub(super) fn instead(&self, place: usize) -> impl Iterator<Item = usize> + '_ {
        let (at, core) = (self.members.partition_point(|member| member.first <= place) - 1, place - self.member_of(place).first);
        let others = (1..self.members.len()).map(move |step| {
            let member = &self.members[(at + step) % self.members.len()];
            member.first + core % usize::from(member.cores)
        });
        others.chain((0..self.places()).filter(move |other| *other != place))
    }

    fn place_of_vnode(&self, vnode: u32) -> usize {
        let member = &self.members[self.owners.get(vnode as usize).map_or(0, |owner| usize::from(*owner))];
        if self.is_single { 0 } else { member.first + usize::from(core_of(vnode, member.cores)) }
    }

    fn place_of_key(&self, key: &[u8]) -> usize {
        self.place_of_vnode(vnode_of(token_of(key), self.vnodes))
    }

    /// The place that a command is for: its key's, or of several the first one's. The first of the node that told, where it has none.
    pub(super) fn place_of(&self, command: &Command<'_>) -> usize {
        let first = match command {
            Command::MultiGet { keys } => keys.first().copied(),
            Command::MultiPut(multi) => multi.items.first().map(|item| item.key),
            Command::Scan(scan) if scan.vnode < self.vnodes => return self.place_of_vnode(scan.vnode),
            other => other.key(),
        };
        first.map_or(self.members[self.home].first, |key| self.place_of_key(key))
    }

    /// Indexes of keys by place, in parts of at most `bound`.
    pub(super) fn parts<'k>(&self, keys: impl Iterator<Item = &'k [u8]>, bound: u32) -> Vec<Vec<usize>> {
        let mut by_place: Vec<(usize, usize)> = keys.enumerate().map(|(index, key)| (self.place_of_key(key), index)).collect();
        by_place.sort_unstable();
        let runs = by_place.chunk_by(|a, b| a.0 == b.0).flat_map(|run| run.chunks((bound as usize).max(1)));
        runs.map(|part| part.iter().map(|&(_, index)| index).collect()).collect()
    }
}

/// Whether a connection that was made for a node's place led to another node: the address is not that node's any more.
pub(super) fn check_node(wanted: u64, server: &ServerInfo) -> Result<(), ClientError> {
    if server.node_id == wanted {
        Ok(())
    } else {
        Err(super::request::gone(format!("node {} is where node {wanted} should be", server.node_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::answer::NodeInfo;
    use crate::wire::command::{Limits, Scan};

    /// Nodes 1, 2 and 3 of 1, 2 and 4 cores; each vnode in turn.
    fn told_by(node_id: u64) -> ServerInfo {
        let node = |id: u64, host: &str, cores| NodeInfo { id, host: host.into(), port: 7400 + id as u16, cores };
        let nodes = vec![node(1, "10.0.0.1", 1), node(2, "fd00::2", 2), node(3, "three.example.net", 4)];
        ServerInfo {
            protocol_version: 1,
            core: 0,
            cores: nodes[node_id as usize - 1].cores,
            vnodes: 64,
            node_id,
            cluster_id: [0; 16],
            epoch: 5,
            features: 0,
            limits: Limits::of_this_build(1),
            nodes,
            owners: (0..64).map(|vnode| vnode % 3).collect(),
            namespaces: Vec::new(),
        }
    }

    fn scan(vnode: u32) -> Command<'static> {
        Command::Scan(Scan { vnode, cursor: b"", limit: 0, with_values: false })
    }

    #[test]
    fn a_key_goes_to_the_core_of_its_first_owner() {
        let ring = Ring::of(&told_by(2), &ClientConfig::default());
        assert_eq!((ring.places(), ring.is_cluster()), (7, true));
        for vnode in 0..64u32 {
            let (owner, cores) = (u64::from(vnode % 3) + 1, [1, 2, 4][vnode as usize % 3]);
            assert_eq!(ring.target(ring.place_of(&scan(vnode))), (owner, (vnode % cores) as u16), "vnode {vnode}");
        }
        for place in 0..ring.places() {
            let (node, core) = ring.target(place);
            assert_eq!(ring.place_at(node, core), Some(place));
        }
        assert_eq!((ring.place_at(4, 0), ring.place_at(2, 2)), (None, None), "no such node, no such core");
        assert_eq!(ring.target(ring.place_of(&Command::Info)), (2, 0), "what has no key is for the node that told");
        let key: &[u8] = b"some key";
        let vnode = vnode_of(token_of(key), 64);
        assert_eq!(ring.place_of(&Command::Get { key }), ring.place_of(&scan(vnode)));
        let addresses: Vec<_> = ring.addresses().collect();
        assert_eq!(addresses, ["10.0.0.1:7401", "[fd00::2]:7402", "three.example.net:7403"]);
        assert_eq!(ring.address(6), "three.example.net:7403");
    }

    #[test]
    fn a_place_without_a_connection_is_stood_in_for_by_every_other_one() {
        let ring = Ring::of(&told_by(1), &ClientConfig::default());
        for place in 0..ring.places() {
            let instead: Vec<_> = ring.instead(place).collect();
            let (first, second) = (ring.target(instead[0]), ring.target(instead[1]));
            assert!(first.0 != second.0 && [first.0, second.0].iter().all(|node| *node != ring.target(place).0), "{place}: {instead:?}");
            assert!((0..ring.places()).all(|other| instead.contains(&other) == (other != place)), "{place}: {instead:?}");
        }
    }

    #[test]
    fn keys_are_parted_by_place_and_by_the_servers_bound() {
        let ring = Ring::of(&told_by(3), &ClientConfig::default());
        let keys: Vec<Vec<u8>> = (0..500).map(|n| format!("key {n}").into_bytes()).collect();
        let parts = ring.parts(keys.iter().map(Vec::as_slice), 20);
        let mut seen: Vec<usize> = parts.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        let place = |index: usize| ring.place_of(&Command::Get { key: &keys[index] });
        assert!(parts.iter().all(|part| part.len() <= 20 && part.iter().all(|&index| place(index) == place(part[0]))));
        assert!(parts.len() >= 500 / 20);
    }

    #[test]
    fn what_does_not_add_up_leaves_the_node_that_said_it() {
        let (told, config) = (told_by(3), ClientConfig::default());
        let alone = |server: &ServerInfo, config: &ClientConfig| {
            let ring = Ring::of(server, config);
            assert!(!ring.is_cluster() && ring.addresses().next().is_none());
            (0..64).for_each(|vnode| assert!(ring.place_of(&scan(vnode)) < ring.places()));
            assert_eq!(ring.place_of(&Command::Info), 0);
            ring.places()
        };
        assert_eq!(alone(&ServerInfo { owners: vec![3; 64], ..told.clone() }, &config), 4, "an owner that is no node");
        assert_eq!(alone(&ServerInfo { owners: vec![0; 63], ..told.clone() }, &config), 4, "a vnode without an owner");
        assert_eq!(alone(&ServerInfo { node_id: 9, ..told.clone() }, &config), 4, "it does not know itself");
        let nodes = told.nodes.iter().map(|node| NodeInfo { cores: 0, ..node.clone() }).collect();
        assert_eq!(alone(&ServerInfo { nodes, ..told.clone() }, &config), 4);
        assert_eq!(alone(&ServerInfo { owners: Vec::new(), ..told.clone() }, &config), 4, "a node alone");
        assert_eq!(alone(&told, &ClientConfig { follow_ring: false, ..config.clone() }), 4);
        assert_eq!(alone(&told, &ClientConfig { single_connection: true, ..config }), 1);
    }

    #[test]
    fn only_a_newer_topology_is_news_to_a_clients_of_a_cluster() {
        let (config, known) = (ClientConfig::default(), told_by(1));
        let ring = Ring::of(&known, &config);
        let at = |epoch| ServerInfo { epoch, ..told_by(2) };
        assert_eq!([4, 5, 6].map(|epoch| ring.is_news(&at(epoch), &known)), [false, false, true]);
        assert!(ring.is_news(&ServerInfo { cluster_id: [1; 16], ..at(1) }, &known), "another cluster has its place");
        let alone = ServerInfo { owners: Vec::new(), ..told_by(1) };
        let (ring, restarted) = (Ring::of(&alone, &config), ServerInfo { cores: 2, ..alone.clone() });
        assert!(ring.is_news(&restarted, &alone) && !ring.is_news(&ServerInfo { epoch: 4, ..restarted }, &alone));
    }

    #[test]
    fn another_node_at_an_address_is_noticed() {
        assert_eq!(check_node(2, &told_by(2)), Ok(()));
        assert!(matches!(check_node(3, &told_by(2)), Err(ClientError::Disconnected(why)) if why.contains("node 2 is where node 3")));
    }
}
