//! What memory alone can answer, in the connection's turn: no await, no task. One arm a command; what needs a disk, a lock or the clock's
//! ceiling answers `Step::Wait` and goes to `perform`.

use super::namespaces::{Compression, Durability, Namespace};
use super::{Shard, Ticket, pace};
use crate::base::record::{Body, Cell, Kind, Token, Version};
use crate::base::time::{Mono, WallMs, hlc_ms};
use crate::engine::{Batch, EngineError, KeyRef};
use crate::limits::{CHUNK_BYTES, RF_DEFAULT};
use crate::wire::command::{
    Command, Condition, ErrorCode, LevelsAsked, List, MultiPut, Namespace as WireNamespace, Put, Reply, Request, TTL_NEVER, Value,
    WriteOptions,
};
use std::fmt::Write as _;

/// A version from a client may lie below what is forgotten for good: nobody can say any more whether it was there (rule G1).
const FORGOTTEN: &str = "that version is too old to be told from a deleted one";

/// Why a version from a client is refused.
pub const FOREIGN_VERSION: &str = "no clock of ours gave that version";

/// A clock of this node may have given `version`.
pub fn may_have_given(shard: &Shard, version: Version) -> bool {
    version != Version::ZERO && shard.engine.may_have_given(version, shard.io.wall_ms())
}

/// How a request went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Answered, or held until the log has it.
    Done,
    /// It has to wait for something: nothing happened yet.
    Wait,
    /// A write of one key that has to wait for flushes and merges, and for nothing else.
    WaitTurn {
        /// As `pace::cost` says.
        bytes: usize,
    },
}

/// Carries out what this core owns, if memory is enough. `token`: of the command's one key.
pub fn execute(shard: &Shard, ticket: &Ticket, request: &Request<'_>, token: Token) -> Step {
    let key_ref = |key| KeyRef { namespace: request.namespace, token, key };
    match &request.command {
        Command::Ping => answer(shard, ticket, &Reply::Pong),
        Command::Info => answer(shard, ticket, &Reply::Text(&info(shard))),
        Command::Get { key } => {
            let room = ticket.room();
            let reply = |reply: &Reply<'_>| value_bytes(reply) <= room;
            read_in_memory(shard, ticket, request, key_ref(key), |cell, now_ms| value_reply(cell, now_ms).filter(reply))
        }
        Command::Ttl { key } => read_in_memory(shard, ticket, request, key_ref(key), |cell, now_ms| Some(ttl_reply(cell, now_ms))),
        Command::Put(_) | Command::Delete(_) => plain_write(shard, ticket, request, token),
        Command::MultiPut(put) => multi_put(shard, ticket, request, put),
        Command::NamespaceList | Command::NamespaceDetails | Command::NamespaceTerms => {
            let table = shard.namespaces();
            let rows: Vec<_> = table.rows().iter().map(wire_namespace).collect();
            answer(shard, ticket, &namespaces_reply(&request.command, rows.into()))
        }
        Command::MultiGet { .. }
        | Command::Expire { .. }
        | Command::Persist { .. }
        | Command::Scan(_)
        | Command::NamespaceCreate { .. }
        | Command::NamespaceAlter { .. }
        | Command::NamespaceMake(_)
        | Command::NamespaceChange(_)
        | Command::Snapshot { .. }
        | Command::Cluster { .. } => Step::Wait,
        Command::Hello(_) => unreachable!("route refuses a second hello"),
    }
}

fn answer(shard: &Shard, ticket: &Ticket, reply: &Reply<'_>) -> Step {
    shard.answer(ticket, reply);
    Step::Done
}

/// The reply to a get of a string that lies in one piece; None: chunks have to be read.
pub fn value_reply<'a>(cell: Option<&Cell<'a>>, now_ms: WallMs) -> Option<Reply<'a>> {
    match cell.filter(|cell| cell.is_live(now_ms)) {
        None => Some(Reply::Absent),
        Some(Cell { body: Body::Bytes(value), version, expiry, .. }) => {
            Some(Reply::Value(Value { version: *version, remaining_ms: remaining(expiry.deadline_ms, now_ms), value }))
        }
        Some(_) => None,
    }
}

/// Bytes of the value in an answer to a get.
pub fn value_bytes(reply: &Reply<'_>) -> usize {
    if let Reply::Value(value) = reply { value.value.len() } else { 0 }
}

/// Milliseconds to live; none for a key that never expires.
pub fn remaining(deadline_ms: WallMs, now_ms: WallMs) -> Option<u64> {
    (deadline_ms != 0).then(|| deadline_ms.saturating_sub(now_ms).max(1))
}

/// What a client may be shown at once: under `interval`, what is in memory.
pub fn shown_after(durability: Durability, settled: u64) -> u64 {
    if durability == Durability::Interval { 0 } else { settled }
}

/// The reply to a ttl.
pub fn ttl_reply(cell: Option<&Cell<'_>>, now_ms: WallMs) -> Reply<'static> {
    match cell.filter(|cell| cell.is_live(now_ms)) {
        None => Reply::Absent,
        Some(cell) => Reply::Ttl { remaining_ms: remaining(cell.expiry.deadline_ms, now_ms) },
    }
}

fn read_in_memory(
    shard: &Shard,
    ticket: &Ticket,
    request: &Request<'_>,
    key: KeyRef<'_>,
    reply: impl for<'a> FnOnce(Option<&Cell<'a>>, WallMs) -> Option<Reply<'a>>,
) -> Step {
    let Some(namespace) = shard.namespace_durability(request.namespace) else { return Step::Wait };
    let now_ms = shard.io.wall_ms();
    let peeked = shard.engine.peek(key, |cell, settled| match reply(cell, now_ms) {
        None => Step::Wait,
        Some(reply) => {
            shard.answer_when(ticket, shown_after(namespace, settled), shard.deadline(request.deadline_ms), &reply, None);
            Step::Done
        }
    });
    shard.stats.peeked(peeked.is_ok());
    peeked.unwrap_or(Step::Wait)
}

/// A write that needs no look at what is there.
fn is_blind(condition: Condition, write: WriteOptions) -> bool {
    condition == Condition::Always && !write.announce
}

fn plain_write(shard: &Shard, ticket: &Ticket, request: &Request<'_>, token: Token) -> Step {
    let (condition, options, bytes) = match &request.command {
        Command::Put(put) => (put.condition, put.write, put.key.len() + put.value.len()),
        Command::Delete(delete) => (delete.condition, delete.write, delete.key.len()),
        _ => unreachable!("the writes of one key"),
    };
    if !is_blind(condition, options) || shard.locks.is_held(token) {
        return Step::Wait;
    }
    let bytes = pace::cost(bytes, 1);
    if !shard.may_write(bytes) {
        return Step::WaitTurn { bytes };
    }
    write_blindly(shard, ticket, request, token, shard.deadline(request.deadline_ms));
    Step::Done
}

/// A put or a delete that needs no look at what is there, and whose turn has come.
pub fn write_blindly(shard: &Shard, ticket: &Ticket, request: &Request<'_>, token: Token, deadline: Mono) {
    let (key, options) = match &request.command {
        Command::Put(put) => (put.key, put.write),
        Command::Delete(delete) => (delete.key, delete.write),
        _ => unreachable!("the writes of one key"),
    };
    let Some(write) = Write::begin(shard, ticket, request, options.version, deadline) else { return };
    let key = KeyRef { namespace: request.namespace, token, key };
    match &request.command {
        Command::Put(put) => write.put(key, put),
        _ => write.delete(key),
    }
}

fn multi_put(shard: &Shard, ticket: &Ticket, request: &Request<'_>, put: &MultiPut<'_>) -> Step {
    let held = |key: &[u8]| shard.locks.is_held(crate::base::record::token_of(key));
    let bytes = || put.items.iter().map(|item| pace::cost(item.key.len() + item.value.len(), 1)).sum();
    if put.write.announce || (!shard.locks.is_empty() && put.items.iter().any(|item| held(item.key))) || !shard.may_write(bytes()) {
        return Step::Wait;
    }
    if let Some(write) = Write::begin(shard, ticket, request, put.write.version, shard.deadline(request.deadline_ms)) {
        write.multi_put(put);
    }
    Step::Done
}

/// What the node tells about itself, and its namespaces.
fn info(shard: &Shard) -> String {
    let mut text = (shard.node.info)();
    for Namespace { id, name, default_ttl_ms, durability, compression, levels, replicas: _ } in shard.namespaces().rows() {
        let compression = match compression {
            Compression::None => "",
            Compression::Lz4 => " compression=lz4",
        };
        _ = write!(text, "namespace_{name}:id={id} ttl_ms={default_ttl_ms} durability={durability}{compression}");
        // Levels are nothing to a node that is alone.
        _ = match &shard.cluster {
            Some(cluster) => writeln!(text, " rf={} level={levels}", cluster.rf(*id)),
            None => writeln!(text),
        };
    }
    text
}

/// As much of namespaces as whoever sent the command knows of.
pub fn namespaces_reply<'a>(command: &Command<'_>, rows: List<'a, WireNamespace<'a>>) -> Reply<'a> {
    match command {
        Command::NamespaceTerms => Reply::NamespaceTerms(rows),
        command if command.levels().is_some_and(|levels| levels != LevelsAsked::default()) => Reply::NamespaceTerms(rows),
        command if command.replicas().is_some_and(|replicas| usize::from(replicas) != RF_DEFAULT) => Reply::NamespaceTerms(rows),
        Command::NamespaceDetails | Command::NamespaceMake(_) | Command::NamespaceChange(_) => Reply::NamespaceDetails(rows),
        _ => Reply::Namespaces(rows),
    }
}

/// As the wire says it.
pub fn wire_namespace(row: &Namespace) -> WireNamespace<'_> {
    let &Namespace { id, ref name, default_ttl_ms, durability, compression, levels, replicas } = row;
    WireNamespace { id, name, default_ttl_ms, durability, compression, levels, replicas }
}

/// One write on its way: stamped, then stored, then answered when it is durable.
pub struct Write<'a> {
    shard: &'a Shard,
    ticket: &'a Ticket,
    namespace: Namespace,
    deadline: Mono,
    pub version: Version,
}

impl<'a> Write<'a> {
    /// Stamps a write, or takes the version of an earlier try. None: it was refused, and answered.
    /// It is answered by `deadline`.
    pub fn begin(shard: &'a Shard, ticket: &'a Ticket, request: &Request<'_>, again: Option<Version>, deadline: Mono) -> Option<Write<'a>> {
        let Some(namespace) = shard.namespace(request.namespace) else {
            shard.fail(ticket, ErrorCode::NoSuchNamespace, "no namespace of that number");
            return None;
        };
        let now_ms = shard.io.wall_ms();
        // What another core sends of a request of many keys, it has checked by its own clock, which gave the version.
        let is_checked = ticket.is_from_within() && matches!(request.command, Command::MultiPut(_));
        let version = match again {
            None => shard.engine.stamp(now_ms),
            Some(version) if !is_checked && !may_have_given(shard, version) => {
                shard.fail(ticket, ErrorCode::BadRequest, FOREIGN_VERSION);
                return None;
            }
            Some(version) => {
                shard.engine.observe(version);
                version
            }
        };
        Some(Write { shard, ticket, namespace, deadline, version })
    }

    fn batch(&self) -> Batch {
        Batch::new(self.namespace.durability == Durability::Sync)
    }

    /// The same for every try of a write: counted from its version's clock, not from when it arrived.
    pub fn deadline_ms(&self, ttl_ms: u64) -> WallMs {
        let ttl_ms = if ttl_ms == 0 { self.namespace.default_ttl_ms } else { ttl_ms };
        if ttl_ms == 0 || ttl_ms == TTL_NEVER { 0 } else { hlc_ms(self.version.hlc()).saturating_add(ttl_ms) }
    }

    pub fn put(&self, key: KeyRef<'_>, put: &Put<'_>) {
        let mut batch = self.batch();
        batch.put_value(key, put.value, self.version, self.deadline_ms(put.ttl_ms));
        self.store(&batch);
    }

    pub fn delete(&self, key: KeyRef<'_>) {
        let mut batch = self.batch();
        batch.push(key, Kind::Head, b"", &Cell::tombstone(self.version));
        self.store(&batch);
    }

    /// Only the deadline; 0 takes it away.
    pub fn expire(&self, key: KeyRef<'_>, deadline_ms: WallMs) {
        let mut batch = self.batch();
        batch.push(key, Kind::Head, b"", &Cell::expire(self.version, deadline_ms));
        self.store(&batch);
    }

    pub fn multi_put(&self, put: &MultiPut<'_>) {
        let mut batch = self.batch();
        for item in put.items.iter() {
            let key = self.shard.key(self.namespace.id, item.key);
            batch.put_value(key, item.value, self.version, self.deadline_ms(item.ttl_ms));
        }
        self.store(&batch);
    }

    fn store(&self, batch: &Batch) {
        let shard = self.shard;
        match shard.engine.write(batch) {
            Err(EngineError::Superseded) => shard.unknown(self.ticket, self.version, FORGOTTEN),
            Ok(seq) => {
                let reply = Reply::Done { version: self.version };
                let is_interval = self.namespace.durability == Durability::Interval;
                let seq = if is_interval { shard.ahead_of_log(seq) } else { seq };
                shard.answer_when(self.ticket, seq, self.deadline, &reply, Some(self.version));
            }
            Err(error) => engine_error(shard, self.ticket, &error),
        }
    }
}

/// Answers with what went wrong below.
pub fn engine_error(shard: &Shard, ticket: &Ticket, error: &EngineError) {
    let code = match error {
        EngineError::DiskFull => ErrorCode::DiskFull,
        EngineError::Overloaded => ErrorCode::Overloaded,
        EngineError::Stopped(_) => ErrorCode::Stopped,
        EngineError::TooLarge => ErrorCode::TooLarge,
        EngineError::Superseded => ErrorCode::BadRequest,
        EngineError::Io(_) | EngineError::Corrupt { .. } | EngineError::Unsupported { .. } => ErrorCode::Failed,
    };
    shard.fail(ticket, code, &error.to_string());
}

const _: () = assert!(CHUNK_BYTES <= 64 * 1024);
