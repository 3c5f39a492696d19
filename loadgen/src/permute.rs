//! A pseudo-random permutation of `0..n` in constant memory: a Feistel network over the next power of two, walked until it lands
//! inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002: cycle walking). At most two steps on average.

/// Round keys and halves of the network.
#[derive(Clone, Debug)]
pub struct Permutation {
    domain: u64,
    bits_left: u32,
    bits_right: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// Of `0..domain`; the seed chooses which.
    pub fn new(domain: u64, seed: u64) -> Permutation {
        assert!(domain > 0 && domain <= 1 << 62, "domain {domain}");
        let bits = (64 - (domain - 1).leading_zeros()).max(2);
        let mut random = ringkv::base::prng::Prng::new(seed ^ 0x5045_524D);
        let keys = std::array::from_fn(|_| random.next_u64());
        Permutation { domain, bits_left: bits / 2, bits_right: bits - bits / 2, keys }
    }

    /// Where `index` goes; `index` lies below the domain.
    #[inline]
    pub fn apply(&self, index: u64) -> u64 {
        debug_assert!(index < self.domain);
        let mut at = index;
        loop {
            at = self.once(at);
            if at < self.domain {
                return at;
            }
        }
    }

    #[inline]
    fn once(&self, value: u64) -> u64 {
        let (mask_left, mask_right) = ((1u64 << self.bits_left) - 1, (1u64 << self.bits_right) - 1);
        let (mut left, mut right) = (value >> self.bits_right, value & mask_right);
        for pair in self.keys.chunks_exact(2) {
            left ^= mix(right ^ pair[0]) & mask_left;
            right ^= mix(left ^ pair[1]) & mask_right;
        }
        left << self.bits_right | right
    }
}

#[inline]
fn mix(value: u64) -> u64 {
    let product = u128::from(value) * 0x9FB2_1C65_1E98_DF25_u128;
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_permutation_is_a_bijection() {
        for domain in [1u64, 2, 3, 4, 5, 7, 16, 17, 100, 1023, 1024, 1025, 50_000] {
            let permutation = Permutation::new(domain, domain ^ 77);
            let mut seen = vec![false; domain as usize];
            for index in 0..domain {
                let at = permutation.apply(index) as usize;
                assert!(!seen[at], "domain {domain}: {at} twice");
                seen[at] = true;
            }
        }
    }

    #[test]
    fn neighbours_are_torn_apart() {
        let permutation = Permutation::new(1_000_000, 1);
        let near = (0..1000u64).filter(|&i| permutation.apply(i).abs_diff(permutation.apply(i + 1)) < 1000).count();
        assert!(near < 20, "{near} of 1000 neighbours stayed near");
    }
}
