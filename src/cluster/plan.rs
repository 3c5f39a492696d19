//! What a change would move, before anybody decides it.

use super::topology::{Proposal, Refused, Topology};

/// A node's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodePlan {
    pub id: u64,
    /// Replicas it has before and after; 0 before it joined and after it left.
    pub before: u32,
    pub after: u32,
    /// Vnodes that come to it, and that go.
    pub incoming: u32,
    pub outgoing: u32,
}

/// What moves for namespaces of one replication factor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The epoch that the change would make.
    pub epoch: u64,
    /// In the order of their ids.
    pub nodes: Vec<NodePlan>,
    /// Replicas of vnodes that come to a node which lacks them, and replicas of all vnodes.
    pub moved: u32,
    pub whole: u32,
}

impl Topology {
    /// What `proposal` would move, or why it would be refused.
    pub fn plan(&self, proposal: &Proposal, rf: usize) -> Result<Plan, Refused> {
        let next = self.apply(proposal)?;
        Ok(next.plan_from(self, rf))
    }

    /// What moves from `before` to where this topology is heading.
    fn plan_from(&self, before: &Topology, rf: usize) -> Plan {
        let mut nodes: Vec<NodePlan> =
            before.nodes().iter().chain(self.nodes()).map(|node| NodePlan { id: node.spec.id, ..NodePlan::default() }).collect();
        nodes.sort_unstable_by_key(|node| node.id);
        nodes.dedup_by_key(|node| node.id);
        let place = |id: u64| nodes.partition_point(|node| node.id < id);
        let old_place: Vec<usize> = before.nodes().iter().map(|node| place(node.spec.id)).collect();
        let new_place: Vec<usize> = self.nodes().iter().map(|node| place(node.spec.id)).collect();
        let (mut moved, mut whole) = (0, 0);
        for vnode in 0..self.vnodes() {
            let named = |owners: &[u16], place: &[usize]| owners.iter().map(|owner| place[usize::from(*owner)]).collect::<Vec<usize>>();
            let old = named(before.replicas(vnode, rf).owners, &old_place);
            let new = self.destination(vnode);
            let new = named(&new[..new.len().min(rf)], &new_place);
            old.iter().for_each(|node| nodes[*node].before += 1);
            new.iter().for_each(|node| nodes[*node].after += 1);
            old.iter().filter(|node| !new.contains(node)).for_each(|node| nodes[*node].outgoing += 1);
            for node in new.iter().filter(|node| !old.contains(node)) {
                nodes[*node].incoming += 1;
                moved += 1;
            }
            whole += new.len() as u32;
        }
        Plan { epoch: self.epoch(), nodes, moved, whole }
    }
}
