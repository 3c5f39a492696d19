//! A Bloom filter over the keys of a table (Bloom, "Space/time trade-offs in hash coding with allowable errors", 1970), probed by double
//! hashing (Kirsch and Mitzenmacher, "Less hashing, same performance", 2006), and how bits are spread over the runs of a tree
//! (Dayan, Athanassoulis and Idreos, "Monkey: optimal navigable key-value store", 2017).
//!
//! The content on disk is the number of probes (u8), then the bits: bit `i` is bit `i % 8` of byte `i / 8`.

use crate::base::checksum::hash64;
use crate::base::codec::Malformed;

const PROBES_MAX: u32 = 30;

/// The hash of a key prefix (`format::put_key_prefix`) that filters hold.
#[inline]
pub fn prefix_hash(prefix: &[u8]) -> u64 {
    hash64(prefix)
}

/// A filter in memory.
#[derive(Debug)]
pub struct Filter {
    /// As on disk: probes, then bits.
    content: Box<[u8]>,
}

impl Filter {
    /// The content of a filter over `hashes` with `bits_per_key` bits each.
    pub fn build(hashes: &[u64], bits_per_key: f32) -> Vec<u8> {
        let bits = (hashes.len() as f64 * f64::from(bits_per_key)).ceil().max(64.0) as usize;
        let probes = ((f64::from(bits_per_key) * std::f64::consts::LN_2).round() as u32).clamp(1, PROBES_MAX);
        let mut content = vec![0; 1 + bits.div_ceil(8)];
        content[0] = probes as u8;
        let bits = (content.len() as u64 - 1) * 8;
        for &hash in hashes {
            for at in probe(hash, probes, bits) {
                content[1 + at / 8] |= 1 << (at % 8);
            }
        }
        content
    }

    pub fn parse(content: &[u8]) -> Result<Filter, Malformed> {
        let probes = *content.first().ok_or(Malformed("filter too short"))?;
        if content.len() < 2 || !(1..=PROBES_MAX).contains(&u32::from(probes)) {
            return Err(Malformed("impossible filter"));
        }
        Ok(Filter { content: content.into() })
    }

    /// False: no key with this hash was put in. True: perhaps one was.
    #[inline]
    pub fn may_hold(&self, hash: u64) -> bool {
        let bits = &self.content[1..];
        probe(hash, u32::from(self.content[0]), bits.len() as u64 * 8).all(|at| bits[at / 8] >> (at % 8) & 1 == 1)
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.content.len()
    }
}

/// The bits of a hash. The step is odd and mixed anew, so that hashes which begin alike part at once.
#[inline]
fn probe(hash: u64, probes: u32, bits: u64) -> impl Iterator<Item = usize> {
    let step = hash.rotate_left(32).wrapping_mul(0x9FB2_1C65_1E98_DF25) | 1;
    (0..u64::from(probes)).map(move |n| ((u128::from(hash.wrapping_add(step.wrapping_mul(n))) * u128::from(bits)) >> 64) as usize)
}

/// The share of false positives of a filter, by theory.
pub fn false_positives(bits_per_key: f32) -> f64 {
    let probes = (f64::from(bits_per_key) * std::f64::consts::LN_2).round().clamp(1.0, f64::from(PROBES_MAX));
    (1.0 - (-probes / f64::from(bits_per_key)).exp()).powf(probes)
}

/// Bits a key for a wanted share of false positives.
pub fn bits_for_false_positives(share: f64) -> f32 {
    (-share.clamp(1e-9, 0.5).ln() / (std::f64::consts::LN_2 * std::f64::consts::LN_2)) as f32
}

/// What a level of a tree looks like, for `bits_for_level`.
#[derive(Clone, Copy, Debug)]
pub struct LevelShape {
    pub keys: u64,
    /// Sorted runs that a read of a missing key asks one by one.
    pub runs: u32,
}

/// The sum of false positives that a tree's filters may have for a missing key.
pub const FALSE_POSITIVES_MAX: f64 = 0.01;
/// Filters above this would cost more memory than the reads they save.
const BITS_MAX: f32 = 20.0;

/// Bits a key of one level, so that the filters of all runs together stay within `FALSE_POSITIVES_MAX` with the least memory: a run's
/// share is proportional to its keys (Monkey, section 4).
pub fn bits_for_level(levels: &[LevelShape], level: usize) -> f32 {
    let total: u64 = levels.iter().map(|level| level.keys).sum();
    let keys = levels[level].keys.max(1) as f64 / f64::from(levels[level].runs.max(1));
    // A twentieth is kept back: the number of probes is whole, which costs a little against the theory.
    let share = FALSE_POSITIVES_MAX * 0.95 * keys / total.max(1) as f64;
    bits_for_false_positives(share).min(BITS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;

    #[test]
    fn what_was_put_in_is_held_and_the_rest_is_refused_as_theory_says() {
        let mut prng = Prng::new(2);
        for bits in [4.0f32, 9.6, 10.0, 12.1, 16.0] {
            let hashes: Vec<u64> = (0..40_000).map(|_| prng.next_u64()).collect();
            let filter = Filter::parse(&Filter::build(&hashes, bits)).unwrap();
            assert!(hashes.iter().all(|&hash| filter.may_hold(hash)));
            assert!(filter.memory_bytes() as f32 <= 40_000.0 * bits / 8.0 + 2.0);
            let probes = 400_000;
            let wrong = (0..probes).filter(|_| filter.may_hold(prng.next_u64())).count() as f64 / f64::from(probes);
            let theory = false_positives(bits);
            let noise = 5.0 * (theory / f64::from(probes)).sqrt();
            assert!((wrong - theory).abs() <= theory * 0.12 + noise, "{bits} bits: {wrong} against {theory}");
        }
    }

    #[test]
    fn an_empty_filter_holds_nothing_and_short_content_is_refused() {
        let filter = Filter::parse(&Filter::build(&[], 10.0)).unwrap();
        assert!((0..1000u64).all(|n| !filter.may_hold(n.wrapping_mul(0x9E37_79B9_7F4A_7C15))));
        assert!(Filter::parse(&[]).is_err() && Filter::parse(&[7]).is_err() && Filter::parse(&[0, 1]).is_err());
        assert!(Filter::parse(&[31, 1]).is_err());
    }

    #[test]
    fn the_levels_together_stay_within_a_percent_and_ten_and_a_half_bits() {
        for levels in [
            vec![LevelShape { keys: 1_000_000, runs: 1 }],
            vec![LevelShape { keys: 10_000, runs: 4 }, LevelShape { keys: 100_000, runs: 1 }, LevelShape { keys: 1_000_000, runs: 1 }],
            vec![LevelShape { keys: 50_000, runs: 8 }, LevelShape { keys: 1_000_000, runs: 1 }],
        ] {
            let bits: Vec<f32> = (0..levels.len()).map(|level| bits_for_level(&levels, level)).collect();
            let sum: f64 = bits.iter().zip(&levels).map(|(&bits, level)| false_positives(bits) * f64::from(level.runs)).sum();
            assert!(sum <= FALSE_POSITIVES_MAX, "{sum}");
            let keys: u64 = levels.iter().map(|level| level.keys).sum();
            let memory: f64 = bits.iter().zip(&levels).map(|(&bits, level)| f64::from(bits) * level.keys as f64).sum();
            assert!(memory / keys as f64 <= 10.8, "{}", memory / keys as f64);
        }
    }
}
