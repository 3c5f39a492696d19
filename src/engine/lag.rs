//! How late expired cells were reclaimed: a histogram of powers of two, each cut into four.

/// Lags in milliseconds.
#[derive(Clone, Debug)]
pub struct Lag {
    buckets: [u64; BUCKETS],
    count: u64,
    max_ms: u64,
}

const BUCKETS: usize = 4 * 65;

impl Default for Lag {
    fn default() -> Lag {
        Lag { buckets: [0; BUCKETS], count: 0, max_ms: 0 }
    }
}

/// Quantiles of a lag, upper ends of their buckets, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LagQuantiles {
    pub count: u64,
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
}

fn bucket(ms: u64) -> usize {
    if ms < 4 {
        return ms as usize;
    }
    let power = 63 - ms.leading_zeros() as usize;
    power * 4 + (ms >> (power - 2) & 3) as usize
}

fn upper(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket.min(3) as u64;
    }
    let (power, quarter) = (bucket as u32 / 4, bucket as u64 % 4);
    (1u64 << power) - 1 + ((quarter + 1) << (power - 2)).min(u64::MAX - (1u64 << power) + 1)
}

impl Lag {
    pub fn record(&mut self, ms: u64) {
        self.buckets[bucket(ms)] += 1;
        self.count += 1;
        self.max_ms = self.max_ms.max(ms);
    }

    pub fn quantiles(&self) -> LagQuantiles {
        LagQuantiles { count: self.count, p50_ms: self.quantile(0.5), p99_ms: self.quantile(0.99), max_ms: self.max_ms }
    }

    fn quantile(&self, share: f64) -> u64 {
        let rank = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        let found = self.buckets.iter().position(|&count| {
            seen += count;
            seen >= rank && rank > 0
        });
        found.map_or(0, upper).min(self.max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_quarter_above() {
        let mut lag = Lag::default();
        (0..1000).for_each(|ms| lag.record(ms));
        let q = lag.quantiles();
        assert!((500..=640).contains(&q.p50_ms) && (989..=999).contains(&q.p99_ms) && q.max_ms == 999, "{q:?}");
        for ms in (0..100_000).chain([u64::MAX]) {
            assert!(upper(bucket(ms)) >= ms && (bucket(ms) == 0 || upper(bucket(ms) - 1) < ms), "{ms}");
        }
    }
}
