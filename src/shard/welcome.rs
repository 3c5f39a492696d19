//! What a client is told of the cluster: with the answer to its hello, and again when the topology has changed, if it wants that.

use super::Shard;
use super::conn::Conn;
use super::execute::wire_namespace;
use crate::base::time::Mono;
use crate::cluster::topology::Topology;
use crate::io::{Class, Io};
use crate::limits::{DEADLINE_MS_DEFAULT, RF_DEFAULT};
use crate::wire::command::{
    FEATURE_HELLO_WANTS, FEATURE_LEVELS, FEATURE_NAMESPACE_DETAILS, FEATURE_NAMESPACE_LEVELS, FEATURE_NAMESPACE_REPLICAS,
    FEATURE_TTL_NEVER, HelloOk, HelloWants, Limits, Node, PROTOCOL_VERSION, Reply,
};
use crate::wire::native::{encode_reply, encode_reply_part};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const FEATURES: u64 = FEATURE_TTL_NEVER
    | FEATURE_NAMESPACE_DETAILS
    | FEATURE_LEVELS
    | FEATURE_NAMESPACE_LEVELS
    | FEATURE_NAMESPACE_REPLICAS
    | FEATURE_HELLO_WANTS;

/// How often a core looks whether there is a newer topology than its clients were told.
const NEWS_EVERY: Duration = Duration::from_secs(1);
/// While vnodes move there is a new epoch with each of them: clients are told this often, and when all have moved.
const NEWS_WHILE_MOVING: Duration = Duration::from_secs(10);
/// A request id that no client gives.
const NO_REQUEST: u64 = 0;

/// Answers a hello, request `id` of the connection.
pub fn welcome(shard: &Shard, conn: &Conn, id: u64, wants: HelloWants) {
    let topology = shard.cluster.as_ref().map(|cluster| cluster.topology());
    let reply = hello_ok(shard, topology.as_deref());
    let mut out = conn.out.borrow_mut();
    if wants.news {
        conn.told_epoch.set(Some(topology.as_ref().map_or(1, |topology| topology.epoch())));
    }
    if !wants.namespaces {
        return encode_reply(&mut out, id, &reply);
    }
    encode_reply_part(&mut out, id, &reply);
    let table = shard.namespaces();
    let rows: Vec<_> = table.rows().iter().map(wire_namespace).collect();
    encode_reply(&mut out, id, &Reply::NamespaceTerms(rows.into()));
}

fn hello_ok<'a>(shard: &'a Shard, topology: Option<&'a Topology>) -> Reply<'a> {
    let node = &shard.node;
    let this = Node { id: node.node_id, host: &node.host, port: node.port(), cores: node.cores };
    // A node that does not know its cluster yet knows itself.
    let known = topology.filter(|topology| !topology.nodes().is_empty());
    let (nodes, owners) = known.map_or_else(|| (vec![this], Vec::new()), ring_of);
    Reply::HelloOk(HelloOk {
        protocol_version: PROTOCOL_VERSION,
        core: shard.core(),
        cores: node.cores,
        vnodes: node.vnodes,
        node_id: node.node_id,
        cluster_id: node.cluster_id,
        epoch: topology.map_or(1, Topology::epoch),
        features: FEATURES,
        limits: Limits::of_this_build(DEADLINE_MS_DEFAULT),
        nodes: nodes.into(),
        owners: owners.into(),
    })
}

/// The nodes, and for each vnode the first of its owners: the same whatever a namespace's number of replicas.
fn ring_of(topology: &Topology) -> (Vec<Node<'_>>, Vec<u16>) {
    let nodes = topology.nodes().iter().map(|node| {
        let (host, port) = split_address(&node.spec.native);
        Node { id: node.spec.id, host, port, cores: node.spec.cores }
    });
    let owners = (0..topology.vnodes()).map(|vnode| topology.replicas(vnode, RF_DEFAULT).owners.first().copied().unwrap_or(0));
    (nodes.collect(), owners.collect())
}

/// Host and port; an IPv6 host without its brackets. What is no address has port 0.
fn split_address(address: &str) -> (&str, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    (host.trim_start_matches('[').trim_end_matches(']'), port.parse().unwrap_or(0))
}

/// Tells this core's clients of later topologies, until the shard closes.
pub async fn tell_news(shard: Rc<Shard>, io: Io) {
    let Some(cluster) = shard.cluster.clone() else { return };
    let mut last: (u64, Mono) = (cluster.epoch(), io.now());
    while !shard.is_closing() {
        io.sleep(NEWS_EVERY).await;
        let topology = cluster.topology();
        let is_settled = topology.moving().len() == 0;
        if topology.epoch() > last.0 && (is_settled || io.now().since(last.1) >= NEWS_WHILE_MOVING) {
            last = (topology.epoch(), io.now());
        }
        tell(&shard, &topology, last.0);
        shard.settle();
    }
}

/// Tells whoever knows less than `epoch`, unless its client has not taken what it was sent: that one is told later.
fn tell(shard: &Rc<Shard>, topology: &Arc<Topology>, epoch: u64) {
    let behind = |conn: &Conn| conn.told_epoch.get().is_some_and(|told| told < epoch) && conn.out_bytes() == 0 && !conn.closed.get();
    for (conn, _) in shard.open_connections().into_iter().filter(|(conn, _)| behind(conn)) {
        conn.told_epoch.set(Some(topology.epoch()));
        encode_reply(&mut conn.out.borrow_mut(), NO_REQUEST, &hello_ok(shard, Some(topology)));
        shard.mark_dirty(&conn);
    }
}

/// Starts what tells this core's clients.
pub fn start(shard: &Rc<Shard>) {
    drop(shard.io.spawn(Class::Background, tell_news(shard.clone(), shard.io.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::topology::NodeSpec;

    #[test]
    fn a_hello_names_every_node_and_the_first_owner_of_every_vnode() {
        let spec = |id: u64, native: &str| {
            let gossip = format!("10.0.0.{id}:7490");
            NodeSpec { id, native: native.into(), gossip, cores: id as u16, weight: 1, rack: String::new() }
        };
        let specs = vec![spec(1, "10.0.0.1:7400"), spec(2, "[fd00::2]:7401"), spec(3, "three.example.net:7402")];
        let topology = Topology::found(7, 64, specs).expect("three nodes");
        let (nodes, owners) = ring_of(&topology);
        let named: Vec<_> = nodes.iter().map(|node| (node.id, node.host, node.port, node.cores)).collect();
        assert_eq!(named, [(1, "10.0.0.1", 7400, 1), (2, "fd00::2", 7401, 2), (3, "three.example.net", 7402, 3)]);
        assert_eq!(owners.len(), 64);
        for (vnode, owner) in (0..).zip(&owners) {
            let id = nodes[usize::from(*owner)].id;
            assert!(topology.owns(id, vnode, 1) && topology.owns(id, vnode, 5), "vnode {vnode}: node {id}");
        }
    }
}
