//! Topologies through joins, leaves, replacements and moves: epochs, refusals, joint replicas, and the same bytes back.

use super::fuzz;
use super::placement::NOBODY;
use super::quorum::Replicas;
use super::topology::{Change, NodeSpec, NodeState, Proposal, Refused, Standing, Topology};
use super::topology_codec::{DecodeError, decode, encode};
use crate::base::checksum::checksum;
use crate::base::prng::Prng;
use crate::limits::{ADDRESS_BYTES_MAX, CLUSTER_VERSION, NODES_MAX};
use std::collections::BTreeSet;

const CLUSTER: u64 = 0xC0FFEE;
const VNODES: u32 = 256;

fn spec(id: u64) -> NodeSpec {
    let (native, gossip) = (format!("10.0.0.{id}:7400"), format!("10.0.0.{id}:7490"));
    NodeSpec { id, native, gossip, cores: 4, weight: 4, rack: String::new() }
}

fn founded(nodes: u64) -> Topology {
    Topology::found(CLUSTER, VNODES, (1..=nodes).rev().map(spec).collect()).expect("a sound cluster")
}

fn proposal(topology: &Topology, change: Change) -> Proposal {
    Proposal { cluster: CLUSTER, vnodes: VNODES, epoch: topology.epoch(), change }
}

fn apply(topology: &Topology, change: Change) -> Result<Topology, Refused> {
    topology.apply(&proposal(topology, change))
}

fn done(topology: &Topology, vnodes: Vec<u32>) -> Topology {
    apply(topology, Change::MoveDone { vnodes }).expect("they move")
}

fn settled(topology: &Topology) -> Topology {
    match topology.moving().len() {
        0 => topology.clone(),
        _ => done(topology, topology.moving().collect()),
    }
}

/// Who will own a vnode, by id.
fn heading(topology: &Topology, vnode: u32) -> Vec<u64> {
    topology.destination(vnode).iter().map(|index| topology.nodes()[usize::from(*index)].spec.id).collect()
}

fn ids(topology: &Topology) -> Vec<u64> {
    topology.nodes().iter().map(|node| node.spec.id).collect()
}

fn random_change(prng: &mut Prng, topology: &Topology, next_id: &mut u64) -> Change {
    let some = topology.nodes()[prng.below(topology.nodes().len() as u64) as usize].spec.id;
    *next_id += 1;
    let new = NodeSpec { cores: 1 + prng.below(8) as u16, weight: 1 + prng.below(8) as u32, ..spec(*next_id) };
    match prng.below(if topology.nodes().len() < 4 { 2 } else { 5 }) {
        0 | 1 => Change::Join(NodeSpec { rack: format!("r{}", prng.below(3)), ..new }),
        2 => Change::Leave { node: some },
        3 => Change::Replace { dead: some, new },
        _ => Change::Weight { node: some, weight: prng.below(9) as u32 },
    }
}

#[test]
fn the_first_topology_moves_nothing_and_does_not_depend_on_the_order_of_the_list() {
    let topology = founded(5);
    assert_eq!(topology, Topology::found(CLUSTER, VNODES, (1..=5).map(spec).collect()).unwrap());
    assert_eq!((topology.cluster(), topology.epoch(), topology.vnodes(), topology.moving().len()), (CLUSTER, 1, VNODES, 0));
    assert_eq!(ids(&topology), [1, 2, 3, 4, 5]);
    for vnode in 0..VNODES {
        assert_eq!((topology.replicas(vnode, 3).owners.len(), topology.replicas(vnode, 9).owners.len()), (3, 5));
    }
    assert!(Topology::found(CLUSTER, 100, vec![spec(1)]).is_err());
    assert_eq!(Topology::found(CLUSTER, 64, vec![]), Err(Refused::NobodyLeft));
    assert_eq!(Topology::found(CLUSTER, 64, vec![spec(1), spec(1)]), Err(Refused::NodeIdTaken { id: 1 }));
}

#[test]
fn a_join_is_joint_until_each_vnode_has_moved_and_then_the_node_is_a_member() {
    let before = founded(3);
    let pending = apply(&before, Change::Join(spec(4))).unwrap();
    assert_eq!((pending.epoch(), pending.nodes()[3].state), (2, NodeState::Joining));
    let vnode = pending.moving().find(|vnode| pending.replicas(*vnode, 3).pending.is_some()).unwrap();
    let joint = pending.replicas(vnode, 3);
    assert_eq!(joint.owners, before.replicas(vnode, 3).owners);
    assert!(joint.pending.unwrap().contains(&3) && joint.everybody().count() == 4);
    // M1: who knows only the old epoch is refused on this vnode, until it has moved and after.
    assert_eq!([1, 2, 3].map(|epoch| pending.standing(vnode, epoch)), [Standing::Stale, Standing::Knows, Standing::Ahead]);

    let flipped = done(&pending, vec![vnode]);
    assert_eq!(flipped.replicas(vnode, 3), Replicas { owners: joint.pending.unwrap(), pending: None });
    assert_eq!([2, 3].map(|epoch| flipped.standing(vnode, epoch)), [Standing::Stale, Standing::Knows]);
    let other = flipped.moving().next().unwrap();
    assert_eq!([1, 2].map(|epoch| flipped.standing(other, epoch)), [Standing::Stale, Standing::Knows], "a flip is the vnode's own affair");

    let after = settled(&flipped);
    assert_eq!((after.epoch(), after.nodes()[3].state, after.moving().len()), (4, NodeState::Member, 0));
    assert!((0..VNODES).all(|vnode| heading(&after, vnode) == heading(&pending, vnode)));
}

#[test]
fn a_move_that_changes_nobody_among_the_first_is_not_joint_for_them() {
    let pending = apply(&founded(3), Change::Join(spec(4))).unwrap();
    for vnode in pending.moving() {
        for rf in 1..=4 {
            let Replicas { owners, pending: new } = pending.replicas(vnode, rf);
            let is_other = |new: &[u16]| new.iter().collect::<BTreeSet<&u16>>() != owners.iter().collect();
            assert!(new.is_none_or(is_other));
        }
    }
}

#[test]
fn who_leaves_owns_until_the_last_vnode_has_moved_and_is_then_gone() {
    let pending = apply(&founded(4), Change::Leave { node: 2 }).unwrap();
    assert_eq!(pending.nodes()[1].state, NodeState::Leaving);
    let last = pending.moving().last().unwrap();
    let nearly = done(&pending, pending.moving().filter(|vnode| *vnode != last).collect());
    assert_eq!(ids(&nearly), [1, 2, 3, 4]);
    let after = done(&nearly, vec![last]);
    assert_eq!((ids(&after), after.index_of(2)), (vec![1, 3, 4], None));
    assert!((0..VNODES).all(|vnode| heading(&after, vnode).len() == 3 && !heading(&after, vnode).contains(&2)));
}

#[test]
fn a_replacement_takes_exactly_what_the_dead_node_owned() {
    let before = founded(6);
    let new = NodeSpec { id: 9, ..spec(3) };
    let after = settled(&apply(&before, Change::Replace { dead: 3, new }).unwrap());
    assert_eq!((ids(&after), after.nodes()[5].token_id), (vec![1, 2, 4, 5, 6, 9], 3));
    for vnode in 0..VNODES {
        let renamed: Vec<u64> = heading(&before, vnode).iter().map(|id| if *id == 3 { 9 } else { *id }).collect();
        assert_eq!(heading(&after, vnode), renamed);
    }
}

#[test]
fn a_weight_of_nothing_drains_a_node_and_it_stays() {
    let before = founded(4);
    let after = settled(&apply(&before, Change::Weight { node: 4, weight: 0 }).unwrap());
    assert_eq!(ids(&after), [1, 2, 3, 4]);
    assert!((0..VNODES).all(|vnode| !heading(&after, vnode).contains(&4)));
    let again = apply(&after, Change::Leave { node: 4 }).unwrap();
    assert_eq!((ids(&again), again.epoch()), (vec![1, 2, 3], after.epoch() + 1), "who has nothing goes at once");
}

#[test]
fn a_cancelled_change_leaves_what_has_not_moved() {
    let before = founded(4);
    let pending = apply(&before, Change::Join(spec(5))).unwrap();
    let cancelled = apply(&pending, Change::Cancel).unwrap();
    assert_eq!((ids(&cancelled), cancelled.epoch()), (vec![1, 2, 3, 4], 3));
    assert!((0..VNODES).all(|vnode| heading(&cancelled, vnode) == heading(&before, vnode)));

    let moved = pending.moving().next().unwrap();
    let half = apply(&done(&pending, vec![moved]), Change::Cancel).unwrap();
    assert_eq!((ids(&half), half.nodes()[4].state), (vec![1, 2, 3, 4, 5], NodeState::Member));
    assert!((0..VNODES).all(|vnode| heading(&half, vnode) == heading(if vnode == moved { &pending } else { &before }, vnode)));
    // Where the move was pending, coordinators of its epoch write to the wrong replicas too.
    let other = pending.moving().nth(1).unwrap();
    assert_eq!(half.standing(other, pending.epoch()), Standing::Stale);

    let stays = apply(&apply(&before, Change::Leave { node: 1 }).unwrap(), Change::Cancel).unwrap();
    assert_eq!((stays.nodes()[0].state, stays.moving().len()), (NodeState::Member, 0));
}

#[test]
fn every_refusal_is_typed_and_said_in_a_sentence() {
    let topology = founded(3);
    let pending = apply(&topology, Change::Join(spec(4))).unwrap();
    let still = (0..VNODES).find(|vnode| pending.moving().all(|moving| moving != *vnode));
    let of = |cluster, vnodes, epoch| topology.apply(&Proposal { cluster, vnodes, epoch, change: Change::Cancel });
    let join = |spec| apply(&topology, Change::Join(spec));
    let address = "10.0.0.2:7490".to_owned();
    let long = "x".repeat(ADDRESS_BYTES_MAX + 1);
    let first = pending.moving().next().unwrap();
    let mut cases = vec![
        (of(7, VNODES, 1), Refused::Cluster { ours: CLUSTER, theirs: 7 }),
        (of(CLUSTER, 512, 1), Refused::Vnodes { ours: VNODES, theirs: 512 }),
        (of(CLUSTER, VNODES, 0), Refused::Epoch { ours: 1, theirs: 0 }),
        (of(CLUSTER, VNODES, 2), Refused::Epoch { ours: 1, theirs: 2 }),
        (of(CLUSTER, VNODES, 1), Refused::NothingPending),
        (join(spec(2)), Refused::NodeIdTaken { id: 2 }),
        (join(NodeSpec { gossip: address.clone(), ..spec(4) }), Refused::AddressTaken { address }),
        (join(NodeSpec { cores: 0, ..spec(4) }), Refused::Node { why: "a node has 1 to 256 cores" }),
        (join(NodeSpec { weight: 65_537, ..spec(4) }), Refused::Node { why: "a node's weight is at most 65536" }),
        (join(NodeSpec { rack: "r".repeat(65), ..spec(4) }), Refused::Node { why: "the name of a rack has at most 31 bytes" }),
        (join(NodeSpec { native: long, ..spec(4) }), Refused::Node { why: "an address has 1 to 261 bytes" }),
        (apply(&topology, Change::Leave { node: 8 }), Refused::UnknownNode { id: 8 }),
        (apply(&topology, Change::Weight { node: 8, weight: 1 }), Refused::UnknownNode { id: 8 }),
        (apply(&topology, Change::Replace { dead: 8, new: spec(4) }), Refused::UnknownNode { id: 8 }),
        (apply(&topology, Change::MoveDone { vnodes: vec![1] }), Refused::NotMoving { vnode: 1 }),
        (apply(&pending, Change::MoveDone { vnodes: vec![first, first] }), Refused::NotMoving { vnode: first }),
        (apply(&pending, Change::Leave { node: 1 }), Refused::MovePending { vnodes: pending.moving().len() }),
        (apply(&topology, Change::Raise { version: 1 }), Refused::Version { ours: 1, asked: 1 }),
        (apply(&topology, Change::Raise { version: CLUSTER_VERSION + 1 }), Refused::Version { ours: 1, asked: CLUSTER_VERSION + 1 }),
        (apply(&topology.founded().unwrap(), Change::Found), Refused::Founded),
        (apply(&founded(1), Change::Leave { node: 1 }), Refused::NobodyLeft),
        (apply(&founded(1), Change::Weight { node: 1, weight: 0 }), Refused::NobodyLeft),
    ];
    cases.extend(still.map(|vnode| (apply(&pending, Change::MoveDone { vnodes: vec![first, vnode] }), Refused::NotMoving { vnode })));
    for (result, refused) in cases {
        assert_eq!(result, Err(refused.clone()));
        assert!(!refused.to_string().is_empty());
    }
    let many = (1..=NODES_MAX as u64).map(|id| NodeSpec { native: format!("n{id}:1"), gossip: format!("n{id}:2"), ..spec(id) }).collect();
    let full = Topology::found(CLUSTER, VNODES, many).unwrap();
    assert_eq!(apply(&full, Change::Join(spec(5000))), Err(Refused::TooManyNodes));
}

#[test]
fn whoever_forgot_what_it_had_is_known_by_what_it_knows() {
    let list = founded(3);
    let founded = list.founded().unwrap();
    assert_eq!((list.is_founded(), founded.is_founded(), founded.epoch()), (false, true, 2));
    assert_eq!(Topology { epoch: 1, ..founded.clone() }, list);
    let early = apply(&list, Change::Join(spec(4))).unwrap();
    let other = Topology::found(CLUSTER, 2 * VNODES, (1..=3).map(spec).collect()).unwrap().founded().unwrap();
    assert!(list.may_precede(&founded) && !list.may_precede(&early) && !list.may_precede(&other) && !list.may_precede(&list));
    let joining = apply(&founded, Change::Join(spec(4))).unwrap();
    assert!(founded.may_precede(&joining) && !founded.may_precede(&founded) && !list.may_precede(&joining));
    let joined = settled(&joining);
    let unknown = Topology::unknown(CLUSTER, VNODES);
    for (before, newer, me, said_yes, forgotten) in [
        (&list, &founded, 1, true, false),
        (&list, &founded, 1, false, true),
        // However long it was away.
        (&list, &joined, 2, true, false),
        (&list, &joined, 2, false, true),
        (&founded, &joined, 2, false, false),
        // Who joins has to have been there when vnodes began to come.
        (&founded, &joining, 4, false, false),
        (&joining, &joined, 4, false, false),
        (&founded, &joined, 4, false, true),
        (&list, &joined, 4, false, true),
        (&unknown, &joined, 4, false, true),
        (&unknown, &joining, 4, false, false),
        (&unknown, &joined, 5, false, false),
        (&unknown, &list, 5, false, false),
    ] {
        let why = format!("{me} from epoch {} to {}, said yes: {said_yes}", before.epoch(), newer.epoch());
        assert_eq!(before.has_forgotten(newer, me, said_yes), forgotten, "{why}");
    }
}

#[cfg(feature = "next-version")]
#[test]
fn the_version_rises_while_vnodes_move_and_nothing_else_changes() {
    let pending = apply(&founded(3), Change::Join(spec(4))).unwrap();
    let raised = apply(&pending, Change::Raise { version: 2 }).unwrap();
    assert_eq!(Topology { version: 1, epoch: pending.epoch(), ..raised.clone() }, pending);
    let vnode = pending.moving().next().unwrap();
    assert_eq!(raised.standing(vnode, pending.epoch()), Standing::Knows, "nobody's owners have changed");
    let mut bytes = Vec::new();
    super::topology_codec::encode(&raised, &mut bytes);
    assert_eq!(super::topology_codec::decode(&bytes), Ok(raised));
}

#[test]
fn moves_done_in_any_order_end_where_the_plan_said() {
    let mut prng = Prng::new(0x707);
    for round in 0..30 {
        let (mut topology, mut next_id) = (founded(1 + prng.below(7)), 100);
        for _ in 0..6 {
            let change = random_change(&mut prng, &topology, &mut next_id);
            let plan = topology.plan(&proposal(&topology, change.clone()), 3);
            let pending = match apply(&topology, change.clone()) {
                Ok(pending) => pending,
                Err(refused) => {
                    assert_eq!((plan, &refused), (Err(refused.clone()), &Refused::NobodyLeft), "round {round}: {change:?}");
                    continue;
                }
            };
            let planned: Vec<Vec<u64>> = (0..VNODES).map(|vnode| heading(&pending, vnode)).collect();
            let mut at = pending;
            while at.moving().len() > 0 {
                let some: Vec<u32> = at.moving().filter(|_| prng.one_in(3)).collect();
                let epoch = at.epoch();
                at = if some.is_empty() { settled(&at) } else { done(&at, some) };
                assert_eq!(at.epoch(), epoch + 1);
            }
            assert!((0..VNODES).all(|vnode| heading(&at, vnode) == planned[vnode as usize]), "round {round}: {change:?}");
            let held = |id: u64| (0..VNODES).filter(|vnode| heading(&at, *vnode).iter().take(3).any(|owner| *owner == id)).count();
            let plan = plan.unwrap();
            assert!(plan.nodes.iter().all(|node| node.after as usize == held(node.id)));
            assert!(plan.nodes.iter().all(|node| node.before + node.incoming == node.after + node.outgoing));
            assert_eq!(plan.moved, plan.nodes.iter().map(|node| node.incoming).sum::<u32>());
            assert_eq!(plan.whole, plan.nodes.iter().map(|node| node.after).sum::<u32>());
            topology = at;
        }
    }
}

#[test]
fn a_plan_names_what_comes_and_goes() {
    let topology = founded(4);
    let plan = topology.plan(&proposal(&topology, Change::Join(spec(5))), 3).unwrap();
    assert_eq!((plan.epoch, plan.whole, plan.nodes.len()), (2, 3 * VNODES, 5));
    let joiner = plan.nodes[4];
    assert_eq!((joiner.id, joiner.before, joiner.outgoing), (5, 0, 0));
    // A fifth of 768 is 153.6.
    assert!((152..=155).contains(&joiner.incoming) && plan.moved <= 155 && joiner.after == joiner.incoming, "{plan:?}");
}

fn some_topologies() -> Vec<Topology> {
    let mut prng = Prng::new(0xC0DEC);
    let mut found = vec![founded(1), founded(3)];
    let mut next_id = 100;
    for _ in 0..20 {
        let topology = settled(found.last().unwrap());
        let change = random_change(&mut prng, &topology, &mut next_id);
        let Ok(pending) = apply(&topology, change) else { continue };
        let half: Vec<u32> = pending.moving().filter(|_| prng.one_in(2)).collect();
        found.push(pending.clone());
        if !half.is_empty() {
            found.push(done(&pending, half));
        }
    }
    found
}

#[test]
fn topologies_survive_their_bytes() {
    for topology in some_topologies() {
        let mut bytes = Vec::new();
        encode(&topology, &mut bytes);
        assert_eq!(decode(&bytes), Ok(topology));
        fuzz::topology(&bytes);
    }
}

#[test]
fn damaged_bytes_are_refused_and_never_panic() {
    let mut prng = Prng::new(0xDA);
    let mut bytes = Vec::new();
    encode(&some_topologies()[4], &mut bytes);
    for cut in [0, 7, 8, 20, bytes.len() - 1] {
        assert!(decode(&bytes[..cut]).is_err());
    }
    for _ in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + prng.below(3) {
            let at = prng.below(damaged.len() as u64) as usize;
            damaged[at] ^= 1 << prng.below(8);
        }
        assert!(damaged == bytes || decode(&damaged).is_err());
        fuzz::topology(&damaged);
    }
    let mut newer = bytes.clone();
    newer[4] = 2;
    assert_eq!(decode(&newer), Err(DecodeError::Version(CLUSTER_VERSION + 1)));
}

#[test]
fn what_a_checksum_cannot_tell_is_refused_too() {
    let sound = founded(3);
    let refused = |harm: &dyn Fn(&mut Topology)| {
        let (mut harmed, mut bytes) = (sound.clone(), Vec::new());
        harm(&mut harmed);
        encode(&harmed, &mut bytes);
        matches!(decode(&bytes), Err(DecodeError::Malformed(_)))
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|topology| topology.owners[7][0] = 3), "a node that is not there");
    assert!(refused(&|topology| topology.owners[7][1] = topology.owners[7][0]), "an owner twice");
    assert!(refused(&|topology| topology.owners[7] = [NOBODY; 5]), "no owner");
    assert!(refused(&|topology| topology.nodes[1].spec.id = 1), "an id twice");
    assert!(refused(&|topology| topology.nodes[1].state = NodeState::Leaving), "a leaver without moves");
    assert!(refused(&|topology| topology.nodes[1].spec.cores = 0), "no core");
    assert!(refused(&|topology| topology.since[3] = 0), "before the first epoch");
    assert!(refused(&|topology| topology.pending = vec![(VNODES, topology.owners[0])]), "a vnode that is not there");
    assert!(refused(&|topology| topology.pending = vec![(3, topology.owners[0]), (3, topology.owners[0])]), "a move twice");
}

#[test]
fn the_bytes_are_frozen() {
    let mut bytes = Vec::new();
    encode(&apply(&founded(3), Change::Join(spec(4))).unwrap(), &mut bytes);
    assert_eq!(bytes[..22], *b"RKTP\x01\0\xEE\xFF\xC0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
    assert_eq!((bytes.len(), checksum(&bytes)), (3043, 678658395650156145));
}

#[test]
fn the_largest_topology_is_small_enough_to_tell() {
    let spec = |id: u64| NodeSpec {
        native: format!("node-{id:04}.example.net:7400"),
        gossip: format!("node-{id:04}.example.net:7490"),
        rack: format!("rack-{}", id % 40),
        ..spec(id)
    };
    let topology = Topology::found(CLUSTER, 16_384, (1..=1000).map(spec).collect()).unwrap();
    let mut bytes = Vec::new();
    encode(&topology, &mut bytes);
    assert!(bytes.len() < 320 * 1024, "{}", bytes.len());
    assert_eq!(decode(&bytes), Ok(topology));
}
