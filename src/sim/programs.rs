//! Programs of two versions in one simulated cluster: with the feature `next-version` some nodes begin as one of the version before, and
//! become new at a start. (An old one runs the same code and says that it knows the older version alone.) Without the feature there is
//! one version, and nothing of this happens.
//!
//! What must hold: the cluster is never at a version that one of its nodes does not know, and once all know it, it comes to be.

use super::cluster::{Run, STUCK};
use crate::cluster::topology::Topology;
use crate::limits::{CLUSTER_VERSION, CLUSTER_VERSION_MIN};
use std::time::Duration;

/// The cluster rose to a version.
pub(super) const RISEN: &str = "version risen";
/// A node of an older program served beside newer ones.
pub(super) const OLDER: &str = "older program";
/// What must happen in many runs, where there are two versions at all.
pub(super) const FAULTS_WANTED: &[&str] = &[RISEN, OLDER];
/// There is more than one version.
pub(super) const ARE_SEVERAL: bool = CLUSTER_VERSION > CLUSTER_VERSION_MIN;

impl Run {
    /// Which nodes begin with an older program.
    pub(super) fn draw_programs(&mut self) {
        if !ARE_SEVERAL || !self.prng.one_in(2) {
            return;
        }
        for node in 0..self.nodes.len() {
            if self.prng.one_in(2) {
                self.nodes[node].knows = CLUSTER_VERSION_MIN;
            }
        }
    }

    /// A node begins: perhaps its program was made newer.
    pub(super) fn perhaps_renew(&mut self, node: usize) {
        if self.nodes[node].knows < CLUSTER_VERSION && self.prng.one_in(2) {
            self.note(format!("node {} has a newer program", node + 1));
            self.nodes[node].knows = CLUSTER_VERSION;
        }
        if self.nodes[node].knows < CLUSTER_VERSION {
            self.happened(OLDER);
        }
    }

    /// A newer topology was seen.
    pub(super) fn check_version(&mut self, topology: &Topology) {
        if topology.version() > self.seen_version {
            self.seen_version = topology.version();
            self.note(format!("the cluster is at version {}", topology.version()));
            self.happened(RISEN);
        }
        let old = |node: &u64| self.nodes[*node as usize - 1].knows < topology.version();
        if let Some(old) = topology.nodes().iter().map(|node| node.spec.id).find(old) {
            self.fail(format!("the cluster is at version {}, and node {old} does not know it", topology.version()));
        }
    }

    /// After the faults, with everybody up: what all know is switched on.
    pub(super) fn await_version(&mut self) -> Result<(), String> {
        let until = self.world.now().plus(STUCK);
        loop {
            self.look_at_operator();
            let known = self.operator.known();
            let all = known.nodes().iter().map(|node| self.nodes[node.spec.id as usize - 1].knows).min().unwrap_or(CLUSTER_VERSION_MIN);
            if known.version() >= all {
                return Ok(());
            }
            if self.world.now() >= until {
                return Err(format!("all nodes have known version {all} for a minute, and the cluster is at version {}", known.version()));
            }
            self.world.run_for(Duration::from_millis(50));
        }
    }
}
