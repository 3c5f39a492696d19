//! The command line: without a word it serves; with one it is the shell client, the verifier or the simulator.

use super::{Durability, HOST_DEFAULT, PORT_DEFAULT, Refusal, Settings, parse};
use crate::base::record::Version;
use crate::limits::{CORES_MAX, NODES_MAX, RF_MAX, VNODES_DEFAULT};
use crate::wire::command::{Compression, Condition, LevelsAsked};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

/// What the process is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Serve(super::Config),
    Client(Client),
    /// Read every byte of a data folder that no node holds, and check it.
    Verify(PathBuf),
    /// Copy what is sound of a damaged data folder into a new one.
    Salvage {
        from: PathBuf,
        to: PathBuf,
    },
    Inspect(Inspect),
    /// Say what this host, and the file system of a data folder, give a node.
    Probe(Option<PathBuf>),
    /// Draw the placement of a cluster that need not exist.
    Ring(RingRun),
    Sim(SimRun),
    /// Run a cluster of processes on this machine.
    Local(LocalRun),
}

/// A cluster on loopback.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LocalRun {
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// Folder of the nodes' data folders
    #[arg(long, value_name = "D", default_value = "./ringkv-local")]
    pub dir: PathBuf,
    /// Native port of the first node; the others follow a hundred apart, admin ports 80 and gossip ports 90 above
    #[arg(long, value_name = "P", default_value_t = PORT_DEFAULT)]
    pub port: u16,
    /// Load the nodes, kill, stop and restart them, and say how it goes; exit code 1 if anything was lost or wrong
    #[arg(long)]
    pub torture: bool,
    /// End by itself after so long
    #[arg(long, value_name = "N", requires = "torture")]
    pub seconds: Option<u64>,
}

/// One request of the shell client and the node it goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub target: Target,
    pub word: Word,
}

/// The node that the shell client asks.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name or address of the node
    #[arg(long, value_name = "ADDR", default_value = HOST_DEFAULT)]
    pub host: String,
    /// Its native port
    #[arg(long, value_name = "N", default_value_t = PORT_DEFAULT)]
    pub port: u16,
    /// File with the credential
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Namespace
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// How many replicas must answer: one, quorum, all or a number; or two of these for reading and writing, as in one,all
    #[arg(long, value_name = "R[,W]")]
    pub level: Option<LevelsAsked>,
}

/// A request of the shell client. Keys and values are the argument's bytes as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
        ttl: Option<Duration>,
        condition: Condition,
    },
    Get {
        key: Vec<u8>,
    },
    Del {
        key: Vec<u8>,
    },
    Ttl {
        key: Vec<u8>,
    },
    Expire {
        key: Vec<u8>,
        after: Duration,
    },
    Persist {
        key: Vec<u8>,
    },
    /// Keys of one vnode, or of all; at most `limit`.
    Scan {
        vnode: Option<u32>,
        limit: u64,
    },
    Info,
    Namespaces(Namespaces),
    Snapshot {
        name: String,
    },
    /// What is said to the cluster.
    Cluster {
        words: String,
    },
}

/// What is done with namespaces. `ttl`: `None` leaves it, `Some(None)` takes it away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    List,
    Create {
        name: String,
        ttl: Option<Duration>,
        durability: Durability,
        compression: Compression,
        levels: LevelsAsked,
        replicas: Option<u8>,
    },
    Alter {
        name: String,
        ttl: Option<Option<Duration>>,
        durability: Option<Durability>,
        compression: Option<Compression>,
        levels: LevelsAsked,
    },
}

/// A file to be told about.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Inspect {
    /// A file of a data folder: a segment of the log, a table, a manifest, CURRENT, LAYOUT
    pub file: PathBuf,
    /// Tell at most this many of its groups, records, blocks, edits and cells
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
    /// Tell each cell, too: its place, version and what it holds (values are never shown)
    #[arg(long)]
    pub cells: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// A cluster to place.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct RingRun {
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..NODES_MAX as i64))]
    pub nodes: u16,
    /// Cores of each node
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = core_count())]
    pub cores: u16,
    /// Core counts of the nodes in turn, as in 4,8,16
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "cores", value_parser = core_count())]
    pub mixed: Vec<u16>,
    /// Vnodes of the cluster, a power of two up to 16384
    #[arg(long, value_name = "N", default_value_t = VNODES_DEFAULT)]
    pub vnodes: u32,
    /// Replicas of a vnode
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=RF_MAX as i64))]
    pub rf: u8,
    /// Racks that the nodes are dealt out to
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub racks: u16,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

fn core_count() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=CORES_MAX as i64)
}

/// A run of the simulator.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct SimRun {
    /// Run this one seed, and say what happened
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    pub seed: Option<u64>,
    /// Run this many seeds, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: Option<u64>,
    /// Plant this bug; the run passes when it is found
    #[arg(long, value_name = "NAME")]
    pub planted: Option<String>,
    /// A cluster of nodes instead of one node
    #[arg(long)]
    pub cluster: bool,
    /// The first of the seeds (1), so that another part of them can be run
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    pub first: Option<u64>,
    /// Seeds that run at once, a thread each; as many as there are cores if not said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Shards of each simulated node; drawn by the seed if not said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub cores: Option<u16>,
    /// Client commands of each seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub commands: Option<u64>,
    /// Groups of faults that do not happen, behind commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub without: Vec<String>,
}

/// The first look: either all is said, or a node's settings await the file.
pub(super) enum Parsed {
    Done(Command),
    Serve { file: Option<PathBuf>, settings: Settings },
}

#[derive(Parser)]
#[command(name = "ringkv", version, args_conflicts_with_subcommands = true, disable_help_subcommand = true, after_help = EXIT_CODES)]
/// A key-value store: io_uring, one pinned thread a core, durable when acknowledged. Without a command it serves.
struct Line {
    /// Configuration file (TOML; keys are the flags' names); flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    verb: Option<Verb>,
}

const EXIT_CODES: &str = "Exit codes: 0 clean, 1 failed, 2 configuration (also io uring where there is none), 3 port in use, \
                          4 data folder in use, 5 data damaged, 6 a shard stopped";

#[derive(Subcommand)]
enum Verb {
    /// Store a value
    Put {
        key: OsString,
        value: OsString,
        /// Forget the key after this long, as in 10s, 5m, 2h; or `never`, whatever the namespace's default is
        #[arg(long, value_parser = ttl_or_never)]
        ttl: Option<Duration>,
        #[arg(long, conflicts_with_all = ["if_present", "if_version"])]
        if_absent: bool,
        #[arg(long, conflicts_with = "if_version")]
        if_present: bool,
        /// Only over this version
        #[arg(long, value_name = "VERSION", value_parser = parse::version)]
        if_version: Option<Version>,
        #[command(flatten)]
        target: Target,
    },
    /// Print a value
    Get(OneKey),
    /// Delete a key
    Del(OneKey),
    /// Print how long a key has to live
    Ttl(OneKey),
    /// Forget a key after a while
    Expire {
        key: OsString,
        #[arg(value_parser = parse::duration)]
        duration: Duration,
        #[command(flatten)]
        target: Target,
    },
    /// Keep a key that would expire
    Persist(OneKey),
    /// Print keys
    Scan {
        /// Of this vnode only
        #[arg(long, value_name = "N")]
        vnode: Option<u32>,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Print the node's figures
    Info(Target),
    /// List, create or alter namespaces
    Ns {
        #[command(subcommand)]
        verb: NsVerb,
    },
    /// Take a snapshot on the node, under this name
    Snapshot {
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Say something to the cluster, by any of its nodes: status; join NEW, leave ID, replace DEAD NEW, weight ID N (NEW: an id or
    /// HOST:PORT), and plan before one of these says what it would move; cancel what is moving; repair: this node compares anew
    Cluster {
        /// As in `status`, `plan leave 3`, `replace 2 5`
        #[arg(required = true)]
        words: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Check a data folder that no node holds
    Verify {
        dir: PathBuf,
        /// Copy all that is provably sound into this new folder, and list what was lost; DIR is only read
        #[arg(long, value_name = "TO")]
        salvage: Option<PathBuf>,
    },
    /// Say in words what a file of a data folder is and holds, damaged or not
    Inspect(Inspect),
    /// Print what this host gives a node: io_uring, limits, clocks, and with a data folder its direct I/O
    Probe { dir: Option<PathBuf> },
    /// Print how evenly a cluster would hold its data, and what a join and a leave would move; exit code 1 if a goal is missed
    Ring(RingRun),
    /// Run the simulator
    Sim(SimRun),
    /// Run a cluster of processes on this machine until Ctrl-C
    Local(LocalRun),
}

#[derive(Args)]
struct OneKey {
    key: OsString,
    #[command(flatten)]
    target: Target,
}

#[derive(Subcommand)]
enum NsVerb {
    /// Print all namespaces
    List(Target),
    /// Make a namespace
    Create {
        name: String,
        /// How long keys live that are put without a TTL
        #[arg(long, value_parser = parse::duration)]
        ttl: Option<Duration>,
        #[arg(long, value_name = "WHEN", default_value = "sync", value_parser = parse::durability)]
        durability: Durability,
        /// How tables keep its values: `lz4` where that saves an eighth, or `none`
        #[arg(long, value_name = "HOW", default_value = "none", value_parser = parse::compression)]
        compression: Compression,
        /// In a cluster: how many replicas answer what names no level itself, as `--level` of get and put (quorum)
        #[arg(long = "default-level", value_name = "LEVEL")]
        levels: Option<LevelsAsked>,
        /// In a cluster: how many replicas each of its keys has, 1, 3 or 5 (3); it stays so for the namespace's life
        #[arg(long, value_name = "N", value_parser = parse::replicas)]
        replicas: Option<u8>,
        #[command(flatten)]
        target: Target,
    },
    /// Change a namespace
    Alter {
        name: String,
        /// How long keys live that are put without a TTL; `none` takes it away
        #[arg(long, value_parser = ttl_or_none)]
        ttl: Option<TtlChange>,
        #[arg(long, value_name = "WHEN", value_parser = parse::durability)]
        durability: Option<Durability>,
        /// How tables keep its values, `none` or `lz4`; what is on disk follows as it is merged
        #[arg(long, value_name = "HOW", value_parser = parse::compression)]
        compression: Option<Compression>,
        /// In a cluster: how many replicas answer what names no level itself
        #[arg(long = "default-level", value_name = "LEVEL")]
        levels: Option<LevelsAsked>,
        #[command(flatten)]
        target: Target,
    },
}

/// A default TTL to set, or none. (A type of its own: clap reads meaning into nested options.)
#[derive(Clone)]
struct TtlChange(Option<Duration>);

fn ttl_or_none(text: &str) -> Result<TtlChange, String> {
    if text == "none" { Ok(TtlChange(None)) } else { parse::duration(text).map(|ttl| TtlChange(Some(ttl))) }
}

fn ttl_or_never(text: &str) -> Result<Duration, String> {
    if text == "never" { Ok(Duration::MAX) } else { parse::duration(text) }
}

pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, Refusal> {
    let line = Line::try_parse_from(args).map_err(refusal)?;
    let Some(verb) = line.verb else {
        return Ok(Parsed::Serve { file: line.config, settings: line.settings });
    };
    let (target, word) = match verb {
        Verb::Verify { dir, salvage: None } => return Ok(Parsed::Done(Command::Verify(dir))),
        Verb::Verify { dir, salvage: Some(to) } => return Ok(Parsed::Done(Command::Salvage { from: dir, to })),
        Verb::Inspect(inspect) => return Ok(Parsed::Done(Command::Inspect(inspect))),
        Verb::Probe { dir } => return Ok(Parsed::Done(Command::Probe(dir))),
        Verb::Ring(run) => {
            super::check_vnodes(run.vnodes)?;
            return Ok(Parsed::Done(Command::Ring(run)));
        }
        Verb::Sim(run) => return Ok(Parsed::Done(Command::Sim(run))),
        Verb::Local(run) => return Ok(Parsed::Done(Command::Local(run))),
        Verb::Put { key, value, ttl, if_absent, if_present, if_version, target } => {
            let condition = match (if_absent, if_present, if_version) {
                (true, ..) => Condition::IfAbsent,
                (_, true, _) => Condition::IfPresent,
                (_, _, Some(version)) => Condition::IfVersion(version),
                _ => Condition::Always,
            };
            (target, Word::Put { key: key.into_vec(), value: value.into_vec(), ttl, condition })
        }
        Verb::Get(one) => (one.target, Word::Get { key: one.key.into_vec() }),
        Verb::Del(one) => (one.target, Word::Del { key: one.key.into_vec() }),
        Verb::Ttl(one) => (one.target, Word::Ttl { key: one.key.into_vec() }),
        Verb::Expire { key, duration, target } => (target, Word::Expire { key: key.into_vec(), after: duration }),
        Verb::Persist(one) => (one.target, Word::Persist { key: one.key.into_vec() }),
        Verb::Scan { vnode, limit, target } => (target, Word::Scan { vnode, limit }),
        Verb::Info(target) => (target, Word::Info),
        Verb::Ns { verb } => namespaces(verb)?,
        Verb::Snapshot { name, target } => (target, Word::Snapshot { name }),
        Verb::Cluster { words, target } => (target, Word::Cluster { words: words.join(" ") }),
    };
    Ok(Parsed::Done(Command::Client(Client { target, word })))
}

fn namespaces(verb: NsVerb) -> Result<(Target, Word), Refusal> {
    let (target, word) = match verb {
        NsVerb::List(target) => (target, Namespaces::List),
        NsVerb::Create { name, ttl, durability, compression, levels, replicas, target } => {
            (target, Namespaces::Create { name, ttl, durability, compression, levels: levels.unwrap_or_default(), replicas })
        }
        NsVerb::Alter { ttl: None, durability: None, compression: None, levels: None, .. } => {
            return Err(Refusal::config("ns alter changes nothing without --ttl, --durability, --compression or --default-level"));
        }
        NsVerb::Alter { name, ttl, durability, compression, levels, target } => {
            let (ttl, levels) = (ttl.map(|change| change.0), levels.unwrap_or_default());
            (target, Namespaces::Alter { name, ttl, durability, compression, levels })
        }
    };
    Ok((target, Word::Namespaces(word)))
}

/// One sentence out of clap's page; its page as it is when help was asked for.
fn refusal(error: clap::Error) -> Refusal {
    let page = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Refusal { text: page.trim_end().to_owned(), code: super::exit::CLEAN };
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Refusal::config("this command needs a word after it; see --help");
    }
    let said: Vec<&str> = page.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let sentence = said.join(" ");
    Refusal::config(sentence.strip_prefix("error: ").unwrap_or(&sentence))
}

/// Every flag of a node, dashes included.
#[cfg(test)]
pub(super) fn server_flags() -> Vec<String> {
    let line = <Line as clap::CommandFactory>::command();
    line.get_arguments().filter_map(|arg| arg.get_long()).map(|long| format!("--{long}")).collect()
}
