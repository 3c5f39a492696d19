//! A node that joins a running cluster: before it has shards it asks one of the nodes that it was told of for the topology, and with that
//! settles who it is. Its folder is made for that cluster, for good.

use super::{ClusterConfig, layout_of, make_folder, run_briefly};
use crate::cluster::gossip::wire::Key;
use crate::cluster::topology::Topology;
use crate::cluster::words;
use crate::config::{Config, exit};
use crate::engine::format::Identity;
use crate::io::driver::Backend;
use crate::io::{SocketAddr, host};
use crate::node::Failure;
use crate::shard::visit::{self, VISIT_MAX};
use std::time::Duration;

/// Nodes are asked in turn, so many times, with a pause between: they may be starting, too.
const ROUNDS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Who this node is, the number of vnodes, and the topology; where the folder is there already and nobody answers, one that is unknown.
pub(super) fn settle(
    config: &Config,
    cluster: &ClusterConfig,
    backend: Backend,
    key: &Key,
    warn: &dyn Fn(&str),
) -> Result<(Identity, u32, Topology), Failure> {
    let refuse = |why: String| Failure::new(exit::CONFIG, why);
    let told = ask(&cluster.seeds, ROUNDS, key, backend)?;
    if let Some(layout) = layout_of(config, cluster)? {
        let (identity, vnodes) = (layout.identity, layout.vnodes);
        return match told {
            Ok(topology) if topology.cluster() != identity.cluster => {
                let (theirs, ours) = (topology.cluster(), identity.cluster);
                Err(refuse(format!("join: that is cluster {theirs:016x}, and the data folder belongs to cluster {ours:016x}")))
            }
            Ok(topology) => Ok((identity, vnodes, topology)),
            Err(why) => {
                warn(&format!("join: no member answers ({why}); this node goes by what it knew last"));
                Ok((identity, vnodes, Topology::unknown(identity.cluster, vnodes)))
            }
        };
    }
    let topology = told.map_err(|why| Failure::new(exit::FAILED, format!("join: no member tells the topology: {why}")))?;
    if let Some(asked) = config.vnodes.filter(|asked| *asked != topology.vnodes()) {
        return Err(refuse(format!("vnodes {asked}: the cluster has {}, and keeps them for its life", topology.vnodes())));
    }
    let node = match cluster.node_id {
        Some(id) => is_free(&topology, id).map(|()| id).map_err(refuse)?,
        None => draw_id(&topology),
    };
    let identity = Identity { cluster: topology.cluster(), node };
    make_folder(config, identity, topology.vnodes(), backend)?;
    Ok((identity, topology.vnodes(), topology))
}

/// The newest topology that any of these nodes has, asked so many times while none answers; why the last did not.
fn ask(nodes: &[SocketAddr], rounds: u32, key: &Key, backend: Backend) -> Result<Result<Topology, String>, Failure> {
    let (nodes, key) = (nodes.to_vec(), key.clone());
    run_briefly(backend, move |io| async move {
        let (mut newest, mut last) = (None::<Topology>, "nobody was asked".to_owned());
        for round in 0..rounds {
            if round > 0 {
                io.sleep(PAUSE).await;
            }
            for &node in &nodes {
                let until = io.now().plus(VISIT_MAX);
                match crate::shard::session::within(&io, until, visit::fetch_topology(&io, node, &key, host::wall_ms())).await {
                    Some(Ok(topology)) if newest.as_ref().is_none_or(|known| known.epoch() < topology.epoch()) => newest = Some(topology),
                    Some(Ok(_)) => {}
                    Some(Err(why)) => last = why,
                    None => last = format!("{node}: no answer in time"),
                }
            }
            if newest.is_some() {
                break;
            }
        }
        newest.ok_or(last)
    })
}

/// A founder's folder is to be made: refused where the cluster has gone on without it, since then what it held is lost, and with it what it
/// has promised (rule M3). Where nobody can tell, it finds out before it may vote (`shard::cluster::lost_disk`).
pub(super) fn is_founded(cluster: &ClusterConfig, id: Identity, key: &Key, backend: Backend) -> Result<(), Failure> {
    let others: Vec<SocketAddr> = cluster.founders.iter().filter(|founder| founder.node != id.node).map(|founder| founder.native).collect();
    match ask(&others, 1, key, backend)? {
        Ok(topology) if topology.cluster() == id.cluster && topology.is_founded() => {
            Err(Failure::new(exit::CONFIG, words::lost_disk(id.node, topology.epoch())))
        }
        _ => Ok(()),
    }
}

/// Whether a node with an empty folder may have this id. A member's is taken, by the member or by what it held: a node that lost its disk
/// comes back under another id (rule M3).
fn is_free(topology: &Topology, id: u64) -> Result<(), String> {
    match topology.nodes().iter().find(|node| node.spec.id as u16 == id as u16) {
        None => Ok(()),
        Some(node) if node.spec.id == id => Err(format!(
            "node-id {id} is taken: it is that of the member at {}. If that node lost its data, start it under another id with \
             --join and --standby, and say: ringkv cluster replace {id} NEW",
            node.spec.native
        )),
        Some(node) => Err(format!("node-id {id}: its low 16 bits are those of node {}; take another id", node.spec.id)),
    }
}

/// A free id of at most 16 bits.
fn draw_id(topology: &Topology) -> u64 {
    loop {
        let id = host::random_u64() & u64::from(u16::MAX);
        if id != 0 && is_free(topology, id).is_ok() {
            return id;
        }
    }
}
