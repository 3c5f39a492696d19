//! How many bytes a key or a value has: one size, a uniform range, a lognormal, or a list with weights. A size follows from a hash, so that
//! the size of a key follows from its number, and that of a value from its write.

use std::fmt;

/// A distribution of sizes, as it was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes {
    pub bytes_min: usize,
    pub bytes_max: usize,
    kind: Kind,
    text: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// Each size from the smallest to the largest alike.
    Uniform,
    /// The size's logarithm is normal.
    Lognormal { ln_median: f64, sigma: f64 },
    /// Sizes, each with the sum of the weights up to its own.
    Weighted(Vec<(u64, usize)>),
}

impl Sizes {
    /// From `bytes_min` to `bytes_max`, both included.
    pub fn uniform(bytes_min: usize, bytes_max: usize) -> Sizes {
        assert!(bytes_min <= bytes_max, "{bytes_min}..{bytes_max}");
        let text = if bytes_min == bytes_max { bytes_min.to_string() } else { format!("{bytes_min}..{bytes_max}") };
        Sizes { bytes_min, bytes_max, kind: Kind::Uniform, text }
    }

    /// Reads `100`, `100..1k`, `lognormal:MEDIAN,SIGMA`, `lognormal:MEDIAN,SIGMA,MIN..MAX`, `64=80,1k=15,16k=5`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Sizes, String> {
        if let Some(numbers) = text.strip_prefix("lognormal:") {
            return lognormal(text, numbers);
        }
        if text.contains('=') {
            return weighted(text);
        }
        let (bytes_min, bytes_max) = parse_range(text)?;
        Ok(Sizes::uniform(bytes_min, bytes_max))
    }

    pub fn is_fixed(&self) -> bool {
        self.bytes_min == self.bytes_max
    }

    /// The size that follows from a hash.
    #[inline]
    pub fn at(&self, hash: u64) -> usize {
        match &self.kind {
            Kind::Uniform if self.is_fixed() => self.bytes_min,
            Kind::Uniform => self.bytes_min + (hash % ((self.bytes_max - self.bytes_min) as u64 + 1)) as usize,
            Kind::Lognormal { ln_median, sigma } => {
                let share = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
                let size = (ln_median + sigma * normal_quantile(share)).exp();
                (size.round() as usize).clamp(self.bytes_min, self.bytes_max)
            }
            Kind::Weighted(steps) => {
                let total = steps.last().map_or(1, |step| step.0);
                let at = ((u128::from(hash) * u128::from(total)) >> 64) as u64;
                steps.iter().find(|step| at < step.0).map_or(self.bytes_max, |step| step.1)
            }
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A size with an optional suffix: powers of 1024.
pub fn parse_size(text: &str) -> Result<usize, String> {
    const KIB: f64 = 1024.0;
    let units = [("", 1.0), ("B", 1.0), ("k", KIB), ("K", KIB), ("KiB", KIB), ("m", KIB * KIB), ("M", KIB * KIB), ("MiB", KIB * KIB)];
    let size = crate::options::scaled(text, &units)?.round();
    if size <= 1e12 { Ok(size as usize) } else { Err(format!("{text:?} is too much")) }
}

fn parse_range(text: &str) -> Result<(usize, usize), String> {
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let (first, last) = (parse_size(first)?, parse_size(last)?);
    if first <= last { Ok((first, last)) } else { Err(format!("{text:?} ends before it begins")) }
}

fn lognormal(text: &str, numbers: &str) -> Result<Sizes, String> {
    let bad = "a lognormal looks like lognormal:MEDIAN,SIGMA or lognormal:MEDIAN,SIGMA,MIN..MAX";
    let mut parts = numbers.splitn(3, ',');
    let median = parse_size(parts.next().ok_or(bad)?)?;
    let sigma: f64 = parts.next().ok_or(bad)?.parse().map_err(|_| bad)?;
    if median == 0 || !(sigma > 0.0 && sigma <= 4.0) {
        return Err("a lognormal's median is at least 1, its sigma lies above 0 and up to 4".into());
    }
    let ln_median = (median as f64).ln();
    let (bytes_min, bytes_max) = match parts.next() {
        Some(range) => parse_range(range)?,
        // Four deviations: all but one in 16,000.
        None => ((ln_median - 4.0 * sigma).exp().max(1.0) as usize, (ln_median + 4.0 * sigma).exp() as usize),
    };
    Ok(Sizes { bytes_min, bytes_max, kind: Kind::Lognormal { ln_median, sigma }, text: text.to_owned() })
}

fn weighted(text: &str) -> Result<Sizes, String> {
    let (mut steps, mut sum) = (Vec::new(), 0u64);
    for part in text.split(',') {
        let (size, weight) = part.split_once('=').ok_or("a list of sizes looks like 64=80,1k=15,16k=5")?;
        let weight: u32 = weight.parse().map_err(|_| format!("{weight:?} is no weight"))?;
        sum += u64::from(weight);
        if weight > 0 {
            steps.push((sum, parse_size(size)?));
        }
    }
    let (min, max) = (steps.iter().map(|step| step.1).min(), steps.iter().map(|step| step.1).max());
    let (Some(bytes_min), Some(bytes_max)) = (min, max) else { return Err("a list of sizes needs a weight above 0".into()) };
    Ok(Sizes { bytes_min, bytes_max, kind: Kind::Weighted(steps), text: text.to_owned() })
}

/// The normal distribution's quantile, seven digits: Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied
/// Statistics 37(3), 1988, its PPND7. `share` lies between 0 and 1, both excluded.
fn normal_quantile(share: f64) -> f64 {
    let q = share - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180_625 - q * q;
        let above = ((59.109_374_720 * r + 159.291_132_02) * r + 50.434_271_938) * r + 3.387_132_717_9;
        let below = ((67.187_563_600 * r + 78.757_757_664) * r + 17.895_169_469) * r + 1.0;
        return q * above / below;
    }
    let r = (-share.min(1.0 - share).ln()).sqrt();
    let size = if r <= 5.0 {
        let r = r - 1.6;
        let above = ((0.170_238_211_03 * r + 1.306_728_481_6) * r + 2.756_815_390_0) * r + 1.423_437_277_7;
        above / ((0.120_211_329_75 * r + 0.737_001_642_50) * r + 1.0)
    } else {
        let r = r - 5.0;
        let above = ((0.017_337_203_997 * r + 0.428_682_943_37) * r + 3.081_226_386_0) * r + 6.657_905_115_0;
        above / ((0.012_258_202_635 * r + 0.241_978_942_25) * r + 1.0)
    };
    size.copysign(q)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringkv::base::prng::Prng;

    fn draw(text: &str, count: usize) -> Vec<usize> {
        let (sizes, mut random) = (Sizes::parse(text).unwrap(), Prng::new(3));
        let mut drawn: Vec<usize> = (0..count).map(|_| sizes.at(random.next_u64())).collect();
        drawn.sort_unstable();
        assert!(drawn[0] >= sizes.bytes_min && drawn[count - 1] <= sizes.bytes_max, "{text}");
        assert_eq!(sizes.to_string(), text);
        assert_eq!(Sizes::parse(&sizes.to_string()).unwrap(), sizes);
        drawn
    }

    #[test]
    fn sizes_follow_their_distribution() {
        assert_eq!(draw("100", 10), [100; 10]);
        let uniform = draw("10..19", 100_000);
        assert!((10..20).all(|size| (9_500..10_500).contains(&uniform.iter().filter(|&&drawn| drawn == size).count())));
        let weighted = draw("64=80,1024=15,16384=5", 100_000);
        let count = |size| weighted.iter().filter(|&&drawn| drawn == size).count();
        assert!((79_000..81_000).contains(&count(64)) && (4_700..5_300).contains(&count(16384)));
        let lognormal = draw("lognormal:300,0.8", 100_000);
        let (median, p99) = (lognormal[50_000] as f64, lognormal[99_000] as f64);
        assert!((median / 300.0 - 1.0).abs() < 0.02, "{median}");
        assert!((p99 / (300.0 * (0.8f64 * 2.3263).exp()) - 1.0).abs() < 0.05, "{p99}");
        let cut = draw("lognormal:300,0.8,200..400", 1000);
        assert_eq!((cut[0], cut[999]), (200, 400));
    }

    #[test]
    fn quantiles_match_tables() {
        for (share, expected) in [(0.5, 0.0), (0.975, 1.959_964), (0.001, -3.090_232), (0.9, 1.281_552), (1e-9, -5.997_807)] {
            assert!((normal_quantile(share) - expected).abs() < 1e-5, "{share}: {}", normal_quantile(share));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "x", "5..1", "lognormal:", "lognormal:0,1", "lognormal:5,9", "lognormal:5", "1=0", "1=2,3", "=1", "5e300", "-1"] {
            assert!(Sizes::parse(text).is_err(), "{text}");
        }
    }
}
