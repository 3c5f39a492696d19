//! Hinted handoff (Dynamo, section 4.6): a write that a replica missed is kept for it and sent when it is back. This file decides which
//! writes are kept and in which order and at what pace they go out; the records themselves lie in a log of the caller, under the numbers
//! that are given here.
//!
//! A hint never counts towards W (rule P6): nothing here answers a coordinator. It is a copy, which the replica stores if newer and if its
//! fence lets it (`forget::admits` on `Road::Hint`); either way it is done with. So hints are only a faster repair, and where there is no
//! room for one it is not kept, counted, and left to the comparison of trees.
//!
//! Bounds: bytes a peer, bytes in all, peers, and age. What is older than the lag of forgetting may be below the fence, so nothing is kept
//! longer than that. Replay goes oldest first with a window in flight and a budget of the caller's; silence puts what was in flight back in
//! its place and doubles the pause, up to a bound.
//!
//! | bytes of a record | what |
//! | --- | --- |
//! | 4 | how many follow the checksum |
//! | 8 | xxh3 of all behind |
//! | 1 | format version, 1 |
//! | 8, 8 | number, peer |
//! | 8 | when it was written, wall clock in ms |
//! | 4, 4 | namespace, vnode |
//! | varint, then as many | place |
//! | rest | cell |

use super::forget::FORGET_LAG_MS;
use crate::base::checksum::checksum;
use crate::base::codec::{Malformed, Reader, put_bytes};
use crate::base::map::{Map, Seeded};
use crate::base::record::NamespaceId;
use crate::base::time::{Mono, WallMs};
use crate::limits::{FRAME_BYTES_MAX, KEY_BYTES_MAX, MEMBERS_MAX};
use std::collections::BTreeMap;
use std::time::Duration;

const HINT_VERSION: u8 = 1;
/// A hint costs at least so many bytes, so that the bound on bytes bounds what is remembered of them too.
pub const HINT_BYTES_MIN: usize = 64;
/// Hints of one peer that may be under way.
const WINDOW: usize = 1024;
const WINDOW_BYTES: usize = 1 << 20;
/// Nothing was answered for so long: what is under way is lost.
const SILENCE: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How much may be kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bytes_max: usize,
    pub peer_bytes_max: usize,
    pub age_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes_max: 1 << 30, peer_bytes_max: 256 << 20, age_ms_max: FORGET_LAG_MS }
    }
}

/// Why a write is not hinted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// The bound of all peers together.
    Full,
    PeerFull,
    TooManyPeers,
}

impl std::fmt::Display for NotKept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NotKept::Full => "no room for more hints",
            NotKept::PeerFull => "no room for more hints of this peer",
            NotKept::TooManyPeers => "hints are kept for too many peers",
        })
    }
}

impl std::error::Error for NotKept {}

/// What happened, and what is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub hints: usize,
    pub bytes: usize,
    pub kept: u64,
    pub not_kept: u64,
    pub expired: u64,
    pub replayed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    bytes: usize,
    written_ms: WallMs,
}

#[derive(Debug, Default)]
struct Peer {
    /// By number, which is by age.
    waiting: BTreeMap<u64, Kept>,
    flying: BTreeMap<u64, Kept>,
    bytes: usize,
    /// Nothing is sent before.
    resume: Mono,
    /// The pause that the next silence makes.
    pause: Duration,
    /// When something was last sent into an empty window, or answered.
    progress: Mono,
}

/// All hints of a shard.
#[derive(Debug)]
pub struct Hints {
    limits: Limits,
    peers: Map<u64, Peer>,
    next: u64,
    figures: Figures,
}

impl Hints {
    /// `seed` of the table, see `base::map`.
    pub fn new(limits: Limits, seed: u64) -> Hints {
        let age_ms_max = limits.age_ms_max.min(FORGET_LAG_MS);
        let limits = Limits { age_ms_max, ..limits };
        Hints { limits, peers: Map::with_hasher(Seeded(seed)), next: 1, figures: Figures::default() }
    }

    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// A write that `peer` missed, of `bytes` as a record: the number under which the caller keeps it.
    pub fn offer(&mut self, now_ms: WallMs, peer: u64, bytes: usize) -> Result<u64, NotKept> {
        let number = self.next;
        let result = self.insert(peer, number, bytes, now_ms);
        match result {
            Ok(()) => self.figures.kept += 1,
            Err(_) => self.figures.not_kept += 1,
        }
        result.map(|()| number)
    }

    /// A hint that the log holds after a restart. Where it does not fit, the caller drops it from the log.
    pub fn restore(&mut self, peer: u64, number: u64, bytes: usize, written_ms: WallMs) -> Result<(), NotKept> {
        self.insert(peer, number, bytes, written_ms)
    }

    fn insert(&mut self, id: u64, number: u64, bytes: usize, written_ms: WallMs) -> Result<(), NotKept> {
        let bytes = bytes.max(HINT_BYTES_MIN);
        if !self.peers.contains_key(&id) && self.peers.len() >= MEMBERS_MAX {
            return Err(NotKept::TooManyPeers);
        }
        if self.figures.bytes + bytes > self.limits.bytes_max {
            return Err(NotKept::Full);
        }
        let of_peer = self.peers.get(&id).map_or(0, |peer| peer.bytes);
        if of_peer + bytes > self.limits.peer_bytes_max {
            return Err(NotKept::PeerFull);
        }
        let peer = self.peers.entry(id).or_insert_with(|| Peer { pause: PAUSE_MIN, ..Peer::default() });
        if peer.waiting.insert(number, Kept { bytes, written_ms }).is_none() {
            peer.bytes += bytes;
            (self.figures.hints, self.figures.bytes) = (self.figures.hints + 1, self.figures.bytes + bytes);
        }
        self.next = self.next.max(number.saturating_add(1));
        Ok(())
    }

    /// For whom something is kept.
    pub fn peers(&self) -> impl Iterator<Item = u64> + '_ {
        self.peers.keys().copied()
    }

    /// Whether anything is kept for a peer.
    pub fn has(&self, peer: u64) -> bool {
        self.peers.contains_key(&peer)
    }

    /// What goes to `peer` now, oldest first, of at most `credit` bytes or one hint. Only for a peer that is believed to be there.
    pub fn next(&mut self, now: Mono, peer: u64, credit: usize) -> Vec<u64> {
        let Some(peer) = self.peers.get_mut(&peer) else { return Vec::new() };
        if !peer.flying.is_empty() && now.since(peer.progress) >= SILENCE {
            peer.give_up(now);
        }
        if now < peer.resume || credit == 0 {
            return Vec::new();
        }
        if peer.flying.is_empty() {
            peer.progress = now;
        }
        let (mut sent, mut bytes) = (Vec::new(), 0);
        let mut in_flight: usize = peer.flying.values().map(|kept| kept.bytes).sum();
        while let Some(first) = peer.waiting.first_entry() {
            let cost = first.get().bytes;
            let is_over = bytes + cost > credit && !sent.is_empty() || in_flight + cost > WINDOW_BYTES && in_flight > 0;
            if is_over || peer.flying.len() == WINDOW {
                break;
            }
            (bytes, in_flight) = (bytes + cost, in_flight + cost);
            let (number, kept) = first.remove_entry();
            peer.flying.insert(number, kept);
            sent.push(number);
        }
        sent
    }

    /// The peer has made it durable, or refuses it for good: it is forgotten. False: it is not one of the peer's hints any more.
    pub fn done(&mut self, now: Mono, id: u64, number: u64) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        // A late answer to one that was given up counts too.
        let Some(kept) = peer.flying.remove(&number).or_else(|| peer.waiting.remove(&number)) else { return false };
        (peer.progress, peer.pause, peer.resume) = (now, PAUSE_MIN, Mono::default());
        self.figures.replayed += 1;
        self.remove(id, kept);
        true
    }

    fn remove(&mut self, id: u64, kept: Kept) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.bytes -= kept.bytes;
        (self.figures.hints, self.figures.bytes) = (self.figures.hints - 1, self.figures.bytes - kept.bytes);
        if peer.waiting.is_empty() && peer.flying.is_empty() {
            self.peers.remove(&id);
        }
    }

    /// The caller's log had no room for a hint that was offered.
    pub fn withdraw(&mut self, id: u64, number: u64) {
        let Some(kept) = self.peers.get_mut(&id).and_then(|peer| peer.waiting.remove(&number)) else { return };
        (self.figures.kept, self.figures.not_kept) = (self.figures.kept - 1, self.figures.not_kept + 1);
        self.remove(id, kept);
    }

    /// The link to a peer broke: what was under way goes again, after a pause.
    pub fn lost(&mut self, now: Mono, peer: u64) {
        if let Some(peer) = self.peers.get_mut(&peer).filter(|peer| !peer.flying.is_empty()) {
            peer.give_up(now);
        }
    }

    /// What has become too old, to be dropped from the log.
    pub fn expire(&mut self, now_ms: WallMs) -> Vec<u64> {
        let is_old = |kept: &Kept| kept.written_ms.saturating_add(self.limits.age_ms_max) < now_ms;
        let old = |peer: &Peer| -> Vec<(u64, Kept)> {
            let all = peer.waiting.iter().chain(&peer.flying);
            all.filter(|(_, kept)| is_old(kept)).map(|(number, kept)| (*number, *kept)).collect()
        };
        let old: Vec<(u64, u64, Kept)> =
            self.peers.iter().flat_map(|(id, peer)| old(peer).into_iter().map(|(number, kept)| (*id, number, kept))).collect();
        let mut numbers = self.drop_all(old);
        self.figures.expired += numbers.len() as u64;
        numbers.sort_unstable();
        numbers
    }

    /// A peer has left the cluster: its hints, to be dropped from the log.
    pub fn forget(&mut self, peer: u64) -> Vec<u64> {
        let Some(found) = self.peers.get(&peer) else { return Vec::new() };
        let all = found.waiting.iter().chain(&found.flying).map(|(number, kept)| (peer, *number, *kept)).collect();
        self.drop_all(all)
    }

    fn drop_all(&mut self, hints: Vec<(u64, u64, Kept)>) -> Vec<u64> {
        for (id, number, kept) in &hints {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.waiting.remove(number);
                peer.flying.remove(number);
            }
            self.remove(*id, *kept);
        }
        hints.into_iter().map(|(_, number, _)| number).collect()
    }
}

impl Peer {
    fn give_up(&mut self, now: Mono) {
        self.waiting.append(&mut self.flying);
        self.resume = now.plus(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// A hint as the log holds it. Place and cell are encoded, and for this room only bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub number: u64,
    pub peer: u64,
    pub written_ms: WallMs,
    pub namespace: NamespaceId,
    pub vnode: u32,
    pub place: &'a [u8],
    pub cell: &'a [u8],
}

impl<'a> Record<'a> {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 12]);
        out.push(HINT_VERSION);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.peer.to_le_bytes());
        out.extend_from_slice(&self.written_ms.to_le_bytes());
        out.extend_from_slice(&self.namespace.to_le_bytes());
        out.extend_from_slice(&self.vnode.to_le_bytes());
        put_bytes(out, self.place);
        out.extend_from_slice(self.cell);
        let body = &out[start + 12..];
        let (len, sum) = (body.len() as u32, checksum(body));
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
        out[start + 4..start + 12].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads one from the front, and goes behind it.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Record<'a>, Malformed> {
        let (len, sum) = (reader.u32()? as usize, reader.u64()?);
        if len > FRAME_BYTES_MAX {
            return Err(Malformed("a hint longer than any write"));
        }
        let body = reader.take(len)?;
        if checksum(body) != sum {
            return Err(Malformed("another checksum"));
        }
        let mut body = Reader::new(body);
        if body.u8()? != HINT_VERSION {
            return Err(Malformed("a hint of another format"));
        }
        let (number, peer, written_ms) = (body.u64()?, body.u64()?, body.u64()?);
        let (namespace, vnode) = (body.u32()?, body.u32()?);
        let place = body.bytes()?;
        if place.len() > 4 * KEY_BYTES_MAX {
            return Err(Malformed("a place longer than any"));
        }
        Ok(Record { number, peer, written_ms, namespace, vnode, place, cell: body.rest() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use std::collections::BTreeSet;

    const LIMITS: Limits = Limits { bytes_max: 5000, peer_bytes_max: 2000, age_ms_max: 30_000 };

    /// Random offers, answers, silence and age: nothing is lost but what expired, all within the bounds, each peer's in order.
    #[test]
    fn hints_are_bounded_replayed_in_order_and_each_ends_once() {
        for seed in 0..200 {
            let (mut prng, mut hints, mut now_ms) = (Prng::new(seed), Hints::new(LIMITS, seed), 1_000_000u64);
            let (mut kept, mut ended) = (BTreeMap::new(), BTreeSet::new());
            let mut flying: Vec<(u64, u64)> = Vec::new();
            for _ in 0..2000 {
                now_ms += prng.below(200);
                let (now, peer) = (Mono(now_ms * 1_000_000), prng.below(5));
                match prng.below(20) {
                    0..=7 => {
                        if let Ok(number) = hints.offer(now_ms, peer, prng.below(300) as usize) {
                            assert!(kept.insert(number, (peer, now_ms)).is_none());
                        }
                    }
                    8..=12 => {
                        let sent = hints.next(now, peer, 500);
                        assert!(sent.is_sorted() && sent.len() <= WINDOW);
                        flying.extend(sent.iter().map(|number| (peer, *number)));
                    }
                    13..=17 if !flying.is_empty() => {
                        let (peer, number) = flying.swap_remove(prng.below(flying.len() as u64) as usize);
                        assert_eq!(hints.done(now, peer, number), ended.insert(number), "ends once");
                    }
                    18 => hints.lost(now, peer),
                    _ => {
                        for number in hints.expire(now_ms) {
                            assert!(kept[&number].1 + LIMITS.age_ms_max < now_ms && ended.insert(number));
                        }
                    }
                }
                let of_peer = |peer: &u64| hints.peers.get(peer).map_or(0, |peer| peer.bytes);
                assert!(hints.figures.bytes <= LIMITS.bytes_max && (0..5).all(|peer| of_peer(&peer) <= LIMITS.peer_bytes_max));
                assert_eq!(hints.figures.hints, kept.len() - ended.len());
            }
            assert!(hints.figures.not_kept > 0 && hints.figures.expired > 0 && hints.figures.replayed > 0, "{:?}", hints.figures);
            for peer in 0..5 {
                ended.extend(hints.forget(peer));
            }
            assert_eq!((ended.len(), hints.figures.hints, hints.figures.bytes), (kept.len(), 0, 0));
        }
    }

    #[test]
    fn silence_doubles_the_pause_and_an_answer_ends_it() {
        let (mut hints, mut now) = (Hints::new(Limits::default(), 1), Mono(1));
        let numbers: Vec<u64> = (0..2 * WINDOW).map(|_| hints.offer(0, 7, 100).unwrap()).collect();
        assert_eq!(hints.next(now, 7, 1 << 20), numbers[..WINDOW]);
        assert!(hints.next(now, 7, 1 << 20).is_empty(), "the window is full");
        for doubled in 0..10 {
            let pause = (PAUSE_MIN * (1 << doubled)).min(PAUSE_MAX);
            now = now.plus(SILENCE);
            assert!(hints.next(now, 7, 1 << 20).is_empty());
            now = now.plus(pause - Duration::from_millis(1));
            assert!(hints.next(now, 7, 1 << 20).is_empty());
            now = now.plus(Duration::from_millis(1));
            assert_eq!(hints.next(now, 7, 150), numbers[..1], "the oldest first, and one whatever the credit");
        }
        assert!(hints.done(now, 7, numbers[0]) && !hints.done(now, 7, numbers[0]));
        assert_eq!(hints.next(now, 7, 250), numbers[1..3]);
        hints.lost(now, 7);
        assert!(hints.next(now.plus(PAUSE_MIN / 2), 7, 250).is_empty());
        assert_eq!(hints.next(now.plus(PAUSE_MIN), 7, 250), numbers[1..3]);
    }

    #[test]
    fn after_a_restart_numbers_go_on_above_and_bounds_hold() {
        let mut hints = Hints::new(LIMITS, 1);
        assert_eq!((hints.restore(3, 40, 900, 5), hints.restore(3, 41, 900, 5)), (Ok(()), Ok(())));
        assert_eq!((hints.offer(9, 3, 900), hints.offer(9, 4, 900)), (Err(NotKept::PeerFull), Ok(42)));
        assert_eq!((hints.offer(9, 4, 900), hints.offer(9, 5, 1900)), (Ok(43), Err(NotKept::Full)));
        assert_eq!(hints.expire(5 + LIMITS.age_ms_max + 1), [40, 41]);
        assert!(!hints.has(3) && hints.has(4));
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_damage_is_seen() {
        let mut prng = Prng::new(4);
        let record = Record { number: 1, peer: 2, written_ms: 3, namespace: 4, vnode: 5, place: b"place", cell: b"cell" };
        let mut out = Vec::new();
        record.encode(&mut out);
        record.encode(&mut out);
        let mut reader = Reader::new(&out);
        assert_eq!((Record::decode(&mut reader), Record::decode(&mut reader)), (Ok(record.clone()), Ok(record)));
        assert!(reader.is_empty());
        let one = &out[..out.len() / 2];
        for at in 0..one.len() {
            let mut damaged = one.to_vec();
            damaged[at] ^= 1 << prng.below(8);
            assert!(Record::decode(&mut Reader::new(&damaged)).is_err(), "byte {at}");
            assert!(Record::decode(&mut Reader::new(&one[..at])).is_err());
        }
    }
}
