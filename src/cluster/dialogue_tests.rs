//! Golden dialogues of topologies (`topology_dialogue.txt`), moves (`moves_dialogue.txt`) and hints (`hints_dialogue.txt`): what comes in,
//! and behind `>` what is done about it. Those of the other protocols lie beside the tests of each.

use super::decide::{Acceptor, Answer, Ask, Ballot, Effect, Outcome, Proposer, Question, Reply, Step};
use super::hints::{Hints, Limits};
use super::takeover::{MarksIn, MarksOf, Move, Part, TakeOver, of_node, ready};
use super::topology::{Change, NodeSpec, Proposal, Standing, Topology};
use crate::base::record::Version;
use crate::base::time::Mono;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

fn spec(id: u64) -> NodeSpec {
    let address = |port| format!("10.0.0.{id}:{port}");
    NodeSpec { id, native: address(7400), gossip: address(7490), cores: 1, weight: 1, rack: String::new() }
}

fn listed() -> Topology {
    Topology::found(1, 16, (1..=3).map(spec).collect()).expect("three nodes")
}

fn after(topology: &Topology, change: Change) -> Topology {
    topology.apply(&Proposal { cluster: 1, vnodes: 16, epoch: topology.epoch(), change }).expect("a change that may be")
}

/// What is said, line by line.
#[derive(Default)]
struct Trace(String);

impl Trace {
    fn say(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn is(&self, expected: &str) {
        assert_eq!(self.0, expected, "\n{}", self.0);
    }
}

/// Three acceptors, each at its epoch.
struct Acceptors {
    nodes: BTreeMap<u64, (u64, Acceptor)>,
    trace: Trace,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ballot(of: Ballot) -> String {
    format!("{}.{}", of.round, of.node)
}

impl Acceptors {
    /// A question reaches a node, and its answer the proposer.
    fn ask(&mut self, proposer: &mut Proposer, me: u64, to: u64, ask: Ask, now: Mono) -> Vec<Effect> {
        let question = match &ask.question {
            Question::Promise => "promise".to_owned(),
            Question::Accept { topology } => format!("accept `{}`", text(topology)),
        };
        self.trace.say(&format!("{me} to {to}: behind epoch {}, ballot {}: {question}", ask.epoch, ballot(ask.ballot)));
        let (epoch, acceptor) = self.nodes.get_mut(&to).expect("a node");
        let (answer, is_durable) = match acceptor.on_ask(*epoch, ask, |_| true) {
            Step::Answer(answer) => (answer, false),
            Step::Persist { then, .. } => (then, true),
        };
        let said = reply(&answer);
        self.trace.say(&format!("> {to}: {}{said}", if is_durable { "(made durable) " } else { "" }));
        let mut effects = Vec::new();
        proposer.on_answer(now, to, answer, 0, &mut effects);
        effects
    }

    /// Carries out effects of a proposer, but for the questions to those who are away.
    fn run(&mut self, proposer: &mut Proposer, me: u64, mut effects: Vec<Effect>, away: &[u64], now: Mono) {
        while !effects.is_empty() {
            let mut next = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Ask { to, .. } if away.contains(&to) => self.trace.say(&format!("{me} to {to}: lost")),
                    Effect::Ask { to, ask } => next.extend(self.ask(proposer, me, to, ask, now)),
                    Effect::Correct { node } => self.trace.say(&format!("> {me} tells {node} the topology that it lacks")),
                    Effect::Over(outcome) => self.trace.say(&format!("> {me}: {}", end(&outcome))),
                }
            }
            effects = next;
        }
    }
}

fn reply(answer: &Answer) -> String {
    match &answer.reply {
        Reply::Promised { accepted: None } => "promised, nothing accepted yet".to_owned(),
        Reply::Promised { accepted: Some(accepted) } => {
            format!("promised, accepted `{}` under ballot {}", text(&accepted.topology), ballot(accepted.ballot))
        }
        Reply::Accepted => "accepted".to_owned(),
        Reply::Outbid { promised } => format!("no: promised ballot {}", ballot(*promised)),
        Reply::Newer { epoch } => format!("no: epoch {epoch} is known here"),
        Reply::Behind { epoch } => format!("no: only epoch {epoch} is known here"),
        Reply::NoTopology => "no: that cannot follow".to_owned(),
    }
}

fn end(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Chosen(value) => format!("`{}` is chosen", text(value)),
        Outcome::Newer { node } => format!("decided before, node {node} knows"),
        Outcome::Silent { answered, need } => format!("{answered} answered in time, {need} are needed"),
    }
}

#[test]
fn a_dialogue_of_topologies() {
    let topology = listed().founded().expect("the first epoch");
    let nodes = (1..=3).map(|node| (node, (topology.epoch(), Acceptor::default()))).collect();
    let mut acceptors = Acceptors { nodes, trace: Trace::default() };
    let (start, deadline) = (Mono(0), Mono(0).plus(Duration::from_secs(10)));
    let propose =
        |now, me, value: &str, out: &mut Vec<Effect>| Proposer::new(now, (me, 7), &topology, value.as_bytes().to_vec(), deadline, out);
    acceptors.trace.say("node 1 proposes `join 4`; 3 is away, and 1 falls when only 2 has accepted");
    let mut out = Vec::new();
    let mut first = propose(start, 1, "join 4", &mut out);
    let mut accepts = Vec::new();
    for effect in out {
        if let Effect::Ask { to, ask } = effect
            && to != 3
        {
            accepts.extend(acceptors.ask(&mut first, 1, to, ask, start));
        }
    }
    for effect in accepts {
        if let Effect::Ask { to: 2, ask } = effect {
            acceptors.ask(&mut first, 1, 2, ask, start);
        }
    }
    acceptors.trace.say("node 3 proposes `weight 2 9`; 1 is away");
    let mut out = Vec::new();
    let mut second = propose(start, 3, "weight 2 9", &mut out);
    acceptors.run(&mut second, 3, out, &[1], start);
    acceptors.trace.say("2 and 3 use it; 1 is back at epoch 2 and proposes anew");
    for node in [2, 3] {
        acceptors.nodes.get_mut(&node).expect("a node").0 = 3;
    }
    let mut out = Vec::new();
    let mut third = propose(start, 1, "leave 3", &mut out);
    acceptors.run(&mut third, 1, out, &[], start);
    acceptors.trace.say("3 proposes what follows epoch 3; 2 is away");
    let next = after(&topology, Change::Weight { node: 2, weight: 1 });
    let mut out = Vec::new();
    let mut fourth = Proposer::new(start, (3, 8), &next, b"weight 2 9".to_vec(), deadline, &mut out);
    acceptors.run(&mut fourth, 3, out, &[2], start);
    let mut out = Vec::new();
    fourth.on_tick(deadline, &mut out);
    acceptors.run(&mut fourth, 3, out, &[], deadline);
    acceptors.trace.is(include_str!("topology_dialogue.txt"));
}

fn at(clock: u64) -> Version {
    Version::put(clock << 16, 0)
}

#[test]
fn a_dialogue_of_moves() {
    let mut trace = Trace::default();
    let before = listed();
    let pending = after(&before, Change::Join(spec(4)));
    let (part, old) = of_node(&pending, 4).swap_remove(0);
    let of = part.of;
    trace.say(&format!("node 4 joins; vnode {} comes to it from {old:?}", of.vnode));
    let standing = |topology: &Topology, epoch| match topology.standing(of.vnode, epoch) {
        Standing::Knows => "served",
        Standing::Stale => "refused, and told the newer topology",
        Standing::Ahead => "to be learned from",
    };
    for epoch in [1, 2, 3] {
        trace.say(&format!("> a coordinator of epoch {epoch} is {}", standing(&pending, epoch)));
    }
    let mut take = TakeOver::new(part, old, false, None);
    let stage = |trace: &mut Trace, take: &TakeOver| {
        let state = if take.is_open() { "puts are taken" } else { "nothing is taken or shown" };
        let silent: Vec<u64> = take.silent().collect();
        trace.say(&format!("> {:?}, {state}; silent: {silent:?}; to compare: {:?}", take.stage(), take.next(|_| true)));
    };
    let marks = |of: Move, fence, floor| {
        let marks = MarksIn { namespace: 1, fence: at(fence), floor: at(floor), is_empty: false };
        MarksOf { part: Part { of, ..part }, namespaces: vec![marks] }
    };
    stage(&mut trace, &take);
    trace.say("node 1 tells fence 9, floor 4");
    take.told(1, &marks(of, 9, 4));
    stage(&mut trace, &take);
    trace.say("what node 4 held of it before is void, durably");
    take.voided();
    stage(&mut trace, &take);
    trace.say("node 1 tells fence 9, floor 4");
    take.told(1, &marks(of, 9, 4));
    stage(&mut trace, &take);
    trace.say("node 2 tells marks of an earlier move");
    take.told(2, &marks(Move { since: 1, ..of }, 30, 30));
    stage(&mut trace, &take);
    trace.say("node 2 tells fence 8, floor 6");
    take.told(2, &marks(of, 8, 6));
    stage(&mut trace, &take);
    let told = take.marks(1);
    trace.say(&format!("> puts at or below clock {} are refused", told.fence.hlc() >> 16));
    trace.say("the comparison with node 1 is cut off");
    take.failed(1, 1);
    stage(&mut trace, &take);
    trace.say("all is compared with node 2, and copied");
    take.joined(2, 1);
    stage(&mut trace, &take);
    trace.say("all is compared with node 1, and copied");
    take.joined(1, 1);
    stage(&mut trace, &take);
    let told = take.marks(1);
    let flips = |taken: &BTreeSet<Part>| ready(&pending, &BTreeMap::from([(4, taken.clone())])).contains(&of);
    trace.say(&format!("fence {} and floor {} are durable at node 4", told.fence.hlc() >> 16, told.floor.hlc() >> 16));
    let mut line = String::new();
    _ = write!(line, "> the vnode may flip: {} before it has said so", flips(&BTreeSet::new()));
    take.inherited();
    _ = write!(line, ", {} after it has", flips(&BTreeSet::from([part])));
    trace.say(&line);
    stage(&mut trace, &take);
    let flipped = after(&pending, Change::MoveDone { vnodes: vec![of.vnode] });
    trace.say(&format!("epoch {} flips it", flipped.epoch()));
    for epoch in [1, 2, 3] {
        trace.say(&format!("> a coordinator of epoch {epoch} is {}", standing(&flipped, epoch)));
    }
    trace.is(include_str!("moves_dialogue.txt"));
}

#[test]
fn a_dialogue_of_hints() {
    let mut trace = Trace::default();
    let limits = Limits { bytes_max: 1000, peer_bytes_max: 400, age_ms_max: 60_000 };
    let (mut hints, mut now_ms) = (Hints::new(limits, 1), 1_000);
    let mono = |now_ms: u64| Mono(now_ms * 1_000_000);
    for (peer, bytes) in [(2, 150), (2, 150), (2, 150), (3, 100), (2, 10)] {
        let said = match hints.offer(now_ms, peer, bytes) {
            Ok(number) => format!("kept as {number}"),
            Err(why) => format!("not kept: {why}"),
        };
        trace.say(&format!("node {peer} misses a write of {bytes} bytes\n> {said}"));
    }
    let send = |trace: &mut Trace, hints: &mut Hints, now_ms, why: &str| {
        let sent = hints.next(mono(now_ms), 2, 200);
        trace.say(&format!("{why}, 200 bytes may go\n> {sent:?} to node 2"));
    };
    send(&mut trace, &mut hints, now_ms, "node 2 is back");
    trace.say("the link breaks");
    hints.lost(mono(now_ms), 2);
    send(&mut trace, &mut hints, now_ms + 100, "after 100 ms");
    now_ms += 500;
    send(&mut trace, &mut hints, now_ms, "after 500 ms");
    now_ms += 5_000;
    send(&mut trace, &mut hints, now_ms, "nothing comes for 5 s");
    now_ms += 1_000;
    send(&mut trace, &mut hints, now_ms, "after another second");
    for number in [1, 1] {
        let is_its = hints.done(mono(now_ms), 2, number);
        trace.say(&format!("node 2 has made {number} durable\n> {}", if is_its { "it is forgotten here" } else { "it was one no more" }));
    }
    send(&mut trace, &mut hints, now_ms, "at once");
    trace.say(&format!("a minute after the first\n> too old: {:?}", hints.expire(61_001)));
    trace.say(&format!("> kept for {:?}", hints.peers().collect::<Vec<u64>>()));
    trace.is(include_str!("hints_dialogue.txt"));
}
