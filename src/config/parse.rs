//! How operators write sizes, durations, lists of CPUs, versions: text in, a value or one clause that says what is wrong with it out.

use super::{Backend, Durability, Founder};
use crate::base::record::Version;
use crate::io::SocketAddr;
use crate::limits::{CORES_MAX, RFS, SEEDS_MAX};
use crate::wire::command::Compression;
use std::time::Duration;

/// An amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Bytes(u64),
    /// Of what the host has; 1 to 100.
    Percent(u64),
}

/// `4096`, `256MiB`, `2G`, `1.5GiB`, `25%`. Units are powers of 1024, with or without `iB` or `B`, in either case.
pub fn size(text: &str) -> Result<Size, String> {
    let (number, unit) = split(text)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "%" if number > 0.0 && number <= 100.0 && number.fract() == 0.0 => return Ok(Size::Percent(number as u64)),
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("`{text}` is no size; write 256MiB, 2G or 25%")),
    };
    Ok(Size::Bytes((number * (1u64 << shift) as f64) as u64))
}

/// `500ms`, `10s`, `5m`, `2h`, `7d`; a bare number is seconds. Never zero, at most a hundred years.
pub fn duration(text: &str) -> Result<Duration, String> {
    const YEARS_100_MS: f64 = 100.0 * 366.0 * 86_400_000.0;
    let (number, unit) = split(text)?;
    let unit_ms = match unit {
        "ms" => 1.0,
        "" | "s" => 1_000.0,
        "m" | "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return Err(format!("`{text}` is no duration; write 500ms, 10s, 5m, 2h or 7d")),
    };
    let ms = (number * unit_ms).round();
    if !(1.0..=YEARS_100_MS).contains(&ms) {
        return Err(format!("`{text}` lies outside 1 ms to 100 years"));
    }
    Ok(Duration::from_millis(ms as u64))
}

fn split(text: &str) -> Result<(f64, &str), String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..digits].parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    Ok((number, text[digits..].trim_start()))
}

/// `0`, `0,2-5`: CPU numbers, ascending in the result, none twice, at most `CORES_MAX`.
pub fn cores(text: &str) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number =
            |word: &str| word.trim().parse::<u16>().map(usize::from).map_err(|_| format!("`{text}` is no list of CPUs; write 0 or 0,2-5"));
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return Err(format!("the range {part} runs backwards"));
        }
        if to - from >= CORES_MAX || cpus.len() + (to - from) >= CORES_MAX {
            return Err(format!("`{text}` names more than {CORES_MAX} CPUs"));
        }
        cpus.extend(from..=to);
    }
    cpus.sort_unstable();
    match cpus.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("CPU {} is named twice", pair[0])),
        None => Ok(cpus),
    }
}

/// `10.0.0.1:7490,[::1]:7490`: IP addresses (or `localhost`) with ports, none 0, none twice.
pub fn addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim) {
        let address = address(part)?;
        if all.contains(&address) {
            return Err(format!("{address} is named twice"));
        }
        all.push(address);
    }
    Ok(all)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let spelled = match text.strip_prefix("localhost:") {
        Some(port) => format!("{}:{port}", super::HOST_DEFAULT),
        None => text.to_owned(),
    };
    let parsed = spelled.parse::<SocketAddr>().ok().filter(|address| address.port() != 0 && !address.ip().is_unspecified());
    parsed.ok_or_else(|| format!("`{text}` is no address to call; write 10.0.0.1:7400, an IP address and a port"))
}

/// `1=10.0.0.1:7400,2=10.0.0.2:7400`: ids, none 0, with addresses, neither twice.
pub fn founders(text: &str) -> Result<Vec<Founder>, String> {
    let mut all: Vec<Founder> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (id, at) = part.split_once('=').ok_or_else(|| format!("`{part}` is no founder; write 1=10.0.0.1:7400"))?;
        let node = id.parse().ok().filter(|id| *id != 0).ok_or_else(|| format!("`{id}` is no id of a node; ids are numbers from 1 on"))?;
        let native = address(at)?;
        if all.iter().any(|other| other.node == node || other.native == native) {
            return Err(format!("`{part}` has an id or an address that another has"));
        }
        all.push(Founder { node, native });
    }
    if all.len() > SEEDS_MAX {
        return Err(format!("more than {SEEDS_MAX} of them; the others can join"));
    }
    Ok(all)
}

/// `sync` or `interval`.
pub fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "sync" => Ok(Durability::Sync),
        "interval" => Ok(Durability::Interval),
        _ => Err(format!("`{text}` is neither sync nor interval")),
    }
}

/// `none` or `lz4`.
pub fn compression(text: &str) -> Result<Compression, String> {
    match text {
        "none" => Ok(Compression::None),
        "lz4" => Ok(Compression::Lz4),
        _ => Err(format!("`{text}` is neither none nor lz4")),
    }
}

/// 1, 3 or 5.
pub fn replicas(text: &str) -> Result<u8, String> {
    match text.parse::<u8>() {
        Ok(replicas) if RFS.contains(&usize::from(replicas)) => Ok(replicas),
        _ => Err(format!("`{text}` is no number of replicas: 1, 3 or 5")),
    }
}

/// `uring`, `epoll`, or `auto`, which is none of them.
pub fn backend(text: &str) -> Result<Option<Backend>, String> {
    let named = [Backend::Uring, Backend::Epoll].into_iter().find(|backend| backend.name() == text);
    if named.is_none() && text != "auto" {
        return Err(format!("`{text}` is neither auto nor uring nor epoll"));
    }
    Ok(named)
}

/// A version as the shell client prints it: 32 hexadecimal digits.
pub fn version(text: &str) -> Result<Version, String> {
    let plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u128::from_str_radix(text, 16) {
        Ok(version) if plain => Ok(Version(version)),
        _ => Err(format!("`{text}` is no version; a version has 32 hexadecimal digits, as put and get print it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_spelling_and_nonsense_is_named() {
        assert_eq!(size("4096"), Ok(Size::Bytes(4096)));
        assert_eq!(size("256MiB"), Ok(Size::Bytes(256 << 20)));
        assert_eq!(size("256 mb"), Ok(Size::Bytes(256 << 20)));
        assert_eq!(size("2G"), Ok(Size::Bytes(2 << 30)));
        assert_eq!(size("1.5GiB"), Ok(Size::Bytes(3 << 29)));
        assert_eq!(size("25%"), Ok(Size::Percent(25)));
        for wrong in ["", "G", "0%", "101%", "2.5%", "2X", "-1G", "1..2G"] {
            assert!(size(wrong).is_err_and(|why| why.contains(wrong)), "{wrong}");
        }
    }

    #[test]
    fn durations_carry_units_and_stay_in_bounds() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for wrong in ["", "0", "0.1ms", "-1s", "1y", "99999999d", "soon"] {
            assert!(duration(wrong).is_err_and(|why| why.contains(wrong)), "{wrong}");
        }
    }

    #[test]
    fn lists_of_cpus_are_sorted_without_doubles_and_bounded() {
        assert_eq!(cores("0"), Ok(vec![0]));
        assert_eq!(cores("4-5,0,2"), Ok(vec![0, 2, 4, 5]));
        for (wrong, why) in
            [("", "no list"), ("1,", "no list"), ("5-2", "backwards"), ("0-2,1", "twice"), ("0-9999", "more than"), ("a", "no list")]
        {
            assert!(cores(wrong).is_err_and(|said| said.contains(why)), "{wrong}");
        }
    }

    #[test]
    fn founders_and_addresses_are_told_apart() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(addresses("10.0.0.1:7490, localhost:1,[::1]:2"), Ok(vec![at("10.0.0.1:7490"), at("127.0.0.1:1"), at("[::1]:2")]));
        for (wrong, why) in [("", "no address"), ("10.0.0.1", "no address"), ("a:1", "no address"), ("0.0.0.0:1", "no address")] {
            assert!(addresses(wrong).is_err_and(|said| said.contains(why)), "{wrong}");
        }
        assert!(addresses("10.0.0.1:1,10.0.0.1:1").is_err_and(|said| said.contains("twice")));
        let two = [Founder { node: 2, native: at("10.0.0.2:1") }, Founder { node: 1, native: at("10.0.0.1:1") }];
        assert_eq!(founders("2=10.0.0.2:1, 1=10.0.0.1:1"), Ok(two.to_vec()));
        let wrong =
            ["", "10.0.0.1:1", "0=10.0.0.1:1", "x=10.0.0.1:1", "1=10.0.0.1:0", "1=10.0.0.1:1,1=10.0.0.2:1", "1=10.0.0.1:1,2=10.0.0.1:1"];
        assert!(wrong.iter().all(|text| founders(text).is_err()));
        let many: Vec<String> = (1..=65).map(|id| format!("{id}=10.0.0.{id}:1")).collect();
        assert!(founders(&many[..64].join(",")).is_ok() && founders(&many.join(",")).is_err());
    }

    #[test]
    fn versions_are_32_digits() {
        assert_eq!(version("000000000000000000000000000000ff"), Ok(Version(255)));
        for wrong in ["ff", "+00000000000000000000000000000ff", "g00000000000000000000000000000ff"] {
            assert!(version(wrong).is_err());
        }
    }
}
