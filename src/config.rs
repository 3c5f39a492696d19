//! What an operator decides: flags over a TOML file over defaults, and the words of the shell client.
//!
//! Everything here is a pure function of the arguments, of the file's text and of what the host says about itself (`Read` and
//! `Host` are handed in). So every refusal has a test. A refusal is one sentence that names the
//! key, and ends the process with `exit::CONFIG`; a configuration that stands is a plain `Config`.
//!
//! `tuning.md` has one row for each key; a test holds the table and the keys together.

pub mod cluster;
pub mod command;
pub mod parse;

pub use crate::io::driver::Backend;
pub use crate::wire::command::{Condition, Durability};
pub use cluster::{ClusterConfig, Founder};
pub use command::{Client, Command, Inspect, LocalRun, Namespaces, RingRun, SimRun, Target, Word};

use crate::io::SocketAddr;
use crate::limits::{CORES_MAX, VNODES_DEFAULT};
use parse::{Size, cores, size};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the process's exit code says.
pub mod exit {
    /// Ended as asked.
    pub const CLEAN: i32 = 0;
    /// It failed; standard error says how. For `get`, `ttl` and conditional writes also: no such key, condition not met.
    pub const FAILED: i32 = 1;
    /// The configuration or the command line cannot be used.
    pub const CONFIG: i32 = 2;
    /// A port is in use.
    pub const ADDRESS_IN_USE: i32 = 3;
    /// Another process holds the data folder.
    pub const DATA_IN_USE: i32 = 4;
    /// Bytes on disk are not what was written.
    pub const DATA_DAMAGED: i32 = 5;
    /// A shard stopped acknowledging, because a sync failed.
    pub const SHARD_STOPPED: i32 = 6;
}

/// The native port unless another is named.
pub const PORT_DEFAULT: u16 = 7400;
/// The admin port unless another is named.
pub const ADMIN_PORT_DEFAULT: u16 = 7480;
/// Gossip's port unless another is named.
pub const GOSSIP_PORT_DEFAULT: u16 = 7490;
/// The address unless another is named.
pub const HOST_DEFAULT: &str = "127.0.0.1";
/// The data folder unless another is named.
/// `--spin-us` unless said.
pub const SPIN_US_DEFAULT: u64 = 20;
/// Beyond a second nobody would call it spinning.
const SPIN_US_MAX: u64 = 1_000_000;
pub const DATA_DEFAULT: &str = "./ringkv-data";
/// The share of the host's memory that a node takes unless told otherwise, in percent.
pub const MEMORY_PERCENT_DEFAULT: u64 = 25;
/// The least memory a core can work with: a memtable that fills while another is flushed, and a cache.
pub const MEMORY_BYTES_MIN_PER_CORE: u64 = 16 << 20;
pub use crate::limits::VNODES_MAX;

/// Gives the text of a file; the seam's, or a test's.
pub type Read<'a> = &'a dyn Fn(&Path) -> std::io::Result<String>;

/// Why the process ends before it has begun: text for the operator and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub text: String,
    /// One of `exit`. `CLEAN` when help or the version was asked for; the text goes to standard output then.
    pub code: i32,
}

impl Refusal {
    /// A refusal of the configuration.
    pub fn config(text: impl Into<String>) -> Refusal {
        Refusal { text: text.into(), code: exit::CONFIG }
    }
}

/// A node's configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub data: PathBuf,
    /// Where the native port listens. Port 0 draws a free one.
    pub native: SocketAddr,
    /// Where the admin port listens. Port 0 draws a free one.
    pub admin: SocketAddr,
    /// The CPUs of the data cores, in order, no CPU twice. Its length is the number of shards.
    pub cores: Vec<usize>,
    /// The memory budget of the whole node.
    pub memory_bytes: u64,
    /// Of the default namespace when it is created.
    pub durability: Durability,
    /// Holds the credential that every hello must carry.
    pub secret_file: Option<PathBuf>,
    pub insecure: bool,
    /// Refuse to start where something would only run slower than it could.
    pub strict_start: bool,
    /// How long an idle data core looks for work before it sleeps.
    pub spin: Duration,
    /// What carries the I/O; `None`: what the host has.
    pub io: Option<Backend>,
    /// Equal arcs of the ring, if said. Fixed when the data folder is made; another number later is a contradiction.
    pub vnodes: Option<u32>,
    /// `None`: a node by itself.
    pub cluster: Option<ClusterConfig>,
}

impl Config {
    /// The vnodes of a data folder that is made now.
    pub fn vnodes_at_creation(&self) -> u32 {
        self.vnodes.unwrap_or(VNODES_DEFAULT)
    }
}

/// The keys of the configuration file, and with dashes before them the flags. The file's spelling is the flag's.
#[derive(clap::Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Folder of the node's data
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "ADDR")]
    pub host: Option<String>,
    /// Native port; 0 draws a free one
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// Port of metrics, health and the admin page; 0 draws a free one
    #[arg(long, value_name = "N")]
    pub admin_port: Option<u16>,
    /// CPUs of the data cores, one shard each, as in 0 or 0,2-5
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// Memory budget of the node, as in 256MiB, 2G or 25%
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// When a write of the default namespace is acknowledged: sync (on disk) or interval (in memory, on disk within 100 ms)
    #[arg(long, value_name = "WHEN")]
    pub durability: Option<String>,
    /// File with the credential that every client must present
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Listen beyond loopback without a credential
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: Option<bool>,
    /// Refuse to start where the host would make the node slower than it could be
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub strict_start: Option<bool>,
    /// Microseconds that an idle data core looks for work before it sleeps
    #[arg(long, value_name = "N")]
    pub spin_us: Option<u64>,
    /// What carries the I/O: uring, epoll, or auto, which is uring where the host has it
    #[arg(long, value_name = "WHAT")]
    pub io: Option<String>,
    /// Equal arcs of the ring, a power of two; only when the data folder is made
    #[arg(long, value_name = "N")]
    pub vnodes: Option<u32>,
    /// This node's id in its cluster, not 0; only when the data folder is made
    #[arg(long, value_name = "N")]
    pub node_id: Option<u64>,
    /// All nodes that a cluster begins with, this one among them, as in 1=10.0.0.1:7400,2=10.0.0.2:7400; the same list for each
    #[arg(long, value_name = "LIST")]
    pub founders: Option<String>,
    /// Join the running cluster of which these are some nodes, by the addresses that clients use, as in 10.0.0.1:7400,10.0.0.2:7400
    #[arg(long, value_name = "LIST")]
    pub join: Option<String>,
    /// With join: hold no data until an operator says `ringkv cluster join` or `ringkv cluster replace`
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub standby: Option<bool>,
    /// In a cluster: take the data folder, a snapshot or what was salvaged, for this node's, since all nodes are set back to such copies
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub restored: Option<bool>,
    /// What this node may fail together with
    #[arg(long, value_name = "NAME")]
    pub rack: Option<String>,
    /// This node's capacity against the others'; its number of cores unless said
    #[arg(long, value_name = "N")]
    pub weight: Option<u32>,
    /// Port of gossip, UDP and TCP; 0 draws a free one
    #[arg(long, value_name = "N")]
    pub gossip_port: Option<u16>,
    /// File with the key that all nodes of the cluster share
    #[arg(long, value_name = "FILE")]
    pub cluster_key: Option<PathBuf>,
}

impl Settings {
    /// Reads a configuration file's text. `file` is its name, for the refusal.
    pub fn from_toml(text: &str, file: &Path) -> Result<Settings, Refusal> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().map_or("", |span| &text[..span.start.min(text.len())]);
            let number = before.matches('\n').count();
            let line = text.lines().nth(number).unwrap_or("").trim();
            let what = error.message().trim().replace('\n', " ");
            Refusal::config(format!("{} line {}: `{line}`: {what}", file.display(), number + 1))
        })
    }

    /// These settings, and where they say nothing, `under`'s.
    pub fn over(self, under: Settings) -> Settings {
        Settings {
            data: self.data.or(under.data),
            host: self.host.or(under.host),
            port: self.port.or(under.port),
            admin_port: self.admin_port.or(under.admin_port),
            cores: self.cores.or(under.cores),
            memory: self.memory.or(under.memory),
            durability: self.durability.or(under.durability),
            secret_file: self.secret_file.or(under.secret_file),
            insecure: self.insecure.or(under.insecure),
            strict_start: self.strict_start.or(under.strict_start),
            spin_us: self.spin_us.or(under.spin_us),
            io: self.io.or(under.io),
            vnodes: self.vnodes.or(under.vnodes),
            node_id: self.node_id.or(under.node_id),
            founders: self.founders.or(under.founders),
            join: self.join.or(under.join),
            standby: self.standby.or(under.standby),
            restored: self.restored.or(under.restored),
            rack: self.rack.or(under.rack),
            weight: self.weight.or(under.weight),
            gossip_port: self.gossip_port.or(under.gossip_port),
            cluster_key: self.cluster_key.or(under.cluster_key),
        }
    }

    /// The configuration these settings and defaults give on `host`.
    pub fn resolve(self, host: &Host) -> Result<Config, Refusal> {
        let named = self.host.as_deref().unwrap_or(HOST_DEFAULT);
        let native = address(named, self.port.unwrap_or(PORT_DEFAULT))?;
        let admin = address(named, self.admin_port.unwrap_or(ADMIN_PORT_DEFAULT))?;
        if native.port() == admin.port() && native.port() != 0 {
            return Err(Refusal::config(format!("port and admin-port are both {}; give them different ones", native.port())));
        }
        let insecure = self.insecure.unwrap_or(false);
        if insecure && self.secret_file.is_some() {
            return Err(Refusal::config("insecure and secret-file contradict each other; leave one out"));
        }
        if !native.ip().is_loopback() && self.secret_file.is_none() && !insecure {
            return Err(Refusal::config(format!(
                "host {named} is reachable from other machines, so secret-file must name a credential (or say insecure)"
            )));
        }
        let cores = match &self.cores {
            Some(list) => check_cores(list, &host.cpus)?,
            None => host.cpus.iter().copied().take(CORES_MAX).collect(),
        };
        let cluster = cluster::resolve(&self, native, admin, cores.len())?;
        let memory_bytes = check_memory(self.memory.as_deref(), host.memory_bytes, cores.len() as u64)?;
        Ok(Config {
            data: self.data.unwrap_or_else(|| PathBuf::from(DATA_DEFAULT)),
            native,
            admin,
            cores,
            memory_bytes,
            durability: match &self.durability {
                Some(word) => parse::durability(word).map_err(|why| Refusal::config(format!("durability: {why}")))?,
                None => Durability::Sync,
            },
            secret_file: self.secret_file,
            insecure,
            strict_start: self.strict_start.unwrap_or(false),
            spin: check_spin(self.spin_us)?,
            io: match &self.io {
                Some(word) => parse::backend(word).map_err(|why| Refusal::config(format!("io: {why}")))?,
                None => None,
            },
            vnodes: self.vnodes.map(check_vnodes).transpose()?,
            cluster,
        })
    }
}

fn check_spin(spin_us: Option<u64>) -> Result<Duration, Refusal> {
    match spin_us.unwrap_or(SPIN_US_DEFAULT) {
        spin_us if spin_us > SPIN_US_MAX => Err(Refusal::config(format!("spin-us must be at most {SPIN_US_MAX}"))),
        spin_us => Ok(Duration::from_micros(spin_us)),
    }
}

fn address(host: &str, port: u16) -> Result<SocketAddr, Refusal> {
    let numeric = if host == "localhost" { HOST_DEFAULT } else { host };
    let spelled =
        if numeric.contains(':') && !numeric.starts_with('[') { format!("[{numeric}]:{port}") } else { format!("{numeric}:{port}") };
    spelled.parse().map_err(|_| Refusal::config(format!("host must be an IP address, and `{host}` is none")))
}

fn check_cores(list: &str, allowed: &[usize]) -> Result<Vec<usize>, Refusal> {
    let chosen = cores(list).map_err(|why| Refusal::config(format!("cores: {why}")))?;
    match chosen.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => {
            Err(Refusal::config(format!("cores names CPU {cpu}, which this process may not run on (it may on {})", spell(allowed))))
        }
        None => Ok(chosen),
    }
}

fn check_memory(given: Option<&str>, host_bytes: u64, cores: u64) -> Result<u64, Refusal> {
    let least = MEMORY_BYTES_MIN_PER_CORE * cores;
    let bytes = match given {
        None => return Ok((host_bytes / 100 * MEMORY_PERCENT_DEFAULT).max(least)),
        Some(text) => match size(text).map_err(|why| Refusal::config(format!("memory: {why}")))? {
            Size::Bytes(bytes) => bytes,
            Size::Percent(percent) => host_bytes / 100 * percent,
        },
    };
    if bytes > host_bytes {
        return Err(Refusal::config(format!("memory {} is more than the {host_bytes} bytes this host has", given.unwrap_or(""))));
    }
    if bytes < least {
        return Err(Refusal::config(format!(
            "memory {} is too little for {cores} cores: at least {} MiB",
            given.unwrap_or(""),
            least >> 20
        )));
    }
    Ok(bytes)
}

fn check_vnodes(vnodes: u32) -> Result<u32, Refusal> {
    if vnodes.is_power_of_two() && vnodes <= VNODES_MAX {
        return Ok(vnodes);
    }
    Err(Refusal::config(format!("vnodes must be a power of two up to {VNODES_MAX}, and {vnodes} is not")))
}

/// A list of CPUs as an operator writes it: `0,2-5`. The list must be sorted.
pub fn spell(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match runs.last_mut() {
            Some(run) if run.1 + 1 == cpu => run.1 = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let words: Vec<String> = runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    words.join(",")
}

/// What the host says about itself (the seam's `host` asks it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The CPUs this process may run on, ascending; never empty.
    pub cpus: Vec<usize>,
    /// Installed memory, or the least limit of the control groups around this process.
    pub memory_bytes: u64,
}

/// From the arguments (the program's name first) to what is to be done.
///
/// `host` is only asked when a node is to serve. Errors: `Refusal`; also for `--help` and `--version`, with `exit::CLEAN`.
pub fn load(args: impl IntoIterator<Item = std::ffi::OsString>, read: Read, host: impl FnOnce() -> Host) -> Result<Command, Refusal> {
    let (file, settings) = match command::parse(args)? {
        command::Parsed::Done(command) => return Ok(command),
        command::Parsed::Serve { file, settings } => (file, settings),
    };
    let under = match &file {
        Some(path) => {
            let text = read(path).map_err(|error| Refusal::config(format!("config {} cannot be read: {error}", path.display())))?;
            Settings::from_toml(&text, path)?
        }
        None => Settings::default(),
    };
    Ok(Command::Serve(settings.over(under).resolve(&host())?))
}

#[cfg(test)]
mod tests;
