//! The command line, and how its numbers, sizes, times, mixes and lists are read.

use crate::draw::Shape;
use crate::plan::Mix;
use crate::protocol::{Protocol, Target};
use crate::sizes::Sizes;
use clap::Parser;
use ringkv::wire::command::LevelsAsked;
use std::path::PathBuf;
use std::time::Duration;

/// Of a connection to a cluster, in milliseconds.
const PATIENCE_MS: u64 = 500;

/// Puts a ringkv node, or a server that speaks RESP2 or memcached, under load and prints its latencies.
///
/// Open loop (--rate): arrivals are independent and exponential, and latency counts from the planned time, so a slow server cannot hide
/// its stalls. Closed loop (--closed, the default): --pipeline requests are kept in flight a connection. Search (--find-p99-us): open
/// loops at rising rates for --seconds each, then between the highest that holds the bound and the lowest that does not, then confirmed.
///
/// Targets: ringkv://HOST:PORT or native://HOST:PORT, redis://HOST:PORT (GET, SET, DEL), redis-wait://HOST:PORT (and WAIT 1 behind each
/// write), memcached://HOST:PORT (get, set, delete), memcached-meta://HOST:PORT (mg, ms, md). To the latter two --ttl counts in whole
/// seconds.
///
/// A cluster: ringkv://HOST:PORT,HOST:PORT,… Connections are spread over the nodes; one that is lost, or silent for --patience, goes on at
/// the next node, and what was in flight on it counts as an error, a write as one of unknown outcome. The JSON's `availability` has for
/// each 100 ms what was answered, errors by kind, and the longest wait.
///
/// Sizes (--value, --key-size): 100; a range 100..1k, each alike; lognormal:MEDIAN,SIGMA, within four sigmas, or with bounds
/// lognormal:MEDIAN,SIGMA,MIN..MAX; a list with weights 64=80,1k=15,16k=5. Suffixes k and M are powers of 1024.
///
/// Keys (--dist): uniform; zipf:S, rank k gets a weight of k^-S; latest or latest:S, puts go round all keys, and gets and deletes ask by
/// Zipf for what was put last; hotspot:SHARE,OPS, a SHARE of the keys gets OPS of the requests (hotspot:0.1,0.9).
///
/// Check mode (--check): every value proves its key and its write; `lost` counts acknowledged writes that are absent or older, `wrong`
/// all else that was never written; what a cache evicts is lost. Crash runs: `--check --journal FILE` keeps what was issued and
/// acknowledged (and goes on from FILE if it is there already); when the server dies the run ends with code 3 and the journal written.
/// After a restart `--verify-journal FILE` reads every key back. Or `--check --reconnect`: stay through the restart and read everything
/// back at the end.
///
/// Exit codes: 0 all well; 1 wrong or lost answers; 2 bad command line; 3 the run ended early, because the server went away or a signal
/// came; 4 the server could not be reached.
#[derive(Clone, Debug, Parser)]
#[command(name = "loadgen", version, about, verbatim_doc_comment)]
pub struct Options {
    /// Where the server listens, and what it speaks
    #[arg(long, value_name = "SCHEME://HOST:PORT,…", default_value = "native://127.0.0.1:7400", value_parser = parse_target)]
    pub target: Target,
    /// How many replicas must answer: one, quorum, all or a number; or two of these for reading and writing, as in one,all
    #[arg(long, value_name = "R[,W]")]
    pub level: Option<LevelsAsked>,
    /// Give a connection up on which requests wait and nothing comes for so long (with several addresses 500ms, else never)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    pub patience: Option<u64>,
    /// Open loop: requests a second over all connections (suffixes k, M); with --find-p99-us the rate to begin with
    #[arg(long, value_name = "N", value_parser = parse_rate, conflicts_with = "closed")]
    pub rate: Option<f64>,
    /// Search for the highest rate at which the p99 of every kind of request stays within this many microseconds
    #[arg(long, value_name = "N", value_parser = parse_bound, conflicts_with_all = ["closed", "fill", "verify_journal"])]
    pub find_p99_us: Option<f64>,
    /// Closed loop (the default without --rate)
    #[arg(long)]
    pub closed: bool,
    /// Weights of get, put and del
    #[arg(long, value_name = "KIND=WEIGHT,…", default_value = "get=91,put=9", value_parser = parse_mix)]
    pub mix: Mix,
    /// How many keys there are (suffixes k, M, G)
    #[arg(long, value_name = "N", default_value = "1M", value_parser = parse_count)]
    pub keys: u64,
    /// Bytes of a key; a distribution gives each key a size of its own
    #[arg(long, value_name = "SIZES", default_value = "16", value_parser = Sizes::parse)]
    pub key_size: Sizes,
    /// Bytes of a value
    #[arg(long, value_name = "SIZES", default_value = "100", value_parser = Sizes::parse)]
    pub value: Sizes,
    /// Which keys: uniform, zipf:S, latest, hotspot:SHARE,OPS
    #[arg(long, value_name = "SHAPE", default_value = "uniform", value_parser = parse_shape)]
    pub dist: Shape,
    /// Connections, spread over the server's cores
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub conns: usize,
    /// Requests in flight a connection: kept in closed loop (default 1), at most in open loop (default 1024)
    #[arg(long, value_name = "N")]
    pub pipeline: Option<usize>,
    /// Cores of the generator, a pinned thread each: 0, or 0,2-5 (default: one thread, not pinned)
    #[arg(long, value_name = "LIST", value_parser = parse_cores)]
    pub cores: Option<CoreList>,
    /// Load before anything is counted, in each run of a search too
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    pub warmup: f64,
    /// Load that is counted
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub seconds: f64,
    /// Judge every answer
    #[arg(long)]
    pub check: bool,
    /// Write the result here as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a report here: HTML with drawings, readable without network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Credential of the hello, or of AUTH: the file's content without its last newline
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Write every key once, in random order, before the load
    #[arg(long)]
    pub preload: bool,
    /// Only write every key once, in random order, and report
    #[arg(long, conflicts_with_all = ["preload", "rate"])]
    pub fill: bool,
    /// Time to live of every put: 500ms, 10s, 5m, 1h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    pub ttl: Option<u64>,
    /// Deadline that requests carry
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration_ms)]
    pub deadline: u64,
    /// Seed of keys, arrivals and kinds
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Namespace to work in, by number (1: the default one)
    #[arg(long, value_name = "N", default_value_t = ringkv::base::record::NAMESPACE_DEFAULT)]
    pub namespace: u32,
    /// Send each request over a connection to the core that owns its key (the default)
    #[arg(long, conflicts_with = "any")]
    pub routed: bool,
    /// Send requests over any connection, so that most hop between the server's cores
    #[arg(long)]
    pub any: bool,
    /// With --check: track at most this many keys (32 bytes each); values of the others must still prove their key
    #[arg(long, value_name = "N", default_value = "16M", value_parser = parse_count)]
    pub check_keys: u64,
    /// With --check: keep the state of all writes in this file, and go on from it if it exists
    #[arg(long, value_name = "FILE", requires = "check")]
    pub journal: Option<PathBuf>,
    /// Read every key of this journal back and count what is lost or wrong; no load
    #[arg(long, value_name = "FILE", conflicts_with_all = ["journal", "check", "fill", "preload", "rate", "reconnect"])]
    pub verify_journal: Option<PathBuf>,
    /// Stay when the server goes away and go on when it is back (so it is with several addresses)
    #[arg(long)]
    pub reconnect: bool,
    /// With --check: read all tracked keys back at the end (--reconnect does so by itself)
    #[arg(long, requires = "check")]
    pub verify: bool,
    /// Never sleep between arrivals: less lateness for a whole core
    #[arg(long)]
    pub spin: bool,
    /// No progress lines
    #[arg(long)]
    pub quiet: bool,
}

/// Cores to pin to, a thread each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreList(pub Vec<usize>);

impl Options {
    /// Requests come when they are due, not when answers do.
    pub fn is_open(&self) -> bool {
        self.rate.is_some() || self.find_p99_us.is_some()
    }

    /// Requests in flight a connection.
    pub fn inflight_max(&self) -> usize {
        self.pipeline.unwrap_or(if self.is_open() { 1024 } else { 1 })
    }

    /// Lost connections are made again.
    pub fn reconnects(&self) -> bool {
        self.reconnect || self.target.is_cluster()
    }

    /// How long a connection may be silent while requests wait on it.
    pub fn patience(&self) -> Option<Duration> {
        let ms = self.patience.or(self.target.is_cluster().then_some(PATIENCE_MS));
        ms.map(Duration::from_millis)
    }

    /// Contradictions that no single flag shows.
    ///
    /// # Errors
    /// A sentence that names the flag.
    pub fn validate(&self) -> Result<(), String> {
        if self.conns == 0 || self.conns > 65_536 {
            return Err(format!("--conns {} must lie between 1 and 65536", self.conns));
        }
        if self.inflight_max() == 0 || self.inflight_max() > 65_536 {
            return Err(format!("--pipeline {} must lie between 1 and 65536", self.inflight_max()));
        }
        if self.keys == 0 {
            return Err("--keys must be at least 1".into());
        }
        if self.value.bytes_max > ringkv::limits::VALUE_BYTES_MAX {
            return Err(format!("--value {} is over the largest value, {}", self.value.bytes_max, ringkv::limits::VALUE_BYTES_MAX));
        }
        if self.check && self.value.bytes_min < crate::value::HEADER_BYTES {
            return Err(format!("--check needs --value {} or more: a value must prove itself", crate::value::HEADER_BYTES));
        }
        if self.seconds <= 0.0 {
            return Err("--seconds must be above 0".into());
        }
        if self.deadline > u64::from(u32::MAX) || self.ttl.is_some_and(|ttl| ttl == 0 || (self.check && ttl > u64::from(u32::MAX / 2))) {
            return Err("--ttl or --deadline is too long, or zero".into());
        }
        self.validate_protocol()?;
        crate::keys::KeyNames::new(&self.key_size, self.keys).map(drop)
    }

    fn validate_protocol(&self) -> Result<(), String> {
        let protocol = self.target.protocol;
        if self.key_size.bytes_max > protocol.key_bytes_max() {
            return Err(format!("--key-size {} is over the longest key of {protocol:?}, {}", self.key_size, protocol.key_bytes_max()));
        }
        if protocol != Protocol::Native && self.namespace != ringkv::base::record::NAMESPACE_DEFAULT {
            return Err(format!("--namespace means nothing to {}", self.target));
        }
        if protocol != Protocol::Native && (self.level.is_some() || self.target.is_cluster()) {
            return Err(format!("--level and several addresses mean nothing to {}", self.target));
        }
        if self.patience == Some(0) || (self.patience.is_some() && !self.reconnects()) {
            return Err("--patience must be above 0, and is for --reconnect or several addresses".into());
        }
        if protocol.is_memcached() && self.secret_file.is_some() {
            return Err(format!("--secret-file means nothing to {}", self.target));
        }
        // From 30 days on, memcached takes a number of seconds for a date.
        if protocol.is_memcached() && self.ttl.is_some_and(|ttl| ttl % 1000 != 0 || ttl > 2_592_000_000) {
            return Err("--ttl must be whole seconds, up to 30 days, for memcached".into());
        }
        Ok(())
    }
}

fn parse_target(text: &str) -> Result<Target, String> {
    let bad = "a target looks like ringkv://HOST:PORT or ringkv://HOST:PORT,HOST:PORT, redis://HOST:PORT, redis-wait://HOST:PORT, \
               memcached://HOST:PORT or memcached-meta://HOST:PORT";
    let (scheme, address) = text.split_once("://").ok_or(bad)?;
    let scheme = if scheme == "ringkv" { Protocol::Native.scheme() } else { scheme };
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.scheme() == scheme).ok_or(bad)?;
    let addresses: Vec<String> = address.trim_end_matches('/').split(',').map(str::to_owned).collect();
    let is_address = |address: &String| {
        address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok())
    };
    if addresses.iter().all(is_address) { Ok(Target { protocol, addresses }) } else { Err(bad.into()) }
}

/// A number with an optional suffix out of `units`.
pub(crate) fn scaled(text: &str, units: &[(&str, f64)]) -> Result<f64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number: f64 = text[..split].parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    let suffix = &text[split..];
    let (_, factor) = units.iter().find(|(unit, _)| *unit == suffix).ok_or_else(|| match suffix {
        "" => format!("{text:?} needs a unit"),
        _ => format!("{suffix:?} is no unit here"),
    })?;
    if number.is_finite() && number >= 0.0 { Ok(number * factor) } else { Err(format!("{text:?} must not be negative")) }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = scaled(text, &[("", 1.0), ("k", 1e3), ("K", 1e3), ("M", 1e6)])?;
    if rate > 0.0 { Ok(rate) } else { Err("a rate must be above 0".into()) }
}

fn parse_bound(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(bound) if (1.0..=60e6).contains(&bound) => Ok(bound),
        _ => Err("a bound lies between 1 µs and a minute".into()),
    }
}

fn parse_count(text: &str) -> Result<u64, String> {
    let count = scaled(text, &[("", 1.0), ("k", 1e3), ("K", 1e3), ("M", 1e6), ("G", 1e9)])?;
    if count <= 1e15 { Ok(count.round() as u64) } else { Err(format!("{text:?} is too many")) }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    scaled(text, &[("", 1.0), ("s", 1.0), ("ms", 1e-3), ("m", 60.0), ("h", 3600.0)])
}

fn parse_duration_ms(text: &str) -> Result<u64, String> {
    Ok(scaled(text, &[("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3600e3), ("d", 86_400e3)])?.round() as u64)
}

fn parse_shape(text: &str) -> Result<Shape, String> {
    let exponent = |text: &str| match text.parse::<f64>() {
        Ok(exponent) if exponent > 0.0 && exponent <= 10.0 => Ok(exponent),
        _ => Err("an exponent lies above 0 and up to 10".to_owned()),
    };
    let share = |text: &str| match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("a share lies above 0 and up to 1".to_owned()),
    };
    match text.split_once(':').unwrap_or((text, "0.99")) {
        ("uniform", _) if text == "uniform" => Ok(Shape::Uniform),
        ("zipf", number) => Ok(Shape::Zipf(exponent(number)?)),
        ("latest", number) => Ok(Shape::Latest(exponent(number)?)),
        ("hotspot", numbers) => {
            let (keys, requests) = numbers.split_once(',').ok_or("a hot spot looks like hotspot:SHARE,OPS")?;
            Ok(Shape::Hotspot { keys: share(keys)?, requests: share(requests)? })
        }
        _ => Err("a shape is uniform, zipf:S, latest, latest:S or hotspot:SHARE,OPS".into()),
    }
}

fn parse_mix(text: &str) -> Result<Mix, String> {
    let mut weights = [0u32; 3];
    for part in text.split(',') {
        let (kind, weight) = part.split_once('=').ok_or("a mix looks like get=91,put=9")?;
        let kind =
            crate::plan::OpKind::ALL.into_iter().find(|k| k.name() == kind).ok_or_else(|| format!("{kind:?} is not get, put or del"))?;
        weights[kind as usize] =
            weight.parse::<u32>().ok().filter(|&w| w <= 1_000_000).ok_or_else(|| format!("{weight:?} is no weight"))?;
    }
    if weights.iter().any(|&weight| weight > 0) { Ok(Mix { weights }) } else { Err("a mix needs a weight above 0".into()) }
}

/// Parses `0`, `0,2-5`.
pub fn parse_cores(text: &str) -> Result<CoreList, String> {
    let bad = || format!("{text:?} is no list of cores like 0,2-5");
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().map_err(|_| bad())?, last.trim().parse().map_err(|_| bad())?);
        if first > last || last >= 1024 {
            return Err(bad());
        }
        cores.extend(first..=last);
    }
    let mut sorted = cores.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() == cores.len() { Ok(CoreList(cores)) } else { Err(format!("{text:?} names a core twice")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let options = Options::try_parse_from(std::iter::once("loadgen").chain(line.split_whitespace())).map_err(|e| e.to_string())?;
        options.validate().map(|()| options)
    }

    #[test]
    fn the_promised_command_line_is_understood() {
        let line = "--target native://127.0.0.1:9 --rate 50k --mix get=91,put=9 --keys 4M --value 1KiB --dist zipf:0.99 --conns 8 \
                    --pipeline 16 --cores 0,2-3 --warmup 2 --seconds 0.5 --check --json /tmp/x";
        let options = parse(line).unwrap();
        assert_eq!((options.target.to_string().as_str(), options.rate), ("native://127.0.0.1:9", Some(50_000.0)));
        assert_eq!((&options.value, options.keys), (&Sizes::uniform(1024, 1024), 4_000_000));
        assert_eq!(options.cores, Some(CoreList(vec![0, 2, 3])));
        assert!(options.check && options.inflight_max() == 16 && options.mix.weights == [91, 9, 0]);
        assert_eq!(parse("--closed").unwrap().inflight_max(), 1);
        assert_eq!(parse("--rate 1").unwrap().inflight_max(), 1024);
        assert_eq!(parse("--ttl 1.5s --value 32..64").unwrap().ttl, Some(1500));
    }

    #[test]
    fn every_target_and_shape_is_understood() {
        for protocol in Protocol::ALL {
            let options = parse(&format!("--target {}://[::1]:9/ --ttl 2s", protocol.scheme())).unwrap();
            assert_eq!(options.target, Target { protocol, addresses: vec!["[::1]:9".into()] });
        }
        for (text, shape) in [
            ("uniform", Shape::Uniform),
            ("zipf:1.2", Shape::Zipf(1.2)),
            ("zipf", Shape::Zipf(0.99)),
            ("latest", Shape::Latest(0.99)),
            ("hotspot:0.1,0.9", Shape::Hotspot { keys: 0.1, requests: 0.9 }),
        ] {
            assert_eq!(parse(&format!("--dist {text}")).unwrap().dist, shape);
        }
        let find = parse("--find-p99-us 1000 --rate 5k --key-size lognormal:30,0.3,16..64 --mix get=90,put=9,del=1 --html x").unwrap();
        assert_eq!((find.find_p99_us, find.inflight_max(), find.mix.weights), (Some(1000.0), 1024, [90, 9, 1]));
    }

    #[test]
    fn a_cluster_has_several_addresses_and_levels() {
        let options = parse("--target ringkv://a:1,b:2,[::1]:3 --level one,all").unwrap();
        assert_eq!(options.target.addresses, ["a:1", "b:2", "[::1]:3"]);
        assert_eq!(options.level, Some("one,all".parse().unwrap()));
        assert!(options.reconnects() && options.patience() == Some(Duration::from_millis(500)));
        let one = parse("--target ringkv://a:1").unwrap();
        assert!(!one.reconnects() && one.patience().is_none() && one.level.is_none());
        assert_eq!(parse("--reconnect --patience 2s").unwrap().patience(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "--closed --rate 5",
            "--rate 0",
            "--mix get=0",
            "--mix scan=1",
            "--value 10 --check",
            "--value 64..32",
            "--dist zipf:-1",
            "--target 127.0.0.1:7400",
            "--target native://nowhere",
            "--journal x",
            "--conns 0",
            "--key-size 2",
            "--ttl 5",
            "--value 17M",
            "--target http://localhost:1",
            "--target memcached://localhost:1 --ttl 1500ms",
            "--target memcached://localhost:1 --key-size 251",
            "--target memcached-meta://localhost:1 --secret-file x",
            "--target redis://localhost:1 --namespace 2",
            "--target redis://localhost:1 --level quorum",
            "--target redis://localhost:1,localhost:2",
            "--target ringkv://localhost:1,",
            "--target ringkv://localhost:1,ringkv://localhost:2",
            "--level most",
            "--patience 1s",
            "--patience 0s --reconnect",
            "--dist hotspot:0.1",
            "--dist hotspot:0,1",
            "--dist uniform:2",
            "--find-p99-us 0",
            "--find-p99-us 100 --closed",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn core_lists_are_read_and_bad_ones_refused() {
        assert_eq!(parse_cores("0"), Ok(CoreList(vec![0])));
        assert_eq!(parse_cores("0,2-5"), Ok(CoreList(vec![0, 2, 3, 4, 5])));
        for bad in ["", "a", "3-1", "0,0", "1-3,2", "-1", "0,", "9999"] {
            assert!(parse_cores(bad).is_err(), "{bad:?}");
        }
    }
}
