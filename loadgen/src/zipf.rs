//! Zipf: rank k of `1..=n` with a probability proportional to k^-exponent, exactly, for any n, in constant time and some ten nanoseconds.
//!
//! Ranks fall into buckets: the first ones each alone, then every doubling in equal parts. A bucket is drawn by its **hat**, its width
//! times the weight of its first rank (by the alias method: Vose, "A linear algorithm for generating random numbers with a given
//! distribution", IEEE TSE 17(9), 1991); then a rank in it, evenly; which is accepted with its weight over the hat's, or all is drawn
//! again. Within a bucket weights differ by few percent, so that the weight itself is hardly ever computed.

use ringkv::base::prng::Prng;

/// Ranks that have a bucket of their own; a power of two.
const ALONE: u64 = 256;
/// Buckets of each doubling of ranks behind them.
const PARTS: u64 = 32;
const _: () = assert!(ALONE.is_power_of_two() && ALONE.is_multiple_of(PARTS));
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

#[derive(Clone, Debug)]
struct Bucket {
    first: u64,
    width: u64,
    /// Below this, of 2^64, the bucket is itself; else it is its alias.
    own: u64,
    alias: u32,
    /// Any rank of the bucket is accepted below this, of 2^53.
    sure: u64,
}

/// Draws ranks 1..=n with probability proportional to rank^-exponent.
#[derive(Clone, Debug)]
pub struct Zipf {
    exponent: f64,
    buckets: Vec<Bucket>,
}

impl Zipf {
    /// `ranks` at least 1, `exponent` above 0.
    pub fn new(ranks: u64, exponent: f64) -> Zipf {
        assert!(ranks > 0 && ranks < 1 << 62 && exponent > 0.0, "ranks {ranks} exponent {exponent}");
        let mut buckets = Vec::new();
        let mut first = 1;
        while first <= ranks {
            let width = if first < ALONE { 1 } else { (1 << first.ilog2()) / PARTS };
            let width = width.min(ranks - first + 1);
            let ratio = ((first + width - 1) as f64 / first as f64).powf(-exponent);
            // Rounding must not accept for sure what is not.
            let sure = if width == 1 { u64::MAX } else { ((ratio - 1e-9).max(0.0) * (1u64 << 53) as f64) as u64 };
            buckets.push(Bucket { first, width, own: u64::MAX, alias: 0, sure });
            first += width;
        }
        let hats: Vec<f64> = buckets.iter().map(|bucket| bucket.width as f64 * (bucket.first as f64).powf(-exponent)).collect();
        alias(&mut buckets, &hats);
        Zipf { exponent, buckets }
    }

    /// The next rank, from 1.
    #[inline]
    pub fn draw(&self, random: &mut Prng) -> u64 {
        loop {
            let product = u128::from(random.next_u64()) * self.buckets.len() as u128;
            let at = &self.buckets[(product >> 64) as usize];
            let bucket = if (product as u64) < at.own { at } else { &self.buckets[at.alias as usize] };
            if bucket.width == 1 {
                return bucket.first;
            }
            let rank = bucket.first + random.below(bucket.width);
            let u = random.next_u64() >> 11;
            if u < bucket.sure || (u as f64) < (rank as f64 / bucket.first as f64).powf(-self.exponent) * (1u64 << 53) as f64 {
                return rank;
            }
        }
    }
}

/// Vose's tables for buckets of these weights. A bucket that is left over at the end is whole, but for rounding, and keeps itself.
fn alias(buckets: &mut [Bucket], weights: &[f64]) {
    let mean = weights.iter().sum::<f64>() / weights.len() as f64;
    let mut shares: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..shares.len()).partition(|&at| shares[at] < 1.0);
    while let (Some(&giver), Some(taker)) = (large.last(), small.pop()) {
        buckets[taker].own = (shares[taker] * TWO_TO_64) as u64;
        buckets[taker].alias = giver as u32;
        shares[giver] -= 1.0 - shares[taker];
        if shares[giver] < 1.0 {
            large.pop();
            small.push(giver);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn frequencies_match(ranks: u64, exponent: f64, draws: u64) {
        let zipf = Zipf::new(ranks, exponent);
        let mut random = Prng::new(11);
        let mut counts = vec![0u64; ranks as usize + 1];
        (0..draws).for_each(|_| counts[zipf.draw(&mut random) as usize] += 1);
        let norm: f64 = (1..=ranks).map(|k| (k as f64).powf(-exponent)).sum();
        // Chi-squared over cells of at least 20 expected draws; its deviation is sqrt(2 × cells).
        let (mut chi, mut cells, mut expected_sum, mut count_sum) = (0.0, 0u32, 0.0, 0u64);
        for rank in 1..=ranks {
            expected_sum += draws as f64 * (rank as f64).powf(-exponent) / norm;
            count_sum += counts[rank as usize];
            if expected_sum >= 20.0 {
                chi += (count_sum as f64 - expected_sum).powi(2) / expected_sum;
                (cells, expected_sum, count_sum) = (cells + 1, 0.0, 0);
            }
        }
        let cells = f64::from(cells);
        assert!((chi - cells).abs() < 5.0 * (2.0 * cells).sqrt(), "s={exponent} n={ranks}: chi² {chi} over {cells} cells");
    }

    #[test]
    fn zipf_frequencies_match_theory() {
        for exponent in [0.5, 0.99, 1.0, 1.2, 3.0] {
            frequencies_match(1000, exponent, 200_000);
        }
        [2, 255, 256, 257, 271].iter().for_each(|&ranks| frequencies_match(ranks, 0.99, 50_000));
        frequencies_match(100_000, 0.99, 300_000);
    }

    #[test]
    fn one_key_and_a_trillion_keys_work() {
        let mut random = Prng::new(3);
        assert_eq!(Zipf::new(1, 0.99).draw(&mut random), 1);
        let huge = Zipf::new(1_000_000_000_000, 0.99);
        (0..1000).for_each(|_| assert!((1..=1_000_000_000_000).contains(&huge.draw(&mut random))));
        assert!(huge.buckets.len() < 2000);
    }
}
