//! What the generator says and hears: one request and one answer, in four protocols.
//!
//! Each protocol has a file of pure functions: `encode` appends a request to a connection's bytes, `decode` takes an answer apart where it
//! lies. The native protocol numbers its requests, and its answers come in any order; in all others they come in the order of the requests.

pub mod handshake;
pub mod in_order;
pub mod memcached_meta;
pub mod memcached_text;
pub mod native;
pub mod resp;

use crate::ledger::WriteEnd;
use crate::plan::OpKind;
use in_order::InOrder;
use ringkv::base::record::{core_of, token_of, vnode_of};
use ringkv::wire::command::LevelsAsked;
use ringkv::wire::frame::FrameReader;
use std::fmt;
use std::net::TcpStream;

/// A protocol that a server may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Native,
    /// RESP2, as Redis and its kin speak it.
    Resp,
    /// The same, and behind each write a WAIT for one replica: what is answered is in two places.
    RespWait,
    /// `get`, `set`, `delete`.
    MemcachedText,
    /// `mg`, `ms`, `md`.
    MemcachedMeta,
}

impl Protocol {
    pub const ALL: [Protocol; 5] = [Protocol::Native, Protocol::Resp, Protocol::RespWait, Protocol::MemcachedText, Protocol::MemcachedMeta];

    /// What stands before `://` in a target.
    pub fn scheme(self) -> &'static str {
        ["native", "redis", "redis-wait", "memcached", "memcached-meta"][self as usize]
    }

    pub fn is_memcached(self) -> bool {
        matches!(self, Protocol::MemcachedText | Protocol::MemcachedMeta)
    }

    /// The longest key that the protocol's servers take.
    pub fn key_bytes_max(self) -> usize {
        if self.is_memcached() { 250 } else { ringkv::limits::KEY_BYTES_MAX }
    }

    /// How far a server of this protocol may miss a deadline, either way, in milliseconds: memcached counts in whole seconds, by a clock
    /// that a timer moves once a second, late on a busy machine; the others have millisecond grain, on a clock of their own.
    pub fn deadline_slack_ms(self) -> u32 {
        if self.is_memcached() { 3000 } else { 5 }
    }
}

/// Where the load goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub protocol: Protocol,
    /// `HOST:PORT` each; several are the nodes of one cluster.
    pub addresses: Vec<String>,
}

impl Target {
    pub fn is_cluster(&self) -> bool {
        self.addresses.len() > 1
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.protocol.scheme(), self.addresses.join(","))
    }
}

/// What a client must know to find a key's core. Servers of other protocols count as one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    pub cores: u16,
    pub vnodes: u32,
}

impl Topology {
    /// The data core that owns a key.
    #[inline]
    pub fn core_of(&self, key: &[u8]) -> u16 {
        if self.cores <= 1 { 0 } else { core_of(vnode_of(token_of(key), self.vnodes), self.cores) }
    }
}

/// A connection that has been greeted.
pub struct Greeted {
    pub stream: TcpStream,
    pub reader: Reader,
    pub core: u16,
    /// Which of the target's addresses answered.
    pub address: usize,
    pub topology: Topology,
    /// What the server says it is.
    pub server: String,
}

/// Cuts a connection's bytes into answers.
pub enum Reader {
    Native(FrameReader),
    InOrder(InOrder),
}

/// What all requests of a run share.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    pub protocol: Protocol,
    pub deadline_ms: u32,
    pub namespace: u32,
    /// How many replicas must answer; native only.
    pub levels: LevelsAsked,
    /// 0: for ever.
    pub ttl_ms: u64,
}

/// Appends a request. `id` finds its way back where the protocol numbers requests.
#[inline]
pub fn encode(out: &mut Vec<u8>, id: u64, common: &Common, kind: OpKind, key: &[u8], value: &[u8]) {
    match common.protocol {
        Protocol::Native => native::encode(out, id, common, kind, key, value),
        Protocol::Resp => resp::encode(out, common.ttl_ms, kind, key, value),
        Protocol::RespWait => resp::encode_and_wait(out, common.ttl_ms, kind, key, value),
        Protocol::MemcachedText => memcached_text::encode(out, common.ttl_ms, kind, key, value),
        Protocol::MemcachedMeta => memcached_meta::encode(out, common.ttl_ms, kind, key, value),
    }
}

/// An answer, as far as the generator cares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer<'a> {
    Value(&'a [u8]),
    Absent,
    Done,
    Refused(Refusal<'a>),
}

/// An error of the server's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refusal<'a> {
    /// For the table of errors.
    pub name: &'a str,
    /// Whether a write that was answered so may be in.
    pub end: WriteEnd,
    /// Trying again may help, and the request surely did nothing.
    pub is_worth_retrying: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_shown_as_they_are_given() {
        let names = Protocol::ALL.map(|protocol| Target { protocol, addresses: vec!["h:1".into()] }.to_string());
        assert_eq!(names, ["native://h:1", "redis://h:1", "redis-wait://h:1", "memcached://h:1", "memcached-meta://h:1"]);
        let cluster = Target { protocol: Protocol::Native, addresses: vec!["h:1".into(), "i:2".into()] };
        assert_eq!(cluster.to_string(), "native://h:1,i:2");
    }
}
