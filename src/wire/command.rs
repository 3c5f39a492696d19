//! The one vocabulary of clients: what may be asked (`Request`) and what may be answered (`Reply`), whatever the encoding.
//!
//! Keys and values are borrowed from where their bytes lie, so a decoded request costs no copy. `COMMANDS` is the table of facts about
//! commands (number, whether it reads or writes, whether it names keys); an encoding and one arm of the dispatcher are all else that a
//! command needs.

use crate::base::record::{NamespaceId, Version};
use crate::limits;
use std::fmt;

/// The newest version of the native protocol that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest one it still speaks (the last two, once there are two).
pub const PROTOCOL_VERSION_MIN: u16 = 1;
/// As a put's time to live: it never expires, whatever its namespace's default is.
pub const TTL_NEVER: u64 = u64::MAX;
/// A bit of `HelloOk::features`: puts may say `TTL_NEVER`.
pub const FEATURE_TTL_NEVER: u64 = 1;
/// In a hello: any core will do.
pub const CORE_ANY: u16 = u16::MAX;

/// Elements borrowed from a caller's slice, or gathered while decoding. Covariant, unlike `Cow` of a slice.
#[derive(Clone)]
pub enum List<'a, T> {
    Borrowed(&'a [T]),
    Owned(Vec<T>),
}

impl<T> std::ops::Deref for List<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            List::Borrowed(slice) => slice,
            List::Owned(vec) => vec,
        }
    }
}

impl<T: PartialEq> PartialEq for List<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for List<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> From<Vec<T>> for List<'_, T> {
    fn from(vec: Vec<T>) -> Self {
        List::Owned(vec)
    }
}

impl<'a, T> From<&'a [T]> for List<'a, T> {
    fn from(slice: &'a [T]) -> Self {
        List::Borrowed(slice)
    }
}

/// How many replicas must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    One,
    Quorum,
    All,
    /// So many replicas: 1 to `limits::RF_MAX`.
    Exactly(u8),
}

/// The levels that a request names: R and W. `None` takes the namespace's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelsAsked {
    pub read: Option<Level>,
    pub write: Option<Level>,
}

impl LevelsAsked {
    /// These, and of what they do not name, others.
    #[must_use]
    pub fn or(self, others: LevelsAsked) -> LevelsAsked {
        LevelsAsked { read: self.read.or(others.read), write: self.write.or(others.write) }
    }

    /// The same for reading and writing.
    pub fn both(level: Level) -> LevelsAsked {
        LevelsAsked { read: Some(level), write: Some(level) }
    }
}

impl std::str::FromStr for LevelsAsked {
    type Err = String;

    /// As people write it: `one`, `quorum`, `all`, a number of replicas, or two of these for reading and writing, as in `one,all`.
    fn from_str(text: &str) -> Result<LevelsAsked, String> {
        let level = |word: &str| match word {
            "one" | "1" => Ok(Level::One),
            "quorum" => Ok(Level::Quorum),
            "all" => Ok(Level::All),
            number => match number.parse() {
                Ok(count) if (2..=limits::RF_MAX).contains(&usize::from(count)) => Ok(Level::Exactly(count)),
                _ => Err(format!("a level is one, quorum, all or a number of replicas up to {}, and `{word}` is none", limits::RF_MAX)),
            },
        };
        match text.split_once(',') {
            Some((read, write)) => Ok(LevelsAsked { read: Some(level(read)?), write: Some(level(write)?) }),
            None => level(text).map(LevelsAsked::both),
        }
    }
}

impl fmt::Display for LevelsAsked {
    /// As `from_str` reads it; what is not named is a quorum.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = |level: Option<Level>, f: &mut fmt::Formatter<'_>| match level {
            Some(Level::One) => f.write_str("one"),
            Some(Level::Quorum) | None => f.write_str("quorum"),
            Some(Level::All) => f.write_str("all"),
            Some(Level::Exactly(count)) => write!(f, "{count}"),
        };
        level(self.read, f)?;
        if self.read != self.write {
            f.write_str(",")?;
            level(self.write, f)?;
        }
        Ok(())
    }
}

/// A bit of `HelloOk::features`: requests may name levels.
pub const FEATURE_LEVELS: u64 = 4;

/// A request: what is common to all, and the command.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<'a> {
    /// How long the client waits, in milliseconds from when the server reads it; 0 takes the server's default.
    pub deadline_ms: u32,
    /// Where the keys lie. 0 in commands without keys; the system's namespace (0) is refused where there are keys.
    pub namespace: NamespaceId,
    pub levels: LevelsAsked,
    pub command: Command<'a>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Command<'a> {
    /// The first frame of every connection; nothing may follow it before its answer.
    Hello(Hello<'a>),
    Ping,
    Info,
    Get {
        key: &'a [u8],
    },
    Put(Put<'a>),
    Delete(Delete<'a>),
    MultiGet {
        keys: List<'a, &'a [u8]>,
    },
    MultiPut(MultiPut<'a>),
    Expire {
        key: &'a [u8],
        ttl_ms: u64,
        write: WriteOptions,
    },
    Persist {
        key: &'a [u8],
        write: WriteOptions,
    },
    Ttl {
        key: &'a [u8],
    },
    Scan(Scan<'a>),
    NamespaceList,
    NamespaceCreate {
        name: &'a str,
        default_ttl_ms: u64,
        durability: Durability,
    },
    /// `None` leaves as it is.
    NamespaceAlter {
        name: &'a str,
        default_ttl_ms: Option<u64>,
        durability: Option<Durability>,
    },
    /// As `NamespaceList`, answered with all that is known of each.
    NamespaceDetails,
    /// As `NamespaceCreate`, with more said.
    NamespaceMake(NamespaceSpec<'a>),
    /// As `NamespaceAlter`, with more said.
    NamespaceChange(NamespaceChange<'a>),
    /// As `NamespaceDetails`, with levels.
    NamespaceTerms,
    Snapshot {
        name: &'a str,
    },
    /// What an operator says to the cluster, as in `leave 3`.
    Cluster {
        words: &'a str,
    },
}

/// A namespace to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceSpec<'a> {
    pub name: &'a str,
    pub default_ttl_ms: u64,
    pub durability: Durability,
    pub compression: Compression,
    /// Of requests that name none. They travel in the frame's flags, where other requests have theirs.
    pub levels: LevelsAsked,
    /// 1, 3 or 5. Travels in the frame's flags too.
    pub replicas: u8,
}

/// What is to change of a namespace; `None` leaves as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceChange<'a> {
    pub name: &'a str,
    pub default_ttl_ms: Option<u64>,
    pub durability: Option<Durability>,
    pub compression: Option<Compression>,
    pub levels: LevelsAsked,
}

/// Who speaks, and which core it wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello<'a> {
    /// Protocol versions offered, both ends included.
    pub version_min: u16,
    pub version_max: u16,
    /// The data core (0-based) that this connection shall be handed to, or `CORE_ANY`.
    pub core: u16,
    /// Empty where the server asks for none.
    pub credential: &'a [u8],
    /// For people who look at connections.
    pub client_name: &'a str,
    /// Travels in the frame's flags.
    pub wants: HelloWants,
}

/// What a client wants to be told beside `HelloOk`, where the server can (`FEATURE_HELLO_WANTS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HelloWants {
    /// All namespaces: `NamespaceTerms` follows as the answer's last part.
    pub namespaces: bool,
    /// Later topologies: `HelloOk` once more, under request id 0, when nodes or owners have changed.
    pub news: bool,
}

/// What every write may carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// The version that an earlier try was announced under: the same write again (PROTOCOL.md, P4).
    pub version: Option<Version>,
    /// Answer with `Announced` before anything is stored.
    pub announce: bool,
}

/// Under which condition a write takes place. A retry under the version that the key already has counts as met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    #[default]
    Always,
    IfAbsent,
    IfPresent,
    IfVersion(Version),
}

/// Stores a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Put<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    /// Milliseconds to live; 0 takes the namespace's default (which may be none), `TTL_NEVER` none.
    pub ttl_ms: u64,
    pub condition: Condition,
    pub write: WriteOptions,
}

/// Deletes a key; `Done` also where there was none.
#[derive(Clone, Debug, PartialEq)]
pub struct Delete<'a> {
    pub key: &'a [u8],
    pub condition: Condition,
    pub write: WriteOptions,
}

/// Several puts under one version. Atomic among the keys of one shard, not across shards.
#[derive(Clone, Debug, PartialEq)]
pub struct MultiPut<'a> {
    pub items: List<'a, PutItem<'a>>,
    pub write: WriteOptions,
}

/// One key of a multi-put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutItem<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    /// As in `Put`.
    pub ttl_ms: u64,
}

/// One page of a vnode's live keys, in the order of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan<'a> {
    pub vnode: u32,
    /// Empty to start; else what the last page gave.
    pub cursor: &'a [u8],
    /// The most entries wanted; 0 or more than the server's bound takes the bound.
    pub limit: u32,
    pub with_values: bool,
}

/// When a write of a namespace is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Durability {
    /// On disk.
    #[default]
    Sync = 0,
    /// In memory; on disk within `INTERVAL_MS_MAX`.
    Interval = 1,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Durability::Sync => "sync",
            Durability::Interval => "interval",
        })
    }
}

/// How tables keep the blocks of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Compression {
    #[default]
    None = 0,
    /// Where it saves an eighth or more.
    Lz4 = 1,
}

/// A bit of `HelloOk::features`: the server knows `NamespaceDetails`, `NamespaceMake` and `NamespaceChange`.
pub const FEATURE_NAMESPACE_DETAILS: u64 = 2;
/// A bit of `HelloOk::features`: namespaces have levels, and the server knows `NamespaceTerms`.
pub const FEATURE_NAMESPACE_LEVELS: u64 = 8;
/// A bit of `HelloOk::features`: the server does what `Hello::wants` asks for.
pub const FEATURE_HELLO_WANTS: u64 = 32;
/// A bit of `HelloOk::features`: namespaces have different numbers of replicas.
pub const FEATURE_NAMESPACE_REPLICAS: u64 = 16;

/// What is answered. `Announced` comes before another answer to the same request; `Values` may come in several parts.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<'a> {
    HelloOk(HelloOk<'a>),
    Pong,
    /// Lines of `key:value` (info, snapshot), or text for people (cluster).
    Text(&'a str),
    /// The write is in, durable as its namespace says.
    Done {
        version: Version,
    },
    Value(Value<'a>),
    Absent,
    /// In the order of the keys asked.
    Values(List<'a, Option<VersionedValue<'a>>>),
    /// `None`: the key never expires.
    Ttl {
        remaining_ms: Option<u64>,
    },
    Page(Page<'a>),
    Namespaces(List<'a, Namespace<'a>>),
    /// To `NamespaceDetails` and its kin.
    NamespaceDetails(List<'a, Namespace<'a>>),
    /// To `NamespaceTerms`, and to its kin where they say levels.
    NamespaceTerms(List<'a, Namespace<'a>>),
    Announced {
        version: Version,
    },
    /// The condition failed: the version that the key has, or `None` where it is absent.
    NotMet {
        present: Option<Version>,
    },
    Error(ErrorReply<'a>),
}

/// A key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    pub version: Version,
    /// Until it expires; `None` is never.
    pub remaining_ms: Option<u64>,
    pub value: &'a [u8],
}

/// One answer of a multi-get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionedValue<'a> {
    pub version: Version,
    pub value: &'a [u8],
}

/// Part of a scan. An empty cursor: the vnode is through.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<'a> {
    pub cursor: &'a [u8],
    pub entries: List<'a, ScanEntry<'a>>,
}

/// One key of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanEntry<'a> {
    pub key: &'a [u8],
    pub version: Version,
    pub remaining_ms: Option<u64>,
    /// Where the scan asked for values.
    pub value: Option<&'a [u8]>,
}

/// A namespace as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace<'a> {
    pub id: NamespaceId,
    pub name: &'a str,
    /// 0: keys without a TTL of their own never expire.
    pub default_ttl_ms: u64,
    pub durability: Durability,
    /// Not in `Reply::Namespaces`.
    pub compression: Compression,
    /// In `Reply::NamespaceTerms` alone.
    pub levels: LevelsAsked,
    /// In `Reply::NamespaceTerms` alone.
    pub replicas: u8,
}

/// The server's side of the hello.
#[derive(Clone, Debug, PartialEq)]
pub struct HelloOk<'a> {
    pub protocol_version: u16,
    /// The core that serves this connection.
    pub core: u16,
    /// Data cores of this node: a key lives on `core_of(vnode_of(token_of(key), vnodes), cores)`.
    pub cores: u16,
    pub vnodes: u32,
    pub node_id: u64,
    pub cluster_id: [u8; 16],
    /// Of the topology below.
    pub epoch: u64,
    /// Bits of optional abilities (`FEATURE_TTL_NEVER`).
    pub features: u64,
    pub limits: Limits,
    pub nodes: List<'a, Node<'a>>,
    /// For each vnode the index into `nodes`; empty where `nodes[0]` has them all.
    pub owners: List<'a, u16>,
}

/// Bounds that a client should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub frame_bytes_max: u32,
    pub key_bytes_max: u32,
    pub value_bytes_max: u32,
    pub multi_keys_max: u32,
    pub scan_entries_max: u32,
    /// Bytes of one connection in flight before the server stops reading from it.
    pub connection_bytes_max: u32,
    /// What `deadline_ms = 0` means.
    pub deadline_ms_default: u32,
}

impl Limits {
    /// What this build allows.
    pub fn of_this_build(deadline_ms_default: u32) -> Limits {
        let small = |bound: usize| u32::try_from(bound).expect("bounds are small");
        Limits {
            frame_bytes_max: small(limits::FRAME_BYTES_MAX),
            key_bytes_max: small(limits::KEY_BYTES_MAX),
            value_bytes_max: small(limits::VALUE_BYTES_MAX),
            multi_keys_max: small(limits::MULTI_KEYS_MAX),
            scan_entries_max: small(limits::SCAN_ENTRIES_MAX),
            connection_bytes_max: small(limits::CONNECTION_BYTES_MAX),
            deadline_ms_default,
        }
    }
}

/// The protocol version to speak with a client that offers these, both ends included: the highest in common.
pub fn negotiate(version_min: u16, version_max: u16) -> Option<u16> {
    let version = version_max.min(PROTOCOL_VERSION);
    (version >= version_min.max(PROTOCOL_VERSION_MIN)).then_some(version)
}

/// A node of the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    pub id: u64,
    pub host: &'a str,
    pub port: u16,
    pub cores: u16,
}

/// A refusal, or an outcome that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorReply<'a> {
    pub code: ErrorCode,
    /// For people.
    pub message: &'a str,
    /// Of the write, where it was stamped (`Unknown` above all): what a retry carries.
    pub version: Option<Version>,
    /// `Unavailable`: replicas needed, and alive.
    pub need: u16,
    pub alive: u16,
}

impl<'a> ErrorReply<'a> {
    pub fn new(code: ErrorCode, message: &'a str) -> ErrorReply<'a> {
        ErrorReply { code, message, version: None, need: 0, alive: 0 }
    }
}

/// Why there is no answer. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum ErrorCode {
    /// The frame is whole, what it says is not allowed.
    BadRequest = 1,
    /// A key, value, list or frame is over its limit.
    TooLarge = 2,
    UnknownKind = 3,
    /// No protocol version in common.
    UnsupportedVersion = 4,
    /// The credential is wrong, or the first frame is no hello.
    Unauthorized = 5,
    NoSuchNamespace = 6,
    /// Not executed; try later.
    Overloaded = 7,
    /// Writes are refused, reads and deletes are not.
    DiskFull = 8,
    /// The level cannot be met; not executed.
    Unavailable = 9,
    /// A write that may or may not take effect, now or later. Retry under its version.
    Unknown = 10,
    /// This shard acknowledges nothing any more (a sync failed).
    Stopped = 11,
    /// Not executed, for its deadline was over.
    DeadlinePassed = 12,
    /// Not executed, for the reason in the message.
    Failed = 13,
    ShuttingDown = 14,
}

impl ErrorCode {
    pub fn from_u16(code: u16) -> Option<ErrorCode> {
        use ErrorCode::*;
        const ALL: [ErrorCode; 14] = [
            BadRequest,
            TooLarge,
            UnknownKind,
            UnsupportedVersion,
            Unauthorized,
            NoSuchNamespace,
            Overloaded,
            DiskFull,
            Unavailable,
            Unknown,
            Stopped,
            DeadlinePassed,
            Failed,
            ShuttingDown,
        ];
        ALL.get(usize::from(code).wrapping_sub(1)).copied()
    }
}

/// What a command does to data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Neither reads nor writes keys.
    None,
    Read,
    Write,
    /// Changes the node rather than keys.
    Admin,
}

/// Facts about one command.
#[derive(Clone, Copy, Debug)]
pub struct CommandRow {
    pub name: &'static str,
    /// The frame's kind.
    pub kind: u16,
    pub access: Access,
    /// Works on keys of a namespace.
    pub has_keys: bool,
    pub summary: &'static str,
}

const fn row(name: &'static str, kind: u16, access: Access, has_keys: bool, summary: &'static str) -> CommandRow {
    CommandRow { name, kind, access, has_keys, summary }
}

/// Every command, by kind.
pub const COMMANDS: &[CommandRow] = &[
    row("hello", 1, Access::None, false, "protocol version, credential and core; answers the topology"),
    row("ping", 2, Access::None, false, "answers pong"),
    row("info", 3, Access::None, false, "lines of key:value about this node"),
    row("get", 16, Access::Read, true, "a key's value, version and time to live"),
    row("put", 17, Access::Write, true, "stores a value, perhaps under a condition"),
    row("delete", 18, Access::Write, true, "deletes a key, perhaps under a condition"),
    row("multi_get", 19, Access::Read, true, "values of several keys"),
    row("multi_put", 20, Access::Write, true, "several puts, atomic for the keys of one shard"),
    row("expire", 21, Access::Write, true, "gives a key a time to live"),
    row("persist", 22, Access::Write, true, "takes a key's time to live away"),
    row("ttl", 23, Access::Read, true, "a key's remaining time to live"),
    row("scan", 24, Access::Read, true, "a page of a vnode's keys"),
    row("namespace_list", 32, Access::None, false, "all namespaces"),
    row("namespace_create", 33, Access::Admin, false, "makes a namespace"),
    row("namespace_alter", 34, Access::Admin, false, "changes a namespace's default TTL or durability"),
    row("namespace_details", 35, Access::None, false, "all namespaces, with all that is known of each"),
    row("namespace_make", 36, Access::Admin, false, "makes a namespace, compression said"),
    row("namespace_change", 37, Access::Admin, false, "changes a namespace's default TTL, durability or compression"),
    row("namespace_terms", 38, Access::None, false, "all namespaces, with their levels too"),
    row("snapshot", 40, Access::Admin, false, "a snapshot of this node's data under a name"),
    row("cluster", 41, Access::Admin, false, "the state of the cluster, or a change of its nodes, in words"),
];

/// The row of a kind, where it is a request's.
pub fn command_row(kind: u16) -> Option<&'static CommandRow> {
    let row = *ROWS.get(usize::from(kind))?;
    COMMANDS.get(usize::from(row))
}

/// The row of each kind, or one that is not there: every request asks.
static ROWS: [u8; 64] = {
    let mut rows = [u8::MAX; 64];
    let mut row = 0;
    while row < COMMANDS.len() {
        rows[COMMANDS[row].kind as usize] = row as u8;
        row += 1;
    }
    rows
};

impl Command<'_> {
    /// The frame's kind.
    pub fn kind(&self) -> u16 {
        match self {
            Command::Hello(_) => 1,
            Command::Ping => 2,
            Command::Info => 3,
            Command::Get { .. } => 16,
            Command::Put(_) => 17,
            Command::Delete(_) => 18,
            Command::MultiGet { .. } => 19,
            Command::MultiPut(_) => 20,
            Command::Expire { .. } => 21,
            Command::Persist { .. } => 22,
            Command::Ttl { .. } => 23,
            Command::Scan(_) => 24,
            Command::NamespaceList => 32,
            Command::NamespaceCreate { .. } => 33,
            Command::NamespaceAlter { .. } => 34,
            Command::NamespaceDetails => 35,
            Command::NamespaceMake(_) => 36,
            Command::NamespaceChange(_) => 37,
            Command::NamespaceTerms => 38,
            Command::Snapshot { .. } => 40,
            Command::Cluster { .. } => 41,
        }
    }

    /// The levels that the command itself brings, for the namespace that it makes or changes.
    pub fn levels(&self) -> Option<LevelsAsked> {
        match self {
            Command::NamespaceMake(NamespaceSpec { levels, .. }) | Command::NamespaceChange(NamespaceChange { levels, .. }) => {
                Some(*levels)
            }
            _ => None,
        }
    }

    /// The number of replicas of the namespace that the command makes.
    pub fn replicas(&self) -> Option<u8> {
        if let Command::NamespaceMake(spec) = self { Some(spec.replicas) } else { None }
    }

    /// The facts about it.
    pub fn row(&self) -> &'static CommandRow {
        command_row(self.kind()).expect("every command has a row")
    }

    /// The one key, where it names exactly one.
    pub fn key(&self) -> Option<&[u8]> {
        match self {
            Command::Get { key } | Command::Ttl { key } | Command::Expire { key, .. } | Command::Persist { key, .. } => Some(key),
            Command::Put(put) => Some(put.key),
            Command::Delete(delete) => Some(delete.key),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_codes_round_trip() {
        assert!(COMMANDS.windows(2).all(|pair| pair[0].kind < pair[1].kind));
        assert!(COMMANDS.iter().all(|row| command_row(row.kind).unwrap().name == row.name && row.kind < 0x8000));
        assert!((1..=14).all(|code| ErrorCode::from_u16(code).unwrap() as u16 == code));
        assert_eq!((negotiate(1, 9), negotiate(0, 1), negotiate(2, 9), negotiate(0, 0)), (Some(1), Some(1), None, None));
        assert!(ErrorCode::from_u16(0).is_none() && ErrorCode::from_u16(15).is_none());
    }
}
