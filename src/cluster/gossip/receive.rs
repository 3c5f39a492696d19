//! What comes in: who is refused and why, then what a message says, then what it asks for.

use super::member::{Address, Record};
use super::refusal::{Reason, Refusal, Side};
use super::wire::{self, Body, GOSSIP_VERSION, Message, Newest, Unreadable};
use super::{CLUSTER_UNKNOWN, Effect, Gossip, Now};
use crate::limits::{GOSSIP_CLOCK_MS_MAX, GOSSIP_DATAGRAM_BYTES_MAX, GOSSIP_SYNC_BYTES_MAX};

impl Gossip {
    /// A datagram came in from `from`.
    pub fn on_datagram(&mut self, now: Now, from: Address, bytes: &[u8], out: &mut Vec<Effect>) {
        self.notice_pause(now.mono);
        self.counters.datagrams_received += 1;
        if bytes.len() > GOSSIP_DATAGRAM_BYTES_MAX {
            self.counters.malformed += 1;
            return;
        }
        let message = match self.admit(now, from, bytes, true, out) {
            Ok(message) if message.body.is_sync() => {
                self.counters.malformed += 1;
                return;
            }
            Ok(message) => message,
            Err(None) => return,
            Err(Some(reason)) => return self.send(now, from, Body::Refused(reason), 0, out),
        };
        if let Some(member) = self.members.get_mut(&message.sender.node)
            && !member.replay.take(message.head.sequence)
        {
            self.counters.replayed += 1;
            return;
        }
        if !self.take_in(now, from, &message, out) {
            return;
        }
        self.answer(now, from, &message, out);
    }

    /// One whole message of a stream came in from `from`, of which only the host counts. What goes back, if anything does; then the stream
    /// ends.
    pub fn on_stream(&mut self, now: Now, from: Address, bytes: &[u8], out: &mut Vec<Effect>) -> Option<Vec<u8>> {
        self.notice_pause(now.mono);
        if bytes.len() > GOSSIP_SYNC_BYTES_MAX {
            self.counters.malformed += 1;
            return None;
        }
        let message = match self.admit(now, from, bytes, false, out) {
            Ok(message) if message.body.is_sync() => message,
            Ok(_) => {
                self.counters.malformed += 1;
                return None;
            }
            Err(reason) => return reason.map(|reason| self.draft(now, &Body::Refused(reason)).seal(&self.config.key)),
        };
        if !self.take_in(now, from, &message, out) {
            return None;
        }
        if message.body == Body::SyncReply {
            self.synced = true;
            return None;
        }
        Some(self.sync_message(now, Body::SyncReply))
    }

    /// A message that can be believed; else the reason to be told to its sender, if any is.
    fn admit(&mut self, now: Now, from: Address, bytes: &[u8], exact: bool, out: &mut Vec<Effect>) -> Result<Message, Option<Reason>> {
        let message = match wire::open(bytes, &self.config.key) {
            Ok(message) => message,
            Err(Unreadable::Malformed(_)) => {
                self.counters.malformed += 1;
                return Err(None);
            }
            Err(unreadable) => {
                let reason = match unreadable {
                    Unreadable::Version(theirs) => Reason::GossipVersion { theirs, ours: GOSSIP_VERSION },
                    _ => Reason::WrongKey,
                };
                let told = self.refuse(now, from, None, reason, out);
                return Err(told.filter(|_| !wire::claims_refusal(bytes)));
            }
        };
        let node = Some(message.sender.node);
        if let Body::Refused(reason) = message.body {
            if self.refusals.count(now.mono, from, &reason) {
                out.push(Effect::Refused(Refusal { side: Side::Theirs, peer: from, node, reason }));
            }
            return Err(None);
        }
        match self.objection(now, from, &message, exact) {
            None => {
                self.meet(message.head.cluster);
                Ok(message)
            }
            Some(Reason::ClockOff { ahead_ms }) if ahead_ms < 0 && now.mono < self.paused_until => {
                self.counters.late += 1;
                Err(None)
            }
            Some(reason) => Err(self.refuse(now, from, node, reason, out)),
        }
    }

    /// A message of somebody of this cluster came in. Who joins learns from it which that is.
    fn meet(&mut self, cluster: u64) {
        if self.config.cluster == CLUSTER_UNKNOWN {
            self.config.cluster = cluster;
        }
    }

    /// Counts a refusal and says it, if it was not said lately: then it is also to be answered.
    fn refuse(&mut self, now: Now, peer: Address, node: Option<u64>, reason: Reason, out: &mut Vec<Effect>) -> Option<Reason> {
        let tell = self.refusals.count(now.mono, peer, &reason);
        if tell {
            out.push(Effect::Refused(Refusal { side: Side::Ours, peer, node, reason }));
        }
        tell.then_some(reason)
    }

    /// Why the sender of an authentic message is refused. `exact`: it must come from the port that it names, too.
    fn objection(&self, now: Now, from: Address, message: &Message, exact: bool) -> Option<Reason> {
        let (head, Record { node, profile, .. }) = (&message.head, &message.sender);
        let ours = &self.me.profile;
        let vnodes_log2 = self.config.vnodes.trailing_zeros() as u8;
        // Who does not know its cluster yet has the key, and belongs to whichever it meets.
        if head.cluster != self.config.cluster && ![head.cluster, self.config.cluster].contains(&CLUSTER_UNKNOWN) {
            return Some(Reason::OtherCluster { theirs: head.cluster, ours: self.config.cluster });
        }
        if head.vnodes_log2 != vnodes_log2 {
            return Some(Reason::OtherVnodes { theirs_log2: head.vnodes_log2, ours_log2: vnodes_log2 });
        }
        if profile.protocol.common(ours.protocol).is_none() {
            return Some(Reason::Protocol { theirs: profile.protocol, ours: ours.protocol });
        }
        if profile.format.common(ours.format).is_none() {
            return Some(Reason::Format { theirs: profile.format, ours: ours.format });
        }
        let claimed = profile.gossip;
        if claimed.ip != from.ip || (exact && claimed.port != from.port) {
            return Some(Reason::NotItsAddress { claimed, seen: from });
        }
        if head.wall_ms.abs_diff(now.wall_ms) > GOSSIP_CLOCK_MS_MAX {
            let ahead_ms = (i128::from(head.wall_ms) - i128::from(now.wall_ms)).clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
            return Some(Reason::ClockOff { ahead_ms });
        }
        let holder = match self.members.get(node) {
            _ if *node == self.me.node => Some(ours.gossip),
            Some(member) if member.state.is_live() => Some(member.profile.gossip),
            _ => None,
        };
        holder.filter(|holder| *holder != claimed).map(|holder| Reason::NodeIdTaken { holder })
    }

    /// What a message says. Whether its sender is a member now.
    fn take_in(&mut self, now: Now, from: Address, message: &Message, out: &mut Vec<Effect>) -> bool {
        let sender = &message.sender;
        if sender.node == self.me.node {
            // A seed list that names this node by another way, or an echo.
            return false;
        }
        let (was, alone) = (self.state_of(sender.node), self.order.is_empty());
        self.hear(now, sender, out);
        let Some(is) = self.state_of(sender.node) else {
            if sender.state.is_live()
                && let Some(reason) = self.refuse(now, from, Some(sender.node), Reason::TooManyMembers, out)
            {
                self.send(now, from, Body::Refused(reason), 0, out);
            }
            return false;
        };
        if was.is_none()
            && let Some(member) = self.members.get_mut(&sender.node)
        {
            member.replay.take(message.head.sequence);
        }
        message.records.iter().for_each(|record| self.hear(now, record, out));
        self.hear_of_topology(now, sender.node, message.head.newest, out);
        // The first one met, or one from the other side of what was a partition: each may know many that the other does not.
        let returned = was.is_some_and(|was| !was.is_live()) && is.is_live();
        if (returned || alone) && is.is_live() && !message.body.is_sync() {
            self.want_sync(now.mono, sender.node, out);
        }
        true
    }

    fn hear_of_topology(&mut self, now: Now, from: u64, newest: Newest, out: &mut Vec<Effect>) {
        if newest.epoch > self.newest.epoch {
            self.newest = newest;
            self.spread_own(now.mono);
            out.push(Effect::NewerTopology { newest, from });
        } else if newest.epoch == self.newest.epoch && newest.hash != self.newest.hash && self.conflict_told != newest.epoch {
            self.conflict_told = newest.epoch;
            out.push(Effect::TopologyConflict { epoch: newest.epoch, from });
        }
    }

    fn answer(&mut self, now: Now, from: Address, message: &Message, out: &mut Vec<Effect>) {
        let (me, sender) = (self.me.node, message.sender.node);
        match message.body {
            Body::Ping { nonce, target, origin } if target == me || target == 0 => {
                self.send(now, from, Body::Ack { nonce, subject: me, origin }, sender, out);
            }
            Body::Ping { .. } => self.counters.misaddressed += 1,
            Body::PingReq { nonce, target } => {
                if let Some(member) = self.members.get(&target) {
                    let to = member.profile.gossip;
                    self.send(now, to, Body::Ping { nonce, target, origin: sender }, target, out);
                }
            }
            Body::Ack { nonce, subject, origin } if origin == 0 || origin == me => self.end_probe(nonce, subject),
            Body::Ack { nonce, subject, origin } => {
                if let Some(member) = self.members.get(&origin) {
                    let to = member.profile.gossip;
                    self.send(now, to, Body::Ack { nonce, subject, origin: 0 }, origin, out);
                }
            }
            Body::Gossip | Body::Refused(_) | Body::SyncRequest | Body::SyncReply => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::member::{Profile, Rack, State, Versions};
    use super::super::wire::Key;
    use super::super::{Config, Me, Timing};
    use super::*;
    use crate::base::time::Mono;
    use std::collections::VecDeque;

    fn address(node: u64) -> Address {
        Address::v4([10, 0, 0, node as u8], 7490)
    }

    fn started(node: u64, cluster: u64, seeds: &[Address]) -> Gossip {
        let versions = Versions { min: 1, max: 1 };
        let (native, gossip) = (address(node), address(node));
        let profile = Profile { native, gossip, cores: 1, weight: 1, rack: Rack::default(), protocol: versions, format: versions };
        let config = Config { cluster, vnodes: 16, key: Key::new(b"k"), timing: Timing::default() };
        Gossip::new(config, Me { node, profile }, seeds, now(0), node)
    }

    fn now(ms: u64) -> Now {
        Now { mono: Mono(ms * 1_000_000), wall_ms: 1000 + ms }
    }

    /// A second of ticks and datagrams (no streams) from `since_ms` on; gives the sentences.
    fn talk(nodes: &mut [Gossip], since_ms: u64) -> Vec<String> {
        let (mut queue, mut said) = (VecDeque::new(), Vec::new());
        let mut carry = |from: Address, out: Vec<Effect>, queue: &mut VecDeque<_>| {
            for effect in out {
                match effect {
                    Effect::Send { to, datagram } => queue.push_back((from, to, datagram)),
                    Effect::Refused(refusal) => said.push(refusal.to_string()),
                    _ => {}
                }
            }
        };
        for ms in since_ms..since_ms + 1000 {
            for node in nodes.iter_mut() {
                let mut out = Vec::new();
                node.on_tick(now(ms), &mut out);
                carry(node.me.profile.gossip, out, &mut queue);
            }
            while let Some((from, to, datagram)) = queue.pop_front() {
                let Some(node) = nodes.iter_mut().find(|node| node.me.profile.gossip == to) else { continue };
                let mut out = Vec::new();
                node.on_datagram(now(ms), from, &datagram, &mut out);
                carry(to, out, &mut queue);
            }
        }
        said
    }

    #[test]
    fn who_joins_learns_its_cluster_from_whom_it_meets_and_stays_with_it() {
        let mut nodes = [started(1, 7, &[]), started(2, CLUSTER_UNKNOWN, &[address(1)]), started(3, CLUSTER_UNKNOWN, &[address(2)])];
        assert_eq!(talk(&mut nodes, 1), [""; 0]);
        for node in &nodes {
            assert_eq!((node.cluster(), node.live()), (7, 2));
            assert!([1, 2, 3].iter().all(|other| *other == node.me.node || node.state_of(*other) == Some(State::Alive)));
        }
        let mut nodes = nodes.into_iter().chain([started(4, 8, &[address(2)])]).collect::<Vec<_>>();
        let said = talk(&mut nodes, 1001);
        assert!(said.iter().any(|line| line.contains("its cluster is 0000000000000008")), "{said:?}");
        assert_eq!(nodes.iter().map(Gossip::cluster).collect::<Vec<_>>(), [7, 7, 7, 8]);
    }
}
