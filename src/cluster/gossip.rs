//! Membership: who is in the cluster, and who of them answers. Pure: time and bytes come in, effects come out.
//!
//! The protocol is SWIM (Das, Gupta, Motivala, 2002) with parts of Lifeguard (Dadgar, Phillips, Currey, 2018):
//!
//! - **Probes.** Each `Timing::probe` a node asks one member, in a shuffled round robin. No answer: it asks again, up to four times in all,
//!   and each time through some others besides. A lost datagram costs a resend; only a member that nothing reaches becomes a suspect.
//! - **Suspicion** is a rumour that travels with its age, so that it ends everywhere at about one time, and with the names of up to three
//!   who saw the failure themselves: the more, the shorter it lasts. A suspect that hears of it begins a new incarnation, which contradicts
//!   it. A suspicion not contradicted in time is a death. A rumour of death alone kills nobody: it makes the suspicion certain, and the
//!   suspect has the same time to contradict. (So when a partition heals, the two sides do not bury each other's living.)
//! - **Rumours** ride on every datagram while they are new (`news`), and for as long as there are any, each `Timing::gossip` a few members
//!   get a datagram of nothing but rumours. Now and then two nodes exchange their whole tables over a stream; that mends what was lost.
//! - **The dead are asked** once in a while, one at a time, and so are seeds that nobody knows: a partition heals by itself.
//! - **Doubt about oneself.** A node that was not woken in time counts that time for nobody (it did not look), and one whose questions get
//!   no answers, or that must refute, asks more often before it accuses.
//!
//! A round here is one `Timing::gossip`. `member` holds the order of statements, `table` their merging, `probe` the probes, `receive` what
//! comes in and whom it is refused, `wire` the bytes, `refusal` the reasons. A verdict decides nothing by itself: who owns what is the
//! topology's business (DESIGN.md, section 4), of which gossip carries only the newest epoch.

pub mod fuzz;
pub mod member;
mod news;
mod probe;
mod receive;
pub mod refusal;
mod replay;
mod table;
pub mod wire;

use crate::base::prng::Prng;
use crate::base::time::{Mono, WallMs};
use crate::limits::{MEMBERS_MAX, SEEDS_MAX};
use member::{Address, Digest, Profile, Record, State, Suspecters};
use news::{News, tell_limit};
use probe::Probe;
use refusal::{REASONS, Refusal, Refusals};
use replay::Window;
use std::collections::BTreeMap;
use std::time::Duration;
use wire::{Body, Draft, Head, Key, Newest};

/// The two clocks of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub mono: Mono,
    pub wall_ms: WallMs,
}

/// How fast things go. The defaults are for one data centre and up to 1,000 nodes.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Between two probes of a node.
    pub probe: Duration,
    /// From one question of a probe to the next.
    pub resend: Duration,
    /// From the last question of a probe to its failure. With the resends before, it is longer than any round trip.
    pub last: Duration,
    /// How long a suspicion lasts under one, two, three suspecters. The last must be enough for the rumour to reach the suspect and for its
    /// refutation to reach all.
    pub suspicion: [Duration; member::SUSPECTERS_MAX],
    /// Who hears of a suspicion late leaves it this long.
    pub grace: Duration,
    /// One round of rumours.
    pub gossip: Duration,
    /// Members that get rumours in a round.
    pub fanout: usize,
    /// Members that are asked to relay one question of a probe.
    pub relays: usize,
    /// A rumour is told lambda · log2(members) times.
    pub lambda: u32,
    /// Between two exchanges of whole tables that a node begins.
    pub sync: Duration,
    /// Between two attempts at a dead member or an unknown seed; and the least time between two exchanges.
    pub reconnect: Duration,
    /// Between two attempts at the seeds of a node that sees nobody.
    pub join: Duration,
    /// The dead and the left are forgotten after this time.
    pub forget: Duration,
    /// The most doubt about oneself: at n, a probe asks 1 + n times as often before it fails.
    pub doubt_max: u32,
}

impl Default for Timing {
    /// A death is known everywhere after: the first probe that meets it (of 1,000 nodes each asks one in 100 ms, so some 160 ms, and in 999
    /// of 1,000 cases 700 ms), its failure (350 ms), and the suspicion (700 ms, as two more have found the same meanwhile).
    fn default() -> Timing {
        let ms = Duration::from_millis;
        Timing {
            probe: ms(100),
            resend: ms(75),
            last: ms(125),
            suspicion: [ms(3000), ms(1500), ms(700)],
            grace: ms(200),
            gossip: ms(50),
            fanout: 3,
            relays: 3,
            lambda: 3,
            sync: ms(30_000),
            reconnect: ms(1000),
            join: ms(200),
            forget: ms(24 * 3_600_000),
            doubt_max: 8,
        }
    }
}

/// The cluster of a node that has yet to meet the one it joins.
pub const CLUSTER_UNKNOWN: u64 = 0;

/// What all nodes of a cluster agree on, and how this one gossips.
#[derive(Clone, Debug)]
pub struct Config {
    /// `CLUSTER_UNKNOWN`: the one that this node joins, which it hears of from the first member that it meets.
    pub cluster: u64,
    /// Q: a power of two.
    pub vnodes: u32,
    pub key: Key,
    pub timing: Timing,
}

/// Who this node is.
#[derive(Clone, Copy, Debug)]
pub struct Me {
    /// Not 0.
    pub node: u64,
    pub profile: Profile,
}

/// How a member changed in this node's eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Joined,
    Suspected,
    /// A suspect contradicted.
    Refuted,
    Died,
    Left,
    /// A dead one, or one that left, is back.
    Returned,
    /// Alive before and after, with another profile.
    Updated,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Send {
        to: Address,
        datagram: Vec<u8>,
    },
    /// Connect to `with` over TCP, send `Gossip::sync_request`, give the answer to `Gossip::on_stream`.
    Sync {
        with: Address,
    },
    Changed {
        node: u64,
        change: Change,
    },
    /// `from` has heard of a topology that is newer than any this node has heard of.
    NewerTopology {
        newest: Newest,
        from: u64,
    },
    /// `from` holds another topology under the epoch of ours: a bug, told once an epoch.
    TopologyConflict {
        epoch: u64,
        from: u64,
    },
    /// One refused the other: a sentence for the log. Told at most once in ten seconds an address and reason.
    Refused(Refusal),
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub datagrams_received: u64,
    pub datagrams_sent: u64,
    pub bytes_sent: u64,
    /// No message of ours, or not one where it came.
    pub malformed: u64,
    /// Seen before, or too old to tell.
    pub replayed: u64,
    /// Stale because this node was away when they came.
    pub late: u64,
    /// Probes meant for another node.
    pub misaddressed: u64,
    pub probes: u64,
    pub probes_failed: u64,
    /// Members that became suspects in this node's table.
    pub suspicions: u64,
    pub deaths: u64,
    /// Statements about this node that it contradicted.
    pub refutations: u64,
    /// Times that this node was not woken when it should have been.
    pub pauses: u64,
    pub syncs: u64,
}

/// Who suspects, since when.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    /// When the first began to suspect, as far as this node knows.
    since: Mono,
    /// When this node heard of it.
    heard: Mono,
    by: Suspecters,
    /// Somebody holds the suspect for dead.
    certain: bool,
}

/// One row of the table.
#[derive(Clone, Debug)]
struct Member {
    incarnation: u64,
    state: State,
    profile: Profile,
    digest: Digest,
    /// When the state changed.
    changed: Mono,
    replay: Window,
    /// Of a suspect.
    suspicion: Option<Box<Suspicion>>,
}

impl Member {
    fn rank(&self) -> (u64, State) {
        (self.incarnation, self.state)
    }

    fn record(&self, node: u64, now: Mono) -> Record {
        let Member { incarnation, state, profile, digest, .. } = *self;
        let (suspect_ms, suspecters) = match &self.suspicion {
            Some(suspicion) => (u32::try_from(now.since(suspicion.since).as_millis()).unwrap_or(u32::MAX), suspicion.by),
            None => (0, Suspecters::default()),
        };
        Record { node, incarnation, state, profile, digest, suspect_ms, suspecters }
    }
}

/// When the next of each kind is due.
#[derive(Debug)]
struct Timers {
    probe: Mono,
    gossip: Mono,
    sync: Mono,
    reconnect: Mono,
    /// Not after the end of any suspicion.
    suspicion: Mono,
    /// No exchange is asked for before.
    sync_soonest: Mono,
}

/// One node's view of the cluster.
#[derive(Debug)]
pub struct Gossip {
    config: Config,
    me: Record,
    seeds: Vec<Address>,
    /// All others, the dead among them.
    members: BTreeMap<u64, Member>,
    /// The live ones, shuffled; those before `next` were probed in this pass.
    order: Vec<u64>,
    next: usize,
    probes: Vec<Probe>,
    /// Those in state suspect.
    suspects: Vec<u64>,
    news: News,
    /// Datagrams that this node's own news (itself, the newest epoch), which every head carries, is still to ride on.
    own_news: u32,
    newest: Newest,
    /// The epoch for which a conflict was told.
    conflict_told: u64,
    /// Whole tables were exchanged since the start.
    synced: bool,
    doubt: u32,
    /// Until then stale datagrams are put down to this node's own pause.
    paused_until: Mono,
    timers: Timers,
    sequence: u64,
    nonce: u32,
    prng: Prng,
    refusals: Refusals,
    counters: Counters,
}

/// After a pause, what waited in the socket is taken in within this time.
const PAUSE_GRACE: Duration = Duration::from_secs(1);

impl Gossip {
    /// A node that knows nobody yet. Of `seeds`, the first `SEEDS_MAX` that are not its own address count.
    pub fn new(config: Config, me: Me, seeds: &[Address], now: Now, seed: u64) -> Gossip {
        assert!(me.node != 0, "0 means no node");
        assert!(config.vnodes.is_power_of_two(), "Q is a power of two");
        let mut prng = Prng::new(seed);
        let seeds = seeds.iter().copied().filter(|address| *address != me.profile.gossip).take(SEEDS_MAX).collect();
        let timing = &config.timing;
        let mut within = |span: Duration| now.mono.plus(Duration::from_nanos(prng.below(span.as_nanos() as u64 + 1)));
        let (probe, sync) = (within(timing.probe), within(timing.sync));
        let timers = Timers { probe, gossip: now.mono, sync, reconnect: now.mono, suspicion: Mono(u64::MAX), sync_soonest: now.mono };
        let digest = Digest { at_ms: now.wall_ms, ..Digest::default() };
        let me = Record {
            node: me.node,
            // Above every incarnation of an earlier life, if the clock is right; if not, the node is told and goes above then.
            incarnation: now.wall_ms,
            state: State::Alive,
            profile: me.profile,
            digest,
            suspect_ms: 0,
            suspecters: Suspecters::default(),
        };
        Gossip {
            config,
            me,
            seeds,
            members: BTreeMap::new(),
            order: Vec::new(),
            next: 0,
            probes: Vec::new(),
            suspects: Vec::new(),
            news: News::default(),
            own_news: 0,
            newest: Newest::default(),
            conflict_told: 0,
            synced: false,
            doubt: 0,
            paused_until: Mono(0),
            timers,
            // No node sends 65,536 datagrams a millisecond: a later life goes on above.
            sequence: now.wall_ms << 16,
            nonce: 0,
            prng,
            refusals: Refusals::default(),
            counters: Counters::default(),
        }
    }

    /// This node as others see it.
    pub fn me(&self) -> &Record {
        &self.me
    }

    /// The cluster that this node belongs to; `CLUSTER_UNKNOWN` while it has met nobody who knows.
    pub fn cluster(&self) -> u64 {
        self.config.cluster
    }

    /// All others that are known, by node id, the dead and the left among them.
    pub fn members(&self, now: Mono) -> impl Iterator<Item = Record> + '_ {
        self.members.iter().map(move |(node, member)| member.record(*node, now))
    }

    /// What this node believes of another.
    pub fn state_of(&self, node: u64) -> Option<State> {
        self.members.get(&node).map(|member| member.state)
    }

    /// Other members that are alive or suspect.
    pub fn live(&self) -> usize {
        self.order.len()
    }

    /// The newest topology that this node has heard of.
    pub fn newest_topology(&self) -> Newest {
        self.newest
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How often a peer was refused by this node, or this node by a peer, with the names of the reasons.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REASONS.into_iter().zip(*self.refusals.counts())
    }

    /// This node has the topology of this epoch now.
    pub fn learn_topology(&mut self, now: Now, epoch: u64, hash: u64) {
        if epoch > self.newest.epoch {
            self.newest = Newest { epoch, hash };
            self.spread_own(now.mono);
        }
        if epoch > self.me.digest.epoch {
            let digest = Digest { epoch, ..self.me.digest };
            self.say(now, digest);
        }
    }

    /// What others are to know of this node's condition. `load` and `disk` in percent.
    pub fn set_condition(&mut self, now: Now, load: u8, disk: u8, shards_failed: u8) {
        self.say(now, Digest { load, disk, shards_failed, ..self.me.digest });
    }

    fn say(&mut self, now: Now, digest: Digest) {
        self.me.digest = Digest { at_ms: now.wall_ms.max(self.me.digest.at_ms + 1), ..digest };
    }

    /// Says goodbye. The shell goes on while there is news, at most for half a second, so that it is heard.
    pub fn leave(&mut self, now: Now) {
        self.me.state = State::Left;
        self.spread_own(now.mono);
    }

    /// An operator removed `node` from the cluster: it will not come back under this incarnation.
    pub fn remove(&mut self, now: Now, node: u64, out: &mut Vec<Effect>) {
        if let Some(member) = self.members.get(&node) {
            let gone = Record { state: State::Left, ..member.record(node, now.mono) };
            self.hear(now, &gone, out);
        }
    }

    /// When `on_tick` wants to be called, if nothing comes in before.
    pub fn wakes_at(&self) -> Mono {
        let Timers { probe, gossip, sync, reconnect, suspicion, .. } = self.timers;
        let mut at = probe.min(sync).min(reconnect).min(suspicion);
        if self.has_news() {
            at = at.min(gossip);
        }
        self.probes.iter().map(|probe| probe.due).fold(at, Mono::min)
    }

    /// Does what is due. To be called at `wakes_at`, or as soon after as can be, and after what has come in was given to `on_datagram`.
    pub fn on_tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.notice_pause(now.mono);
        self.step_probes(now, out);
        if now.mono >= self.timers.probe {
            self.timers.probe = now.mono.plus(self.config.timing.probe);
            self.start_probe(now, out);
        }
        self.end_suspicions(now, out);
        if self.has_news() && now.mono >= self.timers.gossip {
            self.timers.gossip = now.mono.plus(self.config.timing.gossip);
            self.tell_some(now, out);
        }
        if now.mono >= self.timers.reconnect {
            let timing = &self.config.timing;
            let again = if self.order.is_empty() { timing.join } else { timing.reconnect };
            self.timers.reconnect = now.mono.plus(again);
            self.reconnect(now, out);
        }
        if now.mono >= self.timers.sync {
            self.timers.sync = now.mono.plus(self.config.timing.sync);
            self.forget_old(now.mono);
            if let Some(node) = self.some_live() {
                self.want_sync(now.mono, node, out);
            }
        }
    }

    /// The first bytes of a full sync that this node begins.
    pub fn sync_request(&mut self, now: Now) -> Vec<u8> {
        self.sync_message(now, Body::SyncRequest)
    }

    fn sync_message(&mut self, now: Now, body: Body) -> Vec<u8> {
        self.counters.syncs += 1;
        let mut draft = self.draft(now, &body);
        for (node, member) in &self.members {
            let fits = draft.push(&member.record(*node, now.mono));
            debug_assert!(fits, "the bounds in limits.rs say that a whole table fits");
        }
        draft.seal(&self.config.key)
    }

    fn draft(&mut self, now: Now, body: &Body) -> Draft {
        self.sequence += 1;
        let Config { cluster, vnodes, .. } = self.config;
        let vnodes_log2 = vnodes.trailing_zeros() as u8;
        Draft::new(&Head { cluster, vnodes_log2, wall_ms: now.wall_ms, sequence: self.sequence, newest: self.newest }, &self.me, body)
    }

    /// Sends `body` to node `whom`, with what this node believes of it first, if that is not that it is well, and rumours behind.
    fn send(&mut self, now: Now, to: Address, body: Body, whom: u64, out: &mut Vec<Effect>) {
        let mut draft = self.draft(now, &body);
        let members = &self.members;
        match members.get(&whom) {
            // Rumours are neither for strangers nor wasted on those who may not hear.
            None => {}
            Some(member) if member.state != State::Alive => _ = draft.push(&member.record(whom, now.mono)),
            Some(_) => {
                self.own_news = self.own_news.saturating_sub(1);
                let limit = tell_limit(self.config.timing.lambda, self.order.len() + 1);
                self.news.tell(limit, whom, |node| {
                    let known = members.get(&node);
                    draft.has_room() && known.is_none_or(|member| draft.push(&member.record(node, now.mono)))
                });
            }
        }
        let datagram = draft.seal(&self.config.key);
        self.counters.datagrams_sent += 1;
        self.counters.bytes_sent += datagram.len() as u64;
        out.push(Effect::Send { to, datagram });
    }

    /// Something is still to be told to others.
    pub fn has_news(&self) -> bool {
        self.own_news > 0 || !self.news.is_empty()
    }

    /// The next round comes soon, at a time that differs from node to node.
    fn wake_for_news(&mut self, now: Mono) {
        if !self.has_news() {
            let soon = now.plus(Duration::from_nanos(self.prng.below(self.config.timing.gossip.as_nanos() as u64 + 1)));
            self.timers.gossip = self.timers.gossip.max(soon);
        }
    }

    fn spread(&mut self, now: Mono, node: u64) {
        self.wake_for_news(now);
        self.news.add(node);
    }

    fn spread_own(&mut self, now: Mono) {
        self.wake_for_news(now);
        self.own_news = tell_limit(self.config.timing.lambda, self.order.len() + 1);
    }

    /// One round of rumours.
    fn tell_some(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self.order[..] {
            [] => (self.news, self.own_news) = (News::default(), 0),
            [only] => self.news.remove(only),
            _ => {}
        }
        for node in self.some_others(self.config.timing.fanout, 0) {
            // A member is not told of itself.
            if self.own_news == 0 && self.news.is_only(node) {
                continue;
            }
            let to = self.members[&node].profile.gossip;
            self.send(now, to, Body::Gossip, node, out);
        }
    }

    fn some_live(&mut self) -> Option<u64> {
        self.some_others(1, 0).first().copied()
    }

    /// At most `count` live members, drawn, without `but`.
    fn some_others(&mut self, count: usize, but: u64) -> Vec<u64> {
        let mut chosen = Vec::with_capacity(count);
        if self.order.len() <= count + 1 {
            chosen.extend(self.order.iter().copied().filter(|node| *node != but).take(count));
            return chosen;
        }
        // At least two more than wanted are there, so that few draws are in vain; the bound is for bad luck.
        for _ in 0..count * 8 {
            let node = self.order[self.prng.below(self.order.len() as u64) as usize];
            if node != but && !chosen.contains(&node) {
                chosen.push(node);
            }
            if chosen.len() == count {
                break;
            }
        }
        chosen
    }

    /// One of the dead, and seeds that are no live member's address: all of them while nobody is there, else one.
    fn reconnect(&mut self, now: Now, out: &mut Vec<Effect>) {
        let dead: Vec<u64> = self.members.iter().filter(|(_, member)| member.state == State::Dead).map(|(node, _)| *node).collect();
        if !dead.is_empty() {
            let node = dead[self.prng.below(dead.len() as u64) as usize];
            let nonce = self.next_nonce();
            let to = self.members[&node].profile.gossip;
            self.send(now, to, Body::Ping { nonce, target: node, origin: 0 }, node, out);
        }
        let known = |address: &Address| self.members.values().any(|member| member.state.is_live() && member.profile.gossip == *address);
        let mut unknown: Vec<Address> = self.seeds.iter().copied().filter(|address| !known(address)).collect();
        if !self.order.is_empty() && !unknown.is_empty() {
            unknown = vec![unknown[self.prng.below(unknown.len() as u64) as usize]];
        }
        for to in unknown {
            let nonce = self.next_nonce();
            self.send(now, to, Body::Ping { nonce, target: 0, origin: 0 }, 0, out);
        }
        if !self.synced
            && let Some(node) = self.some_live()
        {
            self.want_sync(now.mono, node, out);
        }
    }

    fn want_sync(&mut self, now: Mono, node: u64, out: &mut Vec<Effect>) {
        if now >= self.timers.sync_soonest {
            self.timers.sync_soonest = now.plus(self.config.timing.reconnect);
            out.push(Effect::Sync { with: self.members[&node].profile.gossip });
        }
    }

    fn next_nonce(&mut self) -> u32 {
        self.nonce = self.nonce.wrapping_add(1);
        self.nonce
    }

    /// This node was not woken when it should have been: the time is counted for nobody, since answers may lie unread.
    fn notice_pause(&mut self, now: Mono) {
        let late = now.since(self.wakes_at());
        if late < self.config.timing.probe / 2 {
            return;
        }
        self.counters.pauses += 1;
        self.worsen();
        self.probes.iter_mut().for_each(|probe| probe.due = probe.due.plus(late));
        self.timers.suspicion = self.timers.suspicion.plus(late);
        for node in &self.suspects {
            if let Some(suspicion) = self.members.get_mut(node).and_then(|member| member.suspicion.as_mut()) {
                (suspicion.since, suspicion.heard) = (suspicion.since.plus(late), suspicion.heard.plus(late));
            }
        }
        for timer in [&mut self.timers.probe, &mut self.timers.gossip, &mut self.timers.sync, &mut self.timers.reconnect] {
            *timer = now.max(*timer);
        }
        if late >= PAUSE_GRACE {
            self.paused_until = now.plus(PAUSE_GRACE);
        }
    }

    fn worsen(&mut self) {
        self.doubt = (self.doubt + 1).min(self.config.timing.doubt_max);
    }

    /// Memory that this view takes, in bytes, by what its parts have reserved.
    pub fn memory_bytes(&self) -> usize {
        // A node of a B-tree is two thirds full on average; the queue of news has two of them an entry.
        let members = self.members.len() * (size_of::<(u64, Member)>() * 3 / 2);
        let suspicions = self.suspects.len() * size_of::<Suspicion>();
        let lists = (self.order.capacity() + self.suspects.capacity()) * size_of::<u64>() + self.probes.capacity() * size_of::<Probe>();
        size_of::<Gossip>() + members + suspicions + lists + self.news.len() * 60
    }

    /// Forgets who is gone for long, and makes room if there is none. Whether there is room.
    fn make_room(&mut self) -> bool {
        if self.members.len() + 1 < MEMBERS_MAX {
            return true;
        }
        let gone = self.members.iter().filter(|(_, member)| !member.state.is_live()).min_by_key(|(_, member)| member.changed);
        let Some(node) = gone.map(|(node, _)| *node) else { return false };
        self.forget(node);
        true
    }

    fn forget_old(&mut self, now: Mono) {
        let forget = self.config.timing.forget;
        let old = |member: &Member| !member.state.is_live() && now.since(member.changed) >= forget;
        let gone: Vec<u64> = self.members.iter().filter(|(_, member)| old(member)).map(|(node, _)| *node).collect();
        gone.into_iter().for_each(|node| self.forget(node));
    }

    fn forget(&mut self, node: u64) {
        self.members.remove(&node);
        self.news.remove(node);
    }
}
