//! The bytes of gossip. A datagram and the message of a full sync have one form:
//!
//! ```text
//! "rg" | version u8 | kind u8 | cluster u64 | log2 Q u8 | sent, wall ms u64 | sequence u64 | newest topology: epoch u64, hash u64
//!      | the sender's own record | what the kind carries | records of other members, to the end | MAC, 32 bytes
//! ```
//!
//! Integers are little endian or LEB128. The MAC is BLAKE3 in keyed mode over all before it, under a key derived from the cluster key file
//! (BLAKE3 paper, 2.3: `keyed_hash`, `derive_key`). It is compared in constant time. A node says everything about itself in every datagram:
//! so a datagram needs no earlier one to be judged, and what changes often (load, topology epoch) needs no rumour.

use super::member::{Address, Digest, Profile, Rack, Record, State, Suspecters, Versions};
use super::refusal::Reason;
use crate::base::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::limits::{CORES_MAX, GOSSIP_DATAGRAM_BYTES_MAX, GOSSIP_SYNC_BYTES_MAX};
use std::fmt;

const MAGIC: [u8; 2] = *b"rg";
/// The version of this encoding. The first four bytes and the MAC's place are the same in all.
pub(super) const GOSSIP_VERSION: u8 = 1;
const MAC_BYTES: usize = blake3::OUT_LEN;
/// No incarnation lies above: one begins at the wall clock's milliseconds, and each refutation adds one.
const INCARNATION_MAX: u64 = 1 << 56;
/// Of a record as encoded.
const RECORD_BYTES_MAX: usize = 200;

const _: () = assert!(4 + 41 + RECORD_BYTES_MAX + 64 + RECORD_BYTES_MAX + MAC_BYTES < GOSSIP_DATAGRAM_BYTES_MAX, "one rumour always fits");

/// The key of a cluster's MACs.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// From the bytes of the cluster key file.
    pub fn new(secret: &[u8]) -> Key {
        Key(blake3::derive_key("ringkv 2026-11-24 gossip MAC", secret))
    }

    fn mac(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, bytes)
    }

    /// Of what is said on a link between two nodes.
    pub fn prove(&self, transcript: &[u8]) -> [u8; 32] {
        *self.mac(transcript).as_bytes()
    }

    /// Compares in constant time.
    pub fn is_proven(&self, transcript: &[u8], proof: &[u8; 32]) -> bool {
        self.mac(transcript) == *proof
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(not shown)")
    }
}

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// "Are you there?" To `target`, or to whoever gets it (0). `origin` is the node that a relay asks for, or 0.
    Ping {
        nonce: u32,
        target: u64,
        origin: u64,
    },
    /// "Ask `target` for me."
    PingReq {
        nonce: u32,
        target: u64,
    },
    /// "`subject` is there." A relay passes it on to `origin`, if that is not 0.
    Ack {
        nonce: u32,
        subject: u64,
        origin: u64,
    },
    /// Nothing but records.
    Gossip,
    /// The sender does not take what the receiver sent.
    Refused(Reason),
    /// The sender's whole table, over a stream; the receiver's is wanted.
    SyncRequest,
    SyncReply,
}

impl Body {
    fn code(&self) -> u8 {
        match self {
            Body::Ping { .. } => 1,
            Body::PingReq { .. } => 2,
            Body::Ack { .. } => 3,
            Body::Gossip => 4,
            Body::Refused(_) => REFUSED,
            Body::SyncRequest => 6,
            Body::SyncReply => 7,
        }
    }

    pub(super) fn is_sync(&self) -> bool {
        matches!(self, Body::SyncRequest | Body::SyncReply)
    }
}

const REFUSED: u8 = 5;

/// Whether bytes, believed or not, say that they are a refusal: those are never answered.
pub(super) fn claims_refusal(bytes: &[u8]) -> bool {
    bytes.get(3) == Some(&REFUSED)
}

/// A topology's name: its epoch, and the hash of its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    pub epoch: u64,
    pub hash: u64,
}

/// What stands before the body, but for the sender's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub cluster: u64,
    pub vnodes_log2: u8,
    pub wall_ms: u64,
    /// Rises with every message of a sender.
    pub sequence: u64,
    /// The newest topology that the sender has heard of; its digest names the one that it has.
    pub newest: Newest,
}

/// A message, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub head: Head,
    pub sender: Record,
    pub body: Body,
    pub records: Vec<Record>,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    Malformed(Malformed),
    /// The version of the encoding.
    Version(u8),
    WrongKey,
}

impl From<Malformed> for Unreadable {
    fn from(malformed: Malformed) -> Unreadable {
        Unreadable::Malformed(malformed)
    }
}

/// A message being written: records go in while they fit, then it is sealed.
pub(super) struct Draft {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Draft {
    pub fn new(head: &Head, sender: &Record, body: &Body) -> Draft {
        let bytes_max = if body.is_sync() { GOSSIP_SYNC_BYTES_MAX } else { GOSSIP_DATAGRAM_BYTES_MAX };
        let mut bytes = Vec::with_capacity(if body.is_sync() { 4096 } else { 320 });
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[GOSSIP_VERSION, body.code()]);
        bytes.extend_from_slice(&head.cluster.to_le_bytes());
        bytes.push(head.vnodes_log2);
        for word in [head.wall_ms, head.sequence, head.newest.epoch, head.newest.hash] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        put_record(&mut bytes, sender);
        put_body(&mut bytes, body);
        Draft { bytes, bytes_max }
    }

    /// Whether `record` still fitted.
    pub fn push(&mut self, record: &Record) -> bool {
        let before = self.bytes.len();
        put_record(&mut self.bytes, record);
        let fits = self.bytes.len() + MAC_BYTES <= self.bytes_max;
        if !fits {
            self.bytes.truncate(before);
        }
        fits
    }

    /// Whether any record fits for sure.
    pub fn has_room(&self) -> bool {
        self.bytes.len() + RECORD_BYTES_MAX + MAC_BYTES <= self.bytes_max
    }

    pub fn seal(mut self, key: &Key) -> Vec<u8> {
        debug_assert!(self.bytes.len() + MAC_BYTES <= self.bytes_max);
        let mac = key.mac(&self.bytes);
        self.bytes.extend_from_slice(mac.as_bytes());
        self.bytes
    }
}

/// Appends the MAC to bytes that need not be a message: for tests and fuzzing.
pub(super) fn seal_raw(bytes: &mut Vec<u8>, key: &Key) {
    let mac = key.mac(bytes);
    bytes.extend_from_slice(mac.as_bytes());
}

/// Checks the MAC, then takes the message apart. Nothing behind the first four bytes is looked at before the MAC is found right.
pub(super) fn open(bytes: &[u8], key: &Key) -> Result<Message, Unreadable> {
    let mut start = Reader::new(bytes);
    if start.array::<2>()? != MAGIC {
        return Err(Malformed("no gossip").into());
    }
    let (version, code) = (start.u8()?, start.u8()?);
    if version != GOSSIP_VERSION {
        return Err(Unreadable::Version(version));
    }
    let (signed, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or(Malformed("ends too early"))?;
    if key.mac(signed) != *mac {
        return Err(Unreadable::WrongKey);
    }
    let bytes_max =
        if code == Body::SyncRequest.code() || code == Body::SyncReply.code() { GOSSIP_SYNC_BYTES_MAX } else { GOSSIP_DATAGRAM_BYTES_MAX };
    if bytes.len() > bytes_max {
        return Err(Malformed("too long").into());
    }
    let mut reader = Reader::new(signed);
    reader.take(4)?;
    Ok(read_message(&mut reader, code)?)
}

fn read_message(reader: &mut Reader, code: u8) -> Result<Message, Malformed> {
    let head = Head {
        cluster: reader.u64()?,
        vnodes_log2: reader.u8()?,
        wall_ms: reader.u64()?,
        sequence: reader.u64()?,
        newest: Newest { epoch: reader.u64()?, hash: reader.u64()? },
    };
    let sender = read_record(reader)?;
    if !matches!(sender.state, State::Alive | State::Left) {
        return Err(Malformed("a sender is alive or leaves"));
    }
    let body = read_body(reader, code)?;
    let mut records = Vec::new();
    while !reader.is_empty() {
        records.push(read_record(reader)?);
    }
    Ok(Message { head, sender, body, records })
}

fn put_body(out: &mut Vec<u8>, body: &Body) {
    match *body {
        Body::Ping { nonce, target: node, origin } | Body::Ack { nonce, subject: node, origin } => {
            out.extend_from_slice(&nonce.to_le_bytes());
            out.extend_from_slice(&node.to_le_bytes());
            out.extend_from_slice(&origin.to_le_bytes());
        }
        Body::PingReq { nonce, target } => {
            out.extend_from_slice(&nonce.to_le_bytes());
            out.extend_from_slice(&target.to_le_bytes());
        }
        Body::Refused(reason) => put_reason(out, &reason),
        Body::Gossip | Body::SyncRequest | Body::SyncReply => {}
    }
}

fn read_body(reader: &mut Reader, code: u8) -> Result<Body, Malformed> {
    Ok(match code {
        1 => Body::Ping { nonce: reader.u32()?, target: reader.u64()?, origin: reader.u64()? },
        2 => Body::PingReq { nonce: reader.u32()?, target: reader.u64()? },
        3 => Body::Ack { nonce: reader.u32()?, subject: reader.u64()?, origin: reader.u64()? },
        4 => Body::Gossip,
        REFUSED => Body::Refused(read_reason(reader)?),
        6 => Body::SyncRequest,
        7 => Body::SyncReply,
        _ => return Err(Malformed("unknown kind")),
    })
}

fn put_reason(out: &mut Vec<u8>, reason: &Reason) {
    out.push(reason.kind() as u8);
    match *reason {
        Reason::WrongKey | Reason::TooManyMembers => {}
        Reason::GossipVersion { theirs, ours } | Reason::OtherVnodes { theirs_log2: theirs, ours_log2: ours } => {
            out.extend_from_slice(&[theirs, ours])
        }
        Reason::OtherCluster { theirs, ours } => {
            out.extend_from_slice(&theirs.to_le_bytes());
            out.extend_from_slice(&ours.to_le_bytes());
        }
        Reason::Protocol { theirs, ours } | Reason::Format { theirs, ours } => {
            put_versions(out, theirs);
            put_versions(out, ours);
        }
        Reason::NotItsAddress { claimed, seen } => {
            put_address(out, &claimed);
            put_address(out, &seen);
        }
        Reason::ClockOff { ahead_ms } => out.extend_from_slice(&ahead_ms.to_le_bytes()),
        Reason::NodeIdTaken { holder } => put_address(out, &holder),
    }
}

fn read_reason(reader: &mut Reader) -> Result<Reason, Malformed> {
    Ok(match reader.u8()? {
        0 => Reason::WrongKey,
        1 => Reason::GossipVersion { theirs: reader.u8()?, ours: reader.u8()? },
        2 => Reason::OtherCluster { theirs: reader.u64()?, ours: reader.u64()? },
        3 => Reason::OtherVnodes { theirs_log2: reader.u8()?, ours_log2: reader.u8()? },
        4 => Reason::Protocol { theirs: read_versions(reader)?, ours: read_versions(reader)? },
        5 => Reason::Format { theirs: read_versions(reader)?, ours: read_versions(reader)? },
        6 => Reason::NotItsAddress { claimed: read_address(reader)?, seen: read_address(reader)? },
        7 => Reason::ClockOff { ahead_ms: reader.u64()? as i64 },
        8 => Reason::NodeIdTaken { holder: read_address(reader)? },
        9 => Reason::TooManyMembers,
        _ => return Err(Malformed("unknown reason")),
    })
}

fn put_address(out: &mut Vec<u8>, address: &Address) {
    match address.as_v4() {
        Some(ip) => {
            out.push(4);
            out.extend_from_slice(&ip);
        }
        None => {
            out.push(6);
            out.extend_from_slice(&address.ip);
        }
    }
    out.extend_from_slice(&address.port.to_le_bytes());
}

fn read_address(reader: &mut Reader) -> Result<Address, Malformed> {
    let mut address = match reader.u8()? {
        4 => Address::v4(reader.array()?, 0),
        6 => Address { ip: reader.array()?, port: 0 },
        _ => return Err(Malformed("unknown kind of address")),
    };
    address.port = reader.u16()?;
    if address.port == 0 {
        return Err(Malformed("port 0"));
    }
    Ok(address)
}

fn put_versions(out: &mut Vec<u8>, versions: Versions) {
    put_varint(out, u64::from(versions.min));
    put_varint(out, u64::from(versions.max));
}

fn read_versions(reader: &mut Reader) -> Result<Versions, Malformed> {
    let mut number = || u16::try_from(reader.varint()?).map_err(|_| Malformed("version too large"));
    let versions = Versions { min: number()?, max: number()? };
    if versions.min > versions.max {
        return Err(Malformed("versions the wrong way round"));
    }
    Ok(versions)
}

fn put_record(out: &mut Vec<u8>, record: &Record) {
    let Record { node, incarnation, state, profile, digest, suspect_ms, suspecters } = record;
    let before = out.len();
    out.extend_from_slice(&node.to_le_bytes());
    put_varint(out, *incarnation);
    out.push(*state as u8);
    put_address(out, &profile.native);
    put_address(out, &profile.gossip);
    out.extend_from_slice(&profile.cores.to_le_bytes());
    put_varint(out, u64::from(profile.weight));
    put_bytes(out, profile.rack.as_str().as_bytes());
    put_versions(out, profile.protocol);
    put_versions(out, profile.format);
    put_varint(out, digest.at_ms);
    put_varint(out, digest.epoch);
    out.extend_from_slice(&[digest.load, digest.disk, digest.shards_failed]);
    if *state == State::Suspect {
        put_varint(out, u64::from(*suspect_ms));
        out.push(suspecters.as_slice().len() as u8);
        suspecters.as_slice().iter().for_each(|node| out.extend_from_slice(&node.to_le_bytes()));
    }
    debug_assert!(out.len() - before <= RECORD_BYTES_MAX);
}

fn read_record(reader: &mut Reader) -> Result<Record, Malformed> {
    let (node, incarnation) = (reader.u64()?, reader.varint()?);
    let state = State::from_code(reader.u8()?).ok_or(Malformed("unknown state"))?;
    if node == 0 || incarnation > INCARNATION_MAX {
        return Err(Malformed("node id or incarnation out of bounds"));
    }
    let profile = read_profile(reader)?;
    let digest =
        Digest { at_ms: reader.varint()?, epoch: reader.varint()?, load: reader.u8()?, disk: reader.u8()?, shards_failed: reader.u8()? };
    let (mut suspect_ms, mut suspecters) = (0, Suspecters::default());
    if state == State::Suspect {
        suspect_ms = u32::try_from(reader.varint()?).map_err(|_| Malformed("suspicion too old"))?;
        for _ in 0..reader.u8()? {
            if !suspecters.add(reader.u64()?) {
                return Err(Malformed("suspecters"));
            }
        }
    }
    Ok(Record { node, incarnation, state, profile, digest, suspect_ms, suspecters })
}

fn read_profile(reader: &mut Reader) -> Result<Profile, Malformed> {
    let (native, gossip, cores) = (read_address(reader)?, read_address(reader)?, reader.u16()?);
    let weight = u32::try_from(reader.varint()?).map_err(|_| Malformed("weight too large"))?;
    if cores == 0 || usize::from(cores) > CORES_MAX || weight == 0 {
        return Err(Malformed("cores or weight out of bounds"));
    }
    let rack = std::str::from_utf8(reader.bytes()?).map_err(|_| Malformed("a rack is text"))?;
    let rack = Rack::new(rack).ok_or(Malformed("rack too long"))?;
    Ok(Profile { native, gossip, cores, weight, rack, protocol: read_versions(reader)?, format: read_versions(reader)? })
}

/// A message in one line, for people; whatever its key. `None` if it cannot be read.
pub fn describe(bytes: &[u8]) -> Option<String> {
    let (signed, _) = bytes.split_last_chunk::<MAC_BYTES>()?;
    let mut reader = Reader::new(signed);
    let code = *reader.take(4).ok()?.last()?;
    let message = read_message(&mut reader, code).ok()?;
    let via = |origin: u64| if origin == 0 { String::new() } else { format!(" for {origin}") };
    let mut line = match message.body {
        Body::Ping { target: 0, .. } => "ping anyone".to_owned(),
        Body::Ping { target, origin, .. } => format!("ping {target}{}", via(origin)),
        Body::PingReq { target, .. } => format!("ping-req {target}"),
        Body::Ack { subject, origin, .. } => format!("ack of {subject}{}", via(origin)),
        Body::Gossip => "gossip".to_owned(),
        Body::Refused(reason) => format!("refused, {}", super::refusal::REASONS[reason.kind()]),
        Body::SyncRequest => "sync request".to_owned(),
        Body::SyncReply => "sync reply".to_owned(),
    };
    for record in std::iter::once(&message.sender).chain(&message.records) {
        line += &format!(" | {} {} {}", record.node, record.state, record.incarnation);
        if record.state == State::Suspect {
            line += &format!(" by {:?}", record.suspecters.as_slice());
        }
    }
    Some(line)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::prng::Prng;

    /// A record with every field drawn, at the edges now and then.
    pub fn any_record(prng: &mut Prng) -> Record {
        let mut address = || {
            let mut ip = [0; 16];
            prng.fill(&mut ip);
            if prng.one_in(2) { Address { ip, port: 65535 } } else { Address::v4([10, ip[0], ip[1], ip[2]], 1 + u16::from(ip[3])) }
        };
        let (native, gossip) = (address(), address());
        let rack = Rack::new(&"ü".repeat(prng.below(16) as usize)).unwrap();
        let (protocol, format) = (Versions { min: 1, max: 65535 }, Versions { min: prng.below(9) as u16, max: 9 });
        let (cores, weight) = (1 + prng.below(CORES_MAX as u64) as u16, 1 + prng.below(u64::from(u32::MAX)) as u32);
        let state = State::from_code(prng.below(4) as u8).unwrap();
        let mut suspecters = Suspecters::default();
        let mut suspect_ms = 0;
        if state == State::Suspect {
            (0..prng.below(4)).for_each(|_| _ = suspecters.add(prng.next_u64()));
            suspect_ms = prng.next_u64() as u32;
        }
        let digest = Digest { at_ms: prng.next_u64(), epoch: prng.next_u64(), load: 100, disk: prng.next_u64() as u8, shards_failed: 0 };
        let profile = Profile { native, gossip, cores, weight, rack, protocol, format };
        let incarnation = prng.below(INCARNATION_MAX + 1);
        Record { node: 1 + prng.below(u64::MAX), incarnation, state, profile, digest, suspect_ms, suspecters }
    }

    pub fn any_body(prng: &mut Prng) -> Body {
        let (nonce, target, origin) = (prng.next_u64() as u32, prng.next_u64(), prng.next_u64());
        let versions = |max| Versions { min: 1, max };
        let address = Address::v4([1, 2, 3, 4], 5);
        let reasons = [
            Reason::WrongKey,
            Reason::GossipVersion { theirs: 2, ours: 1 },
            Reason::OtherCluster { theirs: target, ours: origin },
            Reason::OtherVnodes { theirs_log2: 10, ours_log2: 12 },
            Reason::Protocol { theirs: versions(700), ours: versions(2) },
            Reason::Format { theirs: versions(1), ours: versions(2) },
            Reason::NotItsAddress { claimed: address, seen: Address { ip: [7; 16], port: 9 } },
            Reason::ClockOff { ahead_ms: -(nonce as i64) },
            Reason::NodeIdTaken { holder: address },
            Reason::TooManyMembers,
        ];
        let bodies = [
            Body::Ping { nonce, target, origin },
            Body::PingReq { nonce, target },
            Body::Ack { nonce, subject: target, origin },
            Body::Gossip,
            Body::SyncRequest,
            Body::SyncReply,
            Body::Refused(reasons[prng.below(10) as usize]),
        ];
        bodies[prng.below(7) as usize]
    }

    fn any_message(prng: &mut Prng) -> Message {
        let newest = Newest { epoch: prng.next_u64(), hash: prng.next_u64() };
        let head = Head { cluster: 7, vnodes_log2: 12, wall_ms: prng.next_u64(), sequence: prng.next_u64(), newest };
        let sender = Record { state: State::Left, suspecters: Suspecters::default(), suspect_ms: 0, ..any_record(prng) };
        Message { head, sender, body: any_body(prng), records: (0..prng.below(40)).map(|_| any_record(prng)).collect() }
    }

    #[test]
    fn what_is_written_is_read_and_no_datagram_is_too_long() {
        let (mut prng, key) = (Prng::new(3), Key::new(b"secret"));
        let mut cut = 0;
        for _ in 0..2000 {
            let mut message = any_message(&mut prng);
            let mut draft = Draft::new(&message.head, &message.sender, &message.body);
            let fitted = message.records.iter().take_while(|record| draft.push(record)).count();
            cut += usize::from(fitted < message.records.len());
            message.records.truncate(fitted);
            let bytes = draft.seal(&key);
            assert!(bytes.len() <= GOSSIP_DATAGRAM_BYTES_MAX || message.body.is_sync());
            assert_eq!(open(&bytes, &key).as_ref(), Ok(&message));
            assert!(describe(&bytes).is_some());
        }
        assert!(cut > 100, "some are cut where they are full");
    }

    #[test]
    fn no_byte_can_be_changed_and_another_key_opens_nothing() {
        let (mut prng, key) = (Prng::new(4), Key::new(b"secret"));
        let message = any_message(&mut prng);
        let bytes = Draft::new(&message.head, &message.sender, &message.body).seal(&key);
        assert_eq!(open(&bytes, &Key::new(b"other")), Err(Unreadable::WrongKey));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << prng.below(8);
            let expected = |result: &Result<Message, Unreadable>| match at {
                0 | 1 => matches!(result, Err(Unreadable::Malformed(_))),
                2 => matches!(result, Err(Unreadable::Version(_))),
                _ => *result == Err(Unreadable::WrongKey),
            };
            assert!(expected(&open(&changed, &key)), "byte {at}");
        }
        assert!((0..bytes.len()).all(|len| open(&bytes[..len], &key).is_err()));
    }

    /// The encoding is frozen: a change of it is a new version.
    #[test]
    fn the_bytes_stay_as_they_are() {
        let address = |port| Address::v4([10, 0, 0, 1], port);
        let versions = Versions { min: 1, max: 2 };
        let profile = Profile {
            native: address(7400),
            gossip: address(7490),
            cores: 4,
            weight: 100,
            rack: Rack::new("r1").unwrap(),
            protocol: versions,
            format: versions,
        };
        let digest = Digest { at_ms: 1000, epoch: 5, load: 50, disk: 60, shards_failed: 1 };
        let sender =
            Record { node: 1, incarnation: 300, state: State::Alive, profile, digest, suspect_ms: 0, suspecters: Suspecters::default() };
        let mut suspect = Record { node: 2, state: State::Suspect, suspect_ms: 200, ..sender };
        suspect.suspecters.add(1);
        let head = Head { cluster: 0xC1, vnodes_log2: 12, wall_ms: 1001, sequence: 9, newest: Newest { epoch: 5, hash: 0xAB } };
        let mut draft = Draft::new(&head, &sender, &Body::Ping { nonce: 6, target: 2, origin: 3 });
        assert!(draft.push(&suspect));
        let hex: String = draft.seal(&Key::new(b"k")).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("vector.txt").split_whitespace().collect::<String>());
    }
}
