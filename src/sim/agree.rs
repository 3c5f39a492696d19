//! Replicas that agree: some time after the faults have ended every replica of every key, asked alone, shows the same.

use super::final_look::Quiet;
use super::workload::{Keyspace, key_name};
use crate::base::record::{NamespaceId, Version, token_of, vnode_of};
use crate::client::Answer;
use crate::cluster::quorum::Level;
use crate::cluster::topology::Topology;
use crate::io::{Io, SocketAddr};
use crate::wire::command::{Command, LevelsAsked};
use std::collections::BTreeMap;
use std::time::Duration;

/// What was not copied by then is not being copied: rounds of comparisons take seconds here, and nobody is away.
pub(super) const AGREE_MAX: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(250);

/// What a replica shows of a key: version, and whether it has a deadline. Absent and dead are the same to who asks.
type Shown = Option<(Version, bool)>;

/// Waits until all replicas of all keys show the same. Err: what still differs, or could not be asked.
pub(super) async fn all_agree(io: Io, nodes: BTreeMap<u64, SocketAddr>, topology: Topology, space: Keyspace) -> Result<(), String> {
    let until = io.now().plus(AGREE_MAX);
    let mut quiet = BTreeMap::new();
    for (node, address) in nodes {
        let mut one = Quiet::open(io.clone(), address).await?;
        one.set_levels(LevelsAsked::both(Level::One));
        quiet.insert(node, one);
    }
    loop {
        match differs(&mut quiet, &topology, space).await? {
            None => return Ok(()),
            Some(difference) if io.now() >= until => {
                return Err(format!("replicas differ {} s after the faults ended: {difference}", AGREE_MAX.as_secs()));
            }
            Some(_) => io.sleep(AGAIN).await,
        }
    }
}

async fn differs(nodes: &mut BTreeMap<u64, Quiet>, topology: &Topology, space: Keyspace) -> Result<Option<String>, String> {
    for key in 0..space.keys {
        let name = key_name(key);
        let owners = topology.replicas(vnode_of(token_of(&name), topology.vnodes()), space.replicas).owners;
        let mut shown: Vec<(u64, Shown)> = Vec::new();
        for owner in owners {
            let node = topology.nodes()[usize::from(*owner)].spec.id;
            let asked = nodes.get_mut(&node).ok_or_else(|| format!("key {key}: nobody knows node {node}"))?;
            shown.push((node, ask(asked, space.namespace, key, &name).await?));
        }
        if shown.iter().any(|(_, other)| *other != shown[0].1) {
            let words: Vec<String> = shown.iter().map(|(node, shown)| format!("node {node} shows {shown:?}")).collect();
            return Ok(Some(format!("key {key}: {}", words.join(", "))));
        }
    }
    Ok(None)
}

async fn ask(node: &mut Quiet, namespace: NamespaceId, key: u32, name: &[u8]) -> Result<Shown, String> {
    match node.ask(namespace, Command::Get { key: name }).await? {
        Ok(Answer::Absent) => Ok(None),
        Ok(Answer::Value(value)) => Ok(Some((value.version, value.remaining.is_some()))),
        other => Err(format!("key {key}: a replica that is asked alone answers {other:?}")),
    }
}
