//! The coordinator: one request against the replicas of its vnode, as a state machine. `put` and `get` hold the rules P1 to P6 of
//! PROTOCOL.md, `clocks` gathers the first rounds of many puts.
//!
//! No hands: events come in (an answer, a refusal, a broken link, a wake, a newer topology), effects go out. Bytes of a put stay with the
//! driver, which knows the request; an effect only says to whom they go. A get keeps the newest cell, the one copy that there is.
//!
//! - **Epochs** (M1). A request is made for one topology. What replicas say is counted for the attempt that asked it: when a newer topology
//!   changed the vnode, the next attempt begins, under the same version where there is one. A clock (P1, first round) is no answer about a
//!   vnode, so its node cannot tell whether the coordinator's epoch will do for it; a clock from a newer epoch counts only once the
//!   coordinator has seen that topology. The rule matters: else a coordinator that missed a flip could stamp below what the new owners
//!   have acknowledged, and be acknowledged itself.
//! - **Levels.** A put and a get name R and W. Where R + W > N, a put takes two rounds, the first one from R replicas or a majority,
//!   whichever is more, so that puts of all such levels see each other. With both at a majority or more, puts and gets of a key are a
//!   linearizable register; below that a get may go back to an older value that no put's answer has ruled out.
//! - **Time.** A request knows its deadline and says when it wants to be woken. Every wait ends there.

pub mod clocks;
pub mod get;
pub mod put;

use super::quorum::{Access, Level, Need, Replicas, majority};
use super::topology::{Standing, Topology};
use crate::base::record::Version;
use crate::base::time::{HybridClock, Mono, WallMs};
use crate::limits::{CLOCK_SKEW_MS_MAX, RF_MAX};
use crate::wire::peer::{Refusal, Road};
use std::time::Duration;

/// The most nodes of one request: owners, and as many pending ones.
pub const PARTY_MAX: usize = 2 * RF_MAX;
/// A replica that has yet to learn the topology is asked again after this time.
pub const BEHIND_RETRY: Duration = Duration::from_millis(5);

/// Bugs that the simulator must find. Never reachable from a configuration file or a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A put that met something newer is stamped again.
    PutRestamps,
    /// A duplicate of what is there is taken for something newer, and the put stamped again.
    DupIsSuperseded,
    /// A put is stamped by the coordinator's clock alone.
    ClocksNotAsked,
    /// A get answers without having written back.
    ReadNoWriteback,
    /// A retry does not use the version it brings.
    RetryNewStamp,
    /// A hint counts as an acknowledgement.
    HintCountedToW,
    /// A replica answers before what it says is durable.
    AckBeforeSync,
    /// Nobody minds that a coordinator missed a change of the vnode.
    OldEpochObeyed,
    /// The pending owners are not asked for their part.
    PendingNotInQuorum,
    /// Nobody compares replicas in the background.
    RepairOff,
    /// A pending owner takes over after it has joined one old owner.
    FlipAfterOneSource,
    /// Tombstones are dropped after a comparison without a fence (`forget`).
    DropWithoutFence,
    /// The leader of a session asks nobody but itself.
    FloorLocalOnly,
    /// A copy of a comparison is taken whatever the fence and the floor.
    RepairCopyBelowFloor,
    /// An absent key has no version in answers.
    AbsentIsVersionZero,
    /// A pending owner takes over without the marks of the old ones.
    FloorNotInherited,
    /// A founder that comes back without its disk votes.
    RestoredReplicaVotes,
}

/// The levels of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    pub read: Level,
    pub write: Level,
}

impl Levels {
    /// The same for both.
    pub fn both(level: Level) -> Levels {
        Levels { read: level, write: level }
    }
}

/// What is known of a node's health. A shard makes it of gossip's members and its own detector.
pub trait View {
    fn is_alive(&self, node: u64) -> bool;
    /// The time within which 99 of 100 reads of `node` were answered; `None` while that is not known.
    fn p99(&self, node: u64) -> Option<Duration>;
    /// Puts the fastest first.
    fn order(&self, nodes: &mut [u64]);
}

/// What one call is given, and where its effects go.
pub struct Turn<'a> {
    pub now: Mono,
    pub now_ms: WallMs,
    /// Of the coordinating core.
    pub clock: &'a mut HybridClock,
    pub view: &'a dyn View,
    pub out: &'a mut Vec<Effect>,
}

/// From whom an answer came, with what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct From {
    pub node: u64,
    /// Of the node's topology.
    pub epoch: u64,
    /// The request's attempt that asked (`Put::attempt`, `Get::attempt`). The driver keeps it with the id of the frame.
    pub attempt: u32,
}

/// What the driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask `to` for its clock, with the others of this turn (`clocks`).
    AskClock { to: u64 },
    /// Send the request's cell to `to`: of a put the client's under `Put::version`, of a get `Get::cell`.
    Store { to: u64, road: Road },
    /// Ask `to` for the cell or for its digest.
    Read { to: u64, full: bool },
    /// The put has its version: for clients that want to hear of it before the answer.
    Stamped { version: Version },
    /// Tell the client. Once a request, unless the driver lets go of it before.
    Answer(Outcome),
    /// Keep the cell for a replica that has not said that it has it.
    Hint { to: u64 },
    /// `to` is stale: it gets the get's cell as a copy, in the background.
    Repair { to: u64 },
    /// For the detector: a read was answered.
    Answered { node: u64, took: Duration },
    /// For the detector: nobody waits for this read any more.
    GaveUp { node: u64, waited: Duration },
    /// `node`'s clock is further ahead of ours than any may be: report it.
    Skewed { node: u64, ahead_ms: u64 },
    /// `node` has an older topology: tell it so.
    Correct { node: u64 },
    /// `node` has a newer topology, of this epoch: get it.
    FetchTopology { node: u64, epoch: u64 },
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// W replicas hold this version, or a newer one.
    Done { version: Version },
    /// The put was sent under this version and may take effect, now, later or never. A retry carries the version.
    Unknown { version: Version, why: Option<Refusal> },
    /// The version that a put with `stamp_only` was to find; nothing is stored under it.
    Stamped { version: Version },
    /// The coordinating core has taken on what it can: no machine says this, its driver does.
    Overloaded,
    /// `Get::cell` is the answer.
    Read,
    /// The level cannot be met. Nothing was sent to be stored by a put; its version is there if it brought one.
    Unavailable { need: u16, alive: u16, version: Option<Version> },
    /// The time was over before anything was sent to be stored.
    DeadlinePassed,
    /// The version that a retry brings is none that a put was given lately.
    BadVersion { ahead_ms: u64 },
}

/// Replicas that have to learn something before they can answer: they are asked again in a moment, all at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Behind {
    who: Set,
    retry_at: Mono,
}

impl Behind {
    pub fn add(&mut self, now: Mono, at: usize) {
        if self.who.is_empty() {
            self.retry_at = now.plus(BEHIND_RETRY);
        }
        self.who.add(at);
    }

    pub fn remove(&mut self, at: usize) {
        self.who.remove(at);
    }

    /// When somebody is to be asked again.
    pub fn next(&self) -> Option<Mono> {
        (!self.who.is_empty()).then_some(self.retry_at)
    }

    /// Those that are to be asked again now; they are behind no more.
    pub fn due(&mut self, now: Mono) -> Set {
        let is_due = self.next().is_some_and(|at| now >= at);
        if is_due { std::mem::take(&mut self.who) } else { Set::default() }
    }
}

/// Some of a roster's nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Set(u16);

impl Set {
    pub fn has(self, at: usize) -> bool {
        self.0 >> at & 1 == 1
    }

    pub fn add(&mut self, at: usize) {
        self.0 |= 1 << at;
    }

    pub fn remove(&mut self, at: usize) {
        self.0 &= !(1 << at);
    }

    pub fn and(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }

    pub fn or(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    pub fn without(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }

    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn filter(self, keep: impl Fn(usize) -> bool) -> Set {
        let mut kept = Set::default();
        self.iter().filter(|at| keep(*at)).for_each(|at| kept.add(at));
        kept
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..PARTY_MAX).filter(move |at| self.has(*at))
    }
}

const _: () = assert!(PARTY_MAX <= 16, "a set has a bit a node");

/// The replicas of one vnode and namespace, by node id, at an epoch. Owners first, in the order of the preference list.
#[derive(Clone, Copy, Debug)]
pub struct Roster {
    epoch: u64,
    vnode: u32,
    rf: usize,
    nodes: [u64; PARTY_MAX],
    len: usize,
    owners: Set,
    /// Empty while no move is pending.
    pending: Set,
}

impl Roster {
    pub fn new(topology: &Topology, vnode: u32, rf: usize) -> Roster {
        let replicas = topology.replicas(vnode, rf);
        let mut roster =
            Roster { epoch: topology.epoch(), vnode, rf, nodes: [0; PARTY_MAX], len: 0, owners: Set::default(), pending: Set::default() };
        for index in replicas.everybody() {
            roster.nodes[roster.len] = topology.nodes()[usize::from(index)].spec.id;
            if replicas.owners.contains(&index) {
                roster.owners.add(roster.len);
            }
            if replicas.pending.is_some_and(|pending| pending.contains(&index)) {
                roster.pending.add(roster.len);
            }
            roster.len += 1;
        }
        roster
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn nodes(&self) -> &[u64] {
        &self.nodes[..self.len]
    }

    /// Takes a newer topology in. Whether the vnode's replicas are others now.
    fn renew(&mut self, topology: &Topology) -> bool {
        let knows = topology.standing(self.vnode, self.epoch) == Standing::Knows;
        if knows {
            self.epoch = self.epoch.max(topology.epoch());
        } else if topology.epoch() > self.epoch {
            *self = Roster::new(topology, self.vnode, self.rf);
            return true;
        }
        false
    }

    fn everybody(&self) -> Set {
        Set((1 << self.len) - 1)
    }

    fn position(&self, node: u64) -> Option<usize> {
        self.nodes().iter().position(|known| *known == node)
    }

    fn alive(&self, view: &dyn View) -> Set {
        self.everybody().filter(|at| view.is_alive(self.nodes[at]))
    }

    fn need(&self, level: Level, access: Access, planted: Option<Planted>) -> Need {
        const ANY: [u16; PARTY_MAX] = [0; PARTY_MAX];
        let pending = if planted == Some(Planted::PendingNotInQuorum) { 0 } else { self.pending.len() };
        let group = (pending > 0).then(|| &ANY[..pending]);
        Replicas { owners: &ANY[..self.owners.len()], pending: group }.need(level, access)
    }

    /// What the first round of a put needs; nothing where R + W does not reach beyond N: such a put is stamped by the own clock.
    fn need_clocks(&self, levels: Levels, planted: Option<Planted>) -> Need {
        let need = |level| self.need(level, Access::Write, planted);
        let (read, write) = (need(levels.read), need(levels.write));
        if planted == Some(Planted::ClocksNotAsked) || read.owners + write.owners <= self.owners.len() {
            return Need::default();
        }
        let pending = if write.pending == 0 { 0 } else { read.pending.max(majority(self.pending.len())) };
        Need { owners: read.owners.max(majority(self.owners.len())), pending }
    }

    fn is_met(&self, need: Need, answers: Set) -> bool {
        need.is_met(answers.and(self.owners).len(), answers.and(self.pending).len())
    }

    /// Where `possible` cannot meet `need`: how many were needed and how many there are, of the group that lacks them.
    fn lacks(&self, need: Need, possible: Set) -> Option<(u16, u16)> {
        let (owners, pending) = (possible.and(self.owners).len(), possible.and(self.pending).len());
        match need {
            need if owners < need.owners => Some((need.owners as u16, owners as u16)),
            need if pending < need.pending => Some((need.pending as u16, pending as u16)),
            _ => None,
        }
    }
}

/// What an answer's epoch asks for, beside the answer. An older one that serves us is behind on other vnodes only; gossip tells it.
fn look_at_epoch(turn: &mut Turn<'_>, roster: &Roster, from: From, planted: Option<Planted>) {
    if from.epoch > roster.epoch && planted != Some(Planted::OldEpochObeyed) {
        turn.out.push(Effect::FetchTopology { node: from.node, epoch: from.epoch });
    }
}

/// By how much a stamp lies beyond what a clock may show.
fn ahead_ms(turn: &mut Turn<'_>, hlc: u64) -> Option<u64> {
    turn.clock.look(turn.now_ms);
    let ahead = crate::base::time::hlc_ms(hlc).saturating_sub(turn.now_ms);
    (!turn.clock.may_have_given(hlc, CLOCK_SKEW_MS_MAX)).then_some(ahead)
}
