//! What an operator says about the cluster that a node belongs to: who founds it, or whom to ask.

use super::{GOSSIP_PORT_DEFAULT, Refusal, Settings, parse};
use crate::io::{IpAddr, SocketAddr};
use crate::limits::{RACK_BYTES_MAX, SEEDS_MAX, WEIGHT_MAX};
use std::path::PathBuf;

/// One of the nodes that a cluster begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Founder {
    /// Not 0.
    pub node: u64,
    /// Where clients and peers connect.
    pub native: SocketAddr,
}

/// A node's place in a cluster, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// `None`: whatever the data folder has, and a new one draws. Founders say it.
    pub node_id: Option<u64>,
    /// With whom the cluster begins, this node among them, as they were listed; empty for a node that joins.
    pub founders: Vec<Founder>,
    /// Where gossip finds the other founders; of a node that joins, where members are asked for the topology (their native ports).
    pub seeds: Vec<SocketAddr>,
    /// It holds nothing until an operator lets it in.
    pub standby: bool,
    /// Its folder may be a copy: all nodes are set back to theirs.
    pub restored: bool,
    /// Where gossip's sockets are bound. Port 0 draws a free one.
    pub gossip: SocketAddr,
    /// The address under which others reach this node's ports.
    pub ip: IpAddr,
    /// Empty: none.
    pub rack: String,
    /// At least 1.
    pub weight: u32,
    /// `None` only on loopback.
    pub key_file: Option<PathBuf>,
}

/// `None` where neither founders nor join is said.
pub(super) fn resolve(settings: &Settings, native: SocketAddr, admin: SocketAddr, cores: usize) -> Result<Option<ClusterConfig>, Refusal> {
    let (founders, join) = match (&settings.founders, &settings.join) {
        (Some(_), Some(_)) => return Err(Refusal::config("founders and join contradict each other: a node founds a cluster or joins one")),
        (None, None) => return alone(settings).map(|()| None),
        (founders, join) => (founders.as_deref(), join.as_deref()),
    };
    if settings.node_id == Some(0) {
        return Err(Refusal::config("node-id must not be 0"));
    }
    let gossip = SocketAddr::new(native.ip(), settings.gossip_port.unwrap_or(GOSSIP_PORT_DEFAULT));
    for (name, other) in [("port", native.port()), ("admin-port", admin.port())] {
        if gossip.port() == other && other != 0 {
            return Err(Refusal::config(format!("{name} and gossip-port are both {other}; give them different ones")));
        }
    }
    let (founders, seeds, ip) = match founders {
        Some(list) => founding(list, settings.node_id, native, gossip)?,
        None => (Vec::new(), joining(join.unwrap_or(""))?, reachable(native)?),
    };
    if settings.cluster_key.is_none() && !native.ip().is_loopback() {
        return Err(Refusal::config(format!("host {} is reachable from other machines, so cluster-key must name a key", native.ip())));
    }
    let standby = settings.standby.unwrap_or(false);
    if standby && join.is_none() {
        return Err(Refusal::config("standby is for a node that joins; give join as well"));
    }
    let rack = settings.rack.clone().unwrap_or_default();
    if rack.len() > RACK_BYTES_MAX {
        return Err(Refusal::config(format!("rack `{rack}` is longer than {RACK_BYTES_MAX} bytes")));
    }
    if rack.contains(char::is_whitespace) {
        return Err(Refusal::config(format!("rack `{rack}` has a space in its name")));
    }
    let weight = settings.weight.unwrap_or(cores as u32);
    if weight == 0 || weight > WEIGHT_MAX {
        return Err(Refusal::config(format!("weight must lie between 1 and {WEIGHT_MAX}, and {weight} does not")));
    }
    let (node_id, key_file, restored) = (settings.node_id, settings.cluster_key.clone(), settings.restored.unwrap_or(false));
    Ok(Some(ClusterConfig { node_id, founders, seeds, standby, restored, gossip, ip, rack, weight, key_file }))
}

/// Without a cluster nothing is said about one.
fn alone(settings: &Settings) -> Result<(), Refusal> {
    let said = [
        ("node-id", settings.node_id.is_some()),
        ("rack", settings.rack.is_some()),
        ("weight", settings.weight.is_some()),
        ("gossip-port", settings.gossip_port.is_some()),
        ("cluster-key", settings.cluster_key.is_some()),
        ("standby", settings.standby.is_some()),
        ("restored", settings.restored.is_some()),
    ];
    match said.into_iter().find(|(_, said)| *said) {
        Some((name, _)) => Err(Refusal::config(format!("{name} is for a node of a cluster; give founders or join as well"))),
        None => Ok(()),
    }
}

type Place = (Vec<Founder>, Vec<SocketAddr>, IpAddr);

/// The founders, gossip's addresses of the others, and this one's own address.
fn founding(list: &str, node_id: Option<u64>, native: SocketAddr, gossip: SocketAddr) -> Result<Place, Refusal> {
    let refuse = |why: String| Err(Refusal::config(format!("founders: {why}")));
    let founders = parse::founders(list).map_err(|why| Refusal::config(format!("founders: {why}")))?;
    let Some(id) = node_id else { return refuse("node-id must say which of them this node is".to_owned()) };
    let Some(own) = founders.iter().find(|founder| founder.node == id) else {
        return refuse(format!("node-id {id} is not among them"));
    };
    if let Some(founder) = founders.iter().find(|founder| founder.node > u64::from(u16::MAX)) {
        return refuse(format!("ids are at most {}, and {} is not", u16::MAX, founder.node));
    }
    let own = own.native;
    if own.port() != native.port() || (own.ip() != native.ip() && !native.ip().is_unspecified()) {
        return refuse(format!("node {id} is at {own} there, and at {native} by host and port"));
    }
    if gossip.port() == 0 {
        return refuse("gossip-port must not be 0, since the others reckon with it".to_owned());
    }
    let away = i32::from(gossip.port()) - i32::from(native.port());
    let mut seeds = Vec::new();
    for founder in founders.iter().filter(|founder| founder.node != id) {
        match u16::try_from(i32::from(founder.native.port()) + away) {
            Ok(port) if port != 0 => seeds.push(SocketAddr::new(founder.native.ip(), port)),
            _ => return refuse(format!("gossip-port is {away} from port, and from {} that leads to no port", founder.native)),
        }
    }
    Ok((founders, seeds, own.ip()))
}

fn joining(list: &str) -> Result<Vec<SocketAddr>, Refusal> {
    let seeds = parse::addresses(list).map_err(|why| Refusal::config(format!("join: {why}")))?;
    if seeds.len() > SEEDS_MAX {
        return Err(Refusal::config(format!("join names more than {SEEDS_MAX} addresses")));
    }
    Ok(seeds)
}

/// An address that others can call.
fn reachable(native: SocketAddr) -> Result<IpAddr, Refusal> {
    if native.ip().is_unspecified() {
        let why = "and a node that joins must be told by which of them it is reached";
        return Err(Refusal::config(format!("host {} is every address of this machine, {why}", native.ip())));
    }
    Ok(native.ip())
}
