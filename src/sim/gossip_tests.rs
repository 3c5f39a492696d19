//! Membership on virtual time: the goals at sizes that fit a debug build, faults, refusals, and the golden dialogue
//! (`gossip_golden.txt`). `bench/src/bin/gossip.rs` runs the same for 1,000 nodes.

use super::gossip::{Network, Start, World};
use crate::base::time::Mono;
use crate::cluster::board::{Member, Members};
use crate::cluster::gossip::member::{Address, State, Versions};
use crate::cluster::gossip::{Change, Timing};
use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn cluster(seed: u64, nodes: usize) -> World {
    World::cluster(seed, nodes, Network::losing(10_000), Timing::default())
}

fn rounds(from: Mono, to: Mono) -> f64 {
    to.since(from).as_secs_f64() / Timing::default().gossip.as_secs_f64()
}

#[test]
fn a_change_is_known_everywhere_within_twice_the_logarithm_of_rounds() {
    for nodes in [3, 10, 50, 100] {
        let mut world = cluster(nodes as u64, nodes);
        let others = nodes as u64 - 1;
        let goal = 2.0 * (nodes as f64).log2().max(2.0);
        for epoch in 1..=3 {
            let began = world.now();
            world.learn_topology(epoch as usize % nodes, epoch);
            world.run(MS(2000));
            let heard = world.heard_of(epoch);
            assert!(heard.times == others && rounds(began, heard.last) <= goal, "epoch, {nodes} nodes: {heard:?} since {began:?}");
        }
        let began = world.now();
        world.leave(1);
        world.run(MS(2000));
        let left = world.seen(2, Change::Left);
        assert!(left.times == others && rounds(began, left.last) <= goal, "leaving, {nodes} nodes: {left:?} since {began:?}");
        assert_eq!((world.wrong_suspicions, world.wrong_deaths), (0, 0));
    }
}

#[test]
fn a_dead_node_is_known_dead_by_all_within_two_seconds() {
    for (seed, nodes) in [(1, 3), (2, 3), (3, 3), (4, 10), (5, 10), (6, 50), (7, 100)] {
        let mut world = cluster(seed, nodes);
        for victim in [nodes - 1, nodes / 2].into_iter().take(if nodes > 3 { 2 } else { 1 }) {
            let began = world.now();
            world.kill(victim);
            world.run(MS(2000));
            let died = world.seen(victim as u64 + 1, Change::Died);
            let running = world.running().count();
            assert_eq!(world.believe(victim as u64 + 1, State::Dead), running, "{nodes} nodes: {died:?} since {began:?}");
        }
        assert_eq!((world.wrong_suspicions, world.wrong_deaths), (0, 0));
    }
}

#[test]
fn a_partition_heals_by_itself_and_all_are_alive_again() {
    let mut world = cluster(11, 12);
    world.split(5);
    world.learn_topology(0, 9);
    world.run(Duration::from_secs(10));
    assert_eq!((world.gossip(0).live(), world.gossip(11).live()), (4, 6), "each side holds the other for dead");
    assert_eq!(world.heard_of(9).times, 4);
    world.heal();
    world.run(Duration::from_secs(5));
    assert!(world.running().all(|machine| world.gossip(machine).live() == 11), "all are back");
    assert_eq!((world.heard_of(9).times, world.wrong_deaths), (11, 0));
}

#[test]
fn a_pause_shorter_than_a_second_kills_nobody_and_a_long_one_is_forgiven() {
    let mut world = cluster(12, 10);
    for round in 0..10 {
        let before = (world.count(Change::Suspected), world.seen(round as u64 + 1, Change::Suspected).times);
        world.pause(round);
        world.run(MS(600));
        world.resume(round);
        world.run(MS(1500));
        let after = (world.count(Change::Suspected), world.seen(round as u64 + 1, Change::Suspected).times);
        assert_eq!(after.0 - before.0, after.1 - before.1, "the paused suspects nobody");
    }
    assert_eq!(world.count(Change::Died), 0);
    assert!(world.count(Change::Suspected) > 0 && world.count(Change::Suspected) == world.count(Change::Refuted));
    let wrong = world.wrong_suspicions;
    world.pause(3);
    world.run(Duration::from_secs(30));
    assert_eq!(world.believe(4, State::Dead), 9);
    world.resume(3);
    world.run(Duration::from_secs(2));
    assert_eq!((world.believe(4, State::Alive), world.gossip(3).live()), (9, 9));
    assert_eq!((world.wrong_suspicions, world.wrong_deaths, world.sentences.len()), (wrong, 0, 0), "{:?}", world.sentences);
    assert!(world.gossip(3).counters().pauses > 0 && world.gossip(3).counters().late > 0, "{:?}", world.gossip(3).counters());
}

/// What doubt about oneself is for: a node whose own link is bad accuses fewer others.
#[test]
fn a_node_with_a_bad_link_accuses_fewer_when_it_doubts_itself() {
    let accused = |doubt_max| {
        let timing = Timing { doubt_max, ..Timing::default() };
        let mut world = World::cluster(13, 20, Network::losing(0), timing);
        world.degrade(7, 500_000);
        world.run(Duration::from_secs(60));
        (1..=20).filter(|node| *node != 8).map(|node| world.seen(node, Change::Suspected).times).sum::<u64>()
    };
    let (without, with) = (accused(0), accused(8));
    assert!(without > 50 && with * 2 < without, "suspicions of well nodes: {without} without doubt, {with} with");
}

/// The share of probes that fail by loss alone, as the protocol says: four direct questions, nine through relays.
fn model(lost: f64) -> f64 {
    let arrives = 1.0 - lost;
    (1.0 - arrives.powi(2)).powi(4) * (1.0 - arrives.powi(4)).powi(9)
}

#[test]
fn probes_fail_as_rarely_as_loss_alone_explains() {
    let timing = Timing { doubt_max: 0, ..Timing::default() };
    let mut world = World::cluster(14, 20, Network::losing(0), timing);
    (0..20).for_each(|machine| world.degrade(machine, 133_975));
    // Each datagram passes two such links: a quarter of all is lost.
    let sum = |world: &World, of: fn(&crate::cluster::gossip::Counters) -> u64| -> u64 {
        world.running().map(|machine| of(world.gossip(machine).counters())).sum()
    };
    let before = (sum(&world, |c| c.probes), sum(&world, |c| c.probes_failed));
    world.run(Duration::from_secs(120));
    let probes = sum(&world, |c| c.probes) - before.0;
    let (failed, expected) = (sum(&world, |c| c.probes_failed) - before.1, model(0.25) * probes as f64);
    assert!(
        expected > 20.0 && (failed as f64) < expected * 2.0 && (failed as f64) > expected / 2.0,
        "{failed} of {probes}, expected {expected}"
    );
    assert!(model(0.01) * 36_000.0 < 1e-10, "at 1 % a node makes no wrong suspicion in 10^10 hours");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::cluster(seed, 8, Network::losing(50_000), Timing::default());
        world.kill(2);
        world.run(Duration::from_secs(3));
        (world.trace, world.delivered)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// A stranger started by `change` meets a cluster of two: what each side says, and whether it got in.
fn refused(change: impl Fn(&mut Start)) -> (String, String) {
    let mut world = World::cluster(21, 3, Network::losing(0), Timing::default());
    world.kill(2);
    world.run(Duration::from_secs(5));
    let mut start = Start::new(9);
    change(&mut start);
    world.start(2, &start, &[0]);
    world.run(Duration::from_secs(3));
    assert_eq!((world.gossip(2).live(), world.gossip(0).live(), world.gossip(1).live()), (0, 1, 1), "it does not get in");
    let said = |machine| {
        let first = world.sentences.iter().find(|(at, _)| *at == machine);
        first.map(|(_, said)| said.clone()).unwrap_or_default()
    };
    assert!(world.gossip(0).refusals().any(|(_, count)| count >= 2), "counted each time");
    (said(0), said(2))
}

#[test]
fn a_stranger_is_refused_with_a_sentence_on_both_sides() {
    let clock = refused(|start| start.wall_offset_ms = 3_600_000);
    assert_eq!(clock.0, "refused node 9 at 10.0.0.3:7490: its clock is 3600.0 s ahead of that of this node");
    assert_eq!(clock.1, "refused by node 1 at 10.0.0.1:7490: this node's clock is 3600.0 s ahead of that of the other");
    let key = refused(|start| start.key = b"another");
    assert_eq!(key, ("refused 10.0.0.3:7490: the cluster keys differ".into(), "refused 10.0.0.1:7490: the cluster keys differ".into()));
    let cluster = refused(|start| start.cluster = 0xC2);
    assert!(cluster.0.ends_with("its cluster is 00000000000000c2, that of this node 00000000000000c1"), "{}", cluster.0);
    assert!(cluster.1.starts_with("refused by node 1"), "{}", cluster.1);
    let vnodes = refused(|start| start.vnodes = 1024);
    assert!(vnodes.0.ends_with("its ring has 1024 vnodes, that of this node 4096") && vnodes.1.contains("this node's ring"), "{vnodes:?}");
    let protocol = refused(|start| start.protocol = Versions { min: 2, max: 3 });
    assert!(protocol.0.ends_with("its protocol versions are 2 to 3, those of this node 1") && !protocol.1.is_empty(), "{protocol:?}");
    let format = refused(|start| start.format = Versions { min: 4, max: 4 });
    assert!(format.0.ends_with("its format versions are 4, those of this node 1") && !format.1.is_empty(), "{format:?}");
    let taken = refused(|start| start.node = 2);
    assert_eq!(taken.0, "refused node 2 at 10.0.0.3:7490: its node id is in use at 10.0.0.2:7490");
    assert_eq!(taken.1, "refused by node 1 at 10.0.0.1:7490: this node's node id is in use at 10.0.0.2:7490");
    let elsewhere = refused(|start| start.claims = Some(Address::v4([10, 0, 0, 77], 7490)));
    assert!(
        elsewhere.0.ends_with("said to be 10.0.0.77:7490, but it sends from 10.0.0.3:7490") && !elsewhere.1.is_empty(),
        "{elsewhere:?}"
    );
}

/// As the shards of a machine are told of the first three nodes.
fn version_of_all(world: &World, machine: usize) -> Option<u16> {
    let gossip = world.gossip(machine);
    let list = gossip.members(world.now()).chain([*gossip.me()]).map(Member::from);
    Members::new(gossip.cluster(), gossip.me().node, list).version_of_all(1..=3)
}

#[test]
fn the_version_of_all_rises_when_the_last_has_it() {
    let both = Versions { min: 1, max: 2 };
    let mut world = cluster(22, 3);
    for machine in 0..3 {
        assert_eq!(version_of_all(&world, 0), Some(1));
        world.kill(machine);
        world.run(Duration::from_secs(3));
        let start = Start { protocol: both, format: both, ..Start::new(machine as u64 + 1) };
        world.start(machine, &start, &[(machine + 1) % 3]);
        world.run(Duration::from_secs(3));
    }
    assert!(world.running().all(|machine| version_of_all(&world, machine) == Some(2)));
    assert_eq!(world.wrong_deaths, 0);
}

#[test]
fn what_is_said_when_nodes_join_miss_suspect_refute_die_and_return() {
    let ms = MS;
    let timing =
        Timing { probe: ms(500), gossip: ms(200), lambda: 1, fanout: 2, sync: ms(600_000), reconnect: ms(2000), ..Timing::default() };
    let network = Network { duplicated_ppm: 0, ..Network::losing(0) };
    let mut world = World::new(5, 3, network, timing);
    world.listen();
    for machine in 0..3 {
        world.start(machine, &Start::new(machine as u64 + 1), &[0]);
        world.run(ms(1500));
    }
    world.cut(0, 1);
    world.run(ms(1500));
    assert_eq!(world.count(Change::Suspected), 0, "a relay reaches it");
    world.heal();
    world.run(ms(1000));
    world.pause(1);
    world.run(ms(900));
    world.resume(1);
    world.run(ms(1000));
    world.kill(1);
    world.run(ms(4000));
    world.start(1, &Start::new(2), &[0]);
    world.run(ms(1500));
    assert_eq!(world.believe(2, State::Alive), 2);
    assert!(world.dialogue() == include_str!("gossip_golden.txt"), "it was said:\n{}", world.dialogue());
}
