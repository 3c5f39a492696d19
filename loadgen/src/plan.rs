//! When the next request is due in an open loop: arrivals independent and exponential, at times that never move because a server is
//! slow. Each thread runs one process at its share of the rate; each arrival goes to a connection chosen at random, which makes every
//! connection's own arrivals independent and exponential as well (a Poisson process split at random stays one).

use ringkv::base::prng::Prng;

/// A Poisson process, in nanoseconds from its start.
#[derive(Clone, Debug)]
pub struct Arrivals {
    next_ns: f64,
    gap_mean_ns: f64,
    random: Prng,
}

impl Arrivals {
    /// At `rate` a second, above 0.
    pub fn new(rate: f64, random: Prng) -> Arrivals {
        assert!(rate > 0.0, "rate {rate}");
        let mut arrivals = Arrivals { next_ns: 0.0, gap_mean_ns: 1e9 / rate, random };
        arrivals.advance();
        arrivals
    }

    /// When the next one is due.
    #[inline]
    pub fn next_ns(&self) -> u64 {
        self.next_ns as u64
    }

    /// Goes on to the one after it.
    #[inline]
    pub fn advance(&mut self) {
        self.next_ns += self.random.exponential(self.gap_mean_ns);
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum OpKind {
    Get = 0,
    Put = 1,
    Del = 2,
}

impl OpKind {
    pub const ALL: [OpKind; 3] = [OpKind::Get, OpKind::Put, OpKind::Del];

    pub fn name(self) -> &'static str {
        ["get", "put", "del"][self as usize]
    }
}

/// Weights of the kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    pub weights: [u32; 3],
}

impl Mix {
    /// A kind at random by its weight.
    #[inline]
    pub fn draw(&self, random: &mut Prng) -> OpKind {
        let sum: u64 = self.weights.iter().map(|&weight| u64::from(weight)).sum();
        let at = random.below(sum) as u32;
        if at < self.weights[0] {
            OpKind::Get
        } else if at < self.weights[0] + self.weights[1] {
            OpKind::Put
        } else {
            OpKind::Del
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_exponential_at_the_wanted_rate() {
        let mut arrivals = Arrivals::new(1000.0, Prng::new(4));
        let mut gaps = Vec::new();
        let mut before = 0;
        for _ in 0..100_000 {
            gaps.push((arrivals.next_ns() - before) as f64);
            before = arrivals.next_ns();
            arrivals.advance();
        }
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean / 1e6 - 1.0).abs() < 0.02, "mean {mean}");
        // An exponential's deviation equals its mean, and e^-k of the gaps are longer than k means.
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.03, "deviation {deviation}");
        for k in [0.5f64, 1.0, 2.0, 4.0] {
            let longer = gaps.iter().filter(|&&gap| gap > k * mean).count() as f64 / gaps.len() as f64;
            assert!((longer - (-k).exp()).abs() < 0.01, "k {k}: {longer}");
        }
    }

    #[test]
    fn the_mix_is_drawn_by_weight() {
        let mix = Mix { weights: [91, 9, 0] };
        let mut random = Prng::new(2);
        let mut counts = [0u32; 3];
        (0..100_000).for_each(|_| counts[mix.draw(&mut random) as usize] += 1);
        assert!((90_500..91_500).contains(&counts[0]) && counts[2] == 0, "{counts:?}");
    }
}
