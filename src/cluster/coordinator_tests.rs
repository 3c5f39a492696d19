//! Golden dialogues of coordinators and replicas (`coordinator_golden.txt`): what comes in, and behind `>` what is done about it.

use super::coordinator::get::{Get, GetStart};
use super::coordinator::put::{Put, PutStart};
use super::coordinator::{Effect, From, Levels, Outcome, Roster, Turn, View};
use super::quorum::Level;
use super::replica::{Fence, Held, Replica};
use super::topology::{Change, NodeSpec, Proposal, Topology};
use crate::base::record::{Cell, Kind, Version, token_of, vnode_of};
use crate::base::time::{HybridClock, Mono};
use crate::wire::peer::{Digest, Head, Holds, OwnedCell, Place, Refusal, Road};
use std::fmt::Write;
use std::time::Duration;

const NOW_MS: u64 = 1000;
const VNODES: u32 = 16;
const HLC: u64 = NOW_MS << 16;

struct Living(Vec<u64>);

impl View for Living {
    fn is_alive(&self, node: u64) -> bool {
        self.0.contains(&node)
    }

    fn p99(&self, _node: u64) -> Option<Duration> {
        Some(Duration::from_millis(2))
    }

    fn order(&self, nodes: &mut [u64]) {
        nodes.sort_unstable();
    }
}

/// One coordinator, its clock, and what was said.
struct Stage {
    topology: Topology,
    vnode: u32,
    living: Living,
    clock: HybridClock,
    now_us: u64,
    said: String,
}

fn spec(id: u64) -> NodeSpec {
    let (native, gossip) = (format!("10.0.0.{id}:7400"), format!("10.0.0.{id}:7490"));
    NodeSpec { id, native, gossip, cores: 1, weight: 1, rack: String::new() }
}

fn version(version: Version) -> String {
    format!("{}ms+{}.{}", version.hlc() >> 16, version.hlc() & 0xFFFF, version.writer())
}

fn outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::Done { version: it } => format!("done {}", version(it)),
        Outcome::Unknown { version: it, why } => format!("unknown {} {why:?}", version(it)),
        other => format!("{other:?}"),
    }
}

fn effect(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::AskClock { to } => format!("{to}: your clock?"),
        Effect::Store { to, road } => format!("{to}: store, {road:?}"),
        Effect::Read { to, full } => format!("{to}: read {}", if *full { "cell" } else { "digest" }),
        Effect::Stamped { version: it } => format!("stamped {}", version(*it)),
        Effect::Answer(it) => format!("answer {}", outcome(*it)),
        Effect::Hint { to } => format!("hint for {to}"),
        Effect::Repair { to } => format!("{to}: store, Copy"),
        Effect::Answered { .. } | Effect::GaveUp { .. } => return None,
        other => format!("{other:?}"),
    })
}

impl Stage {
    fn new() -> Stage {
        let topology = Topology::found(1, VNODES, (1..=3).map(spec).collect()).expect("a sound cluster");
        Stage { topology, vnode: 0, living: Living(vec![1, 2, 3, 4]), clock: HybridClock::new(0, 0, 1), now_us: 0, said: String::new() }
    }

    /// Node 4 joins, and takes a place among the replicas of the vnode.
    fn join(&mut self) {
        let change = Change::Join(spec(4));
        let proposal = Proposal { cluster: 1, vnodes: VNODES, epoch: self.topology.epoch(), change };
        self.topology = self.topology.apply(&proposal).expect("a sound join");
        let is_joint = |vnode: &u32| self.topology.replicas(*vnode, 3).pending.is_some();
        self.vnode = (0..VNODES).find(is_joint).expect("something moves");
    }

    fn roster(&self) -> Roster {
        Roster::new(&self.topology, self.vnode, 3)
    }

    fn title(&mut self, title: &str) {
        let _ = writeln!(self.said, "\n# {title}");
    }

    fn say<T>(&mut self, event: &str, act: impl FnOnce(&mut Turn<'_>) -> T) -> T {
        let mut out = Vec::new();
        let now = Mono(self.now_us * 1000);
        let made = act(&mut Turn { now, now_ms: NOW_MS, clock: &mut self.clock, view: &self.living, out: &mut out });
        let _ = writeln!(self.said, "{event}");
        out.iter().filter_map(effect).for_each(|effect| _ = writeln!(self.said, "  > {effect}"));
        made
    }

    fn put(&mut self, event: &str, version: Option<Version>, writer: u16) -> Put {
        let (roster, deadline) = (self.roster(), Mono(100_000_000));
        let levels = Levels::both(Level::Quorum);
        self.say(event, |turn| Put::start(turn, PutStart { roster, levels, version, writer, deadline, stamp_only: false, planted: None }))
    }

    fn get(&mut self, event: &str, level: Level) -> Get {
        let (roster, deadline) = (self.roster(), Mono(100_000_000));
        let levels = Levels { read: level, write: Level::Quorum };
        self.say(event, |turn| Get::start(turn, GetStart { roster, levels, deadline, planted: None }))
    }
}

fn from(node: u64, epoch: u64) -> From {
    From { node, epoch, attempt: 0 }
}

fn digest(cell: &Cell<'_>) -> Digest {
    Digest::of(Ok(cell), &mut Vec::new())
}

fn puts(stage: &mut Stage) {
    stage.title("a put of RF 3 at QUORUM, one replica down");
    stage.living.0.retain(|node| *node != 3);
    let mut put = stage.put("put by node 1", None, 1);
    stage.say("1: my clock is 1000ms+0", |turn| put.on_clock(turn, from(1, 1), HLC));
    stage.say("2: my clock is 1200ms+0", |turn| put.on_clock(turn, from(2, 1), 1200 << 16));
    stage.say("1: stored", |turn| put.on_stored(turn, from(1, 1), Holds::Stored));
    stage.say("2: I have newer", |turn| put.on_stored(turn, from(2, 1), Holds::Newer));
    assert!(put.is_over());

    stage.title("unknown, and retried by its stamp through another coordinator");
    stage.living.0.push(3);
    let mut put = stage.put("put by node 1", None, 1);
    stage.say("1: my clock is 1000ms+0", |turn| put.on_clock(turn, from(1, 1), HLC));
    stage.say("3: my clock is an hour ahead", |turn| put.on_clock(turn, from(3, 1), HLC + (3_600_000 << 16)));
    stage.say("2: my clock is 1000ms+5", |turn| put.on_clock(turn, from(2, 1), HLC + 5));
    stage.say("1: stored", |turn| put.on_stored(turn, from(1, 1), Holds::Stored));
    stage.say("2: disk full", |turn| put.on_refused(turn, from(2, 1), Refusal::DiskFull));
    stage.say("the link to 3 breaks", |turn| put.on_gone(turn, 3));
    let stamp = put.version();
    stage.clock = HybridClock::new(0, 0, 1);
    let mut retry = stage.put("retry by node 2 under that stamp", stamp, 2);
    assert_eq!(retry.version(), stamp);
    stage.say("1: I have it", |turn| retry.on_stored(turn, from(1, 1), Holds::Same));
    stage.say("3: stored", |turn| retry.on_stored(turn, from(3, 1), Holds::Stored));
    stage.now_us = 100_000;
    stage.say("the deadline comes", |turn| retry.on_tick(turn));

    stage.title("too few are alive");
    stage.now_us = 0;
    stage.living.0.retain(|node| *node == 1);
    assert!(stage.put("put by node 1", None, 1).is_over());
    stage.living = Living(vec![1, 2, 3, 4]);
}

fn gets(stage: &mut Stage) {
    let (old, new) = (Cell::value(Version::put(HLC, 1), b"old"), Cell::value(Version::put(HLC + 1, 1), b"new"));
    stage.title("a get that writes back");
    let mut get = stage.get("get by node 1", Level::Quorum);
    stage.say("1: cell old", |turn| get.on_full(turn, from(1, 1), Ok(old)));
    stage.say("2: digest of new", |turn| get.on_digest(turn, from(2, 1), digest(&new)));
    stage.say("2: cell new", |turn| get.on_full(turn, from(2, 1), Ok(new)));
    stage.say("3: stored", |turn| get.on_stored(turn, from(3, 1)));
    assert_eq!(get.cell(), Some(new));

    stage.title("a replica slower than its p99 is hedged; what it shows late is repaired");
    let mut get = stage.get("get at ONE by node 1", Level::One);
    stage.now_us = 2000;
    assert_eq!(get.next_wake(), Some(Mono(2_000_000)));
    stage.say("2 ms pass", |turn| get.on_tick(turn));
    stage.say("2: cell new", |turn| get.on_full(turn, from(2, 1), Ok(new)));
    stage.say("1: cell old", |turn| get.on_full(turn, from(1, 1), Ok(old)));
    assert!(get.is_over());
    stage.now_us = 0;
}

fn moves(stage: &mut Stage) {
    let before = stage.topology.clone();
    stage.join();
    let after = std::mem::replace(&mut stage.topology, before);
    stage.title("a put whose coordinator has missed that the vnode moves: corrected, then majorities of both groups");
    let mut put = stage.put("put by node 1", None, 1);
    stage.say("1: my clock is 1000ms+0", |turn| put.on_clock(turn, from(1, 1), HLC));
    stage.say("2: my clock is 1000ms+0, and I know epoch 2", |turn| put.on_clock(turn, from(2, 2), HLC));
    stage.topology = after.clone();
    stage.say("the topology of epoch 2 comes", |turn| put.on_topology(turn, &after));
    let second = |node| From { node, epoch: 2, attempt: 1 };
    stage.say("1: my clock, late, of the first attempt", |turn| put.on_clock(turn, from(1, 1), HLC));
    (1..=4).for_each(|node| stage.say(&format!("{node}: my clock is 1000ms+0"), |turn| put.on_clock(turn, second(node), HLC)));
    let roster = *put.roster();
    let (old, new): (Vec<u64>, Vec<u64>) = roster.nodes().iter().partition(|node| **node != 4);
    assert_eq!((old.len(), new), (3, vec![4]));
    let leaves = (1..=3).find(|node| !heading(&after, stage.vnode).contains(node)).expect("one makes room");
    let stays = (1..=3).find(|node| *node != leaves).expect("two stay");
    stage.say("who leaves: stored", |turn| put.on_stored(turn, second(leaves), Holds::Stored));
    stage.say("one who stays: stored", |turn| put.on_stored(turn, second(stays), Holds::Stored));
    assert!(!stage.said.ends_with("done\n"));
    stage.say("4: stored", |turn| put.on_stored(turn, second(4), Holds::Stored));
}

fn founding(stage: &mut Stage) {
    stage.title("a put that comes before the cluster is founded, then a get: whoever has no vote yet is asked again");
    stage.topology = Stage::new().topology;
    (stage.vnode, stage.now_us) = (0, 0);
    let mut put = stage.put("put by node 1", None, 1);
    let founded = stage.topology.founded().expect("the first epoch");
    for node in 1..=3 {
        stage.say(&format!("{node}: I do not vote"), |turn| put.on_refused(turn, from(node, 1), Refusal::NotVoting));
    }
    stage.topology = founded.clone();
    stage.say("the topology of epoch 2 comes", |turn| put.on_topology(turn, &founded));
    stage.now_us += 60_000;
    stage.say("a moment later", |turn| put.on_tick(turn));
    (1..=2).for_each(|node| stage.say(&format!("{node}: my clock is 1000ms+0"), |turn| put.on_clock(turn, from(node, 2), HLC)));
    (1..=2).for_each(|node| stage.say(&format!("{node}: stored"), |turn| put.on_stored(turn, from(node, 2), Holds::Stored)));
    assert!(put.is_answered());
    let mut get = stage.get("get at QUORUM", Level::Quorum);
    stage.say("1: I do not vote", |turn| get.on_refused(turn, from(1, 1), Refusal::NotVoting));
    stage.now_us += 30_000;
    stage.say("a moment later", |turn| get.on_tick(turn));
}

fn heading(topology: &Topology, vnode: u32) -> Vec<u64> {
    topology.destination(vnode)[..3].iter().map(|index| topology.nodes()[usize::from(*index)].spec.id).collect()
}

#[test]
fn the_dialogues_are_as_written() {
    let mut stage = Stage::new();
    puts(&mut stage);
    stage.clock = HybridClock::new(0, 0, 1);
    gets(&mut stage);
    moves(&mut stage);
    founding(&mut stage);
    assert!(stage.said == include_str!("coordinator_golden.txt"), "it was said:\n{}", stage.said);
}

#[test]
fn a_replica_judges_epoch_ownership_clock_and_fence_in_this_order() {
    let mut stage = Stage::new();
    stage.join();
    let key = (0..1000).map(|number| format!("k{number}").into_bytes()).find(|key| vnode_of(token_of(key), VNODES) == stage.vnode);
    let key = key.expect("some key lies there");
    let place = Place { namespace: 1, key: &key, kind: Kind::Head, element: b"" };
    let mut said = String::new();
    let mut ask = |event: &str, me: u64, epoch: u64, hlc: u64, held: Option<Version>, fence: Fence| {
        let mut clock = HybridClock::new(0, 0, 1);
        let topology = &stage.topology;
        let mut replica = Replica { me, topology, rf: 3, votes: me != 2, clock: &mut clock, now_ms: NOW_MS, planted: None };
        let held = held.map(|version| Held { version, expiry: version, is_gone: false, seq: 7 });
        let cell = OwnedCell::new(&Cell::value(Version::put(hlc, 1), b"v"));
        let head = Head { epoch, deadline_ms: 50 };
        let (act, side) = replica.on_store(head, &place, Road::Put, &cell.as_cell(), held, |_, _, _| fence);
        let _ = writeln!(said, "{event}: {act:?} {side:?} {}", clock.last() == hlc);
    };
    let (same, newer) = (Some(Version::put(HLC, 1)), Some(Version::put(HLC + 1, 1)));
    ask("new", 1, 2, HLC, None, Fence::Open);
    ask("again", 1, 2, HLC, same, Fence::Open);
    ask("older, below the fence", 1, 2, HLC, newer, Fence::UnlessHeld);
    ask("unknown, below the fence", 1, 2, HLC, None, Fence::UnlessHeld);
    ask("held, of a term that is over", 1, 2, HLC, newer, Fence::Closed);
    ask("an hour ahead", 1, 2, HLC + (3_600_000 << 16), None, Fence::Open);
    ask("no replica", 5, 2, HLC, None, Fence::Open);
    ask("not voting", 2, 2, HLC, None, Fence::Open);
    ask("missed the move", 1, 1, HLC, None, Fence::Open);
    ask("knows more", 1, 3, HLC, None, Fence::Open);
    let expected = "\
new: Append None true
again: AnswerWhenDurable { seq: 7, holds: Same } None false
older, below the fence: AnswerWhenDurable { seq: 7, holds: Newer } None false
unknown, below the fence: Refuse { why: Fenced } None false
held, of a term that is over: Refuse { why: Fenced } None false
an hour ahead: Refuse { why: ClockAhead { ms: 3600000 } } Some(Skewed { ahead_ms: 3600000 }) false
no replica: Refuse { why: NotReplica } None false
not voting: Refuse { why: NotVoting } None false
missed the move: Refuse { why: EpochOld { epoch: 2 } } None false
knows more: Refuse { why: Behind { epoch: 2 } } Some(FetchTopology { epoch: 3 }) false
";
    assert_eq!(said, expected);
}
