//! Deciding what follows a topology: single-decree Paxos for each epoch (Lamport, "Paxos Made Simple", 2001). Epoch e + 1 is chosen among
//! the nodes that epoch e names (`acceptors`), so two changes of one epoch cannot both happen: that is the compare-and-set of DESIGN.md
//! section 4.
//!
//! An **acceptor** answers for its own epoch only: of an older one the decision was made, and it says so; a newer one it has to learn
//! first. What it promises and accepts is durable before it answers (`Step::Persist`); when its topology is replaced, the register begins
//! anew. A **proposer** asks a majority to promise, takes over the topology of the highest ballot that any of them had accepted, else its
//! own, and has a majority accept it. So what is chosen may be another's change; the proposer then makes its own for the epoch behind that.
//!
//! A node that lost its disk has forgotten its promises: it must come back under another id (rule M3). To found a cluster (`topology`) all
//! founders have to accept, so that each of them can tell ever after that it did (`Acceptor::has_accepted`).

use super::topology::{FOUNDING_EPOCH, Topology};
use crate::base::codec::{Malformed, Reader, put_bytes};
use crate::base::time::Mono;
pub use crate::wire::peer_moves::{Accepted, Answer, Ask, Ballot, Question, Reply};
use crate::wire::peer_moves::{put_ballot, read_ballot};
use std::collections::BTreeSet;
use std::time::Duration;

/// The format of a register on disk, the only one so far.
const REGISTER_VERSION: u8 = 1;
/// An acceptor that did not answer is asked again.
const RESEND: Duration = Duration::from_millis(200);
/// How long a proposer that was outbid waits, at least; at most so many times as long.
const BACK_OFF: Duration = Duration::from_millis(10);
const BACK_OFF_PARTS: u64 = 16;

/// Who decides what follows a topology: its members, the leaving ones too. Who joins has no say until it is one, so that a new node that
/// dies holds nothing up.
pub fn acceptors(topology: &Topology) -> Vec<u64> {
    topology.members().map(|node| node.spec.id).collect()
}

/// What an acceptor keeps, durable, of the decision about what follows an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    pub epoch: u64,
    pub promised: Ballot,
    pub accepted: Option<Accepted>,
}

impl Register {
    /// Version (1), epoch (8), promised ballot (24), whether something was accepted (1), its ballot (24), the topology behind its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![REGISTER_VERSION];
        out.extend_from_slice(&self.epoch.to_le_bytes());
        put_ballot(&mut out, self.promised);
        out.push(u8::from(self.accepted.is_some()));
        if let Some(Accepted { ballot, topology }) = &self.accepted {
            put_ballot(&mut out, *ballot);
            put_bytes(&mut out, topology);
        }
        out
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Register, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != REGISTER_VERSION {
            return Err(Malformed("a register of another format"));
        }
        let (epoch, promised) = (reader.u64()?, read_ballot(&mut reader)?);
        let accepted = match reader.u8()? {
            0 => None,
            1 => Some(Accepted { ballot: read_ballot(&mut reader)?, topology: reader.bytes()?.to_vec() }),
            _ => return Err(Malformed("neither yes nor no")),
        };
        reader.end()?;
        Ok(Register { epoch, promised, accepted })
    }
}

/// What a question leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Answer(Answer),
    /// Make the register durable, then answer. A later one may become durable in its stead.
    Persist {
        register: Vec<u8>,
        then: Answer,
    },
}

/// A node's part in decisions.
#[derive(Clone, Debug, Default)]
pub struct Acceptor {
    register: Register,
}

impl Acceptor {
    /// With what is durable.
    pub fn new(register: Register) -> Acceptor {
        Acceptor { register }
    }

    /// It has said yes, durable or about to be, to what follows an epoch.
    pub fn has_accepted(&self, epoch: u64) -> bool {
        self.accepted(epoch).is_some()
    }

    /// What it has said yes to, of what follows an epoch: it may have been chosen, and whoever had it chosen may be gone.
    pub fn accepted(&self, epoch: u64) -> Option<&Accepted> {
        self.register.accepted.as_ref().filter(|_| self.register.epoch == epoch)
    }

    /// A proposer's question. `ours` is the node's epoch; `follows` says whether bytes are a topology that may follow it.
    pub fn on_ask(&mut self, ours: u64, ask: Ask, follows: impl FnOnce(&[u8]) -> bool) -> Step {
        let Ask { epoch, ballot, question } = ask;
        let answer = |reply| Answer { epoch, ballot, reply };
        if epoch != ours {
            let reply = if epoch < ours { Reply::Newer { epoch: ours } } else { Reply::Behind { epoch: ours } };
            return Step::Answer(answer(reply));
        }
        if self.register.epoch != ours {
            self.register = Register { epoch: ours, ..Register::default() };
        }
        let register = &mut self.register;
        if ballot < register.promised {
            return Step::Answer(answer(Reply::Outbid { promised: register.promised }));
        }
        let reply = match question {
            Question::Promise => Reply::Promised { accepted: register.accepted.clone() },
            Question::Accept { topology } if !follows(&topology) => return Step::Answer(answer(Reply::NoTopology)),
            Question::Accept { topology } => {
                register.accepted = Some(Accepted { ballot, topology });
                Reply::Accepted
            }
        };
        register.promised = ballot;
        Step::Persist { register: register.encode(), then: answer(reply) }
    }
}

/// What a proposer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Ask {
        to: u64,
        ask: Ask,
    },
    /// `node` has yet to learn the epoch: tell it.
    Correct {
        node: u64,
    },
    Over(Outcome),
}

/// How a proposal ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This topology follows, whoever proposed it.
    Chosen(Vec<u8>),
    /// It was decided before; `node` knows a newer topology.
    Newer { node: u64 },
    /// So many of the nodes that decide answered in time, and so many are needed. The proposal may still be chosen, by whoever comes next.
    Silent { answered: usize, need: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Promising,
    Accepting,
    /// Outbid: it comes back then, above this.
    Waiting {
        until: Mono,
    },
    Over,
}

/// One proposal of one node.
#[derive(Clone, Debug)]
pub struct Proposer {
    epoch: u64,
    acceptors: Vec<u64>,
    value: Vec<u8>,
    deadline: Mono,
    ballot: Ballot,
    /// The highest round that anybody spoke of.
    highest_round: u64,
    phase: Phase,
    said_yes: BTreeSet<u64>,
    ever_answered: BTreeSet<u64>,
    /// The highest that was accepted, of those who promised.
    accepted: Option<Accepted>,
    sent: Mono,
}

impl Proposer {
    /// Proposes that `value`, an encoded topology, follows `topology`. `nonce` is drawn for this proposal.
    pub fn new(now: Mono, (me, nonce): (u64, u64), topology: &Topology, value: Vec<u8>, deadline: Mono, out: &mut Vec<Effect>) -> Proposer {
        let mut proposer = Proposer {
            epoch: topology.epoch(),
            acceptors: acceptors(topology),
            value,
            deadline,
            ballot: Ballot { round: 0, node: me, nonce },
            highest_round: 0,
            phase: Phase::Over,
            said_yes: BTreeSet::new(),
            ever_answered: BTreeSet::new(),
            accepted: None,
            sent: now,
        };
        proposer.begin(now, out);
        proposer
    }

    /// How many have to say yes.
    fn need(&self) -> usize {
        match self.epoch {
            FOUNDING_EPOCH => self.acceptors.len(),
            _ => super::quorum::majority(self.acceptors.len()),
        }
    }

    fn begin(&mut self, now: Mono, out: &mut Vec<Effect>) {
        self.highest_round += 1;
        self.ballot.round = self.highest_round;
        (self.phase, self.accepted) = (Phase::Promising, None);
        self.said_yes.clear();
        self.ask_all(now, out);
    }

    /// Asks whoever has not said yes.
    fn ask_all(&mut self, now: Mono, out: &mut Vec<Effect>) {
        self.sent = now;
        let question = match self.phase {
            Phase::Promising => Question::Promise,
            Phase::Accepting => Question::Accept { topology: self.chosen().to_vec() },
            Phase::Waiting { .. } | Phase::Over => return,
        };
        for &to in self.acceptors.iter().filter(|node| !self.said_yes.contains(node)) {
            out.push(Effect::Ask { to, ask: Ask { epoch: self.epoch, ballot: self.ballot, question: question.clone() } });
        }
    }

    /// What it may have accepted under its ballot.
    fn chosen(&self) -> &[u8] {
        self.accepted.as_ref().map_or(&self.value, |accepted| &accepted.topology)
    }

    fn over(&mut self, outcome: Outcome, out: &mut Vec<Effect>) {
        self.phase = Phase::Over;
        out.push(Effect::Over(outcome));
    }

    /// An answer of `node`. `random` is any number.
    pub fn on_answer(&mut self, now: Mono, node: u64, answer: Answer, random: u64, out: &mut Vec<Effect>) {
        if self.phase == Phase::Over || answer.epoch != self.epoch || !self.acceptors.contains(&node) {
            return;
        }
        self.ever_answered.insert(node);
        let is_current = answer.ballot == self.ballot;
        match (answer.reply, self.phase) {
            (Reply::Newer { .. }, _) => self.over(Outcome::Newer { node }, out),
            (Reply::Behind { .. }, _) => out.push(Effect::Correct { node }),
            (Reply::Outbid { promised }, phase) => {
                self.highest_round = self.highest_round.max(promised.round);
                if is_current && matches!(phase, Phase::Promising | Phase::Accepting) {
                    let wait = BACK_OFF.mul_f64(1.0 + (random % (BACK_OFF_PARTS * 16)) as f64 / 16.0);
                    self.phase = Phase::Waiting { until: now.plus(wait) };
                }
            }
            (Reply::Promised { accepted }, Phase::Promising) if is_current => {
                if accepted.as_ref().map(|accepted| accepted.ballot) > self.accepted.as_ref().map(|accepted| accepted.ballot) {
                    self.accepted = accepted;
                }
                self.said_yes.insert(node);
                if self.said_yes.len() >= self.need() {
                    self.phase = Phase::Accepting;
                    self.said_yes.clear();
                    self.ask_all(now, out);
                }
            }
            (Reply::Accepted, Phase::Accepting) if is_current => {
                self.said_yes.insert(node);
                if self.said_yes.len() >= self.need() {
                    let chosen = self.chosen().to_vec();
                    self.over(Outcome::Chosen(chosen), out);
                }
            }
            // Late, or one that takes our topology for none, as a program does that is too old for it.
            _ => {}
        }
    }

    /// To be called now and then.
    pub fn on_tick(&mut self, now: Mono, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Over => {}
            _ if now >= self.deadline => {
                let outcome = Outcome::Silent { answered: self.ever_answered.len(), need: self.need() };
                self.over(outcome, out);
            }
            Phase::Waiting { until } if now >= until => self.begin(now, out),
            Phase::Waiting { .. } => {}
            Phase::Promising | Phase::Accepting if now.since(self.sent) >= RESEND => self.ask_all(now, out),
            Phase::Promising | Phase::Accepting => {}
        }
    }
}
