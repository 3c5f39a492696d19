//! Taking over a vnode (rule M2 of PROTOCOL.md): what a pending owner that does not hold the vnode yet has to do before it may own it. For
//! the namespaces of each replication factor apart, since it may own it already for some (`Part`); the vnode flips when all are over.
//!
//! | stage | what it means |
//! | --- | --- |
//! | void | what this node may still hold of the vnode from an earlier time is to be made void, durably |
//! | closed | it is; nothing is taken or shown yet, since an old owner may have forgotten what would be older |
//! | open | a majority of the old owners, each of which knows that the vnode moves, told its fence and floor: writes are taken |
//! | joined | with each of them everything was compared, and copied, in every namespace in which it had anything |
//! | over | the higher of their marks is durable here: the vnode may flip |
//!
//! From `open` on a put, hint or write-back at or below the highest fence that was told is refused, since the old owners refuse it too and
//! may have forgotten a delete above it; copies of the old owners are taken, since this node must hold what they hold. The marks come last
//! (`MarksOf` are inherited when all is joined), for behind them old copies would be refused.
//!
//! Progress is not kept over a restart but for the void: everything that was copied is still here, so to do it again is cheap.

use super::coordinator::Planted;
use super::forget::{self, Marks};
use super::quorum::majority;
use super::topology::{NodeState, Topology};
use crate::base::record::NamespaceId;
pub use crate::wire::peer_moves::{MarksIn, MarksOf, Move, Part};
use std::collections::{BTreeMap, BTreeSet};

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Void,
    Closed,
    Open,
    Joined,
    Over,
}

/// One part's.
#[derive(Clone, Debug)]
pub struct TakeOver {
    part: Part,
    old: Vec<u64>,
    /// How many old owners make a majority.
    need: usize,
    stage: Stage,
    /// What those old owners told that know the move.
    told: BTreeMap<u64, BTreeMap<NamespaceId, Marks>>,
    /// What was compared to its end since, with whom.
    joined: BTreeSet<(u64, NamespaceId)>,
    /// What was tried and came to nothing since the last that did not: its turn comes behind all others'.
    failed: BTreeSet<(u64, NamespaceId)>,
    /// How often anything was.
    failures: u32,
    planted: Option<forget::Planted>,
}

impl TakeOver {
    /// Of a part of which `old` are the owners. `is_void`: what was held before it moved is void already.
    pub fn new(part: Part, old: Vec<u64>, is_void: bool, planted: Option<Planted>) -> TakeOver {
        let need = if planted == Some(Planted::FlipAfterOneSource) { 1 } else { majority(old.len()) };
        let stage = if is_void { Stage::Closed } else { Stage::Void };
        let (told, joined, failed, planted) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new(), forget::Planted::of(planted));
        TakeOver { part, old, need, stage, told, joined, failed, failures: 0, planted }
    }

    pub fn part(&self) -> Part {
        self.part
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether cells of the vnode are taken, and answers given.
    pub fn is_open(&self) -> bool {
        self.stage >= Stage::Open
    }

    /// What was held is void.
    pub fn voided(&mut self) {
        self.stage = self.stage.max(Stage::Closed);
    }

    /// The old owners that have yet to tell their marks.
    pub fn silent(&self) -> impl Iterator<Item = u64> + '_ {
        self.old.iter().copied().filter(|node| !self.told.contains_key(node))
    }

    /// An old owner that knows the move told its marks.
    pub fn told(&mut self, node: u64, marks: &MarksOf) {
        if marks.part != self.part || !self.old.contains(&node) || self.stage == Stage::Void {
            return;
        }
        let told = marks.namespaces.iter().map(|&MarksIn { namespace, fence, floor, .. }| (namespace, Marks { fence, floor }));
        self.told.insert(node, told.collect());
        // It knows of the move: what it takes from now on, coordinators send here, too.
        let empty = marks.namespaces.iter().filter(|marks| marks.is_empty).map(|marks| (node, marks.namespace));
        self.joined.extend(empty);
        if self.stage == Stage::Closed && self.told.len() >= self.need {
            self.stage = Stage::Open;
        }
        self.look_whether_joined();
    }

    /// Its only owner has been replaced and is gone, maybe in the middle of a comparison: whoever had it replaced gave up what it held.
    pub fn given_up(&mut self) {
        if matches!(self.stage, Stage::Closed | Stage::Open) {
            self.stage = Stage::Joined;
        }
    }

    /// The highest marks that were told, of a namespace: what a put, hint or write-back is judged by.
    pub fn marks(&self, namespace: NamespaceId) -> Marks {
        Marks::default().inherit(self.told.values().filter_map(|told| told.get(&namespace).copied()), self.planted)
    }

    /// All namespaces that an old owner told of.
    pub fn namespaces(&self) -> BTreeSet<NamespaceId> {
        self.told.values().flat_map(|told| told.keys().copied()).collect()
    }

    /// With whom what is to be compared next; nobody before it is open. Whoever is not `is_there` comes later.
    pub fn next(&self, is_there: impl Fn(u64) -> bool) -> Option<(u64, NamespaceId)> {
        if self.stage != Stage::Open {
            return None;
        }
        let pairs = self.told.iter().flat_map(|(node, told)| told.keys().map(|namespace| (*node, *namespace)));
        let due: Vec<(u64, NamespaceId)> = pairs.filter(|pair| !self.joined.contains(pair) && is_there(pair.0)).collect();
        due.iter().find(|pair| !self.failed.contains(pair)).or(due.first()).copied()
    }

    /// A comparison was cut off, or what it gave was refused here. Where every one has been, all are tried again.
    pub fn failed(&mut self, node: u64, namespace: NamespaceId) {
        self.failures += 1;
        if !self.failed.insert((node, namespace)) {
            self.failed = BTreeSet::from([(node, namespace)]);
        }
    }

    /// A core takes over first what has given the least trouble.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Everything of a namespace was compared with an old owner, from the first token to the last, and nothing that it gave was refused.
    pub fn joined(&mut self, node: u64, namespace: NamespaceId) {
        self.joined.insert((node, namespace));
        self.look_whether_joined();
    }

    fn look_whether_joined(&mut self) {
        let is_whole = |(node, told): (&u64, &BTreeMap<NamespaceId, Marks>)| told.keys().all(|key| self.joined.contains(&(*node, *key)));
        let whole = self.told.iter().filter(|told| is_whole(*told)).count();
        if self.stage == Stage::Open && whole >= self.need {
            self.stage = Stage::Joined;
        }
    }

    /// The marks of all namespaces are durable here.
    pub fn inherited(&mut self) {
        assert!(self.stage >= Stage::Joined, "marks are inherited when all is joined");
        self.stage = Stage::Over;
    }
}

/// What `me` has to take over, and the old owners of each part.
pub fn of_node(topology: &Topology, me: u64) -> Vec<(Part, Vec<u64>)> {
    let id = |index: &u16| topology.nodes()[usize::from(*index)].spec.id;
    let mut parts = Vec::new();
    for of in moves(topology) {
        for rf in topology.factors().filter(|rf| takers(topology, of.vnode, *rf).contains(&me)) {
            let old = topology.replicas(of.vnode, rf).owners.iter().map(id).collect();
            parts.push((Part { of, rf: rf as u8 }, old));
        }
    }
    parts
}

/// What moves.
pub fn moves(topology: &Topology) -> impl Iterator<Item = Move> + '_ {
    topology.moving().map(|vnode| Move { vnode, since: topology.epoch_of(vnode) })
}

/// The only owner of a part has been replaced, and is gone: nobody can bring what it held any more.
pub fn is_given_up(topology: &Topology, part: Part, is_gone: impl Fn(u64) -> bool) -> bool {
    let nodes = topology.nodes();
    let is_lost = |index: &u16| {
        let old = &nodes[usize::from(*index)];
        let is_replaced = nodes.iter().any(|node| node.token_id == old.token_id && node.spec.id != old.spec.id);
        old.state == NodeState::Leaving && is_replaced && is_gone(old.spec.id)
    };
    part.rf == 1 && topology.replicas(part.of.vnode, 1).owners.iter().all(is_lost)
}

/// Who takes anything of a vnode over.
pub fn all_takers(topology: &Topology, vnode: u32) -> BTreeSet<u64> {
    topology.factors().flat_map(|rf| takers(topology, vnode, rf)).collect()
}

/// Who takes a vnode over for namespaces with `rf` replicas: its pending owners that do not own it.
pub fn takers(topology: &Topology, vnode: u32, rf: usize) -> Vec<u64> {
    let replicas = topology.replicas(vnode, rf);
    let new = replicas.pending.unwrap_or_default().iter().filter(|index| !replicas.owners.contains(index));
    new.map(|index| topology.nodes()[usize::from(*index)].spec.id).collect()
}

/// Who sees to it that what has been taken over flips: of the members that are there the first one.
pub fn steward(topology: &Topology, is_there: impl Fn(u64) -> bool) -> Option<u64> {
    topology.members().map(|node| node.spec.id).filter(|node| is_there(*node)).min()
}

/// The vnodes that may flip: whoever takes a part of one over has said so. What nobody has to take over may, too.
pub fn ready(topology: &Topology, taken: &BTreeMap<u64, BTreeSet<Part>>) -> Vec<Move> {
    let has = |node: &u64, part: Part| taken.get(node).is_some_and(|parts| parts.contains(&part));
    let is_over = |of: Move, rf: usize| takers(topology, of.vnode, rf).iter().all(|node| has(node, Part { of, rf: rf as u8 }));
    moves(topology).filter(|of| topology.factors().all(|rf| is_over(*of, rf))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::topology::{Change, NodeSpec, Proposal};
    use super::*;
    use crate::base::record::Version;

    fn spec(id: u64) -> NodeSpec {
        let address = |port| format!("10.0.0.{id}:{port}");
        NodeSpec { id, native: address(7400), gossip: address(7490), cores: 1, weight: 1, rack: String::new() }
    }

    fn change(topology: &Topology, change: Change) -> Topology {
        topology.apply(&Proposal { cluster: 1, vnodes: 16, epoch: topology.epoch(), change }).unwrap()
    }

    const PART: Part = Part { of: Move { vnode: 3, since: 5 }, rf: 3 };

    fn version(clock: u64) -> Version {
        Version::put(clock << 16, 0)
    }

    fn both(fence: u64, floor: u64) -> Marks {
        Marks { fence: version(fence), floor: version(floor) }
    }

    fn marks(namespaces: &[(NamespaceId, u64, u64)]) -> MarksOf {
        let namespaces = namespaces.iter().map(|&(namespace, fence, floor)| {
            let (fence, floor) = (version(fence), version(floor));
            MarksIn { namespace, fence, floor, is_empty: false }
        });
        MarksOf { part: PART, namespaces: namespaces.collect() }
    }

    #[test]
    fn a_majority_tells_and_is_joined_in_every_namespace_before_it_is_over() {
        let mut take = TakeOver::new(PART, vec![1, 2, 3], false, None);
        take.told(1, &marks(&[(1, 9, 4)]));
        assert_eq!((take.stage(), take.silent().count()), (Stage::Void, 3), "what comes before the void counts for nothing");
        take.voided();
        take.told(1, &marks(&[(1, 9, 4)]));
        take.told(7, &marks(&[]));
        take.told(2, &MarksOf { part: Part { rf: 5, ..PART }, namespaces: Vec::new() });
        assert_eq!((take.stage(), take.is_open(), take.next(|_| true)), (Stage::Closed, false, None), "one, a stranger, another part");
        take.told(2, &marks(&[(1, 8, 6), (2, 3, 0)]));
        assert!(take.is_open());
        assert_eq!((take.marks(1), take.marks(2)), (both(9, 6), both(3, 0)));
        assert_eq!((take.next(|_| true), take.next(|node| node == 2)), (Some((1, 1)), Some((2, 1))));
        take.joined(1, 1);
        take.joined(2, 1);
        assert_eq!((take.stage(), take.next(|_| true)), (Stage::Open, Some((2, 2))));
        take.joined(2, 2);
        assert_eq!((take.stage(), take.next(|_| true)), (Stage::Joined, None));
        assert_eq!(take.namespaces().into_iter().collect::<Vec<_>>(), [1, 2]);
        take.inherited();
        assert_eq!((take.stage(), take.is_open()), (Stage::Over, true));
    }

    #[test]
    fn with_whom_there_is_nothing_to_compare_nothing_is() {
        let empty = |namespaces: &[(NamespaceId, bool)]| {
            let marks = |&(namespace, is_empty)| MarksIn { namespace, fence: version(4), floor: version(2), is_empty };
            MarksOf { part: PART, namespaces: namespaces.iter().map(marks).collect() }
        };
        let mut take = TakeOver::new(PART, vec![1, 2, 3], true, None);
        take.told(1, &empty(&[(1, true), (2, true)]));
        assert_eq!(take.stage(), Stage::Closed, "one is no majority");
        take.told(2, &empty(&[(1, true), (2, false)]));
        assert_eq!((take.stage(), take.next(|_| true)), (Stage::Open, Some((2, 2))));
        take.told(3, &empty(&[]));
        assert_eq!((take.stage(), take.marks(1)), (Stage::Joined, both(4, 2)), "the third had nothing in any");
    }

    #[test]
    fn an_old_owner_that_is_away_is_not_waited_for() {
        let mut take = TakeOver::new(PART, vec![1, 2, 3], true, None);
        [1, 2, 3].into_iter().for_each(|node| take.told(node, &marks(&[(1, 0, 0)])));
        for _ in 0..2 {
            let (node, namespace) = take.next(|node| node != 2).unwrap();
            take.joined(node, namespace);
        }
        assert_eq!(take.stage(), Stage::Joined);
    }

    #[test]
    fn one_that_cannot_be_compared_with_holds_nobody_up() {
        let mut take = TakeOver::new(PART, vec![1, 2, 3], true, None);
        [1, 2, 3].into_iter().for_each(|node| take.told(node, &marks(&[(1, 0, 0)])));
        for expected in [1, 2, 3, 1] {
            let (node, namespace) = take.next(|_| true).unwrap();
            assert_eq!(node, expected);
            take.failed(node, namespace);
        }
        take.joined(2, 1);
        assert_eq!(take.next(|_| true), Some((3, 1)), "it failed least lately");
        take.joined(3, 1);
        assert_eq!((take.stage(), take.failures()), (Stage::Joined, 4));
    }

    #[test]
    fn what_nobody_has_to_take_over_flips_at_once_and_the_rest_when_all_have() {
        let founded = Topology::found(1, 16, (1..=3).map(spec).collect()).unwrap();
        let joining = change(&founded, Change::Join(spec(4)));
        let of_four = of_node(&joining, 4);
        assert!(of_four.len() >= 8 && of_four.iter().all(|(part, old)| (part.of.since, part.rf, old.len()) == (2, 3, 3)));
        assert!(of_node(&joining, 1).is_empty(), "it has everything");
        let mut taken = BTreeMap::new();
        let free = ready(&joining, &taken).len();
        assert_eq!(free + of_four.len(), joining.moving().len());
        taken.insert(4, of_four[..2].iter().map(|(part, _)| *part).collect::<BTreeSet<Part>>());
        assert_eq!(ready(&joining, &taken).len(), free + 2);
        let stale: BTreeSet<Part> = of_four.iter().map(|(part, _)| Part { of: Move { since: 1, ..part.of }, ..*part }).collect();
        assert_eq!(ready(&joining, &BTreeMap::from([(4, stale)])).len(), free, "of an earlier move");
        assert_eq!((steward(&joining, |_| true), steward(&joining, |node| node > 1)), (Some(1), Some(2)));
        assert_eq!(steward(&joining, |node| node == 4), None, "who joins is no member yet");
    }

    #[test]
    fn a_vnode_flips_when_it_is_taken_over_for_every_replication_factor() {
        let founded = change(&Topology::found(1, 16, (1..=4).map(spec).collect()).unwrap(), Change::Found);
        let three = change(&change(&founded, Change::Factor { rf: 1 }), Change::Factor { rf: 5 });
        let joining = change(&three, Change::Join(spec(5)));
        let parts: BTreeMap<u64, BTreeSet<Part>> =
            (1..=5).map(|node| (node, of_node(&joining, node).into_iter().map(|(part, _)| part).collect())).collect();
        let of_rf = |node: u64, rf: u8| parts[&node].iter().filter(|part| part.rf == rf).count();
        assert_eq!((of_rf(5, 5), of_rf(1, 5)), (16, 0), "all five have all of it");
        assert!(of_rf(5, 3) < 16 && of_rf(5, 1) < of_rf(5, 3) && of_rf(5, 1) > 0);
        let heavier = change(&three, Change::Weight { node: 1, weight: 6 });
        let alone = of_node(&heavier, 1);
        assert!(
            !alone.is_empty() && alone.iter().all(|(part, _)| part.rf < 5),
            "another first one among those that have it is a move where one has it alone"
        );
        assert_eq!(ready(&joining, &parts).len(), joining.moving().len());
        let without = |rf: u8| {
            let left = parts.iter().map(|(node, parts)| (*node, parts.iter().copied().filter(|part| part.rf != rf).collect()));
            ready(&joining, &left.collect()).len()
        };
        assert_eq!(without(5), 0);
        assert!(without(3) < 16 && without(1) < 16);
    }

    #[test]
    fn what_one_node_alone_had_is_given_up_where_it_is_replaced_and_gone() {
        let founded = change(&Topology::found(1, 16, (1..=3).map(spec).collect()).unwrap(), Change::Found);
        let one = change(&founded, Change::Factor { rf: 1 });
        let replacing = change(&one, Change::Replace { dead: 2, new: spec(9) });
        let parts = of_node(&replacing, 9);
        let (part, old) = parts.iter().find(|(part, _)| part.rf == 1).unwrap();
        assert_eq!(old[..], [2]);
        assert!(is_given_up(&replacing, *part, |node| node == 2) && !is_given_up(&replacing, *part, |_| false));
        assert!(!is_given_up(&replacing, Part { rf: 3, ..*part }, |node| node == 2));
        let leaving = change(&change(&one, Change::Join(spec(9))), Change::Cancel);
        let leaving = change(&leaving, Change::Leave { node: 2 });
        assert!(of_node(&leaving, 1).iter().all(|(part, _)| !is_given_up(&leaving, *part, |_| true)), "it may come back");
        let mut take = TakeOver::new(*part, old.clone(), false, None);
        take.given_up();
        assert_eq!(take.stage(), Stage::Void);
        take.voided();
        let mut open = take.clone();
        take.given_up();
        assert_eq!(take.stage(), Stage::Joined);
        let marks = MarksIn { namespace: 1, fence: version(4), floor: version(2), is_empty: false };
        open.told(2, &MarksOf { part: *part, namespaces: vec![marks] });
        assert_eq!(open.stage(), Stage::Open);
        open.given_up();
        assert_eq!((open.stage(), open.marks(1)), (Stage::Joined, both(4, 2)), "it told its marks before it fell");
    }
}
