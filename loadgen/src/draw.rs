//! Which key comes next: uniform, Zipf, a hot spot, or the latest. In constant time and memory for any number of keys.
//!
//! Ranks go through a permutation, so that the hottest keys have unrelated numbers. With `latest` the keys are a ring on which puts go
//! round, and gets and deletes ask, by Zipf, for what was put last: rank 1 is the last put of the whole run, whichever thread did it.

use crate::permute::Permutation;
use crate::plan::OpKind;
use crate::zipf::Zipf;
use ringkv::base::prng::Prng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The shape of a key distribution, as given on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    Uniform,
    /// Rank k (from 1) has a weight of k^-exponent.
    Zipf(f64),
    /// The same over how long ago a key was put.
    Latest(f64),
    /// A share of the keys gets a share of the requests; the others get the rest. Even within both.
    Hotspot {
        keys: f64,
        requests: f64,
    },
}

/// Draws key numbers.
#[derive(Clone, Debug)]
pub struct KeyDraw {
    keys: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Uniform,
    Zipf(Zipf, Permutation),
    Latest(Zipf, Arc<AtomicU64>),
    Hotspot { hot: u64, requests: f64, permutation: Permutation },
}

impl KeyDraw {
    /// Over `0..keys`; `seed` chooses which keys are the hot ones. `head` counts the puts of `Shape::Latest` and is shared by all threads
    /// of a run; it begins at `keys` or above, as if all had been put in order.
    pub fn new(shape: Shape, keys: u64, seed: u64, head: &Arc<AtomicU64>) -> KeyDraw {
        let kind = match shape {
            Shape::Uniform => Kind::Uniform,
            Shape::Zipf(exponent) => Kind::Zipf(Zipf::new(keys, exponent), Permutation::new(keys, seed)),
            Shape::Latest(exponent) => Kind::Latest(Zipf::new(keys, exponent), head.clone()),
            Shape::Hotspot { keys: share, requests } => {
                let hot = ((keys as f64 * share).round() as u64).clamp(1, keys);
                Kind::Hotspot { hot, requests, permutation: Permutation::new(keys, seed) }
            }
        };
        KeyDraw { keys, kind }
    }

    #[inline]
    pub fn draw(&self, op: OpKind, random: &mut Prng) -> u64 {
        match &self.kind {
            Kind::Uniform => random.below(self.keys),
            Kind::Zipf(zipf, permutation) => permutation.apply(zipf.draw(random) - 1),
            Kind::Latest(_, head) if op == OpKind::Put => head.fetch_add(1, Ordering::Relaxed) % self.keys,
            Kind::Latest(zipf, head) => (head.load(Ordering::Relaxed) - zipf.draw(random)) % self.keys,
            Kind::Hotspot { hot, requests, permutation } => {
                let is_hot = *hot == self.keys || random.unit() < *requests;
                let index = if is_hot { random.below(*hot) } else { hot + random.below(self.keys - hot) };
                permutation.apply(index)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(shape: Shape, keys: u64) -> KeyDraw {
        KeyDraw::new(shape, keys, 5, &Arc::new(AtomicU64::new(keys)))
    }

    fn counts(draw: &KeyDraw, keys: u64, draws: u32) -> Vec<u32> {
        let (mut random, mut counts) = (Prng::new(9), vec![0; keys as usize]);
        (0..draws).for_each(|_| counts[draw.draw(OpKind::Get, &mut random) as usize] += 1);
        counts
    }

    #[test]
    fn uniform_covers_all_keys_evenly() {
        let counts = counts(&draw(Shape::Uniform, 10), 10, 100_000);
        assert!(counts.iter().all(|&count| (9_500..10_500).contains(&count)), "{counts:?}");
    }

    #[test]
    fn zipf_spreads_its_ranks_over_all_keys() {
        let mut counts = counts(&draw(Shape::Zipf(0.99), 1000), 1000, 100_000);
        assert!(!counts[..10].iter().all(|&count| count > 1000), "the hot keys are not the first ones");
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // The first rank's share is 1 / sum of k^-0.99.
        let norm: f64 = (1..=1000).map(|k| f64::from(k).powf(-0.99)).sum();
        assert!((f64::from(counts[0]) * norm / 100_000.0 - 1.0).abs() < 0.05);
    }

    #[test]
    fn a_hot_spot_gets_its_share_and_the_rest_gets_the_rest() {
        let mut counts = counts(&draw(Shape::Hotspot { keys: 0.1, requests: 0.9 }, 100), 100, 100_000);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let hot: u32 = counts[..10].iter().sum();
        assert!((89_000..91_000).contains(&hot), "{hot}");
        assert!(counts[..10].iter().all(|count| (8_000..10_000).contains(count)) && counts[99] > 50, "{counts:?}");
        let all = draw(Shape::Hotspot { keys: 1.0, requests: 0.1 }, 7);
        (0..100).for_each(|_| assert!(all.draw(OpKind::Get, &mut Prng::new(1)) < 7));
    }

    #[test]
    fn latest_asks_for_what_was_put_last() {
        let draw = draw(Shape::Latest(0.99), 100);
        let mut random = Prng::new(2);
        let puts: Vec<u64> = (0..130).map(|_| draw.draw(OpKind::Put, &mut random)).collect();
        assert_eq!(puts, (0..130).map(|put| put % 100).collect::<Vec<u64>>());
        let counts = counts(&draw, 100, 100_000);
        // 29 was the last put, 30 the one that was put longest ago.
        assert!(counts[29] > 15_000 && counts[28] < counts[29] && counts[30] < counts[28] / 10, "{counts:?}");
    }
}
