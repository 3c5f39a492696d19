//! The test vectors of docs/protocol.md: this build writes exactly these bytes and reads them back, and so does the Python client.
//!
//! A line of tests/vectors/native.txt is `name | frame in hex | meaning`; Python checks the meaning. A vector never changes: a new one is
//! appended. A missing or different line is printed by the failing test as it should be.

use ringkv::base::record::Version;
use ringkv::wire::command::*;
use ringkv::wire::frame::{Frame, FrameReader};
use ringkv::wire::native::*;
use std::collections::BTreeMap;
use std::process::Command as Process;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/native.txt");
const VERSION: Version = Version(0x0192_F3A4_B5C6_0001_0001_0000_0000_0000);
const OTHER: Version = Version(0x0192_F3A4_B5C6_0002_0007_0000_1020_3040);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex")).collect()
}

fn requests() -> Vec<(&'static str, u64, Request<'static>)> {
    let plain = |command| Request { deadline_ms: 1000, namespace: 0, levels: LevelsAsked::default(), command };
    let keyed = |command| Request { deadline_ms: 1000, namespace: 1, levels: LevelsAsked::default(), command };
    let plain_write = WriteOptions::default();
    let announced = WriteOptions { version: None, announce: true };
    let retry = WriteOptions { version: Some(VERSION), announce: false };
    let put = Put { key: b"key", value: b"value", ttl_ms: 0, condition: Condition::Always, write: plain_write };
    let (credential, client_name, wants): (&[u8], _, _) = (b"secret", "vectors", HelloWants::default());
    let hello = Hello { version_min: 1, version_max: 1, core: CORE_ANY, credential, client_name, wants };
    let items = vec![PutItem { key: b"a", value: b"1", ttl_ms: 0 }, PutItem { key: b"b", value: b"", ttl_ms: 5 }];
    let create = Command::NamespaceCreate { name: "sessions", default_ttl_ms: 60_000, durability: Durability::Interval };
    let alter = Command::NamespaceAlter { name: "sessions", default_ttl_ms: None, durability: Some(Durability::Sync) };
    let (durability, compression) = (Durability::Interval, Compression::Lz4);
    let levels = LevelsAsked::default();
    let make = NamespaceSpec { name: "sessions", default_ttl_ms: 60_000, durability, compression, levels, replicas: 3 };
    let change = NamespaceChange { name: "sessions", default_ttl_ms: None, durability: None, compression: Some(Compression::None), levels };
    let levels = LevelsAsked { read: Some(Level::One), write: Some(Level::All) };
    let delete = |condition, write| Command::Delete(Delete { key: b"key", condition, write });
    vec![
        ("hello", 1, plain(Command::Hello(hello.clone()))),
        ("hello_core_3_without_credential", 1, plain(Command::Hello(Hello { core: 3, credential: b"", ..hello.clone() }))),
        ("hello_wants_namespaces_and_news", 1, {
            let wants = HelloWants { namespaces: true, news: true };
            plain(Command::Hello(Hello { wants, ..hello }))
        }),
        ("ping", 2, plain(Command::Ping)),
        ("info", 3, plain(Command::Info)),
        ("get", 7, keyed(Command::Get { key: b"key" })),
        ("get_empty_key", 7, Request { deadline_ms: 0, ..keyed(Command::Get { key: b"" }) }),
        ("put", 8, keyed(Command::Put(put.clone()))),
        ("put_ttl_if_absent_announce", 9, {
            let (condition, write) = (Condition::IfAbsent, announced);
            keyed(Command::Put(Put { ttl_ms: 1500, condition, write, ..put.clone() }))
        }),
        ("put_if_version_retry", 10, {
            let (condition, write) = (Condition::IfVersion(OTHER), retry);
            keyed(Command::Put(Put { condition, write, value: b"", ..put.clone() }))
        }),
        ("put_never_expires", 8, keyed(Command::Put(Put { ttl_ms: TTL_NEVER, ..put }))),
        ("delete", 11, keyed(delete(Condition::Always, plain_write))),
        ("delete_if_present", 12, keyed(delete(Condition::IfPresent, announced))),
        ("multi_get", 13, keyed(Command::MultiGet { keys: vec![&b"a"[..], b"", b"ccc"].into() })),
        ("multi_get_nothing", 14, keyed(Command::MultiGet { keys: Vec::new().into() })),
        ("multi_put", 15, keyed(Command::MultiPut(MultiPut { items: items.into(), write: retry }))),
        ("expire", 16, keyed(Command::Expire { key: b"key", ttl_ms: 60_000, write: plain_write })),
        ("persist", 17, keyed(Command::Persist { key: b"key", write: announced })),
        ("ttl", 18, keyed(Command::Ttl { key: b"key" })),
        ("scan", 19, keyed(Command::Scan(Scan { vnode: 4095, cursor: b"\x01\x02", limit: 100, with_values: true }))),
        ("namespace_list", 20, plain(Command::NamespaceList)),
        ("namespace_create", 21, plain(create)),
        ("namespace_alter", 22, plain(alter)),
        ("namespace_details", 24, plain(Command::NamespaceDetails)),
        ("namespace_make", 25, plain(Command::NamespaceMake(make))),
        ("namespace_change", 26, plain(Command::NamespaceChange(change))),
        ("namespace_make_with_levels", 28, plain(Command::NamespaceMake(NamespaceSpec { levels, ..make }))),
        ("namespace_make_of_five", 31, plain(Command::NamespaceMake(NamespaceSpec { replicas: 5, ..make }))),
        ("namespace_terms", 29, plain(Command::NamespaceTerms)),
        (
            "get_at_level_2",
            30,
            Request { levels: LevelsAsked { read: Some(Level::Exactly(2)), write: None }, ..keyed(Command::Get { key: b"key" }) },
        ),
        ("snapshot", 23, plain(Command::Snapshot { name: "monday" })),
        ("cluster", 27, plain(Command::Cluster { words: "leave 3" })),
    ]
}

fn hello_ok() -> Reply<'static> {
    let limits = Limits {
        frame_bytes_max: 16_814_080,
        key_bytes_max: 32_768,
        value_bytes_max: 16_777_216,
        multi_keys_max: 4096,
        scan_entries_max: 1024,
        connection_bytes_max: 33_554_432,
        deadline_ms_default: 5000,
    };
    Reply::HelloOk(HelloOk {
        protocol_version: 1,
        core: 3,
        cores: 4,
        vnodes: 4096,
        node_id: 5,
        cluster_id: *b"0123456789abcdef",
        epoch: 1,
        features: 0,
        limits,
        nodes: vec![Node { id: 5, host: "127.0.0.1", port: 7400, cores: 4 }, Node { id: 6, host: "10.0.0.2", port: 7400, cores: 8 }].into(),
        owners: vec![0, 1, 1, 0].into(),
    })
}

fn replies() -> Vec<(&'static str, u64, bool, Reply<'static>)> {
    let values = |values: Vec<Option<VersionedValue<'static>>>| Reply::Values(values.into());
    let entry = ScanEntry { key: b"key", version: VERSION, remaining_ms: None, value: Some(b"value") };
    let entries = vec![entry, ScanEntry { key: b"other", version: OTHER, remaining_ms: Some(9), value: None }];
    let (durability, compression, levels) = (Durability::Sync, Compression::None, LevelsAsked::default());
    let default = Namespace { id: 1, name: "default", default_ttl_ms: 0, durability, compression, levels, replicas: 3 };
    let other = Namespace { id: 2, name: "sessions", default_ttl_ms: 60_000, durability: Durability::Interval, ..default };
    let terms = vec![default, Namespace { levels: LevelsAsked { read: Some(Level::One), write: Some(Level::Quorum) }, ..other }];
    let (rows, details) = (vec![default, other], vec![default, Namespace { compression: Compression::Lz4, ..other }]);
    let unknown = ErrorReply { version: Some(VERSION), ..ErrorReply::new(ErrorCode::Unknown, "no answer from the disk in time") };
    let unavailable = ErrorReply { need: 2, alive: 1, ..ErrorReply::new(ErrorCode::Unavailable, "") };
    vec![
        ("hello_ok", 1, false, hello_ok()),
        ("pong", 2, false, Reply::Pong),
        ("text", 3, false, Reply::Text("node:5\ncores:4\n")),
        ("value", 7, false, Reply::Value(Value { version: VERSION, remaining_ms: None, value: b"value" })),
        ("value_empty_expiring", 7, false, Reply::Value(Value { version: OTHER, remaining_ms: Some(1499), value: b"" })),
        ("done", 8, false, Reply::Done { version: VERSION }),
        ("announced", 9, true, Reply::Announced { version: VERSION }),
        ("not_met", 9, false, Reply::NotMet { present: Some(OTHER) }),
        ("not_met_absent", 9, false, Reply::NotMet { present: None }),
        ("absent", 7, false, Reply::Absent),
        ("values_first_part", 13, true, values(vec![Some(VersionedValue { version: VERSION, value: b"1" }), None])),
        ("values_last_part", 13, false, values(vec![Some(VersionedValue { version: OTHER, value: b"" })])),
        ("ttl_is", 18, false, Reply::Ttl { remaining_ms: Some(59_999) }),
        ("ttl_is_never", 18, false, Reply::Ttl { remaining_ms: None }),
        ("page", 19, false, Reply::Page(Page { cursor: b"\x01\x03", entries: entries.into() })),
        ("page_last", 19, false, Reply::Page(Page { cursor: b"", entries: Vec::new().into() })),
        ("namespaces", 20, false, Reply::Namespaces(rows.into())),
        ("namespace_details_are", 24, false, Reply::NamespaceDetails(details.into())),
        ("namespace_terms_are", 29, false, Reply::NamespaceTerms(terms.into())),
        ("namespace_terms_of_five_are", 31, false, Reply::NamespaceTerms(vec![Namespace { replicas: 5, ..other }].into())),
        ("error_unknown", 10, false, Reply::Error(unknown)),
        ("error_unavailable", 11, false, Reply::Error(unavailable)),
    ]
}

fn vectors() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(VECTORS).expect("the vectors are there");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let parts = |line: &str| line.split('|').take(2).map(|part| part.trim().to_owned()).collect::<Vec<_>>();
    lines.map(|line| parts(line).try_into().map(|[name, hex]: [String; 2]| (name, hex)).expect("name | hex | meaning")).collect()
}

/// The one frame that the bytes are.
fn with_frame(bytes: &[u8], f: impl FnOnce(Frame<'_>)) {
    let mut reader = FrameReader::new(1 << 20);
    let mut frames = reader.feed(bytes);
    f(frames.next().expect("a frame").expect("a valid one"));
    assert!(frames.next().is_none() && reader.is_at_boundary());
}

#[test]
fn every_vector_is_what_this_build_writes_and_reads_back() {
    let mut vectors = vectors();
    let mut wrong = String::new();
    let mut check = |name: &str, bytes: &[u8]| {
        if vectors.remove(name).as_deref() != Some(&hex(bytes)) {
            wrong += &format!("{name} | {}\n", hex(bytes));
        }
    };
    for (name, id, request) in requests() {
        let mut out = Vec::new();
        encode_request(&mut out, id, &request);
        check(name, &out);
        with_frame(&out, |frame| {
            let form = Form { kind: frame.kind, flags: frame.flags };
            assert_eq!((frame.id, form), (id, Form::from(&request)));
            assert_eq!(decode_request(form, frame.body).as_ref(), Ok(&request), "{name}");
        });
    }
    for (name, id, more, reply) in replies() {
        let mut out = Vec::new();
        if more {
            encode_reply_part(&mut out, id, &reply)
        } else {
            encode_reply(&mut out, id, &reply)
        }
        check(name, &out);
        with_frame(&out, |frame| {
            assert_eq!((frame.id, frame.more()), (id, more));
            assert_eq!(decode_reply(frame.kind, frame.body).as_ref(), Ok(&reply), "{name}");
        });
    }
    assert!(wrong.is_empty(), "these lines are missing or differ:\n{wrong}");
    assert!(vectors.is_empty(), "unknown vectors: {:?}", vectors.keys());
}

#[test]
fn every_command_and_answer_has_a_vector() {
    let vectors = vectors();
    let kinds: std::collections::BTreeSet<u16> =
        vectors.values().map(|text| u16::from_le_bytes(unhex(&text[8..12]).try_into().unwrap())).collect();
    assert!(COMMANDS.iter().all(|row| kinds.contains(&row.kind)), "{kinds:?}");
    for answer in [0x8001, 0x8002, 0x8003, 0x8010, 0x8011, 0x8012, 0x8013, 0x8014, 0x8015, 0x8016, 0x8017, 0x8020, 0x8021, 0x8022, 0x80FF] {
        assert!(kinds.contains(&answer), "{answer:#x}");
    }
}

#[test]
fn the_example_of_the_page_is_the_vector() {
    let page = include_str!("../docs/protocol.md");
    let example = page.split("```").nth(1).expect("the first block is the example");
    let bytes: String = example.lines().flat_map(|line| line.split("   ").next()).collect::<String>().split_whitespace().collect();
    assert_eq!(Some(&bytes), vectors().get("get"));
    for row in COMMANDS {
        assert!(page.contains(&format!("| {} | {} |", row.kind, row.name)), "the page has a row for {}", row.name);
    }
    assert!(
        page.contains(&format!("{:?}", ErrorCode::Unknown))
            && (1..=14).all(|code| { page.contains(&format!("| {code} | {:?} |", ErrorCode::from_u16(code).unwrap())) })
    );
}

#[test]
fn the_python_client_reads_and_writes_the_vectors_too() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ringkv_client.py");
    match Process::new("python3").args(["-B", script, "--vectors", VECTORS]).output() {
        Err(error) => eprintln!("SKIPPED: python3 does not run here: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            assert_eq!(said.trim(), format!("ok {} vectors", requests().len() + replies().len()));
        }
    }
}
