//! How slow each peer is, from what it answered: whom to ask first, and when to ask another as well.
//!
//! An accrual detector (Hayashibara, Défago, Yared, Katayama, "The phi accrual failure detector", 2004): no verdict, but a number that
//! grows while an answer is owed, on a scale that follows the peer's own past. The past is a histogram of response times that fades, so
//! that nothing is assumed about the distribution; the paper's normal one fits neither disks nor networks. Beyond all that was seen, each
//! doubling of the wait counts as one more power of ten.
//!
//! One detector a shard: 0.5 KiB a peer, no lock, some nanoseconds a sample.

use crate::base::map::{Map, Seeded};
use crate::base::time::Mono;
use crate::limits::MEMBERS_MAX;
use std::time::Duration;

/// Steps a doubling of the response time.
const STEPS: u32 = 4;
/// From 1 µs to 2^26 µs, about a minute; what is longer counts as that.
const BUCKETS: usize = 27 * STEPS as usize;
/// At this weight all samples of a peer count half: the past of some hundred answers.
const WEIGHT_MAX: u32 = 512;
/// So many samples between two looks for the quantiles.
const REFRESH: u32 = 32;
/// Of a peer that has not been asked for this long, the estimate halves, again and again: so that one that was slow is tried again.
const FADE: Duration = Duration::from_secs(5);

/// What one peer did.
#[derive(Clone, Debug)]
struct Peer {
    counts: [u32; BUCKETS],
    weight: u32,
    /// Samples until the quantiles are looked for again.
    refresh_in: u32,
    p50: u16,
    p99: u16,
    /// Requests without an answer.
    owed: u32,
    /// When the peer last answered, or, if nothing was owed, was asked.
    progress: Mono,
    sampled: Mono,
}

/// All peers of a shard.
#[derive(Debug)]
pub struct Detector {
    peers: Map<u64, Peer>,
}

impl Detector {
    /// `seed` of the table, see `base::map`.
    pub fn new(seed: u64) -> Detector {
        Detector { peers: Map::with_hasher(Seeded(seed)) }
    }

    /// A request went to `peer`. Beyond `limits::MEMBERS_MAX` peers, new ones are not watched.
    pub fn asked(&mut self, now: Mono, peer: u64) {
        if self.peers.len() >= MEMBERS_MAX && !self.peers.contains_key(&peer) {
            return;
        }
        let peer = self.peers.entry(peer).or_insert_with(|| Peer {
            counts: [0; BUCKETS],
            weight: 0,
            refresh_in: 0,
            p50: 0,
            p99: 0,
            owed: 0,
            progress: now,
            sampled: now,
        });
        if peer.owed == 0 {
            peer.progress = now;
        }
        peer.owed += 1;
    }

    /// `peer` answered a request after `took`.
    pub fn answered(&mut self, now: Mono, peer: u64, took: Duration) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        peer.owed = peer.owed.saturating_sub(1);
        peer.progress = now;
        peer.take(now, took);
    }

    /// No answer to a request will be waited for any more: its deadline passed. It counts as an answer that took `waited`.
    pub fn gave_up(&mut self, now: Mono, peer: u64, waited: Duration) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        peer.owed = peer.owed.saturating_sub(1);
        peer.take(now, waited);
    }

    /// The link broke: nothing is owed, and nothing is learnt.
    pub fn reset(&mut self, peer: u64) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.owed = 0;
        }
    }

    /// `peer` left.
    pub fn forget(&mut self, peer: u64) {
        self.peers.remove(&peer);
    }

    /// How surprising `peer`'s silence is: -log10 of how often it was longer without progress. 0 while nothing is owed; 2 is where a
    /// hundredth of its answers lie.
    pub fn suspicion(&self, now: Mono, peer: u64) -> f64 {
        match self.peers.get(&peer) {
            Some(peer) if peer.owed > 0 => peer.suspicion(now.since(peer.progress)),
            _ => 0.0,
        }
    }

    /// The time within which 99 of 100 answers of `peer` came, at most a quarter of an octave too long. `None` while it has given fewer
    /// than `REFRESH`.
    pub fn p99(&self, peer: u64) -> Option<Duration> {
        self.peers.get(&peer).filter(|peer| peer.weight >= REFRESH).map(|peer| upper(usize::from(peer.p99)))
    }

    /// Puts the fastest first, by what each is expected to take now. Who is about as fast as another keeps its place.
    pub fn order(&self, now: Mono, peers: &mut [u64]) {
        peers.sort_by_key(|peer| self.peers.get(peer).map_or(0, |peer| peer.expected(now)));
    }
}

impl Peer {
    fn take(&mut self, now: Mono, took: Duration) {
        self.counts[bucket(took)] += 1;
        self.weight += 1;
        self.sampled = now;
        if self.weight >= WEIGHT_MAX {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.weight = self.counts.iter().sum();
        }
        if self.refresh_in == 0 || self.weight < REFRESH {
            self.refresh_in = REFRESH;
            (self.p50, self.p99) = (self.quantile(0.5), self.quantile(0.99));
        }
        self.refresh_in -= 1;
    }

    fn quantile(&self, share: f64) -> u16 {
        let wanted = (f64::from(self.weight) * share).ceil() as u32;
        let mut seen = 0;
        let reached = |count: &u32| {
            seen += count;
            seen >= wanted
        };
        self.counts.iter().position(reached).unwrap_or(BUCKETS - 1) as u16
    }

    fn suspicion(&self, waited: Duration) -> f64 {
        let Some(highest) = self.counts.iter().rposition(|count| *count > 0) else { return 0.0 };
        let longer: u32 = self.counts[bucket(waited)..].iter().sum();
        // Half a sample, so that a silence longer than all is rare, not impossible.
        let seen = ((f64::from(self.weight) + 0.5) / (f64::from(longer) + 0.5)).log10();
        seen + (waited.as_secs_f64() / upper(highest).as_secs_f64()).log2().max(0.0)
    }

    /// The bucket of the time that an answer is expected to take.
    fn expected(&self, now: Mono) -> usize {
        let owed = if self.owed > 0 { bucket(now.since(self.progress)) } else { 0 };
        let idle = now.since(self.sampled).as_nanos() / FADE.as_nanos();
        let faded = usize::from(self.p50).saturating_sub(idle as usize * STEPS as usize);
        faded.max(owed)
    }
}

fn bucket(took: Duration) -> usize {
    let us = took.as_micros().clamp(1, 1 << 40) as u64;
    let octave = us.ilog2();
    let within = if octave >= 2 { (us >> (octave - 2)) & 3 } else { (us << (2 - octave)) & 3 };
    ((octave * STEPS) as usize + within as usize).min(BUCKETS - 1)
}

/// Where a bucket ends.
fn upper(bucket: usize) -> Duration {
    let (octave, within) = (bucket / STEPS as usize, bucket % STEPS as usize);
    Duration::from_nanos((1000u64 << octave) / 4 * (5 + within as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;

    const US: fn(u64) -> Duration = Duration::from_micros;

    fn fed(samples: impl Iterator<Item = u64>) -> (Detector, Mono) {
        let (mut detector, mut now) = (Detector::new(1), Mono(0));
        for us in samples {
            detector.asked(now, 7);
            now = now.plus(US(us));
            detector.answered(now, 7, US(us));
        }
        (detector, now)
    }

    #[test]
    fn buckets_hold_what_they_say() {
        for us in (0..4000).chain([1 << 20, (1 << 26) + 5]) {
            let at = bucket(US(us));
            assert!(US(us) < upper(at) && (at == 0 || US(us) >= upper(at - 1)), "{us}: {at}");
        }
        assert_eq!(bucket(Duration::from_secs(1 << 40)), BUCKETS - 1);
    }

    #[test]
    fn the_p99_follows_the_peer() {
        let mut prng = Prng::new(8);
        let (detector, now) = fed((0..5000).map(|_| 100 + prng.exponential(200.0) as u64));
        let exact = 100.0 + 200.0 * 100f64.ln();
        let p99 = detector.p99(7).unwrap().as_micros() as f64;
        assert!(p99 > exact * 0.8 && p99 < exact * 1.5, "{p99} of {exact}");
        assert_eq!(detector.p99(8), None);
        let mut detector = detector;
        for _ in 0..2 * WEIGHT_MAX {
            detector.asked(now, 7);
            detector.answered(now, 7, US(20_000));
        }
        assert!(detector.p99(7).unwrap() > US(20_000) && detector.p99(7).unwrap() < US(26_000), "the past fades");
    }

    #[test]
    fn suspicion_grows_with_silence_on_the_peers_own_scale() {
        let (mut fast, now) = fed((0..1000).map(|at| 100 + at % 100));
        let (mut slow, _) = fed((0..1000).map(|at| 10_000 + at % 100 * 100));
        assert_eq!(fast.suspicion(now, 7), 0.0, "nothing is owed");
        let at = now.plus(Duration::from_secs(30));
        fast.asked(at, 7);
        slow.asked(at, 7);
        let mut before = -1.0;
        for waited in [0, 50, 150, 250, 500, 1000, 10_000, 1_000_000] {
            let is = fast.suspicion(at.plus(US(waited)), 7);
            assert!(is >= before, "{waited}: {is}");
            before = is;
        }
        let (fast_10ms, slow_10ms) = (fast.suspicion(at.plus(US(10_000)), 7), slow.suspicion(at.plus(US(10_000)), 7));
        assert!(fast_10ms > 6.0 && slow_10ms < 0.1, "{fast_10ms} and {slow_10ms}");
        fast.asked(at.plus(US(9000)), 7);
        fast.answered(at.plus(US(10_000)), 7, US(100));
        assert!(fast.suspicion(at.plus(US(10_050)), 7) < 0.1, "an answer to anything is progress");
        fast.reset(7);
        assert_eq!(fast.suspicion(at.plus(US(90_000)), 7), 0.0);
    }

    #[test]
    fn replicas_are_asked_in_the_order_of_their_speed_and_the_slow_get_another_chance() {
        let (mut detector, mut now) = (Detector::new(2), Mono(0));
        let took = |peer: u64| US([100, 5000, 105][peer as usize - 1]);
        for _ in 0..200 {
            for peer in 1..=3 {
                detector.asked(now, peer);
                detector.answered(now, peer, took(peer));
            }
        }
        let order = |detector: &Detector, now| {
            let mut peers = [2, 3, 1];
            detector.order(now, &mut peers);
            peers
        };
        assert_eq!(order(&detector, now), [3, 1, 2], "equals keep their places");
        detector.asked(now, 3);
        now = now.plus(US(50_000));
        assert_eq!(order(&detector, now), [1, 2, 3], "the one that hangs is last");
        detector.gave_up(now, 3, US(50_000));
        now = now.plus(FADE * 6);
        for peer in [1, 3] {
            detector.asked(now, peer);
            detector.answered(now, peer, took(peer));
        }
        assert_eq!(order(&detector, now), [2, 3, 1], "after a while without a question it is worth a try");
        detector.asked(now, 2);
        detector.answered(now, 2, took(2));
        assert_eq!(order(&detector, now), [3, 1, 2], "and no better than before");
        detector.forget(2);
        assert_eq!(detector.suspicion(now, 2), 0.0);
    }
}
