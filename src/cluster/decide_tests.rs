//! Deciding topologies: registers come back, and under any order, loss and repetition of messages, with acceptors and proposers that fall,
//! all who learn what was chosen learn the same.

use super::decide::{Accepted, Acceptor, Answer, Ask, Ballot, Effect, Outcome, Proposer, Question, Register, Reply, Step, acceptors};
use super::topology::{Change, NodeSpec, Proposal, Topology};
use crate::base::prng::Prng;
use crate::base::time::Mono;
use std::time::Duration;

fn spec(id: u64) -> NodeSpec {
    let address = |port| format!("10.0.0.{id}:{port}");
    NodeSpec { id, native: address(7400), gossip: address(7490), cores: 1, weight: 1, rack: String::new() }
}

fn founding(nodes: u64) -> Topology {
    Topology::found(1, 16, (1..=nodes).map(spec).collect()).unwrap()
}

fn topology(nodes: u64) -> Topology {
    founding(nodes).founded().unwrap()
}

fn ask(epoch: u64, ballot: Ballot, question: Question) -> Ask {
    Ask { epoch, ballot, question }
}

fn reply_of(step: Step) -> (Reply, bool) {
    match step {
        Step::Answer(answer) => (answer.reply, false),
        Step::Persist { then, .. } => (then.reply, true),
    }
}

#[test]
fn a_register_comes_back_and_damage_is_seen() {
    let ballot = Ballot { round: 1, node: 2, nonce: 3 };
    let accepted = Some(Accepted { ballot, topology: b"next".to_vec() });
    for register in [Register::default(), Register { epoch: 4, promised: Ballot { round: 9, ..ballot }, accepted }] {
        let bytes = register.encode();
        assert_eq!(Register::decode(&bytes), Ok(register));
        assert!((0..bytes.len()).all(|len| Register::decode(&bytes[..len]).is_err()));
    }
}

#[test]
fn an_acceptor_keeps_its_promise_and_answers_for_its_own_epoch() {
    let (low, high) = (Ballot { round: 1, node: 1, nonce: 1 }, Ballot { round: 2, node: 1, nonce: 1 });
    let accept = |text: &[u8]| Question::Accept { topology: text.to_vec() };
    let mut acceptor = Acceptor::default();
    let mut on = |ours, ask| reply_of(acceptor.on_ask(ours, ask, |bytes| bytes != b"bad"));
    assert_eq!(on(5, ask(5, high, Question::Promise)), (Reply::Promised { accepted: None }, true));
    assert_eq!(on(5, ask(5, low, Question::Promise)), (Reply::Outbid { promised: high }, false));
    assert_eq!(on(5, ask(5, low, accept(b"x"))), (Reply::Outbid { promised: high }, false));
    assert_eq!(on(5, ask(5, high, accept(b"bad"))), (Reply::NoTopology, false));
    assert_eq!(on(5, ask(5, high, accept(b"x"))), (Reply::Accepted, true));
    assert_eq!(on(5, ask(4, high, Question::Promise)), (Reply::Newer { epoch: 5 }, false));
    assert_eq!(on(5, ask(6, high, Question::Promise)), (Reply::Behind { epoch: 5 }, false));
    let accepted = Some(Accepted { ballot: high, topology: b"x".to_vec() });
    assert_eq!(on(5, ask(5, high, Question::Promise)), (Reply::Promised { accepted }, true));
    assert_eq!(on(6, ask(6, low, Question::Promise)), (Reply::Promised { accepted: None }, true), "its register begins anew");
}

#[test]
fn who_joins_does_not_decide_and_who_leaves_does() {
    let three = topology(3);
    let change =
        |topology: &Topology, change| topology.apply(&Proposal { cluster: 1, vnodes: 16, epoch: topology.epoch(), change }).unwrap();
    assert_eq!(acceptors(&change(&three, Change::Join(spec(4)))), [1, 2, 3]);
    assert_eq!(acceptors(&change(&three, Change::Replace { dead: 2, new: spec(4) })), [1, 2, 3]);
    let four = topology(4);
    assert_eq!(acceptors(&change(&four, Change::Leave { node: 2 })), [1, 2, 3, 4]);
}

#[test]
fn a_cluster_is_founded_when_every_founder_has_said_yes() {
    let (founding, mut out, mut chosen) = (founding(3), Vec::new(), 0);
    let deadline = Mono(0).plus(Duration::from_secs(9));
    let mut proposer = Proposer::new(Mono(0), (1, 1), &founding, b"founded".to_vec(), deadline, &mut out);
    let mut acceptors = [const { None::<Acceptor> }; 3];
    let mut now = Mono(0);
    // The third founder comes late; the second loses its disk after its yes.
    for is_third_there in [false, true] {
        now = now.plus(Duration::from_millis(500));
        proposer.on_tick(now, &mut out);
        while let Some(effect) = out.pop() {
            match effect {
                Effect::Ask { to: 3, .. } if !is_third_there => {}
                Effect::Ask { to, ask } => {
                    let acceptor = acceptors[to as usize - 1].get_or_insert_default();
                    let (Step::Answer(answer) | Step::Persist { then: answer, .. }) = acceptor.on_ask(1, ask, |_| true);
                    proposer.on_answer(now, to, answer, 0, &mut out);
                }
                Effect::Over(outcome) => {
                    assert_eq!(outcome, Outcome::Chosen(b"founded".to_vec()));
                    chosen += 1;
                }
                Effect::Correct { .. } => unreachable!("one epoch"),
            }
        }
        assert_eq!(chosen, u32::from(is_third_there), "two of three are not enough");
    }
    acceptors[1] = Some(Acceptor::default());
    let has_said_yes = |acceptor: &Option<Acceptor>| acceptor.as_ref().is_some_and(|acceptor| acceptor.has_accepted(1));
    assert_eq!(acceptors.each_ref().map(has_said_yes), [true, false, true], "the second can tell that it is not what it was");
}

/// Has what was proposed chosen by those of three acceptors that are there.
fn have_chosen(acceptors: &mut [Acceptor; 3], there: &[u64], node: u64, value: &[u8]) -> Outcome {
    let (mut out, deadline) = (Vec::new(), Mono(0).plus(Duration::from_secs(9)));
    let mut proposer = Proposer::new(Mono(0), (node, node), &topology(3), value.to_vec(), deadline, &mut out);
    for round in 0.. {
        while let Some(effect) = out.pop() {
            match effect {
                Effect::Ask { to, ask } if there.contains(&to) => {
                    let (Step::Answer(answer) | Step::Persist { then: answer, .. }) =
                        acceptors[to as usize - 1].on_ask(topology(3).epoch(), ask, |_| true);
                    proposer.on_answer(Mono(0), to, answer, 0, &mut out);
                }
                Effect::Ask { .. } | Effect::Correct { .. } => {}
                Effect::Over(outcome) => return outcome,
            }
        }
        proposer.on_tick(Mono(0).plus(Duration::from_millis(100 * round)), &mut out);
    }
    unreachable!("a deadline ends it")
}

#[test]
fn what_was_chosen_and_told_nobody_is_chosen_by_who_said_yes() {
    let (mut acceptors, epoch) = (std::array::from_fn(|_| Acceptor::default()), topology(3).epoch());
    assert_eq!(have_chosen(&mut acceptors, &[1, 2], 1, b"heavier"), Outcome::Chosen(b"heavier".to_vec()));
    // The first node falls before it tells anybody.
    assert_eq!(acceptors[2].accepted(epoch), None);
    let said_yes = acceptors[1].accepted(epoch).expect("the second said yes").topology.clone();
    assert_eq!(acceptors[1].accepted(epoch + 1), None, "of another epoch there is nothing to bring to its end");
    assert_eq!(have_chosen(&mut acceptors, &[2, 3], 2, &said_yes), Outcome::Chosen(b"heavier".to_vec()));
    assert_eq!(have_chosen(&mut acceptors, &[2, 3], 3, b"other"), Outcome::Chosen(b"heavier".to_vec()), "and nothing else is");
}

/// A message on its way: a proposer's (its number, the acceptor asked) or an acceptor's.
#[derive(Clone)]
enum Flying {
    Ask(usize, u64, Ask),
    Answer(usize, u64, Answer),
}

struct World {
    prng: Prng,
    now: Mono,
    topology: Topology,
    acceptors: Vec<Acceptor>,
    durable: Vec<Register>,
    proposers: Vec<Option<Proposer>>,
    flying: Vec<Flying>,
    chosen: Vec<Vec<u8>>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut prng = Prng::new(seed);
        let nodes = prng.between(1, 5);
        World {
            now: Mono(0),
            topology: topology(nodes),
            acceptors: vec![Acceptor::default(); nodes as usize],
            durable: vec![Register::default(); nodes as usize],
            proposers: Vec::new(),
            flying: Vec::new(),
            chosen: Vec::new(),
            prng,
        }
    }

    fn propose(&mut self) {
        let number = self.proposers.len();
        // Nodes repeat, lives do not.
        let (me, value) = (self.prng.between(1, 2), format!("change {number}").into_bytes());
        let mut out = Vec::new();
        let deadline = self.now.plus(Duration::from_secs(self.prng.between(1, 20)));
        self.proposers.push(Some(Proposer::new(self.now, (me, number as u64), &self.topology, value, deadline, &mut out)));
        self.carry_out(number, out);
    }

    fn carry_out(&mut self, number: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Ask { to, ask } => self.flying.push(Flying::Ask(number, to, ask)),
                Effect::Over(outcome) => {
                    self.proposers[number] = None;
                    if let Outcome::Chosen(value) = outcome {
                        self.chosen.push(value);
                    }
                }
                Effect::Correct { .. } => unreachable!("one epoch"),
            }
        }
    }

    fn deliver(&mut self) {
        if self.flying.is_empty() {
            return;
        }
        let at = self.prng.below(self.flying.len() as u64) as usize;
        let flying = if self.prng.one_in(8) { self.flying[at].clone() } else { self.flying.swap_remove(at) };
        if self.prng.one_in(8) {
            return;
        }
        match flying {
            Flying::Ask(number, to, ask) => {
                let index = to as usize - 1;
                match self.acceptors[index].on_ask(self.topology.epoch(), ask, |_| true) {
                    Step::Answer(answer) => self.flying.push(Flying::Answer(number, to, answer)),
                    Step::Persist { register, then } => {
                        // It may fall before the register is durable, and then has said nothing.
                        if self.prng.one_in(10) {
                            return self.acceptors[index] = Acceptor::new(self.durable[index].clone());
                        }
                        self.durable[index] = Register::decode(&register).unwrap();
                        self.flying.push(Flying::Answer(number, to, then));
                    }
                }
            }
            Flying::Answer(number, from, answer) => {
                let (mut out, random) = (Vec::new(), self.prng.next_u64());
                if let Some(proposer) = &mut self.proposers[number] {
                    proposer.on_answer(self.now, from, answer, random, &mut out);
                }
                self.carry_out(number, out);
            }
        }
    }

    fn tick(&mut self) {
        self.now = self.now.plus(Duration::from_millis(self.prng.between(1, 60)));
        for number in 0..self.proposers.len() {
            let mut out = Vec::new();
            if let Some(proposer) = &mut self.proposers[number] {
                proposer.on_tick(self.now, &mut out);
            }
            self.carry_out(number, out);
        }
    }

    fn step(&mut self) {
        match self.prng.below(100) {
            0 => {
                let index = self.prng.below(self.acceptors.len() as u64) as usize;
                self.acceptors[index] = Acceptor::new(self.durable[index].clone());
            }
            1 if !self.proposers.is_empty() => {
                let number = self.prng.below(self.proposers.len() as u64) as usize;
                self.proposers[number] = None;
            }
            2..5 if self.proposers.len() < 6 => self.propose(),
            5..20 => self.tick(),
            _ => self.deliver(),
        }
    }
}

#[test]
fn all_who_learn_what_was_chosen_learn_the_same() {
    let (mut decided, mut twice) = (0, 0);
    for seed in 0..3_000 {
        let mut world = World::new(seed);
        world.propose();
        (0..400).for_each(|_| world.step());
        assert!(world.chosen.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: {:?}", world.chosen);
        decided += u32::from(!world.chosen.is_empty());
        twice += u32::from(world.chosen.len() > 1);
    }
    assert!(decided > 2_000 && twice > 500, "{decided} decided, {twice} of them learnt more than once");
}

#[test]
fn two_who_outbid_each_other_come_to_an_end() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.propose();
        world.propose();
        for _ in 0..20_000 {
            if world.prng.one_in(8) {
                world.tick()
            } else {
                world.deliver()
            }
            if world.proposers.iter().all(Option::is_none) {
                break;
            }
        }
        assert!(!world.chosen.is_empty(), "seed {seed}");
    }
}
