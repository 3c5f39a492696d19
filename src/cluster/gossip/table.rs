//! Merging statements into the table: the newer wins, what changed is news, and a statement about this node itself is contradicted.

use super::member::{Record, State, Suspecters};
use super::refusal::{Reason, Refusal, Side};
use super::replay::Window;
use super::{Change, Effect, Gossip, Member, Now, Suspicion};
use crate::base::time::Mono;
use crate::limits::GOSSIP_CLOCK_MS_MAX;
use std::time::Duration;

/// Who still tells of a dead one as if it lived, after this time, has missed the news: it is told again.
const STALE_AFTER: Duration = Duration::from_secs(10);

impl Gossip {
    /// Takes in one statement. A death is news only to those who knew the life: so the forgotten stay forgotten.
    pub(super) fn hear(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        if record.node == self.me.node {
            return self.hear_of_me(now, record, out);
        }
        let Some(member) = self.members.get_mut(&record.node) else {
            if record.state.is_live() && self.make_room() {
                self.add(now, record, out);
            }
            return;
        };
        if record.digest.at_ms > member.digest.at_ms && record.digest.at_ms <= now.wall_ms + GOSSIP_CLOCK_MS_MAX {
            member.digest = record.digest;
        }
        match record.rank().cmp(&member.rank()) {
            std::cmp::Ordering::Less => {
                if member.state == State::Dead && now.mono.since(member.changed) >= STALE_AFTER {
                    self.spread(now.mono, record.node);
                }
            }
            std::cmp::Ordering::Equal if record.state == State::Suspect => self.confirm(now.mono, record),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater if record.state == State::Dead && member.state.is_live() => self.hear_of_death(now, record, out),
            std::cmp::Ordering::Greater => self.replace(now, record, out),
        }
    }

    fn add(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let member = Member {
            incarnation: record.incarnation,
            state: record.state,
            profile: record.profile,
            digest: if record.digest.at_ms <= now.wall_ms + GOSSIP_CLOCK_MS_MAX { record.digest } else { Default::default() },
            changed: now.mono,
            replay: Window::default(),
            suspicion: suspicion_of(record, now.mono),
        };
        self.members.insert(record.node, member);
        self.enter_order(record.node);
        out.push(Effect::Changed { node: record.node, change: Change::Joined });
        if record.state == State::Suspect {
            self.suspects.push(record.node);
            self.watch_suspicion(record.node);
            self.counters.suspicions += 1;
            out.push(Effect::Changed { node: record.node, change: Change::Suspected });
        }
        self.spread(now.mono, record.node);
    }

    fn replace(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let node = record.node;
        let Some(member) = self.members.get_mut(&node) else { return };
        let (was, updated) = (member.state, record.incarnation > member.incarnation && record.profile != member.profile);
        if record.incarnation > member.incarnation {
            member.profile = record.profile;
        }
        (member.incarnation, member.state) = record.rank();
        member.suspicion = suspicion_of(record, now.mono);
        if was != record.state {
            member.changed = now.mono;
        }
        self.suspects.retain(|suspect| *suspect != node);
        match (was.is_live(), record.state.is_live()) {
            (false, true) => self.enter_order(node),
            (true, false) => {
                self.leave_order(node);
                // Fewer are there to suspect others: what is left of suspicions may be shorter.
                self.timers.suspicion = self.timers.suspicion.min(now.mono);
            }
            _ => {}
        }
        let mut tell = |change| out.push(Effect::Changed { node, change });
        match (was, record.state) {
            (State::Suspect, State::Alive) => tell(Change::Refuted),
            (State::Dead | State::Left, State::Alive | State::Suspect) => tell(Change::Returned),
            (State::Alive | State::Suspect, State::Dead) => {
                self.counters.deaths += 1;
                tell(Change::Died);
            }
            (State::Alive | State::Suspect | State::Dead, State::Left) => tell(Change::Left),
            (State::Alive, State::Alive) if updated => tell(Change::Updated),
            _ => {}
        }
        if record.state == State::Suspect {
            self.suspects.push(node);
            self.watch_suspicion(node);
            if was != State::Suspect {
                self.counters.suspicions += 1;
                out.push(Effect::Changed { node, change: Change::Suspected });
            }
        }
        self.spread(now.mono, node);
    }

    /// Others hold for dead whom this node does not: it gets its time to contradict here too.
    fn hear_of_death(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let suspect = Record { state: State::Suspect, suspect_ms: 0, suspecters: Suspecters::default(), ..*record };
        if self.members.get(&record.node).is_some_and(|member| suspect.rank() > member.rank()) {
            self.replace(now, &suspect, out);
        }
        if let Some(suspicion) = self.members.get_mut(&record.node).and_then(|member| member.suspicion.as_mut()) {
            suspicion.certain = true;
            self.watch_suspicion(record.node);
        }
    }

    /// Its end has come nearer, perhaps.
    fn watch_suspicion(&mut self, node: u64) {
        self.timers.suspicion = self.timers.suspicion.min(self.suspicion_ends(node));
    }

    /// The same suspicion from others: more names, perhaps an earlier beginning.
    fn confirm(&mut self, now: Mono, record: &Record) {
        let Some(suspicion) = self.members.get_mut(&record.node).and_then(|member| member.suspicion.as_mut()) else { return };
        suspicion.since = suspicion.since.min(began(record, now));
        let before = suspicion.by;
        record.suspecters.as_slice().iter().for_each(|node| _ = suspicion.by.add(*node));
        if suspicion.by != before {
            self.spread(now, record.node);
        }
        self.watch_suspicion(record.node);
    }

    /// Somebody says something of this node.
    fn hear_of_me(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let another = record.profile.gossip != self.me.profile.gossip;
        if another && record.state == State::Alive {
            let reason = Reason::NodeIdTaken { holder: record.profile.gossip };
            if self.refusals.count(now.mono, record.profile.gossip, &reason) {
                out.push(Effect::Refused(Refusal { side: Side::Theirs, peer: record.profile.gossip, node: Some(record.node), reason }));
            }
        }
        let worse = record.incarnation == self.me.incarnation && record.state > State::Alive;
        if self.me.state == State::Left || !(worse || record.incarnation > self.me.incarnation) {
            return;
        }
        // Said to be gone or to be failing; or an earlier life had a later clock.
        self.counters.refutations += 1;
        self.me.incarnation = record.incarnation + 1;
        if record.state == State::Suspect {
            self.worsen();
        }
        self.spread_own(now.mono);
    }

    /// A place in the order of probes that nobody can foresee.
    fn enter_order(&mut self, node: u64) {
        let at = self.prng.below(self.order.len() as u64 + 1) as usize;
        self.order.insert(at, node);
        self.next += usize::from(at < self.next);
    }

    fn leave_order(&mut self, node: u64) {
        if let Some(at) = self.order.iter().position(|other| *other == node) {
            self.order.remove(at);
            self.next -= usize::from(at < self.next);
        }
        self.probes.retain(|probe| probe.target != node);
    }

    /// When the suspicion of `node` becomes a death. Where fewer than three could see a failure, fewer need to.
    pub(super) fn suspicion_ends(&self, node: u64) -> Mono {
        let Some(suspicion) = self.members.get(&node).and_then(|member| member.suspicion.as_ref()) else { return Mono(u64::MAX) };
        let timing = &self.config.timing;
        let last = timing.suspicion.len() - 1;
        // This node and the live ones, the suspect among them, could give one suspecter less than there are of them.
        let cannot = last.saturating_sub((self.order.len() + 1).saturating_sub(2));
        let step = (suspicion.by.as_slice().len().saturating_sub(1) + cannot).min(last);
        let end = suspicion.since.plus(timing.suspicion[step]).max(suspicion.heard.plus(timing.grace));
        if suspicion.certain { end.min(suspicion.heard.plus(timing.suspicion[last])) } else { end }
    }

    pub(super) fn end_suspicions(&mut self, now: Now, out: &mut Vec<Effect>) {
        if now.mono < self.timers.suspicion {
            return;
        }
        let over: Vec<u64> = self.suspects.iter().copied().filter(|node| self.suspicion_ends(*node) <= now.mono).collect();
        for node in over {
            let dead = Record { state: State::Dead, ..self.members[&node].record(node, now.mono) };
            self.replace(now, &dead, out);
        }
        self.timers.suspicion = self.suspects.iter().map(|node| self.suspicion_ends(*node)).min().unwrap_or(Mono(u64::MAX));
    }
}

fn began(record: &Record, now: Mono) -> Mono {
    Mono(now.0.saturating_sub(Duration::from_millis(u64::from(record.suspect_ms)).as_nanos() as u64))
}

fn suspicion_of(record: &Record, now: Mono) -> Option<Box<Suspicion>> {
    (record.state == State::Suspect)
        .then(|| Box::new(Suspicion { since: began(record, now), heard: now, by: record.suspecters, certain: false }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use crate::cluster::gossip::member::{Address, Profile, Rack, Versions};
    use crate::cluster::gossip::wire::Key;
    use crate::cluster::gossip::{Config, Me, Timing};
    use crate::limits::MEMBERS_MAX;

    const NOW: Now = Now { mono: Mono(1_000_000_000), wall_ms: 1000 };

    fn profile(node: u64) -> Profile {
        let address = |port| Address::v4([10, 0, (node >> 8) as u8, node as u8], port);
        let versions = Versions { min: 1, max: 1 };
        Profile {
            native: address(7400),
            gossip: address(7490),
            cores: 4,
            weight: 100,
            rack: Rack::default(),
            protocol: versions,
            format: versions,
        }
    }

    fn gossip() -> Gossip {
        let config = Config { cluster: 1, vnodes: 4096, key: Key::new(b"k"), timing: Timing::default() };
        Gossip::new(config, Me { node: 5000, profile: profile(5000) }, &[], NOW, 1)
    }

    fn record(node: u64, incarnation: u64, state: State) -> Record {
        let (profile, suspecters) = (profile(node), Suspecters::default());
        Record { node, incarnation, state, profile, digest: Default::default(), suspect_ms: 0, suspecters }
    }

    fn later(ms: u64) -> Now {
        Now { mono: NOW.mono.plus(Duration::from_millis(ms)), wall_ms: NOW.wall_ms + ms }
    }

    /// Whatever the order, however often: the same is believed when the suspicions are over, and it is the strongest statement of the
    /// newest life.
    #[test]
    fn rumours_in_any_order_end_in_the_same_belief() {
        let mut prng = Prng::new(2);
        for _ in 0..300 {
            let count = 1 + prng.below(6);
            let rumours: Vec<Record> = (0..count)
                .map(|_| record(1, 1 + prng.below(3), [State::Alive, State::Suspect, State::Dead, State::Left][prng.below(4) as usize]))
                .collect();
            let mut beliefs = Vec::new();
            for _ in 0..4 {
                let (mut gossip, mut out) = (gossip(), Vec::new());
                gossip.hear(NOW, &record(1, 0, State::Alive), &mut out);
                for _ in 0..count * 8 {
                    gossip.hear(NOW, &rumours[prng.below(count) as usize], &mut out);
                }
                rumours.iter().for_each(|rumour| gossip.hear(NOW, rumour, &mut out));
                gossip.end_suspicions(later(4000), &mut out);
                beliefs.push(gossip.members[&1].rank());
                assert_eq!(gossip.order.len(), usize::from(gossip.members[&1].state.is_live()));
            }
            let mut strongest = rumours.iter().map(Record::rank).max().unwrap();
            if strongest.1 == State::Suspect {
                strongest.1 = State::Dead;
            }
            assert_eq!(beliefs, [strongest; 4], "{rumours:?}");
        }
    }

    #[test]
    fn a_rumour_of_death_leaves_time_to_contradict() {
        let (mut gossip, mut out) = (gossip(), Vec::new());
        (1..=4).for_each(|node| gossip.hear(NOW, &record(node, 1, State::Alive), &mut out));
        for _ in 0..3 {
            gossip.hear(NOW, &record(1, 1, State::Dead), &mut out);
            gossip.hear(NOW, &record(2, 1, State::Dead), &mut out);
        }
        assert_eq!((gossip.state_of(1), gossip.live()), (Some(State::Suspect), 4));
        gossip.hear(later(600), &record(2, 2, State::Alive), &mut out);
        gossip.end_suspicions(later(700), &mut out);
        assert_eq!((gossip.state_of(1), gossip.state_of(2), gossip.live()), (Some(State::Dead), Some(State::Alive), 3));
    }

    #[test]
    fn more_suspecters_end_a_suspicion_sooner_and_a_late_listener_leaves_grace() {
        let (mut gossip, mut out) = (gossip(), Vec::new());
        (1..=9).for_each(|node| gossip.hear(NOW, &record(node, 1, State::Alive), &mut out));
        let mut suspect = record(1, 1, State::Suspect);
        let mut ends = Vec::new();
        for by in 2..=5 {
            suspect.suspecters.add(by);
            gossip.hear(NOW, &suspect, &mut out);
            ends.push(gossip.suspicion_ends(1).since(NOW.mono).as_millis());
        }
        assert_eq!(ends, [3000, 1500, 700, 700]);
        let late = Record { node: 2, suspect_ms: 60_000, ..suspect };
        gossip.hear(NOW, &late, &mut out);
        assert_eq!(gossip.suspicion_ends(2), NOW.mono.plus(gossip.config.timing.grace));
    }

    #[test]
    fn what_is_said_of_oneself_is_contradicted_unless_one_left() {
        let (mut gossip, mut out) = (gossip(), Vec::new());
        let mine = gossip.me.incarnation;
        gossip.hear(NOW, &record(5000, mine - 1, State::Dead), &mut out);
        assert_eq!(gossip.me.incarnation, mine, "that was an earlier life");
        gossip.hear(NOW, &record(5000, mine, State::Dead), &mut out);
        gossip.hear(NOW, &record(5000, mine + 9, State::Left), &mut out);
        assert_eq!((gossip.me.incarnation, gossip.counters.refutations), (mine + 10, 2));
        gossip.leave(NOW);
        gossip.hear(NOW, &record(5000, mine + 10, State::Suspect), &mut out);
        assert_eq!(gossip.me.incarnation, mine + 10);
    }

    #[test]
    fn the_table_has_a_bound_and_the_gone_make_room() {
        let (mut gossip, mut out) = (gossip(), Vec::new());
        (1..=MEMBERS_MAX as u64 + 9)
            .filter(|node| *node != 5000)
            .for_each(|node| gossip.hear(NOW, &record(node, 1, State::Alive), &mut out));
        assert_eq!(gossip.members.len(), MEMBERS_MAX - 1);
        assert!(gossip.sync_request(NOW).len() <= crate::limits::GOSSIP_SYNC_BYTES_MAX);
        gossip.remove(NOW, 17, &mut out);
        gossip.hear(NOW, &record(60_000, 1, State::Alive), &mut out);
        assert_eq!((gossip.state_of(60_000), gossip.state_of(17)), (Some(State::Alive), None));
        gossip.hear(NOW, &record(17, 1, State::Dead), &mut out);
        assert_eq!(gossip.state_of(17), None, "the forgotten stay forgotten");
        gossip.remove(NOW, 18, &mut out);
        gossip.forget_old(later(25 * 3_600_000).mono);
        assert_eq!(gossip.members.len(), MEMBERS_MAX - 2);
    }

    #[test]
    fn a_thousand_members_take_less_than_four_mebibytes() {
        let (mut gossip, mut out) = (gossip(), Vec::new());
        (1..1000).for_each(|node| gossip.hear(NOW, &record(node, 1, State::Suspect), &mut out));
        assert!(gossip.memory_bytes() < 4 << 20, "{}", gossip.memory_bytes());
    }
}
