//! The one thing through which the control core and the shards of a node meet: who is in the cluster, and which topologies there are.
//!
//! From the control core to the shards goes a snapshot of the members, replaced whole, under a generation that a shard compares with the
//! one it knows before it takes the lock; and the name of a topology that is newer than any this node has heard of, for the shard that
//! fetches it. From the shards to the control core goes the name of the topology that they have. Nobody waits: each lock is held for the
//! copy of a pointer or of a few words.

use super::gossip::member::{Profile, Record, State};
use super::gossip::wire::Newest;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: u64,
    pub state: State,
    pub incarnation: u64,
    pub profile: Profile,
}

impl From<Record> for Member {
    fn from(record: Record) -> Member {
        let Record { node, state, incarnation, profile, .. } = record;
        Member { node, state, incarnation, profile }
    }
}

/// Who is known at one moment: this node, and all that gossip has not forgotten, the dead and the left among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    cluster: u64,
    me: u64,
    /// By node.
    list: Vec<Member>,
}

impl Members {
    /// `me` must be one of `list`. `cluster` is `gossip::CLUSTER_UNKNOWN` while this node has not met the one that it joins.
    pub fn new(cluster: u64, me: u64, list: impl IntoIterator<Item = Member>) -> Members {
        let mut list: Vec<Member> = list.into_iter().collect();
        list.sort_unstable_by_key(|member| member.node);
        assert!(list.windows(2).all(|pair| pair[0].node < pair[1].node), "a node is known once");
        assert!(list.binary_search_by_key(&me, |member| member.node).is_ok(), "a node knows itself");
        Members { cluster, me, list }
    }

    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// This node.
    pub fn me(&self) -> u64 {
        self.me
    }

    /// All, this node among them, by node id.
    pub fn list(&self) -> &[Member] {
        &self.list
    }

    pub fn get(&self, node: u64) -> Option<&Member> {
        let at = self.list.binary_search_by_key(&node, |member| member.node).ok()?;
        Some(&self.list[at])
    }

    /// The newest version that all of these nodes know, by what is known of them, the dead among them; none where one of them is unknown.
    pub fn version_of_all(&self, nodes: impl IntoIterator<Item = u64>) -> Option<u16> {
        let version = |node| self.get(node).map(|member| member.profile.protocol.max.min(member.profile.format.max));
        nodes.into_iter().map(version).reduce(|one, other| Some(one?.min(other?))).flatten()
    }

    /// Alive or suspect. Nobody unknown is.
    pub fn is_live(&self, node: u64) -> bool {
        self.get(node).is_some_and(|member| member.state.is_live())
    }
}

/// A topology that is newer than any this node had heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewerTopology {
    pub newest: Newest,
    /// Who told. It has at least heard of it; whoever has it serves as well.
    pub from: u64,
}

/// Where the two meet.
pub struct MemberBoard {
    generation: AtomicU64,
    /// Counts all that the shards were woken for.
    news: AtomicU64,
    members: Mutex<Arc<Members>>,
    /// The topology that the shards have. (Epoch and hash belong together, so they are not two atomic words.)
    topology: Mutex<Newest>,
    newer: Mutex<Option<NewerTopology>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl MemberBoard {
    /// A board on which nobody is known, this node included. `wake` is called, on the control core's thread, when there is something new
    /// for the shards; it must not block.
    pub fn new(wake: Box<dyn Fn() + Send + Sync>) -> MemberBoard {
        MemberBoard {
            generation: AtomicU64::new(0),
            news: AtomicU64::new(0),
            members: Mutex::default(),
            topology: Mutex::default(),
            newer: Mutex::default(),
            wake,
        }
    }

    /// Replaces the snapshot and wakes the shards, if it says anything new.
    pub fn publish(&self, members: Members) {
        let mut held = lock(&self.members);
        if **held == members {
            return;
        }
        *held = Arc::new(members);
        // Inside the lock: who sees the new generation gets what belongs to it, or what is newer.
        self.generation.fetch_add(1, Ordering::Release);
        drop(held);
        self.wake();
    }

    /// Rises with each new snapshot; 0: there was none yet.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The newest snapshot.
    pub fn get(&self) -> Arc<Members> {
        lock(&self.members).clone()
    }

    /// The shards have this topology now. An older one than was told before changes nothing.
    pub fn set_topology(&self, epoch: u64, hash: u64) {
        let mut held = lock(&self.topology);
        if epoch > held.epoch {
            *held = Newest { epoch, hash };
        }
    }

    /// The newest topology that the shards have; epoch 0: none.
    pub fn topology(&self) -> Newest {
        *lock(&self.topology)
    }

    /// There is a newer topology somewhere. One is kept, the newest; the shards are woken.
    pub fn hear_of(&self, newer: NewerTopology) {
        let mut held = lock(&self.newer);
        if held.is_some_and(|held| held.newest.epoch > newer.newest.epoch) {
            return;
        }
        *held = Some(newer);
        drop(held);
        self.wake();
    }

    fn wake(&self) {
        self.news.fetch_add(1, Ordering::Release);
        (self.wake)();
    }

    /// Rises whenever there is something new for the shards.
    pub fn news(&self) -> u64 {
        self.news.load(Ordering::Acquire)
    }

    /// For the shard that fetches topologies: the newest that was heard of since it asked last. It is told once: a fetch that fails is to
    /// be tried again, from `from` or from any other live member.
    pub fn take_newer(&self) -> Option<NewerTopology> {
        lock(&self.newer).take()
    }
}

impl std::fmt::Debug for MemberBoard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemberBoard(generation {})", self.generation())
    }
}

/// Values are replaced whole, so a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::gossip::member::{Address, Rack, Versions};
    use super::*;

    fn member(node: u64, state: State) -> Member {
        let address = |port| Address::v4([10, 0, 0, node as u8], port);
        let versions = Versions { min: 1, max: 1 };
        let profile = Profile {
            native: address(7400),
            gossip: address(7490),
            cores: 1,
            weight: 1,
            rack: Rack::default(),
            protocol: versions,
            format: versions,
        };
        Member { node, state, incarnation: 1, profile }
    }

    fn board() -> (MemberBoard, Arc<AtomicU64>) {
        let woken = Arc::new(AtomicU64::new(0));
        let count = woken.clone();
        (MemberBoard::new(Box::new(move || _ = count.fetch_add(1, Ordering::Relaxed))), woken)
    }

    #[test]
    fn a_snapshot_says_who_is_live() {
        let list = [member(3, State::Suspect), member(1, State::Alive), member(2, State::Dead), member(4, State::Left)];
        let members = Members::new(9, 1, list);
        assert_eq!([1, 2, 3, 4, 5].map(|node| members.is_live(node)), [true, false, true, false, false]);
        assert_eq!((members.cluster(), members.me(), members.list().len()), (9, 1, 4));
        assert_eq!(members.get(2), Some(&member(2, State::Dead)));
        assert!(!Members::default().is_live(0), "0 means no node");
    }

    #[test]
    fn a_version_is_of_all_when_the_last_that_is_known_has_it() {
        let of = |node, protocol, format| {
            let known = member(node, State::Alive);
            let versions = |max| Versions { min: 1, max };
            Member { profile: Profile { protocol: versions(protocol), format: versions(format), ..known.profile }, ..known }
        };
        let members = Members::new(9, 1, [of(1, 3, 3), of(2, 2, 3), of(3, 3, 1), of(5, 3, 2)]);
        let all = |nodes: &[u64]| members.version_of_all(nodes.iter().copied());
        assert_eq!((all(&[1]), all(&[1, 5]), all(&[5, 2]), all(&[1, 2, 3])), (Some(3), Some(2), Some(2), Some(1)));
        assert_eq!((all(&[1, 4]), all(&[4, 1]), all(&[])), (None, None, None), "who is not known may know nothing");
    }

    #[test]
    fn shards_are_woken_for_what_is_new_and_only_for_that() {
        let (board, woken) = board();
        assert_eq!((board.generation(), board.get().list().len()), (0, 0));
        let alone = || Members::new(9, 1, [member(1, State::Alive)]);
        board.publish(alone());
        let held = board.get();
        board.publish(alone());
        assert_eq!((board.generation(), woken.load(Ordering::Relaxed)), (1, 1));
        board.publish(Members::new(9, 1, [member(1, State::Alive), member(2, State::Alive)]));
        assert_eq!((board.generation(), woken.load(Ordering::Relaxed)), (2, 2));
        assert!(board.get().is_live(2) && !held.is_live(2), "who holds a snapshot holds what it was");
    }

    #[test]
    fn the_newest_topology_counts_both_ways() {
        let (board, woken) = board();
        for (epoch, hash) in [(5, 50), (4, 40), (5, 51)] {
            board.set_topology(epoch, hash);
            assert_eq!(board.topology(), Newest { epoch: 5, hash: 50 });
        }
        assert_eq!((board.take_newer(), woken.load(Ordering::Relaxed)), (None, 0));
        let newer = |epoch| NewerTopology { newest: Newest { epoch, hash: epoch * 10 }, from: epoch };
        [6, 8, 7].into_iter().for_each(|epoch| board.hear_of(newer(epoch)));
        assert_eq!((board.take_newer(), board.take_newer()), (Some(newer(8)), None));
        assert_eq!(woken.load(Ordering::Relaxed), 2);
    }
}
