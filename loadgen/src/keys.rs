//! Key names: `key:` and a zero-padded number, so that a key's number is its name. Names of one width, unless key sizes are a distribution:
//! then a key's width follows from its number.

use crate::sizes::Sizes;
use crate::value::mix;

/// Writes the name of a key without allocating.
#[derive(Clone, Debug)]
pub struct KeyNames {
    /// The name stands at its end.
    name: Vec<u8>,
    digits: usize,
    /// Where the name begins, and how long its prefix is.
    start: usize,
    prefix: usize,
    /// None: all of one width.
    sizes: Option<Sizes>,
}

const PREFIX: &[u8] = b"key:";
/// Two digits at a time.
const PAIRS: [[u8; 2]; 100] = pairs();

const fn pairs() -> [[u8; 2]; 100] {
    let mut pairs = [[0; 2]; 100];
    let mut at = 0;
    while at < 100 {
        pairs[at] = [b'0' + (at / 10) as u8, b'0' + (at % 10) as u8];
        at += 1;
    }
    pairs
}

impl KeyNames {
    /// Names for `keys` keys. Where the prefix does not fit it is cut short.
    ///
    /// # Errors
    /// A sentence, where so many keys have no names so short.
    pub fn new(sizes: &Sizes, keys: u64) -> Result<KeyNames, String> {
        let digits = keys.saturating_sub(1).checked_ilog10().unwrap_or(0) as usize + 1;
        if sizes.bytes_min < digits {
            return Err(format!("--key-size {sizes} is too short: {keys} keys need {digits} digits"));
        }
        if sizes.bytes_max > ringkv::limits::KEY_BYTES_MAX {
            return Err(format!("--key-size {sizes} is over the longest key, {}", ringkv::limits::KEY_BYTES_MAX));
        }
        let name = vec![b'0'; sizes.bytes_max];
        let mut names = KeyNames { name, digits, start: 0, prefix: 0, sizes: (!sizes.is_fixed()).then(|| sizes.clone()) };
        names.begin(sizes.bytes_max);
        Ok(names)
    }

    /// Lays the prefix of a name of `len` bytes.
    fn begin(&mut self, len: usize) {
        self.name[self.start..][..self.prefix].fill(b'0');
        self.start = self.name.len() - len;
        self.prefix = PREFIX.len().min(len - self.digits);
        self.name[self.start..][..self.prefix].copy_from_slice(&PREFIX[..self.prefix]);
    }

    /// The name of key number `key`; valid until the next call.
    #[inline]
    pub fn name(&mut self, key: u64) -> &[u8] {
        if let Some(sizes) = &self.sizes {
            let len = sizes.at(mix(key, 0x6B65_7973));
            self.begin(len);
        }
        let (mut rest, mut end) = (key, self.name.len());
        let first = end - self.digits;
        while end >= first + 2 {
            self.name[end - 2..end].copy_from_slice(&PAIRS[(rest % 100) as usize]);
            rest /= 100;
            end -= 2;
        }
        if end > first {
            self.name[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        debug_assert_eq!(rest, 0, "key {key} has more digits than planned");
        &self.name[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(bytes: usize, keys: u64) -> Result<KeyNames, String> {
        KeyNames::new(&Sizes::uniform(bytes, bytes), keys)
    }

    #[test]
    fn names_have_one_width_and_their_number() {
        let mut names = fixed(16, 1_000_000).unwrap();
        assert_eq!(names.name(0), b"key:000000000000");
        assert_eq!(names.name(123_456), b"key:000000123456");
        assert_eq!(names.name(7), b"key:000000000007");
        assert_eq!(fixed(3, 1000).unwrap().name(42), b"042");
        assert_eq!(fixed(5, 1000).unwrap().name(42), b"ke042");
        assert_eq!(fixed(1, 1).unwrap().name(0), b"0");
        assert!(fixed(3, 1001).is_err());
        assert!(fixed(40_000, 10).is_err());
    }

    #[test]
    fn widths_that_follow_from_the_number_give_each_key_a_name_of_its_own() {
        let mut names = KeyNames::new(&Sizes::parse("4..30").unwrap(), 10_000).unwrap();
        let all: std::collections::BTreeSet<Vec<u8>> = (0..10_000).map(|key| names.name(key).to_vec()).collect();
        assert_eq!(all.len(), 10_000);
        for key in [0u64, 9_999, 1234] {
            let name = names.name(key).to_vec();
            let number = name.iter().skip_while(|byte| !byte.is_ascii_digit());
            assert_eq!(number.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')), key);
            names.name(17);
            assert_eq!(names.name(key), name, "the same at any time");
        }
        let widths: std::collections::BTreeSet<usize> = all.iter().map(Vec::len).collect();
        assert_eq!(widths.into_iter().collect::<Vec<_>>(), (4..=30).collect::<Vec<_>>());
    }
}
