//! What a client gets back: owned answers, and errors that tell "not done" from "nobody knows".

use crate::base::record::{NamespaceId, Version};
use crate::wire::command::{Compression, Durability, ErrorCode, HelloOk, LevelsAsked, Limits, Namespace, Node, Reply};
use std::time::Duration;

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// A write that was sent, and nobody knows whether it takes effect, now or later. Carried again under `version` (where one was
    /// announced) it is the same write; without one a second try is a new write.
    Unknown { version: Option<Version> },
    /// The server says that it did not execute the request.
    Failed { code: ErrorCode, message: String },
    /// The level cannot be met: replicas needed, and alive. Not executed.
    Unavailable { need: u16, alive: u16 },
    /// The condition failed: the version that the key has, or `None` where it is absent.
    NotMet { present: Option<Version> },
    /// A read that nobody answered in time.
    TimedOut,
    /// The connection is gone. A read without an answer, or a write that never left.
    Disconnected(String),
    /// Too many requests in flight on this connection. Not sent.
    Full,
    /// The server sent what this client does not understand.
    Protocol(&'static str),
}

impl ClientError {
    /// Trying again, as it is, can do no harm: a read, or a write that certainly did not happen.
    pub(crate) fn is_harmless(&self) -> bool {
        matches!(self, ClientError::TimedOut | ClientError::Disconnected(_))
    }
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ClientError::Unknown { version: Some(version) } => {
                write!(f, "unknown whether the write takes effect (its version: {version:?})")
            }
            ClientError::Unknown { version: None } => f.write_str("unknown whether the write takes effect"),
            ClientError::Failed { code, message } => write!(f, "{code:?}: {message}"),
            ClientError::Unavailable { need, alive } => write!(f, "unavailable: {need} replicas needed, {alive} alive"),
            ClientError::NotMet { present: Some(version) } => write!(f, "condition not met: the key has version {version:?}"),
            ClientError::NotMet { present: None } => f.write_str("condition not met: the key is absent"),
            ClientError::TimedOut => f.write_str("no answer in time"),
            ClientError::Disconnected(why) => write!(f, "disconnected: {why}"),
            ClientError::Full => f.write_str("too many requests in flight"),
            ClientError::Protocol(what) => write!(f, "the server's answer is not understood: {what}"),
        }
    }
}

impl std::error::Error for ClientError {}

/// A value and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedValue {
    pub version: Version,
    /// Until it expires; `None` is never.
    pub remaining: Option<Duration>,
    pub value: Vec<u8>,
}

/// How long a key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeToLive {
    Absent,
    Never,
    Remaining(Duration),
}

/// One key of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    pub key: Vec<u8>,
    pub version: Version,
    pub remaining: Option<Duration>,
    /// Where the scan asked for values.
    pub value: Option<Vec<u8>>,
}

/// A page of a scan; an empty cursor says that the vnode is through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedPage {
    pub cursor: Vec<u8>,
    pub entries: Vec<KeyInfo>,
}

/// A namespace as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    pub id: NamespaceId,
    pub name: String,
    /// Zero: no default.
    pub default_ttl: Duration,
    pub durability: Durability,
    pub compression: Compression,
    /// Of requests that name none, in a cluster; what is None is a quorum.
    pub levels: LevelsAsked,
    /// Of each key, in a cluster.
    pub replicas: u8,
}

/// What the hello told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    pub protocol_version: u16,
    pub core: u16,
    pub cores: u16,
    pub vnodes: u32,
    pub node_id: u64,
    pub cluster_id: [u8; 16],
    pub epoch: u64,
    pub features: u64,
    pub limits: Limits,
    pub nodes: Vec<NodeInfo>,
    /// For each vnode the index in `nodes` of its first owner; empty where a node has them all.
    pub owners: Vec<u16>,
    /// Where they were asked for and the server tells.
    pub namespaces: Vec<NamespaceInfo>,
}

/// A node of the cluster, as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    pub id: u64,
    pub host: String,
    pub port: u16,
    /// Data cores.
    pub cores: u16,
}

impl ServerInfo {
    fn of(ok: &HelloOk<'_>) -> ServerInfo {
        ServerInfo {
            protocol_version: ok.protocol_version,
            core: ok.core,
            cores: ok.cores,
            vnodes: ok.vnodes,
            node_id: ok.node_id,
            cluster_id: ok.cluster_id,
            epoch: ok.epoch,
            features: ok.features,
            limits: ok.limits,
            nodes: ok.nodes.iter().map(node_info).collect(),
            owners: ok.owners.to_vec(),
            namespaces: Vec::new(),
        }
    }
}

/// A version and the value under it.
pub type VersionedBytes = (Version, Vec<u8>);

/// An owned answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Hello(Box<ServerInfo>),
    Pong,
    Text(String),
    Done(Version),
    Value(OwnedValue),
    Absent,
    Values(Vec<Option<VersionedBytes>>),
    Ttl(Option<Duration>),
    Page(OwnedPage),
    Namespaces(Vec<NamespaceInfo>),
}

impl Answer {
    /// Copies an answer out of the receive buffer. `None` for what is no final answer (`Announced`) or an error's matter.
    pub fn of(reply: &Reply<'_>) -> Option<Answer> {
        let duration = |ms: Option<u64>| ms.map(Duration::from_millis);
        Some(match reply {
            Reply::HelloOk(ok) => Answer::Hello(Box::new(ServerInfo::of(ok))),
            Reply::Pong => Answer::Pong,
            Reply::Text(text) => Answer::Text((*text).to_owned()),
            Reply::Done { version } => Answer::Done(*version),
            Reply::Value(v) => {
                Answer::Value(OwnedValue { version: v.version, remaining: duration(v.remaining_ms), value: v.value.to_vec() })
            }
            Reply::Absent => Answer::Absent,
            Reply::Values(values) => Answer::Values(values.iter().map(|item| item.map(|v| (v.version, v.value.to_vec()))).collect()),
            Reply::Ttl { remaining_ms } => Answer::Ttl(duration(*remaining_ms)),
            Reply::Page(page) => {
                let entry = |e: &crate::wire::command::ScanEntry<'_>| KeyInfo {
                    key: e.key.to_vec(),
                    version: e.version,
                    remaining: duration(e.remaining_ms),
                    value: e.value.map(<[u8]>::to_vec),
                };
                Answer::Page(OwnedPage { cursor: page.cursor.to_vec(), entries: page.entries.iter().map(entry).collect() })
            }
            Reply::Namespaces(rows) | Reply::NamespaceDetails(rows) | Reply::NamespaceTerms(rows) => {
                Answer::Namespaces(rows.iter().map(namespace_info).collect())
            }
            Reply::Announced { .. } | Reply::NotMet { .. } | Reply::Error(_) => return None,
        })
    }

    /// Adds a later part of the same answer (a multi-get answered in several frames, a hello's namespaces).
    pub(crate) fn extend(&mut self, part: Answer) {
        match (self, part) {
            (Answer::Values(all), Answer::Values(more)) => all.extend(more),
            (Answer::Hello(info), Answer::Namespaces(rows)) => info.namespaces = rows,
            (all, part) => *all = part,
        }
    }
}

fn node_info(node: &Node<'_>) -> NodeInfo {
    NodeInfo { id: node.id, host: node.host.to_owned(), port: node.port, cores: node.cores }
}

fn namespace_info(row: &Namespace<'_>) -> NamespaceInfo {
    let &Namespace { id, name, default_ttl_ms, durability, compression, levels, replicas } = row;
    let (name, default_ttl) = (name.to_owned(), Duration::from_millis(default_ttl_ms));
    NamespaceInfo { id, name, default_ttl, durability, compression, levels, replicas }
}
