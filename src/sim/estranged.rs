//! Two nodes that for a while have only each other: one missed what the others hold, and what it meets has nothing yet. By chance that
//! hardly happens for long enough, and it is what shows whether a node without data counts for more than it holds.
//!
//! | from | the links |
//! | --- | --- |
//! | the beginning, when nothing moves | a member reaches nobody: it misses what is written, and gets nothing that is kept for it |
//! | the meeting | it reaches a newcomer, which reaches the first member too; or a member whose disk was just lost |
//! | the end, some time after the newcomer has joined | all reach all again |
//!
//! Meanwhile little else befalls the nodes, and nothing else is ordered.

use super::cluster::{Cut, Run};
use crate::base::time::Mono;
use std::time::Duration;

/// A node that had missed writes met one that was joining, and nobody else.
pub(super) const MET_NEWCOMER: &str = "newcomer met only one that had missed writes";
/// The same with a member whose disk was lost.
pub(super) const MET_EMPTIED: &str = "emptied node met only one that had missed writes";

/// However long a join takes.
const JOIN_MAX: Duration = Duration::from_secs(15);

/// How far it is.
#[derive(Clone, Copy)]
pub(super) enum Estranged {
    /// As soon as nothing moves.
    Wanted,
    Apart {
        node: usize,
        meets_at: Mono,
    },
    Met {
        node: usize,
        other: usize,
        /// Not set while the other one joins.
        ends_at: Option<Mono>,
        at_most: Mono,
    },
}

impl Estranged {
    /// Links are cut for it.
    pub(super) fn is_under_way(self) -> bool {
        !matches!(self, Estranged::Wanted)
    }
}

impl Run {
    /// The next step of it, when it is due and can be.
    pub(super) fn look_at_estranged(&mut self) {
        let now = self.world.now();
        match self.estranged {
            Some(Estranged::Wanted) if self.operator.is_idle() => self.estranged = self.part(),
            Some(Estranged::Apart { node, meets_at }) if now >= meets_at => {
                // Of three members each has all that there is, so a newcomer that reaches any other has it from there.
                let meets_newcomer = !self.prng.one_in(4) && self.operator.known().members().count() > 3;
                self.estranged = if meets_newcomer { self.meets_newcomer(node) } else { self.meets_emptied(node) };
                if self.estranged.is_none() {
                    self.reach_all(node);
                }
            }
            Some(Estranged::Met { node, other, ends_at: None, at_most }) if self.operator.is_idle() => {
                let ends_at = Some(now.plus(Duration::from_millis(self.prng.between(300, 2_000))));
                self.estranged = Some(Estranged::Met { node, other, ends_at, at_most });
            }
            Some(Estranged::Met { node, other, ends_at, at_most }) if now >= ends_at.unwrap_or(at_most) => {
                self.reach_all(node);
                self.reach_all(other);
                self.estranged = None;
            }
            _ => {}
        }
    }

    fn between_ms(&mut self, from: u64, to: u64) -> Mono {
        let after = Duration::from_millis(self.prng.between(from, to));
        self.world.now().plus(after)
    }

    fn part(&mut self) -> Option<Estranged> {
        let known = self.operator.known();
        let members: Vec<usize> = known.members().map(|node| node.spec.id as usize - 1).collect();
        // The first of them is who sees to it that vnodes flip.
        let (_, others) = members.split_first().filter(|_| self.operator.all_know_founding() && self.dead_member().is_none())?;
        let node = *self.prng.pick(others)?;
        self.note(format!("node {} is estranged from all others", node + 1));
        self.keep_apart(node, &[]);
        Some(Estranged::Apart { node, meets_at: self.between_ms(200, 1_500) })
    }

    /// Nothing passes between a node and all but some.
    fn keep_apart(&mut self, node: usize, from_all_but: &[usize]) {
        let until = self.world.now().plus(JOIN_MAX);
        for other in (0..self.nodes.len()).filter(|other| *other != node && !from_all_but.contains(other)) {
            for (from, to) in [(node, other), (other, node)] {
                self.world.cut(self.nodes[from].machine, self.nodes[to].machine);
                self.cuts.push(Cut { from, to, until });
            }
        }
    }

    fn reach(&mut self, one: usize, other: usize) {
        let is_between = |cut: &mut Cut| [(one, other), (other, one)].contains(&(cut.from, cut.to));
        for cut in self.cuts.extract_if(.., is_between).collect::<Vec<_>>() {
            self.world.heal(self.nodes[cut.from].machine, self.nodes[cut.to].machine);
        }
    }

    fn reach_all(&mut self, node: usize) {
        (0..self.nodes.len()).filter(|other| *other != node).for_each(|other| self.reach(node, other));
    }

    fn met(&mut self, node: usize, other: usize, ends_at: Option<Mono>) -> Option<Estranged> {
        self.reach(node, other);
        Some(Estranged::Met { node, other, ends_at, at_most: self.world.now().plus(JOIN_MAX) })
    }

    fn meets_newcomer(&mut self, node: usize) -> Option<Estranged> {
        let known = self.operator.known();
        let steward = known.members().map(|member| member.spec.id as usize - 1).min()?;
        let newcomer = self.strangers().next().filter(|_| self.dead_member().is_none())?;
        self.keep_apart(newcomer, &[node, steward]);
        self.order_join(newcomer);
        self.happened(MET_NEWCOMER);
        self.met(node, newcomer, None)
    }

    fn meets_emptied(&mut self, node: usize) -> Option<Estranged> {
        let known = self.operator.known();
        let members: Vec<usize> = known.members().map(|member| member.spec.id as usize - 1).filter(|member| *member != node).collect();
        let emptied = *self.prng.pick(&members)?;
        if !self.may_lose(&known) || self.nodes[emptied].life.is_none() {
            return None;
        }
        self.lose_disk(emptied);
        self.nodes[emptied].back_at = Some(self.between_ms(1, 100));
        self.keep_apart(emptied, &[node]);
        self.happened(MET_EMPTIED);
        let ends_at = self.between_ms(500, 4_000);
        self.met(node, emptied, Some(ends_at))
    }
}
