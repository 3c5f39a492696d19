//! Key names: `key:` and a zero-padded number, all of one width, so that a key's number is its name and a server's cost is even.

/// Writes the name of a key without allocating.
#[derive(Clone, Debug)]
pub struct KeyNames {
    name: Vec<u8>,
    digits: usize,
}

const PREFIX: &[u8] = b"key:";

impl KeyNames {
    /// Names of `key_bytes` bytes for `keys` keys. Where the prefix does not fit it is cut short.
    ///
    /// # Errors
    /// A sentence, where so many keys have no names so short.
    pub fn new(key_bytes: usize, keys: u64) -> Result<KeyNames, String> {
        let digits_needed = keys.saturating_sub(1).checked_ilog10().unwrap_or(0) as usize + 1;
        if key_bytes < digits_needed {
            return Err(format!("--key-size {key_bytes} is too short: {keys} keys need {digits_needed} digits"));
        }
        if key_bytes > ringkv::limits::KEY_BYTES_MAX {
            return Err(format!("--key-size {key_bytes} is over the longest key, {}", ringkv::limits::KEY_BYTES_MAX));
        }
        let mut name = vec![b'0'; key_bytes];
        let prefix = PREFIX.len().min(key_bytes - digits_needed);
        name[..prefix].copy_from_slice(&PREFIX[..prefix]);
        Ok(KeyNames { name, digits: digits_needed })
    }

    /// The name of key number `key`; valid until the next call.
    #[inline]
    pub fn name(&mut self, key: u64) -> &[u8] {
        let mut rest = key;
        for digit in self.name.iter_mut().rev().take(self.digits) {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        debug_assert_eq!(rest, 0, "key {key} has more digits than planned");
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_width_and_their_number() {
        let mut names = KeyNames::new(16, 1_000_000).unwrap();
        assert_eq!(names.name(0), b"key:000000000000");
        assert_eq!(names.name(123_456), b"key:000000123456");
        assert_eq!(names.name(7), b"key:000000000007");
        assert_eq!(KeyNames::new(3, 1000).unwrap().name(42), b"042");
        assert_eq!(KeyNames::new(5, 1000).unwrap().name(42), b"ke042");
        assert_eq!(KeyNames::new(1, 1).unwrap().name(0), b"0");
        assert!(KeyNames::new(3, 1001).is_err());
        assert!(KeyNames::new(40_000, 10).is_err());
    }
}
