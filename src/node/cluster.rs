//! A node's part in a cluster, as its process begins it: who it is, by what key it is believed, and gossip.
//!
//! What a node is called is settled before its shards open the data folder: a folder that is made now is made with the id that was asked
//! for and, where the node is a founder, with the id of the cluster; an older one has both already.

mod join;

use super::Failure;
use crate::base::record::core_of;
use crate::cluster::board::MemberBoard;
use crate::cluster::founding::{self, founding_id};
use crate::cluster::gossip::member::{Address, Profile, Rack, Versions};
use crate::cluster::gossip::wire::Key;
use crate::cluster::gossip::{Me, Timing};
use crate::cluster::topology::{NodeSpec, Topology};
use crate::cluster::words;
use crate::config::{ClusterConfig, Config, exit};
use crate::control::gossip::{GossipFigures, GossipSetup, Warn, to_address};
use crate::engine::format::Identity;
use crate::engine::format::layout::{Layout, parse_layout};
use crate::engine::recover::{NodeConfig, NodeStore};
use crate::io::driver::{Backend, Driver};
use crate::io::executor::Executor;
use crate::io::wakers::Wakers;
use crate::io::{Io, SocketAddr, host};
use crate::limits::{CLUSTER_VERSION, CLUSTER_VERSION_MIN, SEEDS_MAX};
use crate::shard::cluster::ClusterPlan;
use crate::shard::forget::Times;
use crate::shard::start::StartFailure;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The versions of what nodes keep on disk and send to each other that this program reads, as a whole.
const VERSIONS: Versions = Versions { min: CLUSTER_VERSION_MIN, max: CLUSTER_VERSION };

/// What is settled before anything starts.
pub(super) struct Membership {
    identity: Identity,
    vnodes: u32,
    key: Key,
    board: Arc<MemberBoard>,
    pub figures: Arc<GossipFigures>,
    /// The topology that the founders begin with, or that a member told.
    founding: Topology,
    asks_in: bool,
}

impl Membership {
    /// Reads the key and settles the identity; a data folder that is not there yet is made. `wakers` are the shards'.
    pub fn prepare(config: &Config, backend: Backend, wakers: &Wakers, warn: &dyn Fn(&str)) -> Result<Option<Membership>, Failure> {
        let Some(cluster) = &config.cluster else { return Ok(None) };
        let key = match &cluster.key_file {
            Some(path) => Key::new(&super::read_credential("cluster-key", path)?),
            None => {
                warn("gossip runs under the key that every node on loopback has; cluster-key names one of the cluster's own");
                Key::new(b"")
            }
        };
        let (identity, vnodes, founding) = match cluster.founders.is_empty() {
            true => join::settle(config, cluster, backend, &key, warn)?,
            false => {
                let (identity, vnodes) = settle(config, cluster, &key, backend)?;
                (identity, vnodes, founding_topology(config, cluster, identity, vnodes)?)
            }
        };
        let (wakers, cores) = (wakers.clone(), config.cores.len());
        let wake = move || (0..cores).for_each(|core| wakers.wake_from_outside(core));
        let board = Arc::new(MemberBoard::new(Box::new(wake)));
        let asks_in = cluster.founders.is_empty() && !cluster.standby;
        Ok(Some(Membership { identity, vnodes, key, board, figures: Arc::default(), founding, asks_in }))
    }

    /// What the shards are told. `say` gets sentences for the operator.
    pub fn plan(&self, say: Box<dyn Fn(&str) + Send + Sync>) -> ClusterPlan {
        let (node, founding, asks_in) = (self.identity.node, self.founding.clone(), self.asks_in);
        let (key, boot, board) = (self.key.clone(), host::random_u64(), Some(self.board.clone()));
        ClusterPlan { node, founding, asks_in, key, boot, board, warn: say, planted: None, forget: Times::default(), late: None }
    }

    /// Gossip of a node whose native port is that of `native`.
    pub fn setup(&self, cluster: &ClusterConfig, cores: u16, native: SocketAddr, warn: Warn) -> GossipSetup {
        let at = |port| to_address(SocketAddr::new(cluster.ip, port));
        let profile = Profile {
            native: at(native.port()),
            gossip: at(cluster.gossip.port()),
            cores,
            weight: cluster.weight,
            rack: Rack::new(&cluster.rack).expect("the configuration bounds it"),
            protocol: VERSIONS,
            format: VERSIONS,
        };
        GossipSetup {
            listen: cluster.gossip,
            cluster: self.identity.cluster,
            vnodes: self.vnodes,
            key: self.key.clone(),
            me: Me { node: self.identity.node, profile },
            seeds: self.seeds(cluster),
            timing: Timing::default(),
            board: self.board.clone(),
            figures: self.figures.clone(),
            warn,
        }
    }
}

impl Membership {
    /// Where gossip begins: the other founders, or the members that the topology names.
    fn seeds(&self, cluster: &ClusterConfig) -> Vec<Address> {
        if !cluster.founders.is_empty() {
            return cluster.seeds.iter().map(|seed| to_address(*seed)).collect();
        }
        let others = self.founding.nodes().iter().filter(|node| node.spec.id != self.identity.node);
        others.filter_map(|node| node.spec.gossip.parse().ok()).map(to_address).take(SEEDS_MAX).collect()
    }
}

/// All founders are alike: as many cores as this one, and gossip as far above the native port.
fn founding_topology(config: &Config, cluster: &ClusterConfig, identity: Identity, vnodes: u32) -> Result<Topology, Failure> {
    let cores = config.cores.len() as u16;
    let id = cluster_id(cluster, vnodes, cores);
    if id != identity.cluster {
        let why = "the data folder belongs to another cluster: one that was founded with another list, or by nodes with other core counts";
        return Err(Failure::new(exit::CONFIG, format!("founders: {why}")));
    }
    let away = i32::from(cluster.gossip.port()) - i32::from(config.native.port());
    let spec = |founder: &crate::config::Founder| {
        // The configuration has seen to it that this is a port.
        let gossip = SocketAddr::new(founder.native.ip(), (i32::from(founder.native.port()) + away) as u16);
        NodeSpec {
            id: founder.node,
            native: founder.native.to_string(),
            gossip: gossip.to_string(),
            cores,
            weight: u32::from(cores),
            rack: String::new(),
        }
    };
    let topology = Topology::found(id, vnodes, cluster.founders.iter().map(spec).collect());
    topology.map_err(|refused| Failure::new(exit::CONFIG, format!("founders: {refused}")))
}

fn cluster_id(cluster: &ClusterConfig, vnodes: u32, cores: u16) -> u64 {
    let founder = |founder: &crate::config::Founder| founding::Founder { node: founder.node, native: to_address(founder.native) };
    let founders: Vec<founding::Founder> = cluster.founders.iter().map(founder).collect();
    founding_id(&founders, vnodes, cores)
}

/// Who this node is, and the number of vnodes.
fn settle(config: &Config, cluster: &ClusterConfig, key: &Key, backend: Backend) -> Result<(Identity, u32), Failure> {
    if let Some(layout) = layout_of(config, cluster)? {
        return Ok((layout.identity, layout.vnodes));
    }
    let vnodes = config.vnodes_at_creation();
    // Founders say their ids.
    let node = cluster.node_id.unwrap_or(1);
    let identity = Identity { cluster: cluster_id(cluster, vnodes, config.cores.len() as u16), node };
    join::is_founded(cluster, identity, key, backend)?;
    make_folder(config, identity, vnodes, backend)?;
    Ok((identity, vnodes))
}

/// What the data folder says about itself; None: it is empty.
///
/// # Errors
/// It cannot be read, is damaged, or belongs to another node than the one that is asked for.
fn layout_of(config: &Config, cluster: &ClusterConfig) -> Result<Option<Layout>, Failure> {
    let path = config.data.join("LAYOUT");
    let failure = |code, why: String| Failure::new(code, format!("{}: {why}", path.display()));
    let layout = match host::read(&path) {
        Ok(bytes) => parse_layout(&bytes).map_err(|bad| failure(exit::DATA_DAMAGED, bad.to_string()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failure(exit::FAILED, error.to_string())),
    };
    let node = layout.identity.node;
    match cluster.node_id.filter(|asked| *asked != node) {
        Some(asked) => Err(Failure::new(exit::CONFIG, format!("node-id {asked}: the data folder was made for node {node}, for good"))),
        // What it has acknowledged since, and promised, it knows nothing of (rule M3).
        None if layout.is_copy && !cluster.restored => Err(Failure::new(exit::CONFIG, words::is_copy(node))),
        None => Ok(Some(layout)),
    }
}

/// Makes an empty data folder, on an executor that lives no longer than this.
fn make_folder(config: &Config, identity: Identity, vnodes: u32, backend: Backend) -> Result<(), Failure> {
    let (data, cores) = (config.data.clone(), config.cores.len() as u16);
    let layout = NodeConfig { cores, vnodes, identity: Some(identity), core_of };
    let made = run_briefly(backend, |io| async move { NodeStore::open(&io, Path::new(&data), layout).await.map(drop) })?;
    made.map_err(|error| Failure::from(StartFailure::from(error)))
}

/// Runs a task on an executor that lives no longer than this.
fn run_briefly<T: 'static, F: Future<Output = T> + 'static>(backend: Backend, task: impl FnOnce(Io) -> F) -> Result<T, Failure> {
    let wakers = Wakers::new(1);
    let (driver, _) = Driver::open(backend, 0, &wakers).map_err(|error| Failure::new(exit::FAILED, error.to_string()))?;
    let mut executor = Executor::new(driver, 0, wakers);
    executor.set_spin(Duration::ZERO);
    let io = executor.handle();
    let task = task(io);
    Ok(executor.run(task))
}
