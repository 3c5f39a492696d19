//! Which key comes next: uniform or Zipf over `0..keys`, in constant time and constant memory for any number of keys.
//!
//! Zipf draws by rejection inversion (Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone discrete
//! distributions", ACM TOMACS 6(3), 1996): exact, not an approximation. Ranks go through a permutation, so that the hottest keys have
//! unrelated numbers.

use crate::permute::Permutation;
use ringkv::base::prng::Prng;

/// The shape of a key distribution, as given on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    Uniform,
    /// Rank k (from 1) has a weight of k^-exponent.
    Zipf(f64),
}

/// Draws ranks 1..=n with probability proportional to rank^-exponent.
#[derive(Clone, Debug)]
pub struct Zipf {
    ranks: f64,
    exponent: f64,
    integral_first: f64,
    integral_last: f64,
    shortcut: f64,
}

impl Zipf {
    /// `ranks` at least 1, `exponent` above 0.
    pub fn new(ranks: u64, exponent: f64) -> Zipf {
        assert!(ranks > 0 && exponent > 0.0, "ranks {ranks} exponent {exponent}");
        let mut zipf = Zipf { ranks: ranks as f64, exponent, integral_first: 0.0, integral_last: 0.0, shortcut: 0.0 };
        zipf.integral_first = zipf.integral(1.5) - 1.0;
        zipf.integral_last = zipf.integral(ranks as f64 + 0.5);
        zipf.shortcut = 2.0 - zipf.integral_inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    /// The next rank, from 1.
    pub fn draw(&self, random: &mut Prng) -> u64 {
        loop {
            let u = self.integral_last + random.unit() * (self.integral_first - self.integral_last);
            let x = self.integral_inverse(u);
            let rank = (x + 0.5).floor().clamp(1.0, self.ranks);
            if rank - x <= self.shortcut || u >= self.integral(rank + 0.5) - self.density(rank) {
                return rank as u64;
            }
        }
    }

    /// H(x): the integral of t^-exponent from 1 to x.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        expm1_over((1.0 - self.exponent) * log) * log
    }

    fn density(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    fn integral_inverse(&self, u: f64) -> f64 {
        // Rounding may carry this below -1, where the logarithm ends.
        let t = (u * (1.0 - self.exponent)).max(-1.0);
        (ln_1p_over(t) * u).exp()
    }
}

/// (e^x - 1) / x, also near 0.
fn expm1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x * 0.5 * (1.0 + x / 3.0) }
}

/// ln(1 + x) / x, also near 0.
fn ln_1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x * (0.5 - x / 3.0) }
}

/// Draws key numbers.
#[derive(Clone, Debug)]
pub struct KeyDraw {
    keys: u64,
    zipf: Option<(Zipf, Permutation)>,
}

impl KeyDraw {
    /// Over `0..keys`; `seed` chooses which keys are the hot ones.
    pub fn new(shape: Shape, keys: u64, seed: u64) -> KeyDraw {
        let zipf = match shape {
            Shape::Uniform => None,
            Shape::Zipf(exponent) => Some((Zipf::new(keys, exponent), Permutation::new(keys, seed))),
        };
        KeyDraw { keys, zipf }
    }

    #[inline]
    pub fn draw(&self, random: &mut Prng) -> u64 {
        match &self.zipf {
            None => random.below(self.keys),
            Some((zipf, permutation)) => permutation.apply(zipf.draw(random) - 1),
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
        for exponent in [0.5, 0.99, 1.0, 1.2] {
            frequencies_match(1000, exponent, 200_000);
        }
        frequencies_match(2, 0.99, 50_000);
        frequencies_match(100_000, 0.99, 300_000);
    }

    #[test]
    fn one_key_and_a_trillion_keys_work() {
        let mut random = Prng::new(3);
        assert_eq!(Zipf::new(1, 0.99).draw(&mut random), 1);
        let huge = KeyDraw::new(Shape::Zipf(0.99), 1_000_000_000_000, 5);
        (0..1000).for_each(|_| assert!(huge.draw(&mut random) < 1_000_000_000_000));
    }

    #[test]
    fn uniform_covers_all_keys_evenly() {
        let draw = KeyDraw::new(Shape::Uniform, 10, 0);
        let mut random = Prng::new(9);
        let mut counts = [0u32; 10];
        (0..100_000).for_each(|_| counts[draw.draw(&mut random) as usize] += 1);
        assert!(counts.iter().all(|&count| (9_500..10_500).contains(&count)), "{counts:?}");
    }
}
