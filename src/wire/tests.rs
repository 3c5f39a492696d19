//! The promises of the wire room: bytes equal rkyv's own, frames in place, nothing survives that should not, nothing panics.

use super::command::*;
use super::frame::*;
use super::native::*;
use super::{fuzz, native::body};
use crate::base::prng::Prng;
use crate::base::record::Version;
use crate::limits::{FRAME_BYTES_MAX, KEY_BYTES_MAX};

const V: Version = Version(0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10);
const W: Version = Version(77);

fn any_bytes(prng: &mut Prng, below: u64) -> Vec<u8> {
    let mut bytes = vec![0; prng.below(below) as usize];
    prng.fill(&mut bytes);
    bytes
}

fn key(deadline_ms: u32, command: Command<'_>) -> Request<'_> {
    Request { deadline_ms, namespace: 1, levels: LevelsAsked::default(), command }
}

/// One request of each command, its bytes drawn by `prng`.
fn each_request(prng: &mut Prng, mut f: impl FnMut(&Request<'_>)) {
    let (a, b) = (any_bytes(prng, 40), any_bytes(prng, 300));
    let write = WriteOptions { version: prng.one_in(2).then_some(V), announce: prng.one_in(2) };
    let conditions = [Condition::Always, Condition::IfAbsent, Condition::IfPresent, Condition::IfVersion(W)];
    let condition = conditions[prng.below(4) as usize];
    let plain = |command| Request { deadline_ms: 9, namespace: 0, levels: LevelsAsked::default(), command };
    let wants = HelloWants { namespaces: prng.one_in(2), news: prng.one_in(2) };
    let hello = Hello { version_min: 1, version_max: 2, core: 3, credential: &a, client_name: "tests", wants };
    f(&plain(Command::Hello(hello)));
    f(&plain(Command::Ping));
    f(&plain(Command::Info));
    f(&plain(Command::NamespaceList));
    f(&plain(Command::NamespaceCreate { name: "n-1", default_ttl_ms: 5, durability: Durability::Interval }));
    f(&plain(Command::NamespaceAlter { name: "n_1", default_ttl_ms: None, durability: Some(Durability::Sync) }));
    f(&plain(Command::NamespaceAlter { name: "n.1", default_ttl_ms: Some(0), durability: None }));
    let (durability, compression) = (Durability::Interval, Compression::Lz4);
    let levels = [LevelsAsked::default(), LevelsAsked::both(Level::One), LevelsAsked { read: None, write: Some(Level::All) }];
    let levels = levels[prng.below(3) as usize];
    f(&plain(Command::NamespaceDetails));
    let replicas = [1, 3, 5][prng.below(3) as usize];
    f(&plain(Command::NamespaceMake(NamespaceSpec { name: "n-1", default_ttl_ms: 5, durability, compression, levels, replicas })));
    f(&plain(Command::NamespaceTerms));
    let change = NamespaceChange { name: "n", default_ttl_ms: None, durability: None, compression: Some(Compression::None), levels };
    f(&plain(Command::NamespaceChange(change)));
    let change = NamespaceChange { default_ttl_ms: Some(3), durability: Some(durability), compression: None, ..change };
    f(&plain(Command::NamespaceChange(change)));
    f(&plain(Command::Snapshot { name: "today" }));
    f(&plain(Command::Cluster { words: "plan leave 3" }));
    f(&key(1, Command::Get { key: &a }));
    f(&key(0, Command::Ttl { key: &a }));
    f(&key(7, Command::Put(Put { key: &a, value: &b, ttl_ms: [0, 1, 2, TTL_NEVER][prng.below(4) as usize], condition, write })));
    f(&key(7, Command::Delete(Delete { key: &b, condition, write })));
    let keys: Vec<&[u8]> = vec![&a, b"", &b];
    f(&key(7, Command::MultiGet { keys: keys[..prng.below(4) as usize].into() }));
    let items = [PutItem { key: &a, value: &b, ttl_ms: 3 }, PutItem { key: b"k", value: b"", ttl_ms: 0 }];
    f(&key(7, Command::MultiPut(MultiPut { items: items[..prng.below(3) as usize].into(), write })));
    f(&key(7, Command::Expire { key: &a, ttl_ms: 12, write }));
    f(&key(7, Command::Persist { key: &a, write }));
    f(&key(7, Command::Scan(Scan { vnode: 4095, cursor: &b, limit: 10, with_values: prng.one_in(2) })));
}

/// One answer of each kind.
fn each_reply(prng: &mut Prng, mut f: impl FnMut(&Reply<'_>)) {
    let (a, b) = (any_bytes(prng, 40), any_bytes(prng, 300));
    let remaining_ms = prng.one_in(2).then_some(12);
    let limits = Limits {
        frame_bytes_max: 1,
        key_bytes_max: 2,
        value_bytes_max: 3,
        multi_keys_max: 4,
        scan_entries_max: 5,
        connection_bytes_max: 6,
        deadline_ms_default: 7,
    };
    let nodes = [Node { id: 5, host: "127.0.0.1", port: 7400, cores: 4 }, Node { id: 6, host: "b", port: 1, cores: 2 }];
    f(&Reply::HelloOk(HelloOk {
        protocol_version: 1,
        core: 2,
        cores: 4,
        vnodes: 4096,
        node_id: 5,
        cluster_id: [9; 16],
        epoch: 1,
        features: 0,
        limits,
        nodes: nodes[..prng.below(3) as usize].into(),
        owners: [0u16, 1, 0][..prng.below(4) as usize].into(),
    }));
    f(&Reply::Pong);
    f(&Reply::Absent);
    f(&Reply::Text("a:1\n"));
    f(&Reply::Done { version: V });
    f(&Reply::Announced { version: V });
    f(&Reply::NotMet { present: Some(V) });
    f(&Reply::NotMet { present: None });
    f(&Reply::Ttl { remaining_ms });
    f(&Reply::Value(Value { version: V, remaining_ms, value: &b }));
    let values = [Some(VersionedValue { version: V, value: &a }), None, Some(VersionedValue { version: W, value: b"" })];
    f(&Reply::Values(values[..prng.below(4) as usize].into()));
    let entry = ScanEntry { key: &a, version: V, remaining_ms, value: Some(&b) };
    let entries = [entry, ScanEntry { value: None, ..entry }];
    f(&Reply::Page(Page { cursor: &a, entries: entries[..prng.below(3) as usize].into() }));
    let (durability, compression) = (Durability::Interval, Compression::None);
    let levels = LevelsAsked::default();
    let rows = [Namespace { id: 1, name: "default", default_ttl_ms: 0, durability, compression, levels, replicas: 3 }];
    f(&Reply::Namespaces(rows[..prng.below(2) as usize].into()));
    let rows = [Namespace { compression: Compression::Lz4, ..rows[0] }];
    f(&Reply::NamespaceDetails(rows[..prng.below(2) as usize].into()));
    let rows = [Namespace { levels: LevelsAsked { read: Some(Level::Exactly(2)), write: None }, replicas: 5, ..rows[0] }];
    f(&Reply::NamespaceTerms(rows[..prng.below(2) as usize].into()));
    f(&Reply::Error(ErrorReply { version: Some(V), need: 2, alive: 1, ..ErrorReply::new(ErrorCode::Unavailable, "no") }));
}

fn rkyv_bytes<T>(value: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<rkyv::util::AlignedVec, rkyv::ser::allocator::ArenaHandle<'a>, rkyv::rancor::Failure>,
        >,
{
    rkyv::to_bytes::<rkyv::rancor::Failure>(value).expect("serializes").to_vec()
}

fn write_parts(write: &WriteOptions) -> (u8, [u8; 16]) {
    (u8::from(write.announce), write.version.unwrap_or_default().to_bytes())
}

fn condition_parts(condition: &Condition) -> (u8, [u8; 16]) {
    match condition {
        Condition::Always => (0, [0; 16]),
        Condition::IfAbsent => (1, [0; 16]),
        Condition::IfPresent => (2, [0; 16]),
        Condition::IfVersion(version) => (3, version.to_bytes()),
    }
}

/// What rkyv makes of the frozen struct of a request.
fn request_by_rkyv(request: &Request<'_>) -> Vec<u8> {
    let (deadline_ms, namespace) = (request.deadline_ms, request.namespace);
    let spec = |default_ttl_ms, durability, name: &str| body::NamespaceSpec { deadline_ms, default_ttl_ms, durability, name: name.into() };
    let form = |default_ttl_ms, durability, compression, name: &str| body::NamespaceForm {
        deadline_ms,
        default_ttl_ms,
        durability,
        compression,
        name: name.into(),
    };
    match &request.command {
        Command::Hello(h) => rkyv_bytes(&body::Hello {
            deadline_ms,
            version_min: h.version_min,
            version_max: h.version_max,
            core: h.core,
            credential: h.credential.to_vec(),
            client_name: h.client_name.into(),
        }),
        Command::Ping | Command::Info | Command::NamespaceList | Command::NamespaceDetails | Command::NamespaceTerms => {
            rkyv_bytes(&body::Plain { deadline_ms })
        }
        Command::NamespaceMake(s) => rkyv_bytes(&form(s.default_ttl_ms, s.durability as u8, s.compression as u8, s.name)),
        Command::NamespaceChange(c) => {
            let (durability, compression) = (c.durability.map_or(255, |d| d as u8), c.compression.map_or(255, |c| c as u8));
            rkyv_bytes(&form(c.default_ttl_ms.unwrap_or(u64::MAX), durability, compression, c.name))
        }
        Command::NamespaceCreate { name, default_ttl_ms, durability } => rkyv_bytes(&spec(*default_ttl_ms, *durability as u8, name)),
        Command::NamespaceAlter { name, default_ttl_ms, durability } => {
            rkyv_bytes(&spec(default_ttl_ms.unwrap_or(u64::MAX), durability.map_or(255, |d| d as u8), name))
        }
        Command::Snapshot { name } | Command::Cluster { words: name } => rkyv_bytes(&body::Named { deadline_ms, name: (*name).into() }),
        Command::Get { key } | Command::Ttl { key } => rkyv_bytes(&body::Key { deadline_ms, namespace, key: key.to_vec() }),
        Command::Put(put) => {
            let (flags, version) = write_parts(&put.write);
            let (condition, condition_version) = condition_parts(&put.condition);
            let (ttl_ms, key, value) = (put.ttl_ms, put.key.to_vec(), put.value.to_vec());
            rkyv_bytes(&body::Put { deadline_ms, namespace, ttl_ms, condition, flags, condition_version, version, key, value })
        }
        Command::Delete(delete) => {
            let (flags, version) = write_parts(&delete.write);
            let (condition, condition_version) = condition_parts(&delete.condition);
            let key = delete.key.to_vec();
            rkyv_bytes(&body::Delete { deadline_ms, namespace, condition, flags, condition_version, version, key })
        }
        Command::MultiGet { keys } => {
            rkyv_bytes(&body::MultiGet { deadline_ms, namespace, keys: keys.iter().map(|key| key.to_vec()).collect() })
        }
        Command::MultiPut(multi) => {
            let (flags, version) = write_parts(&multi.write);
            let item = |i: &PutItem<'_>| body::PutItem { ttl_ms: i.ttl_ms, key: i.key.to_vec(), value: i.value.to_vec() };
            let items = multi.items.iter().map(item).collect();
            rkyv_bytes(&body::MultiPut { deadline_ms, namespace, flags, version, items })
        }
        Command::Expire { key, write, .. } | Command::Persist { key, write } => {
            let ttl_ms = if let Command::Expire { ttl_ms, .. } = request.command { ttl_ms } else { 0 };
            let (flags, version) = write_parts(write);
            rkyv_bytes(&body::Expire { deadline_ms, namespace, ttl_ms, flags, version, key: key.to_vec() })
        }
        Command::Scan(s) => {
            let (vnode, limit, flags, cursor) = (s.vnode, s.limit, u8::from(s.with_values), s.cursor.to_vec());
            rkyv_bytes(&body::Scan { deadline_ms, namespace, vnode, limit, flags, cursor })
        }
    }
}

fn details_by_rkyv(rows: &[Namespace<'_>]) -> Vec<u8> {
    let row = |r: &Namespace<'_>| body::NamespaceDetail {
        id: r.id,
        default_ttl_ms: r.default_ttl_ms,
        durability: r.durability as u8,
        compression: r.compression as u8,
        name: r.name.into(),
    };
    rkyv_bytes(&body::NamespaceDetails { namespaces: rows.iter().map(row).collect() })
}

fn terms_by_rkyv(rows: &[Namespace<'_>]) -> Vec<u8> {
    let row = |r: &Namespace<'_>| body::NamespaceTerm {
        id: r.id,
        default_ttl_ms: r.default_ttl_ms,
        durability: r.durability as u8,
        compression: r.compression as u8,
        levels: level_flags(r.levels) | replica_flags(r.replicas),
        name: r.name.into(),
    };
    rkyv_bytes(&body::NamespaceTerms { namespaces: rows.iter().map(row).collect() })
}

/// What rkyv makes of the frozen struct of an answer.
fn reply_by_rkyv(reply: &Reply<'_>) -> Vec<u8> {
    let ms = |ms: &Option<u64>| ms.unwrap_or(u64::MAX);
    match reply {
        Reply::HelloOk(ok) => rkyv_bytes(&body::HelloOk {
            protocol_version: ok.protocol_version,
            core: ok.core,
            cores: ok.cores,
            vnodes: ok.vnodes,
            node_id: ok.node_id,
            cluster_id: ok.cluster_id,
            epoch: ok.epoch,
            features: ok.features,
            frame_bytes_max: ok.limits.frame_bytes_max,
            key_bytes_max: ok.limits.key_bytes_max,
            value_bytes_max: ok.limits.value_bytes_max,
            multi_keys_max: ok.limits.multi_keys_max,
            scan_entries_max: ok.limits.scan_entries_max,
            connection_bytes_max: ok.limits.connection_bytes_max,
            deadline_ms_default: ok.limits.deadline_ms_default,
            nodes: ok.nodes.iter().map(|n| body::Node { id: n.id, port: n.port, cores: n.cores, host: n.host.into() }).collect(),
            owners: ok.owners.to_vec(),
        }),
        Reply::Pong | Reply::Absent => Vec::new(),
        Reply::Text(text) => rkyv_bytes(&body::Text { text: (*text).into() }),
        Reply::Done { version } | Reply::Announced { version } => rkyv_bytes(&body::Versioned { version: version.to_bytes() }),
        Reply::NotMet { present } => rkyv_bytes(&body::Versioned { version: present.unwrap_or_default().to_bytes() }),
        Reply::Ttl { remaining_ms } => rkyv_bytes(&body::Ttl { remaining_ms: ms(remaining_ms) }),
        Reply::Value(v) => {
            let remaining_ms = ms(&v.remaining_ms);
            rkyv_bytes(&body::Value { version: v.version.to_bytes(), remaining_ms, value: v.value.to_vec() })
        }
        Reply::Values(values) => {
            let item = |v: &Option<VersionedValue<'_>>| body::ValueItem {
                present: u8::from(v.is_some()),
                version: v.map_or(Version::ZERO, |v| v.version).to_bytes(),
                value: v.map_or(Vec::new(), |v| v.value.to_vec()),
            };
            rkyv_bytes(&body::Values { values: values.iter().map(item).collect() })
        }
        Reply::Page(page) => {
            let entry = |e: &ScanEntry<'_>| body::ScanEntry {
                version: e.version.to_bytes(),
                remaining_ms: ms(&e.remaining_ms),
                has_value: u8::from(e.value.is_some()),
                key: e.key.to_vec(),
                value: e.value.unwrap_or_default().to_vec(),
            };
            rkyv_bytes(&body::Page { cursor: page.cursor.to_vec(), entries: page.entries.iter().map(entry).collect() })
        }
        Reply::NamespaceDetails(rows) => details_by_rkyv(rows),
        Reply::NamespaceTerms(rows) => terms_by_rkyv(rows),
        Reply::Namespaces(rows) => {
            let row = |r: &Namespace<'_>| body::Namespace {
                id: r.id,
                default_ttl_ms: r.default_ttl_ms,
                durability: r.durability as u8,
                name: r.name.into(),
            };
            rkyv_bytes(&body::Namespaces { namespaces: rows.iter().map(row).collect() })
        }
        Reply::Error(e) => {
            let (version, message) = (e.version.unwrap_or_default().to_bytes(), e.message.into());
            rkyv_bytes(&body::Error { code: e.code as u16, need: e.need, alive: e.alive, version, message })
        }
    }
}

#[test]
fn requests_are_written_as_rkyv_writes_them_and_come_back() {
    let mut prng = Prng::new(1);
    for round in 0..200 {
        each_request(&mut prng, |request| {
            let mut out = vec![7; round % 5];
            encode_request(&mut out, 42, request);
            let frame = &out[round % 5..];
            assert_eq!(&frame[HEADER_BYTES..], &request_by_rkyv(request)[..], "{request:?}");
            let Form { kind, flags } = Form::from(request);
            assert_eq!(decode_request(Form { kind, flags }, &frame[HEADER_BYTES..]).as_ref(), Ok(request));
            assert_eq!(&frame[..HEADER_BYTES], &header(frame.len() - HEADER_BYTES, kind, flags, 42));
        });
    }
}

#[test]
fn replies_are_written_as_rkyv_writes_them_and_come_back() {
    let mut prng = Prng::new(2);
    for _ in 0..200 {
        each_reply(&mut prng, |reply| {
            let mut out = Vec::new();
            encode_reply(&mut out, 42, reply);
            assert_eq!(&out[HEADER_BYTES..], &reply_by_rkyv(reply)[..], "{reply:?}");
            let kind = u16::from_le_bytes([out[4], out[5]]);
            assert_eq!(decode_reply(kind, &out[HEADER_BYTES..]).as_ref(), Ok(reply));
            if let Reply::Value(value) = reply {
                let (head, tail) = value_frame_ends(42, value.version, value.remaining_ms, value.value.len());
                assert_eq!(out, [&head[..], value.value, &tail].concat());
            }
        });
    }
}

#[test]
fn a_long_multi_get_answer_comes_in_frames_that_fit() {
    let value = vec![3; crate::limits::VALUE_BYTES_MAX];
    let big = Some(VersionedValue { version: V, value: &value });
    let small = Some(VersionedValue { version: W, value: b"small" });
    for values in [vec![], vec![None; 4096], vec![big, small, None, big], vec![small; 3000]] {
        let mut out = Vec::new();
        encode_values(&mut out, 9, &values);
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        let (mut seen, mut more) = (Vec::new(), true);
        for frame in reader.feed(&out) {
            let frame = frame.expect("fits");
            assert!(more, "nothing follows the last");
            more = frame.more();
            let Ok(Reply::Values(part)) = decode_reply(frame.kind, frame.body) else { panic!("values") };
            seen.extend_from_slice(&part);
        }
        assert!(!more && seen == values);
    }
}

#[test]
fn a_body_is_validated_where_it_lies_at_any_address() {
    let mut out = vec![0; 3];
    encode_request(&mut out, 1, &key(0, Command::Get { key: b"hello" }));
    let Ok(Request { command: Command::Get { key }, .. }) = decode_request(16, &out[3 + HEADER_BYTES..]) else { panic!("decodes") };
    assert!(out.as_ptr_range().contains(&key.as_ptr()), "borrowed, not copied");
}

fn refused(kind: u16, body: &[u8]) -> ErrorCode {
    decode_request(kind, body).expect_err("refused").code
}

fn body_of(request: &Request<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_request(&mut out, 1, request);
    out.split_off(HEADER_BYTES)
}

#[test]
fn bodies_that_are_not_allowed_get_a_typed_error() {
    assert_eq!(refused(15, &[]), ErrorCode::UnknownKind);
    assert_eq!(refused(16, &[]), ErrorCode::BadRequest);
    assert_eq!(refused(16, &[0xFF; 16]), ErrorCode::BadRequest);
    fn get(bytes: &[u8]) -> Request<'_> {
        key(0, Command::Get { key: bytes })
    }
    assert_eq!(refused(16, &body_of(&get(&vec![0; KEY_BYTES_MAX + 1]))), ErrorCode::TooLarge);
    assert!(decode_request(16, &body_of(&get(&vec![0; KEY_BYTES_MAX]))).is_ok());
    assert_eq!(refused(16, &body_of(&Request { namespace: 0, ..get(b"k") })), ErrorCode::NoSuchNamespace);
    let keys: Vec<&[u8]> = vec![b""; 4097];
    assert_eq!(refused(19, &body_of(&key(0, Command::MultiGet { keys: keys.into() }))), ErrorCode::TooLarge);
    let put = |condition| Put { key: b"k", value: b"v", ttl_ms: 0, condition, write: WriteOptions::default() };
    assert_eq!(refused(17, &body_of(&key(0, Command::Put(put(Condition::IfVersion(Version::ZERO)))))), ErrorCode::BadRequest);
    let endless = Put { ttl_ms: TTL_NEVER - 1, ..put(Condition::Always) };
    assert_eq!(refused(17, &body_of(&key(0, Command::Put(endless)))), ErrorCode::BadRequest);
    let never = Command::Expire { key: b"k", ttl_ms: TTL_NEVER, write: WriteOptions::default() };
    assert_eq!(refused(21, &body_of(&key(0, never))), ErrorCode::BadRequest, "that is persist's");
    for name in ["", ".x", "a/b", "a b", "ä", &"x".repeat(65)] {
        assert_eq!(
            refused(
                40,
                &body_of(&Request { deadline_ms: 0, namespace: 0, levels: LevelsAsked::default(), command: Command::Snapshot { name } })
            ),
            ErrorCode::BadRequest
        );
    }
    let expire = Command::Expire { key: b"k", ttl_ms: 0, write: WriteOptions::default() };
    assert_eq!(refused(21, &body_of(&key(0, expire))), ErrorCode::BadRequest);
}

fn stream(prng: &mut Prng) -> (Vec<u8>, Vec<(u64, usize)>) {
    let mut bytes = Vec::new();
    let mut frames = Vec::new();
    for id in 0..prng.below(6) {
        let below = [10, 100, 200_000][prng.below(3) as usize];
        let body = any_bytes(prng, below);
        bytes.extend_from_slice(&header(body.len(), 16, 0, id));
        bytes.extend_from_slice(&body);
        frames.push((id, body.len()));
    }
    (bytes, frames)
}

#[test]
fn frames_come_out_whole_however_the_stream_is_cut_and_in_place_when_they_can() {
    let mut prng = Prng::new(3);
    for _ in 0..300 {
        let (bytes, expected) = stream(&mut prng);
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        let (mut at, mut seen) = (0, Vec::new());
        while at < bytes.len() {
            let bound = [3, 40, 70_000][prng.below(3) as usize];
            let take = (1 + prng.below(bound) as usize).min(bytes.len() - at);
            let chunk = &bytes[at..at + take];
            for (n, frame) in reader.feed(chunk).enumerate() {
                let frame = frame.expect("valid");
                seen.push((frame.id, frame.body.len()));
                let in_place = chunk.as_ptr_range().contains(&frame.body.as_ptr()) || frame.body.is_empty();
                assert!(in_place || n == 0, "only the first frame of a chunk may have been assembled");
            }
            at += take;
        }
        assert_eq!(seen, expected);
        assert!(reader.is_at_boundary());
    }
}

#[test]
fn an_announced_length_costs_no_memory_until_its_bytes_arrive() {
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    assert_eq!(reader.feed(&header(FRAME_BYTES_MAX, 17, 0, 1)).count(), 0);
    assert!(reader.held_bytes() <= 64 * 1024);
    for arrived in 1..=100usize {
        assert_eq!(reader.feed(&[0; 4096]).count(), 0);
        assert!(reader.held_bytes() <= 64 * 1024 + 2 * 4096 * arrived + HEADER_BYTES);
    }
}

#[test]
fn a_length_over_the_bound_ends_the_stream_with_a_typed_error_after_the_frames_before_it() {
    let mut reader = FrameReader::new(100);
    let bytes = [&header(1, 2, 0, 5)[..], b"x", &header(101, 2, 0, 6)].concat();
    let mut frames = reader.feed(&bytes);
    assert_eq!(frames.next().unwrap().unwrap().id, 5);
    let error = FrameError::TooLarge { id: 6, announced: 101, bytes_max: 100 };
    assert_eq!(frames.next(), Some(Err(error)));
    assert_eq!(frames.next(), None);
    assert_eq!(reader.feed(&header(0, 2, 0, 1)).next(), Some(Err(error)), "and stays ended");
    let mut out = Vec::new();
    put_goodbye(&mut out, &error);
    assert!(matches!(decode_reply(kind::ERROR, &out[HEADER_BYTES..]), Ok(Reply::Error(e)) if e.code == ErrorCode::TooLarge));
}

#[test]
fn strangers_get_one_sentence_in_their_own_protocol() {
    let cases: [(&[u8], Foreign); 7] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Foreign::Http),
        (b"POST /a HTTP/1.1\r\n", Foreign::Http),
        (b"*1\r\n$4\r\nPING\r\n", Foreign::Redis),
        (b"PING\r\n", Foreign::Redis),
        (b"+OK\r\n", Foreign::Redis),
        (&[0x16, 3, 1, 2, 0, 1, 0], Foreign::Tls),
        (b"what is this\n", Foreign::Text),
    ];
    for (bytes, foreign) in cases {
        for step in [1, 3, bytes.len()] {
            let mut reader = FrameReader::new(FRAME_BYTES_MAX);
            let first = bytes.chunks(step).find_map(|chunk| reader.feed(chunk).next().map(|frame| frame.err()));
            assert_eq!(first, Some(Some(FrameError::Foreign(foreign))), "{bytes:?} by {step}");
        }
        let text = foreign.sentence();
        assert_eq!(text.is_empty(), foreign == Foreign::Tls);
        assert!(text.len() < 300 && text.starts_with(if foreign == Foreign::Http { "HTTP/1.0 400" } else { "" }));
    }
    assert_eq!(greeting(&[1, 0, 0], FRAME_BYTES_MAX), Greeting::Unclear);
    assert_eq!(greeting(&header(26, 1, 0, 1), FRAME_BYTES_MAX), Greeting::Native);
}

#[test]
fn arbitrary_and_mutated_bytes_neither_panic_nor_grow() {
    let mut prng = Prng::new(4);
    for _ in 0..3_000 {
        let noise = any_bytes(&mut prng, 200);
        fuzz::frame(&noise);
        fuzz::body(&noise);
    }
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    for _ in 0..4 {
        each_request(&mut prng, |request| {
            corpus.push(Vec::new());
            encode_request(corpus.last_mut().unwrap(), 1, request);
        });
        each_reply(&mut prng, |reply| {
            corpus.push(Vec::new());
            encode_reply(corpus.last_mut().unwrap(), 1, reply);
        });
    }
    for round in 0..40_000 {
        let mut frame = corpus[prng.below(corpus.len() as u64) as usize].clone();
        for _ in 0..=prng.below(4) {
            let at = prng.below(frame.len() as u64) as usize;
            match prng.below(3) {
                0 => frame[at] = prng.next_u64() as u8,
                1 => frame[at] ^= 1 << prng.below(8),
                _ => frame.truncate(at.max(1)),
            }
        }
        if round % 10 == 0 {
            fuzz::frame(&frame);
        }
        if frame.len() > HEADER_BYTES {
            fuzz::body(&[&frame[4..6], &frame[HEADER_BYTES..]].concat());
        }
    }
}
