//! A get: P5, hedges, read repair.
//!
//! Reading → writing back → over. One replica is asked for the cell, the fastest, and as many others as R needs for digests. The join of
//! what they answer is the get's cell; a digest that shows more than the cell has makes the get ask its node for the rest. When R owners
//! have answered and the cell has all that they showed, whoever holds it counts, and where these are too few, it is written back until
//! they are enough. So a get whose R replicas agree takes one round. What is found stale after the answer is repaired in the background.
//!
//! An absent cell is older than everything above its floor, and all that lies below is forgotten on every replica (G2, G4); so there is
//! nothing to write back.

use super::{Behind, Effect, From, Levels, Outcome, PARTY_MAX, Planted, Roster, Set, Turn, look_at_epoch};
use crate::base::record::{Cell, Version};
use crate::base::time::Mono;
use crate::cluster::quorum::{Access, Need};
use crate::cluster::topology::Topology;
use crate::wire::peer::{Digest, OwnedCell, Refusal, Road};
use std::time::Duration;

/// Another replica is asked after this time where the first one's own p99 is not known.
pub const HEDGE_DEFAULT: Duration = Duration::from_millis(10);

/// What a get is made of.
#[derive(Clone, Copy, Debug)]
pub struct GetStart {
    pub roster: Roster,
    pub levels: Levels,
    pub deadline: Mono,
    pub planted: Option<Planted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Reading,
    WritingBack,
    Over,
}

/// What is asked of one replica.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    sent: Mono,
    hedge_at: Mono,
    full: bool,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Get {
    start: GetStart,
    phase: Phase,
    attempt: u32,
    /// Positions in the roster, the fastest first.
    order: [u8; PARTY_MAX],
    asked: [Asked; PARTY_MAX],
    /// Who owes an answer.
    owing: Set,
    /// Who was asked at least once in this attempt.
    tried: Set,
    /// For whom another was asked already.
    hedged: Set,
    shown: [Option<Digest>; PARTY_MAX],
    /// Whose cell is part of ours.
    given: Set,
    cell: Option<OwnedCell>,
    /// The highest of an absent answer.
    floor: Version,
    have: Digest,
    /// Who acknowledged the write-back.
    acked: Set,
    gone: Set,
    behind: Behind,
    answered: bool,
    scratch: Vec<u8>,
}

impl Get {
    /// Begins; `is_over` at once where the level cannot be met.
    pub fn start(turn: &mut Turn<'_>, start: GetStart) -> Get {
        let mut get = Get {
            start,
            phase: Phase::Reading,
            attempt: 0,
            order: [0; PARTY_MAX],
            asked: Default::default(),
            owing: Set::default(),
            tried: Set::default(),
            hedged: Set::default(),
            shown: [None; PARTY_MAX],
            given: Set::default(),
            cell: None,
            floor: Version::ZERO,
            have: Digest::default(),
            acked: Set::default(),
            gone: Set::default(),
            behind: Behind::default(),
            answered: false,
            scratch: Vec::new(),
        };
        get.begin_attempt(turn);
        get
    }

    /// The newest cell of the replicas that answered; `None`: absent. The client's answer after `Outcome::Read`, and what `Store` and
    /// `Repair` send. Whether it is expired is the coordinator's clock's to say.
    pub fn cell(&self) -> Option<Cell<'_>> {
        self.cell.as_ref().map(OwnedCell::as_cell).filter(|cell| cell.newest() > self.floor)
    }

    /// Of the cell, or the floor of an absent one.
    pub fn version(&self) -> Version {
        self.have.version
    }

    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    pub fn roster(&self) -> &Roster {
        &self.start.roster
    }

    /// Nothing more will come of it.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over && (!self.answered || self.owing.is_empty())
    }

    /// When it wants `on_tick`.
    pub fn next_wake(&self) -> Option<Mono> {
        if self.is_over() {
            return None;
        }
        let hedges = match self.phase {
            Phase::Reading => self.owing.without(self.hedged),
            _ => Set::default(),
        };
        let retry = self.behind.next().unwrap_or(self.start.deadline);
        Some(hedges.iter().map(|at| self.asked[at].hedge_at).fold(self.start.deadline.min(retry), Mono::min))
    }

    fn need(&self) -> Need {
        self.start.roster.need(self.start.levels.read, Access::Read, self.start.planted)
    }

    fn begin_attempt(&mut self, turn: &mut Turn<'_>) {
        let roster = self.start.roster;
        let alive = roster.alive(turn.view);
        self.phase = Phase::Reading;
        (self.owing, self.tried, self.hedged, self.given, self.acked, self.behind) = Default::default();
        (self.shown, self.cell, self.floor) = ([None; PARTY_MAX], None, Version::ZERO);
        self.gone = roster.everybody().without(alive);
        if let Some((need, alive)) = roster.lacks(self.need(), alive) {
            return self.end(turn, Outcome::Unavailable { need, alive, version: None });
        }
        let mut nodes = roster.nodes;
        turn.view.order(&mut nodes[..roster.len]);
        for (place, node) in nodes[..roster.len].iter().enumerate() {
            self.order[place] = roster.position(*node).expect("ordering keeps the nodes") as u8;
        }
        self.ask_more(turn);
    }

    /// As many as the level needs and nobody else answers for.
    fn ask_more(&mut self, turn: &mut Turn<'_>) {
        let (roster, need) = (self.start.roster, self.need());
        for place in 0..roster.len {
            let at = usize::from(self.order[place]);
            let expected = self.answering().or(self.owing);
            let owners = roster.owners.has(at) && expected.and(roster.owners).len() < need.owners;
            let pending = roster.pending.has(at) && expected.and(roster.pending).len() < need.pending;
            if (owners || pending) && !self.tried.or(self.gone).has(at) {
                let full = self.given.is_empty() && !self.owing.iter().any(|at| self.asked[at].full);
                self.ask(turn, at, full && roster.owners.has(at));
            }
        }
    }

    fn ask(&mut self, turn: &mut Turn<'_>, at: usize, full: bool) {
        let to = self.start.roster.nodes[at];
        let hedge_at = turn.now.plus(turn.view.p99(to).unwrap_or(HEDGE_DEFAULT));
        self.asked[at] = Asked { sent: turn.now, hedge_at, full };
        self.owing.add(at);
        self.tried.add(at);
        self.hedged.remove(at);
        turn.out.push(Effect::Read { to, full });
    }

    fn answering(&self) -> Set {
        self.start.roster.everybody().filter(|at| self.shown[at].is_some())
    }

    /// A replica's cell, or the floor of an absent one.
    pub fn on_full(&mut self, turn: &mut Turn<'_>, from: From, cell: Result<Cell<'_>, Version>) {
        let Some(at) = self.answer_of(turn, from) else { return };
        let digest = Digest::of(cell.as_ref().map_err(|floor| *floor), &mut self.scratch);
        if self.phase != Phase::Reading {
            return self.on_late(turn, at, digest);
        }
        self.shown[at] = Some(digest);
        self.given.add(at);
        match (cell, &mut self.cell) {
            (Err(floor), _) => self.floor = self.floor.max(floor),
            (Ok(cell), Some(ours)) => ours.absorb(&cell),
            (Ok(cell), ours) => *ours = Some(OwnedCell::new(&cell)),
        }
        self.settle(turn);
    }

    /// A replica's digest.
    pub fn on_digest(&mut self, turn: &mut Turn<'_>, from: From, digest: Digest) {
        let Some(at) = self.answer_of(turn, from) else { return };
        if self.phase != Phase::Reading {
            return self.on_late(turn, at, digest);
        }
        if !digest.present {
            // All that there is to know of an absent cell.
            self.given.add(at);
            self.floor = self.floor.max(digest.version);
        }
        self.shown[at] = Some(digest);
        self.settle(turn);
    }

    /// The node's position, where it owed an answer to this attempt.
    fn answer_of(&mut self, turn: &mut Turn<'_>, from: From) -> Option<usize> {
        let at = self.position(from).filter(|at| self.owing.has(*at))?;
        self.owing.remove(at);
        turn.out.push(Effect::Answered { node: from.node, took: turn.now.since(self.asked[at].sent) });
        look_at_epoch(turn, &self.start.roster, from, self.start.planted);
        Some(at)
    }

    /// An answer after the cell was settled. One that holds it counts towards a write-back that is under way; a stale one is repaired.
    fn on_late(&mut self, turn: &mut Turn<'_>, at: usize, digest: Digest) {
        match self.phase {
            Phase::WritingBack if digest.covers(&self.have) => {
                self.acked.add(at);
                self.settle(turn);
            }
            Phase::Over if self.answered && self.repairs() && self.have.present && !digest.covers(&self.have) => {
                turn.out.push(Effect::Repair { to: self.start.roster.nodes[at] });
            }
            _ => {}
        }
    }

    /// A replica took the write-back, or holds something newer.
    pub fn on_stored(&mut self, turn: &mut Turn<'_>, from: From) {
        let Some(at) = self.position(from).filter(|_| self.phase == Phase::WritingBack) else { return };
        look_at_epoch(turn, &self.start.roster, from, self.start.planted);
        self.acked.add(at);
        self.settle(turn);
    }

    /// A node did not do it.
    pub fn on_refused(&mut self, turn: &mut Turn<'_>, from: From, why: Refusal) {
        let Some(at) = self.position(from).filter(|_| self.phase != Phase::Over) else { return };
        self.drop_question(turn, at);
        match why {
            Refusal::EpochOld { epoch } => turn.out.push(Effect::FetchTopology { node: from.node, epoch }),
            Refusal::Behind { .. } => {
                turn.out.push(Effect::Correct { node: from.node });
                self.behind.add(turn.now, at);
            }
            // It learns what it lacks by itself.
            Refusal::NotVoting => self.behind.add(turn.now, at),
            Refusal::ClockAhead { ms } => turn.out.push(Effect::Skewed { node: from.node, ahead_ms: ms }),
            _ => {}
        }
        if !matches!(why, Refusal::EpochOld { .. } | Refusal::Behind { .. } | Refusal::NotVoting) {
            self.gone.add(at);
        }
        self.settle(turn);
    }

    /// The link to `node` broke, or the node is down: it will not answer what it was asked.
    pub fn on_gone(&mut self, turn: &mut Turn<'_>, node: u64) {
        let Some(at) = self.start.roster.position(node) else { return };
        self.owing.remove(at);
        self.behind.remove(at);
        self.gone.add(at);
        self.settle(turn);
    }

    /// A newer topology. Where it changed the vnode, all begins again.
    pub fn on_topology(&mut self, turn: &mut Turn<'_>, topology: &Topology) {
        if self.phase != Phase::Over && self.start.roster.renew(topology) {
            self.owing.iter().for_each(|at| self.give_up(turn, at));
            self.attempt += 1;
            self.begin_attempt(turn);
        }
    }

    /// Time passed: the deadline, replicas slower than they use to be, replicas to be asked again.
    pub fn on_tick(&mut self, turn: &mut Turn<'_>) {
        if turn.now >= self.start.deadline {
            self.owing.iter().for_each(|at| self.give_up(turn, at));
            self.owing = Set::default();
            if self.phase != Phase::Over {
                self.end(turn, Outcome::DeadlinePassed);
            }
            return;
        }
        if self.phase == Phase::Over {
            return;
        }
        let behind = self.behind.due(turn.now);
        if !behind.is_empty() {
            match self.phase {
                Phase::WritingBack => behind.iter().for_each(|at| self.write_back(turn, at)),
                _ => {
                    self.tried = self.tried.without(behind);
                    self.settle(turn);
                }
            }
        }
        if self.phase == Phase::Reading {
            self.hedge(turn);
        }
    }

    /// For each replica that takes longer than 99 of 100 of its answers, the next one is asked. So the slow one costs no more than that.
    fn hedge(&mut self, turn: &mut Turn<'_>) {
        let roster = self.start.roster;
        let slow = self.owing.without(self.hedged).filter(|at| turn.now >= self.asked[at].hedge_at);
        for at in slow.iter() {
            let free = |next: &usize| !self.tried.or(self.gone).has(*next);
            let same = |next: &usize| roster.owners.has(*next) == roster.owners.has(at);
            let next = self.order[..roster.len].iter().map(|next| usize::from(*next)).find(|next| free(next) && same(next));
            self.hedged.add(at);
            if let Some(next) = next {
                let full = self.asked[at].full && self.given.is_empty();
                self.ask(turn, next, full);
            }
        }
    }

    fn position(&self, from: From) -> Option<usize> {
        self.start.roster.position(from.node).filter(|_| from.attempt == self.attempt)
    }

    fn drop_question(&mut self, turn: &mut Turn<'_>, at: usize) {
        if self.owing.has(at) {
            self.owing.remove(at);
            self.give_up(turn, at);
        }
    }

    fn give_up(&self, turn: &mut Turn<'_>, at: usize) {
        let (node, waited) = (self.start.roster.nodes[at], turn.now.since(self.asked[at].sent));
        turn.out.push(Effect::GaveUp { node, waited });
    }

    /// Goes on where enough is known.
    fn settle(&mut self, turn: &mut Turn<'_>) {
        match self.phase {
            Phase::Reading => self.settle_reading(turn),
            Phase::WritingBack => self.settle_writing(turn),
            Phase::Over => {}
        }
    }

    fn settle_reading(&mut self, turn: &mut Turn<'_>) {
        let (roster, need) = (self.start.roster, self.need());
        // What a node showed and can give no more is as if it had never answered.
        self.have = self.digest();
        for at in self.answering().and(self.gone).filter(|at| self.lacks(at)).iter() {
            self.shown[at] = None;
        }
        self.ask_more(turn);
        let possible = roster.everybody().without(self.gone).or(self.answering());
        if let Some((need, alive)) = roster.lacks(need, possible) {
            return self.end(turn, Outcome::Unavailable { need, alive, version: None });
        }
        let answering = self.answering();
        if answering.and(roster.owners).len() < need.owners || answering.and(roster.pending).len() < need.pending {
            return;
        }
        let lacking = answering.filter(|at| self.lacks(at));
        if !lacking.is_empty() {
            // The newest first: its cell is likely to have all that the others show.
            let newest = lacking.without(self.owing).iter().max_by_key(|at| self.shown[*at].map(|shown| shown.version.max(shown.expiry)));
            let on_its_way = self.owing.without(self.hedged).iter().any(|at| self.asked[at].full);
            if let (Some(newest), false) = (newest, on_its_way) {
                self.ask(turn, newest, true);
            }
            return;
        }
        let holding = answering.filter(|at| self.holds(at));
        if roster.is_met(need, holding) || !self.repairs() {
            let stale = answering.without(holding).filter(|_| self.repairs());
            stale.iter().for_each(|at| turn.out.push(Effect::Repair { to: roster.nodes[at] }));
            return self.end(turn, Outcome::Read);
        }
        self.phase = Phase::WritingBack;
        self.acked = holding;
        roster.everybody().without(self.gone).without(holding).iter().for_each(|at| self.write_back(turn, at));
    }

    /// What a get has seen it brings to those that lack it.
    fn repairs(&self) -> bool {
        self.start.planted != Some(Planted::ReadNoWriteback)
    }

    fn write_back(&self, turn: &mut Turn<'_>, at: usize) {
        turn.out.push(Effect::Store { to: self.start.roster.nodes[at], road: Road::WriteBack });
    }

    /// P5: only those count that hold the cell or something newer.
    fn settle_writing(&mut self, turn: &mut Turn<'_>) {
        let roster = self.start.roster;
        let possible = roster.everybody().without(self.gone).or(self.acked);
        if roster.is_met(self.need(), self.acked) {
            self.end(turn, Outcome::Read);
        } else if let Some((need, alive)) = roster.lacks(self.need(), possible) {
            self.end(turn, Outcome::Unavailable { need, alive, version: None });
        }
    }

    fn digest(&mut self) -> Digest {
        let cell = self.cell.as_ref().map(OwnedCell::as_cell).filter(|cell| cell.newest() > self.floor);
        Digest::of(cell.as_ref().ok_or(self.floor), &mut self.scratch)
    }

    /// The node showed something that our cell has not.
    fn lacks(&self, at: usize) -> bool {
        !self.given.has(at) && self.shown[at].is_some_and(|shown| shown.present && !self.have.covers(&shown))
    }

    fn holds(&self, at: usize) -> bool {
        !self.have.present || self.shown[at].is_some_and(|shown| shown.covers(&self.have))
    }

    fn end(&mut self, turn: &mut Turn<'_>, outcome: Outcome) {
        self.phase = Phase::Over;
        self.behind = Behind::default();
        self.answered = outcome == Outcome::Read;
        turn.out.push(Effect::Answer(outcome));
        if !self.answered {
            self.owing.iter().for_each(|at| self.give_up(turn, at));
            self.owing = Set::default();
        }
    }
}
