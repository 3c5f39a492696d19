//! What a connection promises, byte by byte over a plain socket: answers under their ids, one effect for a write however often it is sent,
//! conditions that races cannot break, and a server that a client which does not read cannot make grow.

mod common;

use common::{Folder, Node, becomes, one_core, two_cores};
use ringkv::base::record::{NAMESPACE_DEFAULT, Version, core_of, token_of, vnode_of};
use ringkv::client::{Answer, OwnedPage, OwnedValue, VersionedBytes};
use ringkv::limits::{CONNECTION_REQUESTS_MAX, FRAME_BYTES_MAX, MULTI_KEYS_MAX, VNODES_DEFAULT};
use ringkv::wire::command::*;
use ringkv::wire::frame::FrameReader;
use ringkv::wire::native::{decode_reply, encode_request};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// One frame of an answer.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Announced(Version),
    Answer(Answer),
    NotMet(Option<Version>),
    Error(ErrorCode, Option<Version>),
}

impl Said {
    fn done(&self) -> Version {
        match self {
            Said::Answer(Answer::Done(version)) => *version,
            other => panic!("the write is done, not {other:?}"),
        }
    }
}

/// A connection that said hello.
struct Wire {
    stream: TcpStream,
    reader: FrameReader,
    came: VecDeque<(u64, Said)>,
    /// What came of an answer in several frames.
    part: Vec<Option<VersionedBytes>>,
    next: u64,
}

impl Wire {
    fn new(node: &Node) -> Wire {
        Wire::on(node, CORE_ANY)
    }

    /// A connection that the core `core` serves.
    fn on(node: &Node, core: u16) -> Wire {
        let mut wire =
            Wire { stream: node.connect(), reader: FrameReader::new(FRAME_BYTES_MAX), came: VecDeque::new(), part: Vec::new(), next: 1 };
        let (version_min, version_max) = (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION);
        let hello = Hello { version_min, version_max, core, credential: b"", client_name: "session", wants: HelloWants::default() };
        let Said::Answer(Answer::Hello(server)) = wire.ask(Command::Hello(hello)) else { panic!("a hello is welcomed") };
        assert!(core == CORE_ANY || server.core == core, "the core that was asked for: {}", server.core);
        wire
    }

    /// Appends a request; its id.
    fn add(&mut self, out: &mut Vec<u8>, command: Command<'_>) -> u64 {
        self.add_in(out, NAMESPACE_DEFAULT, 20_000, command)
    }

    fn add_in(&mut self, out: &mut Vec<u8>, namespace: u32, deadline_ms: u32, command: Command<'_>) -> u64 {
        let namespace = if command.row().has_keys { namespace } else { 0 };
        self.next += 1;
        encode_request(out, self.next, &Request { deadline_ms, namespace, levels: LevelsAsked::default(), command });
        self.next
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the node reads");
    }

    /// The next frame; `None`: the node closed the connection.
    fn next(&mut self) -> Option<(u64, Said)> {
        let mut buffer = [0; 64 * 1024];
        while self.came.is_empty() {
            let bytes = self.stream.read(&mut buffer).expect("an answer or an end, in time");
            if bytes == 0 {
                return None;
            }
            for frame in self.reader.feed(&buffer[..bytes]) {
                let frame = frame.expect("the node frames well");
                let said = match decode_reply(frame.kind, frame.body).expect("the node encodes well") {
                    Reply::Announced { version } => Said::Announced(version),
                    Reply::NotMet { present } => Said::NotMet(present),
                    Reply::Error(error) => Said::Error(error.code, error.version),
                    reply => Said::Answer(Answer::of(&reply).expect("a final answer")),
                };
                let said = match said {
                    Said::Answer(Answer::Values(values)) => {
                        self.part.extend(values);
                        if frame.more() {
                            continue;
                        }
                        Said::Answer(Answer::Values(std::mem::take(&mut self.part)))
                    }
                    said => said,
                };
                self.came.push_back((frame.id, said));
            }
        }
        self.came.pop_front()
    }

    /// The final answers of so many requests, by id; announcements are passed over.
    fn answers(&mut self, count: usize) -> BTreeMap<u64, Said> {
        let mut found = BTreeMap::new();
        while found.len() < count {
            let (id, said) = self.next().expect("the connection stays open");
            if !matches!(said, Said::Announced(_)) {
                assert!(found.insert(id, said).is_none(), "one answer to request {id}");
            }
        }
        found
    }

    /// One request and its final answer.
    fn ask(&mut self, command: Command<'_>) -> Said {
        self.ask_in(NAMESPACE_DEFAULT, command)
    }

    fn ask_in(&mut self, namespace: u32, command: Command<'_>) -> Said {
        let mut out = Vec::new();
        let id = self.add_in(&mut out, namespace, 20_000, command);
        self.send(&out);
        self.answers(1).remove(&id).expect("under its id")
    }

    fn value(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        self.versioned(key).map(|found| found.value)
    }

    fn versioned(&mut self, key: &[u8]) -> Option<OwnedValue> {
        match self.ask(Command::Get { key }) {
            Said::Answer(Answer::Value(value)) => Some(value),
            Said::Answer(Answer::Absent) => None,
            other => panic!("a value or none, not {other:?}"),
        }
    }

    /// Announced version and final version of one write.
    fn announced(&mut self, command: Command<'_>) -> (Version, Version) {
        let mut out = Vec::new();
        let id = self.add(&mut out, command);
        self.send(&out);
        let first = self.next().expect("an announcement");
        let Said::Announced(version) = first.1 else { panic!("the version comes first: {first:?}") };
        let (last, done) = self.next().expect("an answer");
        assert_eq!((first.0, last), (id, id));
        (version, done.done())
    }
}

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Put<'a> {
    Put { key, value, ttl_ms: 0, condition: Condition::Always, write: WriteOptions::default() }
}

/// A put under the version of an earlier try.
fn again<'a>(key: &'a [u8], value: &'a [u8], version: Version) -> Command<'a> {
    Command::Put(Put { write: WriteOptions { version: Some(version), announce: false }, ..put(key, value) })
}

fn put_if<'a>(key: &'a [u8], value: &'a [u8], condition: Condition) -> Command<'a> {
    Command::Put(Put { condition, ..put(key, value) })
}

const ANNOUNCE: WriteOptions = WriteOptions { version: None, announce: true };

fn delete(key: &[u8]) -> Command<'_> {
    Command::Delete(Delete { key, condition: Condition::Always, write: WriteOptions::default() })
}

fn name(number: usize) -> Vec<u8> {
    format!("key-{number:06}").into_bytes()
}

/// A node on two cores where there are two, and how many it has.
fn wide(folder: &Folder, test: &str) -> (Node, u16) {
    match two_cores(test) {
        Some(cores) => (Node::start(&folder.data(), &["--cores", &cores]), 2),
        None => (Node::start(&folder.data(), &["--cores", &one_core()]), 1),
    }
}

#[test]
fn thousands_of_requests_in_one_write_are_each_answered_under_their_id() {
    let folder = Folder::new();
    let (node, _) = wide(&folder, "a pipeline over two cores");
    let mut wire = Wire::new(&node);
    let names: Vec<_> = (0..6000).map(name).collect();
    let (mut out, mut ids) = (Vec::new(), Vec::new());
    for key in &names {
        ids.push(wire.add(&mut out, Command::Put(put(key, key))));
    }
    wire.send(&out);
    let answers = wire.answers(names.len());
    let versions: BTreeSet<Version> = answers.values().map(Said::done).collect();
    assert_eq!(versions.len(), names.len(), "every write has a version of its own");
    assert!(ids.iter().eq(answers.keys()));

    let (mut out, mut wanted) = (Vec::new(), BTreeMap::new());
    for (number, key) in names.iter().enumerate() {
        let missing = [key.as_slice(), b"-not"].concat();
        let key = if number % 3 == 0 { &missing } else { key };
        wanted.insert(wire.add(&mut out, Command::Get { key }), (number % 3 != 0).then(|| key.clone()));
    }
    wire.send(&out);
    for (id, said) in wire.answers(names.len()) {
        match (said, &wanted[&id]) {
            (Said::Answer(Answer::Value(value)), Some(key)) => assert!(value.value == *key, "the value of another key under id {id}"),
            (Said::Answer(Answer::Absent), None) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_retry_under_the_announced_version_is_the_same_write() {
    let folder = Folder::new();
    let (node, cores) = wide(&folder, "a retry over another core");
    let mut wire = Wire::new(&node);
    let (announced, done) = wire.announced(Command::Put(Put { write: ANNOUNCE, ..put(b"k", b"one") }));
    assert_eq!(announced, done);
    for core in 0..cores {
        let mut other = Wire::on(&node, core);
        assert_eq!(other.ask(again(b"k", b"one", done)).done(), done, "by core {core}");
        let Said::Answer(Answer::Value(value)) = other.ask(Command::Get { key: b"k" }) else { panic!("it is there") };
        assert_eq!((value.version, &value.value[..]), (done, &b"one"[..]));
    }
    // Another write came between: the retry is done, and takes nothing back.
    let newer = wire.ask(Command::Put(put(b"k", b"two"))).done();
    assert!(newer > done);
    assert_eq!(wire.ask(again(b"k", b"one", done)).done(), done);
    assert_eq!(wire.value(b"k").expect("there"), b"two");
    // So after a restart, when the log has both in this order.
    drop(wire);
    node.kill();
    let (node, _) = wide(&folder, "a retry over another core");
    let mut wire = Wire::new(&node);
    assert_eq!(wire.value(b"k").expect("there"), b"two");
    assert_eq!(wire.ask(again(b"k", b"one", done)).done(), done);
    assert_eq!(wire.value(b"k").expect("there"), b"two");
    // And a new write is above every version that a client brought.
    assert!(wire.ask(Command::Put(put(b"k", b"three"))).done() > newer);
}

#[test]
fn a_retry_of_a_conditional_put_counts_as_met_once_and_never_overwrites() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let mut wire = Wire::new(&node);
    let first = Put { condition: Condition::IfAbsent, write: ANNOUNCE, ..put(b"lock", b"mine") };
    let (_, version) = wire.announced(Command::Put(first.clone()));
    let retry = Put { write: WriteOptions { version: Some(version), announce: false }, ..first };
    assert_eq!(wire.ask(Command::Put(retry.clone())).done(), version, "the key has the retry's own version");
    let newer = wire.ask(Command::Put(put(b"lock", b"theirs"))).done();
    assert_eq!(wire.ask(Command::Put(retry)), Said::NotMet(Some(newer)));
    assert_eq!(wire.value(b"lock").expect("there"), b"theirs");
    let over = wire.ask(put_if(b"lock", b"next", Condition::IfVersion(version)));
    assert_eq!(over, Said::NotMet(Some(newer)), "an old version is not the key's");
}

#[test]
fn a_retry_of_a_conditional_put_that_was_deleted_since_or_never_stored_is_not_called_done() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let mut wire = Wire::new(&node);
    // A version that was told, and under which nothing was stored at this key.
    let never = wire.ask(Command::Put(put(b"elsewhere", b"x"))).done();
    wire.ask(Command::Put(put(b"lock", b"theirs"))).done();
    wire.ask(delete(b"lock")).done();
    let retry = |condition| {
        let write = WriteOptions { version: Some(never), announce: false };
        Command::Put(Put { condition, write, ..put(b"lock", b"mine") })
    };
    assert_eq!(wire.ask(retry(Condition::IfAbsent)), Said::NotMet(None));
    assert_eq!(wire.value(b"lock"), None);
    let newer = wire.ask(Command::Put(put(b"lock", b"others"))).done();
    assert_eq!(wire.ask(retry(Condition::IfPresent)), Said::NotMet(Some(newer)));
    assert_eq!(wire.ask(retry(Condition::Always)).done(), never, "without a condition it lies below, which is done");
    assert_eq!(wire.value(b"lock").expect("there"), b"others");
}

#[test]
fn a_put_may_say_that_it_never_expires_whatever_the_default_is() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let mut wire = Wire::new(&node);
    let create = Command::NamespaceCreate { name: "short", default_ttl_ms: 600_000, durability: Durability::Sync };
    let Said::Answer(Answer::Namespaces(rows)) = wire.ask(create) else { panic!("made") };
    let id = rows[0].id;
    let mut ttl_of = |key: &[u8], command| {
        wire.ask_in(id, command).done();
        match wire.ask_in(id, Command::Ttl { key }) {
            Said::Answer(Answer::Ttl(ttl)) => ttl,
            other => panic!("a time to live, not {other:?}"),
        }
    };
    assert!(ttl_of(b"k", Command::Put(put(b"k", b"v"))).is_some());
    assert_eq!(ttl_of(b"k", Command::Put(Put { ttl_ms: TTL_NEVER, ..put(b"k", b"v") })), None);
    let items = [PutItem { key: b"m", value: b"v", ttl_ms: TTL_NEVER }];
    assert_eq!(ttl_of(b"m", Command::MultiPut(MultiPut { items: items[..].into(), write: WriteOptions::default() })), None);
}

#[test]
fn a_deleted_key_is_not_brought_back_by_a_retry() {
    let folder = Folder::new();
    let (node, _) = wide(&folder, "a retry after a delete");
    let mut wire = Wire::new(&node);
    let mut old = Vec::new();
    for number in 0..50 {
        let key = name(number);
        let (_, version) = wire.announced(Command::Put(Put { write: ANNOUNCE, ..put(&key, b"old") }));
        assert!(wire.ask(delete(&key)).done() > version);
        old.push((key, version));
    }
    let retry_all = |wire: &mut Wire| {
        for (key, version) in &old {
            // Done (it was, and is over) or unknown (nobody remembers): never a value.
            let said = wire.ask(again(key, b"old", *version));
            assert!(matches!(said, Said::Answer(Answer::Done(_)) | Said::Error(ErrorCode::Unknown, _)), "{said:?}");
            assert_eq!(wire.value(key), None);
        }
    };
    retry_all(&mut wire);
    drop(wire);
    assert_eq!(node.stop().code, 0);
    let (node, _) = wide(&folder, "a retry after a delete");
    let mut wire = Wire::new(&node);
    retry_all(&mut wire);
    node.kill();
    let (node, _) = wide(&folder, "a retry after a delete");
    retry_all(&mut Wire::new(&node));
}

#[test]
fn a_version_that_no_clock_of_ours_gave_is_refused() {
    let folder = Folder::new();
    let (node, cores) = wide(&folder, "versions over two cores");
    let mut wire = Wire::new(&node);
    let now = wire.ask(Command::Put(put(b"k", b"v"))).done();
    let far = Version::put(now.hlc() + (1 << 50), 1);
    assert!(matches!(wire.ask(again(b"k", b"x", far)), Said::Error(ErrorCode::BadRequest, _)));
    // Nor a little ahead, in whatever kind of write, on whatever core: it would carry the clock, and later deadlines, along.
    let ahead = Version::put(now.hlc() + (30_000 << 16), 1);
    let write = WriteOptions { version: Some(ahead), announce: false };
    for core in 0..cores {
        let mut wire = Wire::on(&node, core);
        for key in (0..8).map(name) {
            assert!(matches!(wire.ask(again(&key, b"x", ahead)), Said::Error(ErrorCode::BadRequest, _)));
        }
        for keys in [1, 8] {
            let names: Vec<_> = (0..keys).map(name).collect();
            let items: Vec<_> = names.iter().map(|key| PutItem { key, value: b"x", ttl_ms: 0 }).collect();
            let command = Command::MultiPut(MultiPut { items: items.into(), write });
            assert!(matches!(wire.ask(command), Said::Error(ErrorCode::BadRequest, _)), "{keys} keys by core {core}");
        }
    }
    let next = wire.ask(Command::Put(put(b"k", b"w"))).done();
    assert!(next > now && next < ahead, "the clock did not follow it");
}

#[test]
fn of_two_conditional_writes_that_race_one_wins() {
    let folder = Folder::new();
    let (node, cores) = wide(&folder, "a race over two cores");
    let rounds = 150;
    let barrier = Barrier::new(2);
    let barrier = &barrier;
    let (mine, theirs) = (Wire::on(&node, 0), Wire::on(&node, 1 % cores));
    let racer = move |mut wire: Wire, mine: [u8; 1]| {
        let mut won = Vec::new();
        for round in 0..rounds {
            let key = name(round);
            barrier.wait();
            let first = wire.ask(put_if(&key, &mine, Condition::IfAbsent));
            barrier.wait();
            let Said::Answer(Answer::Value(value)) = wire.ask(Command::Get { key: &key }) else { panic!("somebody won") };
            barrier.wait();
            let swap = wire.ask(put_if(&key, &mine, Condition::IfVersion(value.version)));
            barrier.wait();
            let condition = Condition::IfPresent;
            let gone = wire.ask(Command::Delete(Delete { key: &key, condition, write: WriteOptions::default() }));
            won.push([first, swap, gone].map(|said| match said {
                Said::Answer(Answer::Done(_)) => true,
                Said::NotMet(_) => false,
                other => panic!("{other:?}"),
            }));
            if won[round][0] {
                assert_eq!(value.value, mine, "the winner's value is there");
            }
        }
        won
    };
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(move || racer(theirs, *b"b"));
        (racer(mine, *b"a"), other.join().expect("it raced"))
    });
    for (round, (one, two)) in one.iter().zip(&two).enumerate() {
        for what in 0..3 {
            assert!(one[what] != two[what], "round {round}, race {what}: {} winners", u8::from(one[what]) + u8::from(two[what]));
        }
    }
}

#[test]
fn a_counter_by_compare_and_set_loses_no_step() {
    let folder = Folder::new();
    let (node, cores) = wide(&folder, "compare and set over two cores");
    Wire::new(&node).ask(Command::Put(put(b"sum", b"0"))).done();
    let (clients, steps) = (4, 50);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let mut wire = Wire::on(&node, client % cores);
            scope.spawn(move || {
                let mut stepped = 0;
                while stepped < steps {
                    let Said::Answer(Answer::Value(seen)) = wire.ask(Command::Get { key: b"sum" }) else { panic!("there") };
                    let sum: u32 = std::str::from_utf8(&seen.value).unwrap().parse().unwrap();
                    let next = (sum + 1).to_string();
                    match wire.ask(put_if(b"sum", next.as_bytes(), Condition::IfVersion(seen.version))) {
                        Said::Answer(Answer::Done(_)) => stepped += 1,
                        Said::NotMet(Some(_)) => {}
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    assert_eq!(Wire::new(&node).value(b"sum").expect("there"), (u32::from(clients) * steps).to_string().as_bytes());
}

#[test]
fn what_is_answered_deadline_passed_never_happened() {
    let folder = Folder::new();
    let (node, _) = wide(&folder, "deadlines over two cores");
    let mut wire = Wire::new(&node);
    let names: Vec<_> = (0..3000).map(name).collect();
    let (mut out, mut asked) = (Vec::new(), BTreeMap::new());
    for key in &names {
        let command = Command::Put(Put { write: ANNOUNCE, ..put(key, b"v") });
        asked.insert(wire.add_in(&mut out, NAMESPACE_DEFAULT, 1, command), key);
    }
    wire.send(&out);
    let answers = wire.answers(names.len());
    let mut counts = [0; 3];
    for (id, said) in answers {
        let key = asked[&id];
        match said {
            Said::Answer(Answer::Done(version)) => {
                counts[0] += 1;
                assert_eq!(wire.value(key).as_deref(), Some(&b"v"[..]), "{version:?} is done");
            }
            Said::Error(ErrorCode::DeadlinePassed | ErrorCode::Overloaded, _) => {
                counts[1] += 1;
                assert_eq!(wire.value(key), None, "it was said not to be done");
            }
            Said::Error(ErrorCode::Unknown, Some(version)) => {
                counts[2] += 1;
                assert_eq!(wire.ask(again(key, b"v", version)).done(), version, "a retry settles it");
                assert_eq!(wire.value(key).as_deref(), Some(&b"v"[..]));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), names.len(), "{counts:?}");
}

#[test]
fn a_multi_put_that_is_refused_in_a_part_is_not_called_undone() {
    let folder = Folder::new();
    let (node, _) = wide(&folder, "deadlines over two cores");
    let mut wire = Wire::new(&node);
    let (mut out, mut asked) = (Vec::new(), BTreeMap::new());
    for round in 0..400 {
        let keys: Vec<_> = (0..8).map(|at| name(round * 8 + at)).collect();
        let items: Vec<_> = keys.iter().map(|key| PutItem { key, value: b"v", ttl_ms: 0 }).collect();
        // Announced puts hold the keys' locks, so that the parts have to wait.
        wire.add(&mut out, Command::Put(Put { write: ANNOUNCE, ..put(&keys[round % 8], b"first") }));
        let write = WriteOptions::default();
        let id = wire.add_in(&mut out, NAMESPACE_DEFAULT, 1, Command::MultiPut(MultiPut { items: items.into(), write }));
        asked.insert(id, keys);
    }
    wire.send(&out);
    for (id, said) in wire.answers(800) {
        let Some(keys) = asked.get(&id) else { continue };
        let found: Vec<_> = keys.iter().map(|key| wire.versioned(key)).collect();
        let stored = found.iter().flatten().filter(|found| found.value == b"v").count();
        match said {
            // The announced put beside it is executed in no promised order: stamped later by its own core, it stands above.
            Said::Answer(Answer::Done(version)) => {
                let is_in = |found: &OwnedValue| found.version == version && found.value == b"v" || found.version > version;
                assert!(found.iter().all(|found| found.as_ref().is_some_and(is_in)), "{version:?} is done: {found:?}");
                assert!(stored + 1 >= keys.len(), "one key only has another writer: {found:?}");
            }
            Said::Error(ErrorCode::DeadlinePassed | ErrorCode::Overloaded, _) => assert_eq!(stored, 0, "a part is stored"),
            Said::Error(ErrorCode::Unknown, Some(version)) => {
                let items: Vec<_> = keys.iter().map(|key| PutItem { key, value: b"v", ttl_ms: 0 }).collect();
                let write = WriteOptions { version: Some(version), announce: false };
                assert_eq!(wire.ask(Command::MultiPut(MultiPut { items: items.into(), write })).done(), version);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_client_that_ended_its_side_still_gets_every_answer() {
    let folder = Folder::new();
    let (node, cores) = wide(&folder, "a half-closed connection on each core");
    for core in 0..cores {
        let mut wire = Wire::on(&node, core);
        let (mut out, mut ids) = (Vec::new(), BTreeSet::new());
        for number in 0..1000 {
            let key = name(number);
            ids.insert(wire.add(&mut out, Command::Put(put(&key, &[1; 500]))));
            ids.insert(wire.add(&mut out, Command::Get { key: &key }));
            ids.insert(wire.add(&mut out, put_if(&key, b"x", Condition::IfAbsent)));
        }
        // A request whose end never comes is none.
        let whole = out.len();
        wire.add(&mut out, Command::Put(put(b"never", b"whole")));
        out.truncate(whole + 20);
        wire.send(&out);
        wire.stream.shutdown(Shutdown::Write).unwrap();
        let answered: BTreeSet<u64> = std::iter::from_fn(|| wire.next()).map(|(id, _)| id).collect();
        assert!(answered == ids, "{} of {} are answered, then the connection ends", answered.len(), ids.len());
    }
    assert_eq!(Wire::new(&node).value(b"never"), None);
}

#[test]
fn requests_of_many_keys_reach_all_cores_and_come_back_in_order() {
    let folder = Folder::new();
    let (node, cores) = wide(&folder, "many keys over two cores");
    let names: Vec<_> = (0..MULTI_KEYS_MAX).map(name).collect();
    let owner = |key: &[u8]| core_of(vnode_of(token_of(key), VNODES_DEFAULT), cores);
    let here = names.iter().filter(|key| owner(key) == 0).count();
    assert!(cores == 1 || (here > 1000 && here < 3000), "the keys lie on both cores: {here}");
    let values: Vec<_> = names.iter().map(|key| [&key[..], b"=value"].concat()).collect();
    let items: Vec<_> = names.iter().zip(&values).map(|(key, value)| PutItem { key, value, ttl_ms: 0 }).collect();
    for core in 0..cores {
        let mut wire = Wire::on(&node, core);
        let version = wire.ask(Command::MultiPut(MultiPut { items: items[..].into(), write: WriteOptions::default() })).done();
        // Every fourth key is not there.
        let mut asked: Vec<&[u8]> = names.iter().map(|key| &key[..]).collect();
        asked.iter_mut().step_by(4).for_each(|key| *key = b"missing");
        let said = wire.ask(Command::MultiGet { keys: asked[..].into() });
        let Said::Answer(Answer::Values(found)) = said else { panic!("values, not {said:?}") };
        assert_eq!(found.len(), asked.len());
        for (at, found) in found.into_iter().enumerate() {
            let wanted = (at % 4 != 0).then(|| (version, values[at].clone()));
            assert!(found == wanted, "place {at}, by core {core}");
        }
    }
}

#[test]
fn a_multi_put_over_all_cores_tells_its_version_first_and_its_retry_completes_it() {
    let folder = Folder::new();
    let (node, cores) = wide(&folder, "an announced multi-put");
    for core in 0..cores {
        let mut wire = Wire::on(&node, core);
        let names: Vec<_> = (0..100).map(name).collect();
        let items: Vec<_> = names.iter().map(|key| PutItem { key, value: b"all", ttl_ms: 0 }).collect();
        let (told, done) = wire.announced(Command::MultiPut(MultiPut { items: items[..].into(), write: ANNOUNCE }));
        assert_eq!(told, done);
        let newer = wire.ask(Command::Put(put(&names[5], b"newer"))).done();
        assert!(newer > done);
        wire.ask(delete(&names[6])).done();
        let write = WriteOptions { version: Some(done), announce: false };
        assert_eq!(wire.ask(Command::MultiPut(MultiPut { items: items[..].into(), write })).done(), done);
        assert_eq!(wire.value(&names[4]).as_deref(), Some(&b"all"[..]));
        assert_eq!(wire.value(&names[5]).as_deref(), Some(&b"newer"[..]));
        assert_eq!(wire.value(&names[6]), None);
    }
}

#[test]
fn a_namespace_is_known_to_every_core_once_its_maker_was_answered() {
    let folder = Folder::new();
    let (node, cores) = wide(&folder, "namespaces on two cores");
    let mut wires: Vec<Wire> = (0..cores.max(2)).map(|core| Wire::on(&node, core % cores)).collect();
    let row = |said: Said| match said {
        Said::Answer(Answer::Namespaces(rows)) => rows.into_iter().next().expect("one"),
        other => panic!("a namespace, not {other:?}"),
    };
    for round in 0..40 {
        let maker = round % wires.len();
        let name = format!("space-{round}");
        let (default_ttl_ms, durability) = (0, Durability::Sync);
        let made = row(wires[maker].ask(Command::NamespaceCreate { name: &name, default_ttl_ms, durability }));
        for key in (0..8).map(self::name) {
            for wire in &mut wires {
                wire.ask_in(made.id, Command::Put(put(&key, b"in it"))).done();
            }
        }
        let (default_ttl_ms, durability) = (Some(600_000), None);
        row(wires[maker].ask(Command::NamespaceAlter { name: &name, default_ttl_ms, durability }));
        for key in (0..8).map(self::name) {
            for wire in &mut wires {
                wire.ask_in(made.id, Command::Put(put(&key, b"in it"))).done();
                let ttl = wire.ask_in(made.id, Command::Ttl { key: &key });
                assert!(matches!(ttl, Said::Answer(Answer::Ttl(Some(_)))), "the new default holds everywhere: {ttl:?}");
            }
        }
        assert_eq!(wires[maker].value(&self::name(0)), None, "another namespace has none of it");
    }
}

#[test]
fn pages_of_a_scan_meet_every_key_once_over_any_connection() {
    let folder = Folder::new();
    let cores = two_cores("a scan over two cores").unwrap_or_else(one_core);
    let node = Node::start(&folder.data(), &["--cores", &cores, "--vnodes", "4"]);
    let mut wires = [Wire::new(&node), Wire::new(&node)];
    let names: Vec<_> = (0..3000).map(name).collect();
    for part in names.chunks(1000) {
        let items: Vec<_> = part.iter().map(|key| PutItem { key, value: key, ttl_ms: 0 }).collect();
        wires[0].ask(Command::MultiPut(MultiPut { items: items.into(), write: WriteOptions::default() })).done();
    }
    let mut found = BTreeMap::new();
    let mut pages = 0;
    for vnode in 0..4 {
        let mut cursor = Vec::new();
        loop {
            // The cursor is good for any connection, and what is written meanwhile disturbs nothing.
            pages += 1;
            let wire = &mut wires[pages % 2];
            let scan = Scan { vnode, cursor: &cursor, limit: 70, with_values: pages % 3 == 0 };
            let Said::Answer(Answer::Page(OwnedPage { cursor: next, entries })) = wire.ask(Command::Scan(scan)) else { panic!("a page") };
            assert!(entries.len() <= 70);
            for entry in entries {
                assert_eq!(vnode_of(token_of(&entry.key), 4), vnode);
                assert_eq!(entry.value.is_some(), pages % 3 == 0);
                assert!(entry.value.is_none_or(|value| value == entry.key));
                *found.entry(entry.key).or_insert(0) += 1;
            }
            wire.ask(Command::Put(put(&names[pages * 7 % 3000], &names[pages * 7 % 3000]))).done();
            if next.is_empty() {
                break;
            }
            cursor = next;
        }
    }
    assert!(pages >= 3000 / 70);
    assert!(found.len() == 3000 && found.values().all(|&count| count == 1), "{} keys", found.len());
    let foreign = names.iter().find(|key| vnode_of(token_of(key), 4) != 0).expect("most");
    let scan = Scan { vnode: 0, cursor: foreign, limit: 1, with_values: false };
    assert!(matches!(wires[0].ask(Command::Scan(scan)), Said::Error(ErrorCode::BadRequest, _)));
    let scan = Scan { vnode: 4, cursor: b"", limit: 1, with_values: false };
    assert!(matches!(wires[0].ask(Command::Scan(scan)), Said::Error(ErrorCode::BadRequest, _)));
}

#[test]
fn a_client_that_sends_and_never_reads_stops_itself_and_loses_nothing() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &["--memory", "64MiB"]);
    let mut other = Wire::new(&node);
    (0..2000).for_each(|number| _ = other.ask(Command::Put(put(&name(number % 100), &[3; 100]))).done());
    let before = node.rss_bytes();
    let mut wire = Wire::new(&node);
    let total = 100_000u64;
    let mut sending = wire.stream.try_clone().unwrap();
    sending.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    let first = wire.next + 1;
    let mut frames = Vec::new();
    for number in 0..total {
        let key = format!("deaf-{}", number % 1000);
        wire.add(&mut frames, Command::Put(put(key.as_bytes(), &number.to_le_bytes())));
    }
    let sender = std::thread::spawn(move || sending.write_all(&frames).expect("all of it goes, once answers are read"));
    // Nobody reads for a while: the node takes in what it may hold, and no more.
    let by = Instant::now() + Duration::from_secs(3);
    while Instant::now() < by {
        let grown = node.rss_bytes().saturating_sub(before);
        assert!(grown < 40 << 20, "it grew by {} MiB", grown >> 20);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(other.value(&name(1)).expect("others are served"), [3; 100]);
    // Now it reads: every put has its answer.
    let answers = wire.answers(total as usize);
    sender.join().unwrap();
    let mut refused = 0;
    for (id, said) in &answers {
        match said {
            Said::Answer(Answer::Done(_)) => {}
            Said::Error(ErrorCode::Overloaded, _) => refused += 1,
            other => panic!("request {}: {other:?}", id - first),
        }
    }
    assert!(refused < total / 2, "{refused} of {total} refused");
    let few = Duration::from_secs(5);
    assert!(becomes(few, || node.metric("ringkv_requests_waiting") <= CONNECTION_REQUESTS_MAX as f64), "nothing is left behind");
}

#[test]
fn large_requests_that_have_to_wait_are_paced_and_none_is_lost() {
    let folder = Folder::new();
    let (node, cores) = wide(&folder, "large values for another core");
    let mut other = Wire::new(&node);
    other.ask(Command::Put(put(b"large", &[1; 1 << 20]))).done();
    let before = node.rss_bytes();
    let (count, value) = (150u64, vec![2; 4 << 20]);
    for core in 0..cores {
        let mut wire = Wire::on(&node, core);
        let mut sending = wire.stream.try_clone().unwrap();
        sending.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        wire.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // One key: each waits for the lock of the one before, and half of them for another core.
        let mut frame = Vec::new();
        wire.add(&mut frame, Command::Put(Put { condition: Condition::IfPresent, write: ANNOUNCE, ..put(b"large", &value) }));
        let first = wire.next;
        let sender = std::thread::spawn(move || {
            for id in first..first + count {
                frame[8..16].copy_from_slice(&id.to_le_bytes());
                sending.write_all(&frame).expect("the node reads on as it stores");
            }
        });
        let (mut highest, mut answered) = (0, BTreeSet::new());
        while answered.len() < count as usize {
            let (id, said) = wire.next().expect("the connection stays open");
            highest = highest.max(node.rss_bytes());
            match said {
                Said::Announced(_) => {}
                // The log is smaller than all of it: what does not fit in time is refused.
                Said::Answer(Answer::Done(_)) | Said::Error(ErrorCode::Overloaded, _) => assert!(answered.insert(id), "twice {id}"),
                other => panic!("{other:?}"),
            }
        }
        sender.join().unwrap();
        let grown = highest.saturating_sub(before);
        assert!(grown < 200 << 20, "600 MiB were sent; it grew by {} MiB", grown >> 20);
    }
}
