//! A put: P1 to P4 and P6. Deletes and new deadlines are puts of other cells.
//!
//! Asking (first round: clocks) → storing (second round: acknowledgements) → over. A retry that brings its version, and a put that needs no
//! clocks, begin at the second round. The put is answered once, and stays after that until every replica has spoken or the deadline has
//! come: who has not said that it holds the version gets a hint.

use super::{Behind, Effect, From, Levels, Outcome, Planted, Roster, Set, Turn, ahead_ms, look_at_epoch};
use crate::base::record::Version;
use crate::base::time::Mono;
use crate::cluster::quorum::{Access, Need};
use crate::cluster::topology::Topology;
use crate::wire::peer::{Holds, Refusal, Road};

/// What a put is made of, beside its cell.
#[derive(Clone, Copy, Debug)]
pub struct PutStart {
    pub roster: Roster,
    pub levels: Levels,
    /// A retry's: of the attempt that ended in `Unknown`.
    pub version: Option<Version>,
    /// Of the coordinating node.
    pub writer: u16,
    pub deadline: Mono,
    /// Ends with the version, before anything is stored under it: for several puts that are to have one.
    pub stamp_only: bool,
    pub planted: Option<Planted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Asking,
    Storing,
    Over,
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Put {
    start: PutStart,
    phase: Phase,
    attempt: u32,
    version: Option<Version>,
    /// The highest clock of the first round.
    highest: u64,
    /// Whose clocks count.
    clocks: Set,
    /// Whose clocks came from an epoch that we have not seen, and the newest such.
    early: Set,
    early_epoch: u64,
    acked: Set,
    /// Of whom nothing is awaited in this phase: down, link broken, refused.
    gone: Set,
    /// Who has to learn the topology first, and when they are asked again.
    behind: Behind,
    answered: bool,
    acknowledged: bool,
    why: Option<Refusal>,
}

impl Put {
    /// Begins; `is_over` at once where the level cannot be met.
    pub fn start(turn: &mut Turn<'_>, start: PutStart) -> Put {
        let mut put = Put {
            start,
            phase: Phase::Asking,
            attempt: 0,
            version: start.version.filter(|_| start.planted != Some(Planted::RetryNewStamp)),
            highest: 0,
            clocks: Set::default(),
            early: Set::default(),
            early_epoch: 0,
            acked: Set::default(),
            gone: Set::default(),
            behind: Behind::default(),
            answered: false,
            acknowledged: false,
            why: None,
        };
        if let Some(version) = put.version {
            let is_put = version == Version::put(version.hlc(), version.writer());
            let ahead = ahead_ms(turn, version.hlc());
            if !is_put || ahead.is_some() {
                put.end(turn, Outcome::BadVersion { ahead_ms: ahead.unwrap_or(0) });
                return put;
            }
        }
        put.begin_attempt(turn);
        put
    }

    /// The version, once it has one.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    pub fn roster(&self) -> &Roster {
        &self.start.roster
    }

    /// Nothing more will come of it.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// When it wants `on_tick`.
    pub fn next_wake(&self) -> Option<Mono> {
        let retry = self.behind.next().unwrap_or(self.start.deadline);
        (self.phase != Phase::Over).then(|| self.start.deadline.min(retry))
    }

    fn need_clocks(&self) -> Need {
        self.start.roster.need_clocks(self.start.levels, self.start.planted)
    }

    fn need_acks(&self) -> Need {
        self.start.roster.need(self.start.levels.write, Access::Write, self.start.planted)
    }

    /// The first attempt, or one more after the topology changed: whoever is alive is asked, from the round that is due.
    fn begin_attempt(&mut self, turn: &mut Turn<'_>) {
        let roster = self.start.roster;
        let alive = roster.alive(turn.view);
        (self.clocks, self.early, self.acked, self.behind) = Default::default();
        self.gone = roster.everybody().without(alive);
        let possible = if self.start.planted == Some(Planted::HintCountedToW) { roster.everybody() } else { alive };
        let lacking = roster.lacks(self.need_acks(), possible).or_else(|| match self.version {
            None => roster.lacks(self.need_clocks(), alive),
            Some(_) => None,
        });
        // What was sent to be stored goes on as far as it gets: it may be executed.
        let unsent = self.attempt == 0 || self.version.is_none();
        match (lacking, self.version) {
            (Some((need, alive)), version) if unsent => self.end(turn, Outcome::Unavailable { need, alive, version }),
            (_, Some(_)) => self.send(turn),
            (_, None) if self.need_clocks() == Need::default() => self.stamp(turn),
            (_, None) => {
                self.phase = Phase::Asking;
                alive.iter().for_each(|at| turn.out.push(Effect::AskClock { to: roster.nodes[at] }));
            }
        }
    }

    /// Above every clock that answered, and the own one.
    fn stamp(&mut self, turn: &mut Turn<'_>) {
        turn.clock.observe(self.highest);
        let version = Version::put(turn.clock.stamp(turn.now_ms), self.start.writer);
        self.version = Some(version);
        if self.start.stamp_only {
            return self.end(turn, Outcome::Stamped { version });
        }
        turn.out.push(Effect::Stamped { version });
        self.send(turn);
    }

    /// Second round, to all that are alive: who refused its clock may yet take the cell.
    fn send(&mut self, turn: &mut Turn<'_>) {
        let roster = self.start.roster;
        let alive = roster.alive(turn.view);
        self.phase = Phase::Storing;
        self.gone = roster.everybody().without(alive);
        if self.start.planted == Some(Planted::HintCountedToW) {
            self.acked = self.gone;
        }
        alive.iter().for_each(|at| turn.out.push(Effect::Store { to: roster.nodes[at], road: Road::Put }));
        self.settle(turn);
    }

    /// A node's clock.
    pub fn on_clock(&mut self, turn: &mut Turn<'_>, from: From, hlc: u64) {
        let Some(at) = self.position(from).filter(|_| self.phase == Phase::Asking) else { return };
        if let Some(ahead_ms) = ahead_ms(turn, hlc) {
            turn.out.push(Effect::Skewed { node: from.node, ahead_ms });
            self.gone.add(at);
            return self.settle(turn);
        }
        self.highest = self.highest.max(hlc);
        look_at_epoch(turn, &self.start.roster, from, self.start.planted);
        if from.epoch > self.start.roster.epoch() && self.start.planted != Some(Planted::OldEpochObeyed) {
            self.early.add(at);
            self.early_epoch = self.early_epoch.max(from.epoch);
        } else {
            self.clocks.add(at);
        }
        self.settle(turn);
    }

    /// A replica holds the version, or a newer one: counted either way (P2).
    pub fn on_stored(&mut self, turn: &mut Turn<'_>, from: From, holds: Holds) {
        let Some(at) = self.position(from).filter(|_| self.phase == Phase::Storing) else { return };
        look_at_epoch(turn, &self.start.roster, from, self.start.planted);
        let restamps = match self.start.planted {
            Some(Planted::PutRestamps) => holds == Holds::Newer,
            Some(Planted::DupIsSuperseded) => holds == Holds::Same,
            _ => false,
        };
        if restamps && !self.answered {
            (self.version, self.attempt) = (None, self.attempt + 1);
            return self.begin_attempt(turn);
        }
        self.acked.add(at);
        self.behind.remove(at);
        self.settle(turn);
    }

    /// A node did not do it.
    pub fn on_refused(&mut self, turn: &mut Turn<'_>, from: From, why: Refusal) {
        let Some(at) = self.position(from).filter(|_| self.phase != Phase::Over) else { return };
        match why {
            // One that knows more is worth waiting for: its topology is on the way.
            Refusal::EpochOld { epoch } => {
                self.why = self.why.or(Some(why));
                return turn.out.push(Effect::FetchTopology { node: from.node, epoch });
            }
            Refusal::Behind { .. } => {
                turn.out.push(Effect::Correct { node: from.node });
                return self.behind.add(turn.now, at);
            }
            // It learns what it lacks by itself.
            Refusal::NotVoting => return self.behind.add(turn.now, at),
            Refusal::ClockAhead { ms } => turn.out.push(Effect::Skewed { node: from.node, ahead_ms: ms }),
            _ => {}
        }
        self.why = self.why.or(Some(why));
        self.gone.add(at);
        self.settle(turn);
    }

    /// The link to `node` broke, or the node is down: it will not answer what it was asked.
    pub fn on_gone(&mut self, turn: &mut Turn<'_>, node: u64) {
        let Some(at) = self.start.roster.position(node).filter(|_| self.phase != Phase::Over) else { return };
        self.gone.add(at);
        self.behind.remove(at);
        self.settle(turn);
    }

    /// A newer topology. Where it changed the vnode, all begins again, but for the version.
    pub fn on_topology(&mut self, turn: &mut Turn<'_>, topology: &Topology) {
        if self.phase == Phase::Over {
            return;
        }
        if self.start.roster.renew(topology) {
            self.attempt += 1;
            match self.answered {
                true => self.finish(turn),
                false => self.begin_attempt(turn),
            }
        } else if self.start.roster.epoch() >= self.early_epoch {
            self.clocks = self.clocks.or(std::mem::take(&mut self.early));
            self.settle(turn);
        }
    }

    /// Time passed.
    pub fn on_tick(&mut self, turn: &mut Turn<'_>) {
        if self.phase == Phase::Over {
            return;
        }
        if turn.now >= self.start.deadline {
            match self.version {
                _ if self.answered => {}
                Some(version) => self.answer(turn, Outcome::Unknown { version, why: self.why }),
                None => self.answer(turn, Outcome::DeadlinePassed),
            }
            return self.finish(turn);
        }
        for at in self.behind.due(turn.now).iter() {
            let to = self.start.roster.nodes[at];
            turn.out.push(if self.phase == Phase::Asking { Effect::AskClock { to } } else { Effect::Store { to, road: Road::Put } });
        }
    }

    /// Whoever has not answered by now gets a hint, if the put was answered: its memory is wanted for others.
    pub fn let_go(&mut self, turn: &mut Turn<'_>) {
        if self.phase != Phase::Over && self.answered {
            self.finish(turn);
        }
    }

    /// The client was answered.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    fn position(&self, from: From) -> Option<usize> {
        self.start.roster.position(from.node).filter(|_| from.attempt == self.attempt)
    }

    /// Goes on where enough is known.
    fn settle(&mut self, turn: &mut Turn<'_>) {
        let roster = self.start.roster;
        match self.phase {
            Phase::Over => {}
            Phase::Asking if roster.is_met(self.need_clocks(), self.clocks) => self.stamp(turn),
            Phase::Asking => {
                let possible = roster.everybody().without(self.gone).or(self.clocks).or(self.early);
                if let Some((need, alive)) = roster.lacks(self.need_clocks(), possible) {
                    self.end(turn, Outcome::Unavailable { need, alive, version: None });
                }
            }
            Phase::Storing => {
                let version = self.version.expect("stamped before it is sent");
                let possible = roster.everybody().without(self.gone).or(self.acked);
                if !self.answered && roster.is_met(self.need_acks(), self.acked) {
                    self.acknowledged = true;
                    self.answer(turn, Outcome::Done { version });
                } else if !self.answered && roster.lacks(self.need_acks(), possible).is_some() {
                    self.answer(turn, Outcome::Unknown { version, why: self.why });
                }
                if self.answered && self.acked.or(self.gone) == roster.everybody() {
                    self.finish(turn);
                }
            }
        }
    }

    fn answer(&mut self, turn: &mut Turn<'_>, outcome: Outcome) {
        self.answered = true;
        turn.out.push(Effect::Answer(outcome));
    }

    fn end(&mut self, turn: &mut Turn<'_>, outcome: Outcome) {
        self.answer(turn, outcome);
        self.phase = Phase::Over;
    }

    /// Hints for whom an acknowledged put has not reached (P6: they counted for nothing).
    fn finish(&mut self, turn: &mut Turn<'_>) {
        self.phase = Phase::Over;
        if self.acknowledged {
            let missing = self.start.roster.everybody().without(self.acked);
            missing.iter().for_each(|at| turn.out.push(Effect::Hint { to: self.start.roster.nodes[at] }));
        }
    }
}
