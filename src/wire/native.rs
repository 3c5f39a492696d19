//! The native encoding: each kind of frame has one frozen rkyv struct as its body (docs/protocol.md spells the bytes out).
//!
//! Little endian, unaligned, 32-bit relative pointers. Decoding validates the body with bytecheck where it lies and borrows from it.
//! Encoding writes what rkyv's serializer would write (tests hold them equal), straight behind the header: out-of-line bytes in the order
//! of the fields, then the root. A struct never changes; a changed one is a new kind.

use super::command::*;
use super::frame::{FLAG_MORE, Frame, FrameError, HEADER_BYTES, header};
use crate::base::record::{NAMESPACE_SYSTEM, Version};
use crate::limits::{
    FRAME_BYTES_MAX, KEY_BYTES_MAX, MULTI_KEYS_MAX, NAMESPACE_NAME_BYTES_MAX, RF_DEFAULT, RF_MAX, SCAN_ENTRIES_MAX, TTL_MS_MAX,
    VALUE_BYTES_MAX, WORDS_BYTES_MAX,
};
use rkyv::vec::ArchivedVec;

/// The frozen structs: name = kind, fields; with the proof of alignment and size.
macro_rules! frozen {
    ($($(#[$doc:meta])* $name:ident / $archived:ident [$bytes:literal] { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(rkyv::Archive, Debug, Default)]
        #[cfg_attr(test, derive(rkyv::Serialize))]
        pub struct $name { $(pub $field: $type),* }
        const _: () = assert!(align_of::<$archived>() == 1 && size_of::<$archived>() == $bytes, "frozen");
    )*};
}
pub(super) use frozen;

/// The bodies as they lie on the wire.
pub mod body {
    frozen! {
        /// 1
        Hello / ArchivedHello [26] {
            deadline_ms: u32, version_min: u16, version_max: u16, core: u16, credential: Vec<u8>, client_name: Vec<u8>,
        }
        /// 2, 3, 32, 35, 38
        Plain / ArchivedPlain [4] { deadline_ms: u32 }
        /// 16, 23
        Key / ArchivedKey [16] { deadline_ms: u32, namespace: u32, key: Vec<u8> }
        /// 17
        Put / ArchivedPut [66] {
            deadline_ms: u32, namespace: u32, ttl_ms: u64, condition: u8, flags: u8, condition_version: [u8; 16], version: [u8; 16],
            key: Vec<u8>, value: Vec<u8>,
        }
        /// 18
        Delete / ArchivedDelete [50] {
            deadline_ms: u32, namespace: u32, condition: u8, flags: u8, condition_version: [u8; 16], version: [u8; 16], key: Vec<u8>,
        }
        /// 19
        MultiGet / ArchivedMultiGet [16] { deadline_ms: u32, namespace: u32, keys: Vec<Vec<u8>> }
        /// In 20
        PutItem / ArchivedPutItem [24] { ttl_ms: u64, key: Vec<u8>, value: Vec<u8> }
        /// 20
        MultiPut / ArchivedMultiPut [33] {
            deadline_ms: u32, namespace: u32, flags: u8, version: [u8; 16], items: Vec<PutItem>,
        }
        /// 21, 22 (where the time to live is 0)
        Expire / ArchivedExpire [41] {
            deadline_ms: u32, namespace: u32, ttl_ms: u64, flags: u8, version: [u8; 16], key: Vec<u8>,
        }
        /// 24
        Scan / ArchivedScan [25] { deadline_ms: u32, namespace: u32, vnode: u32, limit: u32, flags: u8, cursor: Vec<u8> }
        /// 33, 34
        NamespaceSpec / ArchivedNamespaceSpec [21] { deadline_ms: u32, default_ttl_ms: u64, durability: u8, name: Vec<u8> }
        /// 36, 37
        NamespaceForm / ArchivedNamespaceForm [22] {
            deadline_ms: u32, default_ttl_ms: u64, durability: u8, compression: u8, name: Vec<u8>,
        }
        /// 40
        Named / ArchivedNamed [12] { deadline_ms: u32, name: Vec<u8> }

        /// In 0x8001
        Node / ArchivedNode [20] { id: u64, port: u16, cores: u16, host: Vec<u8> }
        /// 0x8001
        HelloOk / ArchivedHelloOk [94] {
            protocol_version: u16, core: u16, cores: u16, vnodes: u32, node_id: u64, cluster_id: [u8; 16], epoch: u64, features: u64,
            frame_bytes_max: u32, key_bytes_max: u32, value_bytes_max: u32, multi_keys_max: u32, scan_entries_max: u32,
            connection_bytes_max: u32, deadline_ms_default: u32, nodes: Vec<Node>, owners: Vec<u16>,
        }
        /// 0x8003
        Text / ArchivedText [8] { text: Vec<u8> }
        /// 0x8010
        Value / ArchivedValue [32] { version: [u8; 16], remaining_ms: u64, value: Vec<u8> }
        /// 0x8011, 0x8016, 0x8017
        Versioned / ArchivedVersioned [16] { version: [u8; 16] }
        /// In 0x8013
        ValueItem / ArchivedValueItem [25] { present: u8, version: [u8; 16], value: Vec<u8> }
        /// 0x8013
        Values / ArchivedValues [8] { values: Vec<ValueItem> }
        /// 0x8014
        Ttl / ArchivedTtl [8] { remaining_ms: u64 }
        /// In 0x8015
        ScanEntry / ArchivedScanEntry [41] { version: [u8; 16], remaining_ms: u64, has_value: u8, key: Vec<u8>, value: Vec<u8> }
        /// 0x8015
        Page / ArchivedPage [16] { cursor: Vec<u8>, entries: Vec<ScanEntry> }
        /// In 0x8020
        Namespace / ArchivedNamespace [21] { id: u32, default_ttl_ms: u64, durability: u8, name: Vec<u8> }
        /// 0x8020
        Namespaces / ArchivedNamespaces [8] { namespaces: Vec<Namespace> }
        /// In 0x8021
        NamespaceDetail / ArchivedNamespaceDetail [22] { id: u32, default_ttl_ms: u64, durability: u8, compression: u8, name: Vec<u8> }
        /// 0x8021
        NamespaceDetails / ArchivedNamespaceDetails [8] { namespaces: Vec<NamespaceDetail> }
        /// In 0x8022
        NamespaceTerm / ArchivedNamespaceTerm [24] {
            id: u32, default_ttl_ms: u64, durability: u8, compression: u8, levels: u16, name: Vec<u8>,
        }
        /// 0x8022
        NamespaceTerms / ArchivedNamespaceTerms [8] { namespaces: Vec<NamespaceTerm> }
        /// 0x80FF
        Error / ArchivedError [30] { code: u16, need: u16, alive: u16, version: [u8; 16], message: Vec<u8> }
    }
}

/// Kinds of answers.
pub mod kind {
    pub const HELLO_OK: u16 = 0x8001;
    pub const PONG: u16 = 0x8002;
    pub const TEXT: u16 = 0x8003;
    pub const VALUE: u16 = 0x8010;
    pub const DONE: u16 = 0x8011;
    pub const ABSENT: u16 = 0x8012;
    pub const VALUES: u16 = 0x8013;
    pub const TTL: u16 = 0x8014;
    pub const PAGE: u16 = 0x8015;
    pub const NOT_MET: u16 = 0x8016;
    pub const ANNOUNCED: u16 = 0x8017;
    pub const NAMESPACES: u16 = 0x8020;
    pub const NAMESPACE_DETAILS: u16 = 0x8021;
    pub const NAMESPACE_TERMS: u16 = 0x8022;
    pub const ERROR: u16 = 0x80FF;
}

/// One frame of a long multi-get's answer ends at about this much: with one value more it still fits into a frame.
const VALUES_BYTES: usize = KEY_BYTES_MAX;
const _: () = assert!(VALUES_BYTES + VALUE_BYTES_MAX + size_of::<body::ArchivedValueItem>() < FRAME_BYTES_MAX);

const WRITE_ANNOUNCE: u8 = 1;
const SCAN_WITH_VALUES: u8 = 1;
/// "No expiry" in answers, "leave as it is" in an alter.
const MS_NONE: u64 = u64::MAX;
/// "Leave as it is" in an alter, of durability and compression.
const KEEP: u8 = 255;

/// Why a body is refused. The connection stays: its framing is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireError {
    pub code: ErrorCode,
    pub what: &'static str,
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.what)
    }
}

impl std::error::Error for WireError {}

impl WireError {
    /// As an answer.
    pub fn reply(&self) -> Reply<'static> {
        Reply::Error(ErrorReply::new(self.code, self.what))
    }
}

pub(super) fn bad(what: &'static str) -> WireError {
    WireError { code: ErrorCode::BadRequest, what }
}

pub(super) fn too_large(what: &'static str) -> WireError {
    WireError { code: ErrorCode::TooLarge, what }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Writing.

/// Where bytes lie in `out`, until the root points at them.
#[derive(Clone, Copy)]
pub(super) struct Span {
    at: usize,
    count: usize,
}

/// Appends one frame.
pub(super) struct Writer<'o> {
    pub(super) out: &'o mut Vec<u8>,
    pub(super) start: usize,
}

impl<'o> Writer<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Writer<'o> {
        let start = out.len();
        // One growth for most messages.
        out.reserve(128);
        out.extend_from_slice(&[0; HEADER_BYTES]);
        Writer { out, start }
    }

    /// Out-of-line bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Span {
        let at = self.out.len();
        self.out.extend_from_slice(bytes);
        Span { at, count: bytes.len() }
    }

    /// An out-of-line array of `count` elements starts here.
    fn array(&self, count: usize) -> Span {
        Span { at: self.out.len(), count }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&[value])
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn version(&mut self, version: Option<Version>) -> &mut Self {
        self.put(&version.unwrap_or(Version::ZERO).to_bytes())
    }

    /// A relative pointer and a count.
    pub(super) fn span(&mut self, span: Span) -> &mut Self {
        let offset = i32::try_from(self.out.len() - span.at).expect("a frame is under 2 GiB");
        self.put(&(-offset).to_le_bytes()).u32(u32::try_from(span.count).expect("a frame is under 2 GiB"))
    }

    pub(super) fn finish(self, kind: u16, flags: u16, id: u64) {
        let body_bytes = self.out.len() - self.start - HEADER_BYTES;
        self.out[self.start..][..HEADER_BYTES].copy_from_slice(&header(body_bytes, kind, flags, id));
    }
}

fn condition_parts(condition: Condition) -> (u8, Option<Version>) {
    match condition {
        Condition::Always => (0, None),
        Condition::IfAbsent => (1, None),
        Condition::IfPresent => (2, None),
        Condition::IfVersion(version) => (3, Some(version)),
    }
}

fn write_flags(write: WriteOptions) -> u8 {
    if write.announce { WRITE_ANNOUNCE } else { 0 }
}

/// Appends a request's frame.
pub fn encode_request(out: &mut Vec<u8>, id: u64, request: &Request<'_>) {
    let mut w = Writer::new(out);
    match &request.command {
        Command::Hello(hello) => {
            let (credential, name) = (w.bytes(hello.credential), w.bytes(hello.client_name.as_bytes()));
            w.u32(request.deadline_ms).u16(hello.version_min).u16(hello.version_max).u16(hello.core).span(credential).span(name);
        }
        Command::Ping | Command::Info | Command::NamespaceList | Command::NamespaceDetails | Command::NamespaceTerms => {
            w.u32(request.deadline_ms);
        }
        Command::NamespaceCreate { name, default_ttl_ms, durability } => {
            let name = w.bytes(name.as_bytes());
            w.u32(request.deadline_ms).u64(*default_ttl_ms).u8(*durability as u8).span(name);
        }
        Command::NamespaceAlter { name, default_ttl_ms, durability } => {
            let name = w.bytes(name.as_bytes());
            let durability = durability.map_or(KEEP, |durability| durability as u8);
            w.u32(request.deadline_ms).u64(default_ttl_ms.unwrap_or(MS_NONE)).u8(durability).span(name);
        }
        Command::NamespaceMake(spec) => {
            let name = w.bytes(spec.name.as_bytes());
            w.u32(request.deadline_ms).u64(spec.default_ttl_ms).u8(spec.durability as u8).u8(spec.compression as u8).span(name);
        }
        Command::NamespaceChange(change) => {
            let name = w.bytes(change.name.as_bytes());
            let durability = change.durability.map_or(KEEP, |durability| durability as u8);
            let compression = change.compression.map_or(KEEP, |compression| compression as u8);
            w.u32(request.deadline_ms).u64(change.default_ttl_ms.unwrap_or(MS_NONE)).u8(durability).u8(compression).span(name);
        }
        Command::Snapshot { name } | Command::Cluster { words: name } => {
            let name = w.bytes(name.as_bytes());
            w.u32(request.deadline_ms).span(name);
        }
        _ => encode_keyed(&mut w, request),
    }
    let Form { kind, flags } = Form::from(request);
    w.finish(kind, flags, id);
}

/// The bodies that begin with deadline and namespace.
fn encode_keyed(w: &mut Writer<'_>, request: &Request<'_>) {
    let (deadline, namespace) = (request.deadline_ms, request.namespace);
    match &request.command {
        Command::Get { key } | Command::Ttl { key } => {
            let key = w.bytes(key);
            w.u32(deadline).u32(namespace).span(key);
        }
        Command::Put(put) => {
            w.out.reserve(put.key.len() + put.value.len() + size_of::<body::ArchivedPut>());
            let (key, value) = (w.bytes(put.key), w.bytes(put.value));
            let (condition, condition_version) = condition_parts(put.condition);
            w.u32(deadline).u32(namespace).u64(put.ttl_ms).u8(condition).u8(write_flags(put.write));
            w.version(condition_version).version(put.write.version).span(key).span(value);
        }
        Command::Delete(delete) => {
            let key = w.bytes(delete.key);
            let (condition, condition_version) = condition_parts(delete.condition);
            w.u32(deadline).u32(namespace).u8(condition).u8(write_flags(delete.write));
            w.version(condition_version).version(delete.write.version).span(key);
        }
        Command::MultiGet { keys } => {
            let spans: Vec<Span> = keys.iter().map(|key| w.bytes(key)).collect();
            let array = w.array(spans.len());
            spans.iter().for_each(|&span| _ = w.span(span));
            w.u32(deadline).u32(namespace).span(array);
        }
        Command::MultiPut(multi) => {
            let spans: Vec<_> = multi.items.iter().map(|item| (item.ttl_ms, w.bytes(item.key), w.bytes(item.value))).collect();
            let array = w.array(spans.len());
            spans.iter().for_each(|&(ttl_ms, key, value)| _ = w.u64(ttl_ms).span(key).span(value));
            w.u32(deadline).u32(namespace).u8(write_flags(multi.write)).version(multi.write.version).span(array);
        }
        Command::Expire { key, ttl_ms, write } => encode_expire(w, request, key, *ttl_ms, *write),
        Command::Persist { key, write } => encode_expire(w, request, key, 0, *write),
        Command::Scan(scan) => {
            let cursor = w.bytes(scan.cursor);
            let flags = if scan.with_values { SCAN_WITH_VALUES } else { 0 };
            w.u32(deadline).u32(namespace).u32(scan.vnode).u32(scan.limit).u8(flags).span(cursor);
        }
        _ => unreachable!("encode_request has the commands without a namespace"),
    }
}

fn encode_expire(w: &mut Writer<'_>, request: &Request<'_>, key: &[u8], ttl_ms: u64, write: WriteOptions) {
    let key = w.bytes(key);
    w.u32(request.deadline_ms).u32(request.namespace).u64(ttl_ms).u8(write_flags(write)).version(write.version).span(key);
}

/// Appends an answer's frame. `Announced` says by itself that another answer follows.
pub fn encode_reply(out: &mut Vec<u8>, id: u64, reply: &Reply<'_>) {
    let flags = if matches!(reply, Reply::Announced { .. }) { FLAG_MORE } else { 0 };
    encode_reply_flags(out, id, reply, flags);
}

/// Appends an answer's frame that more frames of the same answer follow (`Values` in parts).
pub fn encode_reply_part(out: &mut Vec<u8>, id: u64, reply: &Reply<'_>) {
    encode_reply_flags(out, id, reply, FLAG_MORE);
}

/// Appends the answer to a multi-get, in as many frames as it needs: a frame ends once it holds `VALUES_BYTES` or more.
pub fn encode_values(out: &mut Vec<u8>, id: u64, mut values: &[Option<VersionedValue<'_>>]) {
    loop {
        let mut bytes = 0;
        let full = values.iter().position(|item| {
            bytes += size_of::<body::ArchivedValueItem>() + item.map_or(0, |item| item.value.len());
            bytes >= VALUES_BYTES
        });
        let (part, rest) = values.split_at(full.map_or(values.len(), |last| last + 1));
        let flags = if rest.is_empty() { 0 } else { FLAG_MORE };
        encode_reply_flags(out, id, &Reply::Values(List::Borrowed(part)), flags);
        if rest.is_empty() {
            return;
        }
        values = rest;
    }
}

#[inline]
fn encode_reply_flags(out: &mut Vec<u8>, id: u64, reply: &Reply<'_>, flags: u16) {
    match reply {
        // The two answers that there are most of: as few copies as there can be.
        Reply::Value(value) if flags == 0 => {
            let (head, tail) = value_frame_ends(id, value.version, value.remaining_ms, value.value.len());
            out.reserve(head.len() + value.value.len() + tail.len());
            out.extend_from_slice(&head);
            out.extend_from_slice(value.value);
            out.extend_from_slice(&tail);
        }
        Reply::Done { version } => {
            let mut frame = [0; HEADER_BYTES + 16];
            frame[..HEADER_BYTES].copy_from_slice(&header(16, kind::DONE, flags, id));
            frame[HEADER_BYTES..].copy_from_slice(&version.to_bytes());
            out.extend_from_slice(&frame);
        }
        _ => encode_other_reply(out, id, reply, flags),
    }
}

fn encode_other_reply(out: &mut Vec<u8>, id: u64, reply: &Reply<'_>, flags: u16) {
    let mut w = Writer::new(out);
    let kind = match reply {
        Reply::Value(value) => {
            let span = w.bytes(value.value);
            w.version(Some(value.version)).u64(value.remaining_ms.unwrap_or(MS_NONE)).span(span);
            kind::VALUE
        }
        Reply::Done { version } => {
            w.version(Some(*version));
            kind::DONE
        }
        Reply::Absent => kind::ABSENT,
        Reply::Pong => kind::PONG,
        Reply::Text(text) => {
            let text = w.bytes(text.as_bytes());
            w.span(text);
            kind::TEXT
        }
        Reply::Ttl { remaining_ms } => {
            w.u64(remaining_ms.unwrap_or(MS_NONE));
            kind::TTL
        }
        Reply::NotMet { present } => {
            w.version(*present);
            kind::NOT_MET
        }
        Reply::Announced { version } => {
            w.version(Some(*version));
            kind::ANNOUNCED
        }
        Reply::Error(error) => {
            let message = w.bytes(error.message.as_bytes());
            w.u16(error.code as u16).u16(error.need).u16(error.alive).version(error.version).span(message);
            kind::ERROR
        }
        _ => encode_list_reply(&mut w, reply),
    };
    w.finish(kind, flags, id);
}

fn encode_list_reply(w: &mut Writer<'_>, reply: &Reply<'_>) -> u16 {
    match reply {
        Reply::Values(values) => {
            let spans: Vec<_> = values
                .iter()
                .map(|item| (item.is_some() as u8, item.map(|item| item.version), w.bytes(item.map_or(&[], |item| item.value))))
                .collect();
            let array = w.array(spans.len());
            spans.iter().for_each(|&(present, version, value)| _ = w.u8(present).version(version).span(value));
            w.span(array);
            kind::VALUES
        }
        Reply::Page(page) => {
            let cursor = w.bytes(page.cursor);
            let spans: Vec<_> = page.entries.iter().map(|entry| (w.bytes(entry.key), w.bytes(entry.value.unwrap_or(&[])))).collect();
            let array = w.array(spans.len());
            for (entry, &(key, value)) in page.entries.iter().zip(&spans) {
                w.version(Some(entry.version)).u64(entry.remaining_ms.unwrap_or(MS_NONE)).u8(entry.value.is_some() as u8);
                w.span(key).span(value);
            }
            w.span(cursor).span(array);
            kind::PAGE
        }
        Reply::Namespaces(rows) => encode_namespaces(w, rows, kind::NAMESPACES),
        Reply::NamespaceDetails(rows) => encode_namespaces(w, rows, kind::NAMESPACE_DETAILS),
        Reply::NamespaceTerms(rows) => encode_namespaces(w, rows, kind::NAMESPACE_TERMS),
        Reply::HelloOk(ok) => {
            let spans: Vec<_> = ok.nodes.iter().map(|node| w.bytes(node.host.as_bytes())).collect();
            let nodes = w.array(spans.len());
            for (node, &host) in ok.nodes.iter().zip(&spans) {
                w.u64(node.id).u16(node.port).u16(node.cores).span(host);
            }
            let owners = w.array(ok.owners.len());
            ok.owners.iter().for_each(|&owner| _ = w.u16(owner));
            w.u16(ok.protocol_version).u16(ok.core).u16(ok.cores).u32(ok.vnodes).u64(ok.node_id).put(&ok.cluster_id);
            w.u64(ok.epoch).u64(ok.features).u32(ok.limits.frame_bytes_max).u32(ok.limits.key_bytes_max);
            w.u32(ok.limits.value_bytes_max).u32(ok.limits.multi_keys_max).u32(ok.limits.scan_entries_max);
            w.u32(ok.limits.connection_bytes_max).u32(ok.limits.deadline_ms_default).span(nodes).span(owners);
            kind::HELLO_OK
        }
        _ => unreachable!("encode_other_reply has the answers without a list"),
    }
}

/// Of each namespace as much as answers of the kind have.
fn encode_namespaces(w: &mut Writer<'_>, rows: &[Namespace<'_>], kind: u16) -> u16 {
    let spans: Vec<_> = rows.iter().map(|row| w.bytes(row.name.as_bytes())).collect();
    let array = w.array(spans.len());
    for (row, &name) in rows.iter().zip(&spans) {
        w.u32(row.id).u64(row.default_ttl_ms).u8(row.durability as u8);
        if kind != kind::NAMESPACES {
            w.u8(row.compression as u8);
        }
        if kind == kind::NAMESPACE_TERMS {
            w.u16(level_flags(row.levels) | replica_flags(row.replicas));
        }
        w.span(name);
    }
    w.span(array);
    kind
}

/// Bytes of a `Value` frame before and after the value itself, for a server that sends a value from where it lies.
#[inline]
pub fn value_frame_ends(id: u64, version: Version, remaining_ms: Option<u64>, value_bytes: usize) -> ([u8; HEADER_BYTES], [u8; 32]) {
    let mut tail = [0; 32];
    tail[..16].copy_from_slice(&version.to_bytes());
    tail[16..24].copy_from_slice(&remaining_ms.unwrap_or(MS_NONE).to_le_bytes());
    let offset = i32::try_from(value_bytes + 24).expect("a frame is under 2 GiB");
    tail[24..28].copy_from_slice(&(-offset).to_le_bytes());
    tail[28..].copy_from_slice(&(offset as u32 - 24).to_le_bytes());
    (header(value_bytes + 32, kind::VALUE, 0, id), tail)
}

/// What a connection whose framing is lost is told before it is closed.
pub fn put_goodbye(out: &mut Vec<u8>, error: &FrameError) {
    match error {
        FrameError::Foreign(foreign) => out.extend_from_slice(foreign.sentence().as_bytes()),
        FrameError::TooLarge { id, announced, bytes_max } => {
            let message = format!("a body of {announced} bytes is over the bound of {bytes_max}");
            encode_reply(out, *id, &Reply::Error(ErrorReply::new(ErrorCode::TooLarge, &message)));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Reading.

/// bytecheck in place.
pub(super) fn access<T>(body: &[u8]) -> Result<&T, WireError>
where
    T: rkyv::Portable + for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::low::LowValidator<'a, rkyv::rancor::Failure>>,
{
    rkyv::api::low::access::<T, rkyv::rancor::Failure>(body).map_err(|_| bad("the body is not what its kind says"))
}

fn text(bytes: &ArchivedVec<u8>) -> Result<&str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| bad("text that is not UTF-8"))
}

fn version_of(bytes: [u8; 16]) -> Option<Version> {
    let version = Version::from_bytes(bytes);
    (version != Version::ZERO).then_some(version)
}

fn ms_of(ms: u64) -> Option<u64> {
    (ms != MS_NONE).then_some(ms)
}

pub(super) fn key_of(key: &ArchivedVec<u8>) -> Result<&[u8], WireError> {
    if key.len() > KEY_BYTES_MAX { Err(too_large("the key is over 32 KiB")) } else { Ok(key) }
}

fn value_of(value: &ArchivedVec<u8>) -> Result<&[u8], WireError> {
    if value.len() > VALUE_BYTES_MAX { Err(too_large("the value is over 16 MiB")) } else { Ok(value) }
}

fn ttl_of(ttl_ms: u64) -> Result<u64, WireError> {
    if ttl_ms > TTL_MS_MAX { Err(bad("the time to live is over its bound")) } else { Ok(ttl_ms) }
}

/// A put's.
fn put_ttl_of(ttl_ms: u64) -> Result<u64, WireError> {
    if ttl_ms == TTL_NEVER { Ok(ttl_ms) } else { ttl_of(ttl_ms) }
}

fn flags_of(flags: u8, known: u8) -> Result<u8, WireError> {
    if flags & !known != 0 { Err(bad("an unknown flag")) } else { Ok(flags) }
}

fn write_of(flags: u8, version: [u8; 16]) -> Result<WriteOptions, WireError> {
    let announce = flags_of(flags, WRITE_ANNOUNCE)? & WRITE_ANNOUNCE != 0;
    Ok(WriteOptions { version: version_of(version), announce })
}

fn condition_of(condition: u8, version: [u8; 16]) -> Result<Condition, WireError> {
    Ok(match (condition, version_of(version)) {
        (0, None) => Condition::Always,
        (1, None) => Condition::IfAbsent,
        (2, None) => Condition::IfPresent,
        (3, Some(version)) => Condition::IfVersion(version),
        _ => return Err(bad("an unknown condition, or one whose version is missing or superfluous")),
    })
}

fn durability_of(durability: u8) -> Result<Durability, WireError> {
    match durability {
        0 => Ok(Durability::Sync),
        1 => Ok(Durability::Interval),
        _ => Err(bad("an unknown durability")),
    }
}

fn compression_of(compression: u8) -> Result<Compression, WireError> {
    match compression {
        0 => Ok(Compression::None),
        1 => Ok(Compression::Lz4),
        _ => Err(bad("an unknown compression")),
    }
}

/// Names of namespaces and snapshots: letters, digits, `_`, `-` and `.` (not at the start), so that they can name files too.
fn name_of(name: &ArchivedVec<u8>) -> Result<&str, WireError> {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > NAMESPACE_NAME_BYTES_MAX || name[0] == b'.' || !name.iter().all(allowed) {
        return Err(bad("a name is 1 to 64 letters, digits, '_', '-' or '.', and does not begin with '.'"));
    }
    text(name)
}

fn namespace_of(namespace: u32) -> Result<u32, WireError> {
    if namespace == NAMESPACE_SYSTEM {
        return Err(WireError { code: ErrorCode::NoSuchNamespace, what: "namespace 0 is the system's own" });
    }
    Ok(namespace)
}

/// What a request's header says of its body: the kind, and the flags, which hold the levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    pub kind: u16,
    pub flags: u16,
}

impl From<u16> for Form {
    fn from(kind: u16) -> Form {
        Form { kind, flags: 0 }
    }
}

impl From<&Frame<'_>> for Form {
    fn from(frame: &Frame<'_>) -> Form {
        Form { kind: frame.kind, flags: frame.flags }
    }
}

impl From<&Request<'_>> for Form {
    fn from(request: &Request<'_>) -> Form {
        let levels = level_flags(request.command.levels().unwrap_or(request.levels));
        let replicas = request.command.replicas().map_or(0, replica_flags);
        let wants = if let Command::Hello(hello) = &request.command { wants_flags(hello.wants) } else { 0 };
        Form { kind: request.command.kind(), flags: levels | replicas | wants }
    }
}

/// Where the levels lie in a request's flags: 0 none, 1 to `RF_MAX` so many, 14 quorum, 15 all.
const READ_LEVEL_SHIFT: u32 = 4;
const WRITE_LEVEL_SHIFT: u32 = 8;
/// Where a namespace's number of replicas does; 0 is the usual one.
const REPLICAS_SHIFT: u32 = 12;
/// Of a hello: what it wants beside its answer.
const HELLO_NAMESPACES: u16 = 1 << 12;
const HELLO_NEWS: u16 = 1 << 13;
const LEVEL_QUORUM: u16 = 14;
const LEVEL_ALL: u16 = 15;

/// The bits of levels in the flags of a request, and wherever else they are kept.
pub fn level_flags(levels: LevelsAsked) -> u16 {
    let bits = |level: Option<Level>| match level {
        None => 0,
        Some(Level::One) => 1,
        Some(Level::Exactly(count)) => u16::from(count).min(LEVEL_QUORUM - 1),
        Some(Level::Quorum) => LEVEL_QUORUM,
        Some(Level::All) => LEVEL_ALL,
    };
    bits(levels.read) << READ_LEVEL_SHIFT | bits(levels.write) << WRITE_LEVEL_SHIFT
}

/// The bits of a number of replicas, beside those of levels.
pub fn replica_flags(replicas: u8) -> u16 {
    if usize::from(replicas) == RF_DEFAULT { 0 } else { u16::from(replicas).min(15) << REPLICAS_SHIFT }
}

/// What `replica_flags` wrote; a number that there cannot be is for the namespaces to refuse.
pub fn replicas_of(flags: u16) -> u8 {
    match flags >> REPLICAS_SHIFT {
        0 => RF_DEFAULT as u8,
        replicas => replicas as u8,
    }
}

fn wants_flags(wants: HelloWants) -> u16 {
    let bit = |is_wanted: bool, bit: u16| if is_wanted { bit } else { 0 };
    bit(wants.namespaces, HELLO_NAMESPACES) | bit(wants.news, HELLO_NEWS)
}

/// What `level_flags` wrote.
///
/// # Errors
/// A number of replicas that there cannot be.
pub fn levels_of(flags: u16) -> Result<LevelsAsked, WireError> {
    if flags == 0 {
        return Ok(LevelsAsked::default());
    }
    let level = |shift: u32| match flags >> shift & 15 {
        0 => Ok(None),
        1 => Ok(Some(Level::One)),
        LEVEL_QUORUM => Ok(Some(Level::Quorum)),
        LEVEL_ALL => Ok(Some(Level::All)),
        count if usize::from(count) <= RF_MAX => Ok(Some(Level::Exactly(count as u8))),
        _ => Err(bad("a level of more replicas than there may be")),
    };
    Ok(LevelsAsked { read: level(READ_LEVEL_SHIFT)?, write: level(WRITE_LEVEL_SHIFT)? })
}

/// Takes a request's body apart, in place. A refusal is answered with `WireError::reply`; the connection goes on.
pub fn decode_request(form: impl Into<Form>, body: &[u8]) -> Result<Request<'_>, WireError> {
    let form = form.into();
    let mut request = decode_command(form.kind, body)?;
    let levels = levels_of(form.flags)?;
    match &mut request.command {
        Command::NamespaceMake(spec) => (spec.levels, spec.replicas) = (levels, replicas_of(form.flags)),
        Command::NamespaceChange(change) => change.levels = levels,
        Command::Hello(hello) => {
            let (namespaces, news) = (form.flags & HELLO_NAMESPACES != 0, form.flags & HELLO_NEWS != 0);
            hello.wants = HelloWants { namespaces, news };
        }
        _ => request.levels = levels,
    }
    Ok(request)
}

fn decode_command(kind: u16, body: &[u8]) -> Result<Request<'_>, WireError> {
    let (deadline_ms, command) = match kind {
        1 => {
            let b = access::<body::ArchivedHello>(body)?;
            let hello = Hello {
                version_min: b.version_min.to_native(),
                version_max: b.version_max.to_native(),
                core: b.core.to_native(),
                credential: &b.credential,
                client_name: text(&b.client_name)?,
                wants: HelloWants::default(),
            };
            (b.deadline_ms, Command::Hello(hello))
        }
        2 => (access::<body::ArchivedPlain>(body)?.deadline_ms, Command::Ping),
        3 => (access::<body::ArchivedPlain>(body)?.deadline_ms, Command::Info),
        32 => (access::<body::ArchivedPlain>(body)?.deadline_ms, Command::NamespaceList),
        33 => {
            let b = access::<body::ArchivedNamespaceSpec>(body)?;
            let (default_ttl_ms, durability) = (ttl_of(b.default_ttl_ms.to_native())?, durability_of(b.durability)?);
            (b.deadline_ms, Command::NamespaceCreate { name: name_of(&b.name)?, default_ttl_ms, durability })
        }
        34 => {
            let b = access::<body::ArchivedNamespaceSpec>(body)?;
            let default_ttl_ms = ms_of(b.default_ttl_ms.to_native()).map(ttl_of).transpose()?;
            let durability = if b.durability == KEEP { None } else { Some(durability_of(b.durability)?) };
            (b.deadline_ms, Command::NamespaceAlter { name: name_of(&b.name)?, default_ttl_ms, durability })
        }
        35 => (access::<body::ArchivedPlain>(body)?.deadline_ms, Command::NamespaceDetails),
        36 => {
            let b = access::<body::ArchivedNamespaceForm>(body)?;
            let (name, default_ttl_ms) = (name_of(&b.name)?, ttl_of(b.default_ttl_ms.to_native())?);
            let (durability, compression) = (durability_of(b.durability)?, compression_of(b.compression)?);
            let (levels, replicas) = (LevelsAsked::default(), RF_DEFAULT as u8);
            (b.deadline_ms, Command::NamespaceMake(NamespaceSpec { name, default_ttl_ms, durability, compression, levels, replicas }))
        }
        37 => {
            let b = access::<body::ArchivedNamespaceForm>(body)?;
            let (name, default_ttl_ms) = (name_of(&b.name)?, ms_of(b.default_ttl_ms.to_native()).map(ttl_of).transpose()?);
            let durability = (b.durability != KEEP).then(|| durability_of(b.durability)).transpose()?;
            let compression = (b.compression != KEEP).then(|| compression_of(b.compression)).transpose()?;
            let levels = LevelsAsked::default();
            (b.deadline_ms, Command::NamespaceChange(NamespaceChange { name, default_ttl_ms, durability, compression, levels }))
        }
        38 => (access::<body::ArchivedPlain>(body)?.deadline_ms, Command::NamespaceTerms),
        40 => {
            let b = access::<body::ArchivedNamed>(body)?;
            (b.deadline_ms, Command::Snapshot { name: name_of(&b.name)? })
        }
        41 => {
            let b = access::<body::ArchivedNamed>(body)?;
            if b.name.len() > WORDS_BYTES_MAX {
                return Err(too_large("the words are over 2 KiB"));
            }
            (b.deadline_ms, Command::Cluster { words: text(&b.name)? })
        }
        _ => return decode_keyed(kind, body),
    };
    Ok(Request { deadline_ms: deadline_ms.to_native(), namespace: 0, levels: LevelsAsked::default(), command })
}

/// The bodies that begin with deadline and namespace.
fn decode_keyed(kind: u16, body: &[u8]) -> Result<Request<'_>, WireError> {
    let (deadline_ms, namespace, command) = match kind {
        16 | 23 => {
            let b = access::<body::ArchivedKey>(body)?;
            let key = key_of(&b.key)?;
            (b.deadline_ms, b.namespace, if kind == 16 { Command::Get { key } } else { Command::Ttl { key } })
        }
        17 => {
            let b = access::<body::ArchivedPut>(body)?;
            let put = Put {
                key: key_of(&b.key)?,
                value: value_of(&b.value)?,
                ttl_ms: put_ttl_of(b.ttl_ms.to_native())?,
                condition: condition_of(b.condition, b.condition_version)?,
                write: write_of(b.flags, b.version)?,
            };
            (b.deadline_ms, b.namespace, Command::Put(put))
        }
        18 => {
            let b = access::<body::ArchivedDelete>(body)?;
            let condition = condition_of(b.condition, b.condition_version)?;
            let delete = Delete { key: key_of(&b.key)?, condition, write: write_of(b.flags, b.version)? };
            (b.deadline_ms, b.namespace, Command::Delete(delete))
        }
        19 => {
            let b = access::<body::ArchivedMultiGet>(body)?;
            let keys = gather(&b.keys, key_of)?;
            (b.deadline_ms, b.namespace, Command::MultiGet { keys })
        }
        20 => {
            let b = access::<body::ArchivedMultiPut>(body)?;
            let items = gather(&b.items, |item| {
                Ok(PutItem { key: key_of(&item.key)?, value: value_of(&item.value)?, ttl_ms: put_ttl_of(item.ttl_ms.to_native())? })
            })?;
            (b.deadline_ms, b.namespace, Command::MultiPut(MultiPut { items, write: write_of(b.flags, b.version)? }))
        }
        21 | 22 => {
            let b = access::<body::ArchivedExpire>(body)?;
            let (key, ttl_ms, write) = (key_of(&b.key)?, ttl_of(b.ttl_ms.to_native())?, write_of(b.flags, b.version)?);
            let command = match (kind, ttl_ms) {
                (22, 0) => Command::Persist { key, write },
                (21, 1..) => Command::Expire { key, ttl_ms, write },
                _ => return Err(bad("expire wants a time to live above 0, persist one of 0")),
            };
            (b.deadline_ms, b.namespace, command)
        }
        24 => {
            let b = access::<body::ArchivedScan>(body)?;
            let with_values = flags_of(b.flags, SCAN_WITH_VALUES)? & SCAN_WITH_VALUES != 0;
            let scan = Scan { vnode: b.vnode.to_native(), cursor: &b.cursor, limit: b.limit.to_native(), with_values };
            (b.deadline_ms, b.namespace, Command::Scan(scan))
        }
        _ => return Err(WireError { code: ErrorCode::UnknownKind, what: "this node knows no such kind of request" }),
    };
    Ok(Request {
        deadline_ms: deadline_ms.to_native(),
        namespace: namespace_of(namespace.to_native())?,
        levels: LevelsAsked::default(),
        command,
    })
}

/// A list's elements, refused above the bound.
fn gather<'a, A, T>(list: &'a ArchivedVec<A>, f: impl FnMut(&'a A) -> Result<T, WireError>) -> Result<List<'a, T>, WireError> {
    const { assert!(SCAN_ENTRIES_MAX <= MULTI_KEYS_MAX) };
    if list.len() > MULTI_KEYS_MAX {
        return Err(too_large("a list of over 4096 elements"));
    }
    list.iter().map(f).collect::<Result<Vec<T>, _>>().map(List::Owned)
}

/// Takes an answer's body apart, in place.
pub fn decode_reply(kind: u16, body: &[u8]) -> Result<Reply<'_>, WireError> {
    Ok(match kind {
        kind::VALUE => {
            let b = access::<body::ArchivedValue>(body)?;
            let version = Version::from_bytes(b.version);
            Reply::Value(Value { version, remaining_ms: ms_of(b.remaining_ms.to_native()), value: &b.value })
        }
        kind::DONE => Reply::Done { version: Version::from_bytes(access::<body::ArchivedVersioned>(body)?.version) },
        kind::ABSENT | kind::PONG if !body.is_empty() => return Err(bad("a body where there is none")),
        kind::ABSENT => Reply::Absent,
        kind::PONG => Reply::Pong,
        kind::TEXT => Reply::Text(text(&access::<body::ArchivedText>(body)?.text)?),
        kind::TTL => Reply::Ttl { remaining_ms: ms_of(access::<body::ArchivedTtl>(body)?.remaining_ms.to_native()) },
        kind::NOT_MET => Reply::NotMet { present: version_of(access::<body::ArchivedVersioned>(body)?.version) },
        kind::ANNOUNCED => Reply::Announced { version: Version::from_bytes(access::<body::ArchivedVersioned>(body)?.version) },
        kind::ERROR => {
            let b = access::<body::ArchivedError>(body)?;
            Reply::Error(ErrorReply {
                // An error of a later version still is one.
                code: ErrorCode::from_u16(b.code.to_native()).unwrap_or(ErrorCode::Failed),
                message: text(&b.message)?,
                version: version_of(b.version),
                need: b.need.to_native(),
                alive: b.alive.to_native(),
            })
        }
        _ => return decode_list_reply(kind, body),
    })
}

/// Namespaces, with as much as answers of the kind have.
fn decode_namespaces(kind: u16, body: &[u8]) -> Result<Reply<'_>, WireError> {
    fn usual(id: u32, default_ttl_ms: u64, durability: u8, name: &ArchivedVec<u8>) -> Result<Namespace<'_>, WireError> {
        let (name, durability, levels) = (text(name)?, durability_of(durability)?, LevelsAsked::default());
        Ok(Namespace { id, name, default_ttl_ms, durability, compression: Compression::None, levels, replicas: RF_DEFAULT as u8 })
    }
    Ok(match kind {
        kind::NAMESPACES => Reply::Namespaces(gather(&access::<body::ArchivedNamespaces>(body)?.namespaces, |row| {
            usual(row.id.to_native(), row.default_ttl_ms.to_native(), row.durability, &row.name)
        })?),
        kind::NAMESPACE_DETAILS => Reply::NamespaceDetails(gather(&access::<body::ArchivedNamespaceDetails>(body)?.namespaces, |row| {
            let compression = compression_of(row.compression)?;
            Ok(Namespace { compression, ..usual(row.id.to_native(), row.default_ttl_ms.to_native(), row.durability, &row.name)? })
        })?),
        _ => Reply::NamespaceTerms(gather(&access::<body::ArchivedNamespaceTerms>(body)?.namespaces, |row| {
            let (flags, compression) = (row.levels.to_native(), compression_of(row.compression)?);
            let (levels, replicas) = (levels_of(flags)?, replicas_of(flags));
            let usual = usual(row.id.to_native(), row.default_ttl_ms.to_native(), row.durability, &row.name)?;
            Ok(Namespace { compression, levels, replicas, ..usual })
        })?),
    })
}

fn decode_list_reply(kind: u16, body: &[u8]) -> Result<Reply<'_>, WireError> {
    Ok(match kind {
        kind::VALUES => Reply::Values(gather(&access::<body::ArchivedValues>(body)?.values, |item| {
            let version = Version::from_bytes(item.version);
            Ok((item.present != 0).then_some(VersionedValue { version, value: &item.value }))
        })?),
        kind::PAGE => {
            let b = access::<body::ArchivedPage>(body)?;
            let entries = gather(&b.entries, |entry| {
                let remaining_ms = ms_of(entry.remaining_ms.to_native());
                let value = (entry.has_value != 0).then_some(&*entry.value);
                Ok(ScanEntry { key: &entry.key, version: Version::from_bytes(entry.version), remaining_ms, value })
            })?;
            Reply::Page(Page { cursor: &b.cursor, entries })
        }
        kind::NAMESPACES | kind::NAMESPACE_DETAILS | kind::NAMESPACE_TERMS => return decode_namespaces(kind, body),
        kind::HELLO_OK => {
            let b = access::<body::ArchivedHelloOk>(body)?;
            let node = |node: &'_ body::ArchivedNode| (node.id.to_native(), node.port.to_native(), node.cores.to_native());
            let nodes = gather(&b.nodes, |n| {
                let (id, port, cores) = node(n);
                Ok(Node { id, host: text(&n.host)?, port, cores })
            })?;
            let limits = Limits {
                frame_bytes_max: b.frame_bytes_max.to_native(),
                key_bytes_max: b.key_bytes_max.to_native(),
                value_bytes_max: b.value_bytes_max.to_native(),
                multi_keys_max: b.multi_keys_max.to_native(),
                scan_entries_max: b.scan_entries_max.to_native(),
                connection_bytes_max: b.connection_bytes_max.to_native(),
                deadline_ms_default: b.deadline_ms_default.to_native(),
            };
            Reply::HelloOk(HelloOk {
                protocol_version: b.protocol_version.to_native(),
                core: b.core.to_native(),
                cores: b.cores.to_native(),
                vnodes: b.vnodes.to_native(),
                node_id: b.node_id.to_native(),
                cluster_id: b.cluster_id,
                epoch: b.epoch.to_native(),
                features: b.features.to_native(),
                limits,
                nodes,
                owners: List::Owned(b.owners.iter().map(|owner| owner.to_native()).collect()),
            })
        }
        _ => return Err(WireError { code: ErrorCode::UnknownKind, what: "no such kind of answer" }),
    })
}
