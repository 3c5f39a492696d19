//! Which vnode is compared with whom next: always in the background, each pair of replicas once a round, in an order that a seed shuffles
//! anew every round, so that nodes do not all turn to the same one. Of two replicas one begins, by the vnode's number in turns. Who did
//! not answer is left alone for a while, twice as long each time; its pairs stay in the round, and the others go on.

use crate::base::map::{Map, Seeded};
use crate::base::prng::Prng;
use crate::base::record::{NamespaceId, Token};
use crate::base::time::Mono;
use std::collections::BTreeMap;
use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// A comparison to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    pub namespace: NamespaceId,
    pub vnode: u32,
    pub peer: u64,
}

/// What is known of a pair.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Places that differed when the pair was compared last.
    differing: u64,
    /// Where the last comparison was cut off.
    resume: Option<Token>,
}

#[derive(Clone, Copy, Debug)]
struct Away {
    until: Mono,
    pause: Duration,
}

/// The comparisons that this shard begins.
#[derive(Debug)]
pub struct RepairPlan {
    prng: Prng,
    pairs: BTreeMap<Pair, Known>,
    /// What is left of the round, the next one last.
    round: Vec<Pair>,
    away: Map<u64, Away>,
    rounds: u64,
}

/// Whether `me` begins the comparisons of a vnode with `peer`.
pub fn begins(me: u64, peer: u64, vnode: u32) -> bool {
    (me < peer) == vnode.is_multiple_of(2)
}

impl RepairPlan {
    pub fn new(seed: u64) -> RepairPlan {
        RepairPlan { prng: Prng::new(seed), pairs: BTreeMap::new(), round: Vec::new(), away: Map::with_hasher(Seeded(seed)), rounds: 0 }
    }

    /// All pairs of this shard for which `begins` holds, whenever the topology or the namespaces change.
    pub fn set_pairs(&mut self, pairs: impl IntoIterator<Item = Pair>) {
        let before = std::mem::take(&mut self.pairs);
        self.pairs = pairs.into_iter().map(|pair| (pair, before.get(&pair).copied().unwrap_or_default())).collect();
        self.round.retain(|pair| self.pairs.contains_key(pair));
        self.away.retain(|peer, _| self.pairs.keys().any(|pair| pair.peer == *peer));
    }

    /// The next comparison and where it begins; none while everybody that is left is away.
    pub fn next(&mut self, now: Mono) -> Option<(Pair, Option<Token>)> {
        if self.round.is_empty() && !self.pairs.is_empty() {
            self.round = self.pairs.keys().copied().collect();
            for at in (1..self.round.len()).rev() {
                let other = self.prng.below(at as u64 + 1) as usize;
                self.round.swap(at, other);
            }
            self.rounds += 1;
        }
        let is_there = |pair: &Pair| self.away.get(&pair.peer).is_none_or(|away| away.until <= now);
        let at = self.round.iter().rposition(is_there)?;
        let pair = self.round.remove(at);
        let resume = self.pairs.get(&pair).and_then(|known| known.resume);
        Some((pair, resume))
    }

    /// A comparison came to its end; so many places had differed.
    pub fn compared(&mut self, pair: Pair, differing: u64) {
        self.away.remove(&pair.peer);
        if let Some(known) = self.pairs.get_mut(&pair) {
            *known = Known { differing, resume: None };
        }
    }

    /// The peer did not answer, or refused: the pair comes again in this round, from `resume` on.
    pub fn cut_off(&mut self, now: Mono, pair: Pair, resume: Option<Token>) {
        let away = self.away.entry(pair.peer).or_insert(Away { until: now, pause: PAUSE_MIN });
        away.until = now.plus(away.pause);
        away.pause = (away.pause * 2).min(PAUSE_MAX);
        if let Some(known) = self.pairs.get_mut(&pair) {
            known.resume = resume.or(known.resume);
            self.round.insert(0, pair);
        }
    }

    /// The peer can be reached again: no need to wait until its pause is over.
    pub fn is_back(&mut self, peer: u64) {
        self.away.remove(&peer);
    }

    /// The same of all: what they refused, they may take now.
    pub fn forgive(&mut self) {
        self.away.clear();
    }

    /// The gauge: places that differed when they were compared last, of all pairs.
    pub fn differing(&self) -> u64 {
        self.pairs.values().map(|known| known.differing).sum()
    }

    /// Rounds begun.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> Vec<Pair> {
        (0..20).flat_map(|vnode| [2, 3].map(|peer| Pair { namespace: 1, vnode, peer })).collect()
    }

    #[test]
    fn every_pair_comes_once_a_round_in_another_order_each_time() {
        let mut plan = RepairPlan::new(1);
        plan.set_pairs(pairs());
        let mut round = || -> Vec<Pair> { (0..40).map(|_| plan.next(Mono(0)).unwrap().0).collect() };
        let (one, two) = (round(), round());
        assert_ne!(one, two);
        for mut round in [one, two] {
            round.sort_unstable();
            assert_eq!(round, pairs());
        }
        assert!((0..9).all(|vnode| begins(1, 2, vnode) != begins(2, 1, vnode)));
    }

    #[test]
    fn who_is_away_is_left_alone_and_holds_nobody_up() {
        let mut plan = RepairPlan::new(2);
        plan.set_pairs(pairs());
        let (mut now, mut of_three, mut tries) = (Mono(0), 0, Vec::new());
        while of_three < 20 {
            let Some((pair, resume)) = plan.next(now) else {
                now = now.plus(Duration::from_millis(100));
                continue;
            };
            if pair.peer == 3 {
                of_three += 1;
                plan.compared(pair, 1);
            } else {
                tries.push((now, resume));
                plan.cut_off(now, pair, Some(77));
            }
        }
        assert_eq!((plan.differing(), plan.rounds(), tries.len()), (20, 1, 1), "all others first");
        while tries.len() < 12 {
            now = now.plus(Duration::from_millis(100));
            if let Some((pair, resume)) = plan.next(now) {
                tries.push((now, resume));
                plan.cut_off(now, pair, None);
            }
        }
        let gaps: Vec<u64> = tries.windows(2).map(|pair| pair[1].0.since(pair[0].0).as_secs()).collect();
        assert_eq!(gaps, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        // When it is back, its pairs are still there, and one goes on where it was cut off.
        let mut resumed = 0;
        for _ in 0..20 {
            now = now.plus(PAUSE_MAX);
            let (pair, resume) = plan.next(now).unwrap();
            assert_eq!(pair.peer, 2);
            resumed += u32::from(resume == Some(77));
            plan.compared(pair, 0);
        }
        assert_eq!((plan.rounds(), resumed), (1, 1));
        plan.set_pairs(pairs().into_iter().filter(|pair| pair.peer == 2));
        assert_eq!(plan.differing(), 0);
    }
}
