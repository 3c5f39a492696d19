//! The built node as its users meet it: over its ports, its command line, its signals and its exit codes.

mod common;

use common::seccomp::forbid;
use common::{Ended, Folder, Node, PATIENCE, becomes, one_core, run, two_cores};
use ringkv::client::{Client, ClientConfig, ClientError, NamespaceChanges, PutOptions, TimeToLive};
use ringkv::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use ringkv::wire::command::{Compression, Condition, Durability, ErrorCode, PutItem};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A value that only this key and round have, `bytes` long.
fn value(key: u32, round: u8, bytes: usize) -> Vec<u8> {
    let seed = key.to_le_bytes();
    (0..bytes).map(|at| seed[at % 4] ^ round ^ (at / 4) as u8).collect()
}

fn name(key: u32) -> Vec<u8> {
    format!("key-{key:08}").into_bytes()
}

/// Puts keys of a range with pipelines; what the node is too busy for is put again.
fn put_all(client: &mut Client, keys: std::ops::Range<u32>, round: u8, bytes: usize) {
    let rows: Vec<_> = keys.map(|key| (name(key), value(key, round, bytes))).collect();
    let by = Instant::now() + PATIENCE;
    for part in rows.chunks(500) {
        let mut left: Vec<_> = part.iter().collect();
        while !left.is_empty() {
            let mut pipeline = client.pipeline();
            left.iter().for_each(|(key, value)| _ = pipeline.put(key, value));
            let outcomes = pipeline.run();
            let mut outcomes = outcomes.iter();
            left.retain(|_| match outcomes.next().expect("an outcome a put") {
                Ok(_) => false,
                Err(ClientError::Failed { code: ErrorCode::Overloaded, .. }) => true,
                Err(error) => panic!("the put is not acknowledged: {error}"),
            });
            assert!(Instant::now() < by, "the node stays overloaded");
            if !left.is_empty() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn assert_all(client: &mut Client, keys: std::ops::Range<u32>, round: u8, bytes: usize) {
    let names: Vec<_> = keys.clone().map(name).collect();
    for (part, first) in names.chunks(1000).zip(keys.step_by(1000)) {
        let asked: Vec<&[u8]> = part.iter().map(|key| &key[..]).collect();
        let values = client.multi_get(&asked).expect("the gets are answered");
        for (key, found) in (first..).zip(values) {
            let found = found.unwrap_or_else(|| panic!("key {key} is lost")).1;
            assert!(found == value(key, round, bytes), "key {key} has a value that nobody put");
        }
    }
}

/// One sentence, with this in it, and this exit code.
fn assert_refused(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    assert_eq!(ended.err.trim().lines().count(), 1, "one sentence: {ended:?}");
    says.iter().for_each(|word| assert!(ended.err.contains(word), "it names {word}: {ended:?}"));
}

/// Starts a node that must end by itself.
fn refused(data: &Path, flags: &[&str]) -> Ended {
    match Node::try_start(data, flags) {
        Ok(_) => panic!("the node serves with {flags:?}"),
        Err(ended) => ended,
    }
}

#[test]
fn a_key_is_put_read_counted_down_and_deleted() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let mut client = node.client();
    assert_eq!(client.get(b"k").unwrap(), None);
    let version = client.put(b"k", b"one").unwrap();
    let got = client.get(b"k").unwrap().expect("it was put");
    assert_eq!((got.version, got.remaining, &got.value[..]), (version, None, &b"one"[..]));
    let if_absent = PutOptions { condition: Condition::IfAbsent, ..PutOptions::default() };
    let if_version = PutOptions { condition: Condition::IfVersion(version), ..PutOptions::default() };
    assert_eq!(client.put_with(b"k", b"x", if_absent), Err(ClientError::NotMet { present: Some(version) }));
    let newer = client.put_with(b"k", b"two", if_version).unwrap();
    assert!(newer > version);
    assert_eq!(client.put_with(b"k", b"x", if_version), Err(ClientError::NotMet { present: Some(newer) }));
    assert_eq!(client.ttl(b"k").unwrap(), TimeToLive::Never);
    assert!(client.expire(b"k", Duration::from_secs(100)).unwrap().is_some());
    let TimeToLive::Remaining(left) = client.ttl(b"k").unwrap() else { panic!("it has a deadline") };
    assert!(left <= Duration::from_secs(100) && left > Duration::from_secs(60), "{left:?}");
    assert!(client.persist(b"k").unwrap().is_some());
    assert_eq!(client.ttl(b"k").unwrap(), TimeToLive::Never);
    assert_eq!(client.get(b"k").unwrap().expect("still there").value, b"two");
    client.delete(b"k").unwrap();
    client.delete(b"k").unwrap();
    assert_eq!(client.get(b"k").unwrap(), None);
    assert_eq!((client.ttl(b"k").unwrap(), client.expire(b"k", PATIENCE).unwrap()), (TimeToLive::Absent, None));
}

#[test]
fn a_key_is_hidden_at_its_deadline_and_not_before() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let mut client = node.client();
    let ttl = Duration::from_millis(400);
    let begun = Instant::now();
    client.put_with(b"k", b"v", PutOptions { ttl: Some(ttl), ..PutOptions::default() }).unwrap();
    let stored = Instant::now();
    let gone = loop {
        let asked = Instant::now();
        let found = client.get(b"k").unwrap();
        if found.is_none() {
            break Instant::now();
        }
        assert!(asked < stored + ttl + Duration::from_millis(2), "it is shown after its deadline");
    };
    assert!(gone >= begun + ttl - Duration::from_millis(2), "it is hidden before its deadline: {:?}", gone - begun);
    assert_eq!(client.ttl(b"k").unwrap(), TimeToLive::Absent);
    drop(client);
    node.kill();
    let node = Node::start(&folder.data(), &[]);
    assert_eq!(node.client().get(b"k").unwrap(), None, "a restart brings no expired key back");
}

#[test]
fn acknowledged_writes_survive_sigkill() {
    let folder = Folder::new();
    for round in 0..3 {
        let node = Node::start(&folder.data(), &[]);
        let mut client = node.client();
        if round > 0 {
            assert_all(&mut client, 0..3000, round - 1, 200);
            assert_eq!(client.get(b"deleted").unwrap(), None);
        }
        put_all(&mut client, 0..3000, round, 200);
        client.put(b"deleted", b"x").unwrap();
        client.delete(b"deleted").unwrap();
        node.kill();
    }
}

#[test]
fn data_larger_than_the_memtables_survives_sigkill_and_is_read_from_tables() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &["--memory", "16MiB"]);
    let mut client = node.client();
    put_all(&mut client, 0..12_000, 1, 4000);
    put_all(&mut client, 0..2_000, 2, 4000);
    node.kill();
    let node = Node::start(&folder.data(), &["--memory", "16MiB"]);
    let mut client = node.client();
    assert_all(&mut client, 0..2_000, 2, 4000);
    assert_all(&mut client, 2_000..12_000, 1, 4000);
    assert!(std::fs::read_dir(folder.data().join("tables")).unwrap().count() > 0, "48 MB went through memtables of less");
}

#[test]
fn another_list_of_cores_serves_the_same_data() {
    let Some(two) = two_cores("another_list_of_cores_serves_the_same_data") else { return };
    let folder = Folder::new();
    for (round, cores) in [(0, one_core()), (1, two.clone()), (2, one_core()), (3, two)] {
        let node = Node::start(&folder.data(), &["--cores", &cores]);
        let mut client = node.client();
        assert_eq!(usize::from(client.server().cores), cores.split(',').count());
        if round > 0 {
            assert_all(&mut client, 0..5000, round - 1, 300);
        }
        put_all(&mut client, 0..5000, round, 300);
        if round % 2 == 0 { node.kill() } else { assert_eq!(node.stop().code, 0) }
    }
}

#[test]
fn sigterm_ends_it_cleanly_and_keeps_everything() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let mut client = node.client();
    put_all(&mut client, 0..500, 1, 100);
    let said = node.said();
    assert_eq!(said.lines().filter(|line| line.contains("ringkv put") || line.contains("ringkv get") || line.contains("curl")).count(), 3);
    let begun = Instant::now();
    let ended = node.stop();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "an idle client does not keep it: {:?}", begun.elapsed());
    let node = Node::start(&folder.data(), &[]);
    assert_all(&mut node.client(), 0..500, 1, 100);
}

#[test]
fn a_busy_port_names_the_flag_that_moves_it() {
    let folder = Folder::new();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port().to_string();
    let ended = refused(&folder.data(), &["--port", &port]);
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.err.contains("--port") && ended.err.contains(&port) && !ended.err.contains("--admin-port"), "{ended:?}");
    let ended = refused(&folder.data(), &["--admin-port", &port]);
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.err.contains("--admin-port") && ended.err.contains(&port), "{ended:?}");
}

#[test]
fn a_second_process_on_the_same_folder_is_refused() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let data = folder.data();
    let ended = refused(&data, &[]);
    assert_refused(&ended, 4, &[data.to_str().unwrap()]);
    assert_eq!(run(&["verify", data.to_str().unwrap()]).code, 4);
    node.client().ping().unwrap();
    node.kill();
    Node::start(&data, &[]).client().ping().unwrap();
}

#[test]
fn bad_configuration_is_one_sentence_that_names_the_key() {
    let folder = Folder::new();
    let data = folder.data();
    let unknown = folder.file("unknown.toml", "port = 0\ncolour = \"red\"\n");
    let wrong = folder.file("wrong.toml", "memory = 12\n");
    let secret = folder.file("secret", "s\n");
    let (unknown, wrong, secret) = (unknown.to_str().unwrap(), wrong.to_str().unwrap(), secret.to_str().unwrap());
    let rows: &[(&[&str], &str)] = &[
        (&["--config", unknown], "colour"),
        (&["--config", wrong], "memory"),
        (&["--config", "/no/such/file"], "config"),
        (&["--colour", "red"], "colour"),
        (&["--port", "7999", "--admin-port", "7999"], "admin-port"),
        (&["--insecure", "--secret-file", secret], "insecure"),
        (&["--host", "0.0.0.0"], "secret-file"),
        (&["--secret-file", "/no/such/file"], "secret-file"),
        (&["--cores", "0,0"], "cores"),
        (&["--cores", "9999"], "cores"),
        (&["--memory", "1MiB"], "memory"),
        (&["--memory", "much"], "memory"),
        (&["--durability", "never"], "durability"),
        (&["--vnodes", "100"], "vnodes"),
        (&["--host", "nowhere"], "host"),
    ];
    for (flags, key) in rows {
        assert_refused(&refused(&data, flags), 2, &[key]);
    }
}

#[test]
fn another_number_of_vnodes_than_the_folder_has_is_refused() {
    let folder = Folder::new();
    assert_eq!(Node::start(&folder.data(), &["--vnodes", "64"]).stop().code, 0);
    assert_refused(&refused(&folder.data(), &["--vnodes", "128"]), 2, &["vnodes"]);
    let node = Node::start(&folder.data(), &[]);
    assert_eq!(node.client().server().vnodes, 64);
}

#[test]
fn beyond_loopback_only_the_right_credential_is_served() {
    let folder = Folder::new();
    let secret = folder.file("secret", "open sesame\n");
    let node = Node::start(&folder.data(), &["--host", "0.0.0.0", "--secret-file", secret.to_str().unwrap()]);
    let with = |credential: &[u8]| Client::connect(ClientConfig { credential: credential.to_vec(), ..node.config() });
    for wrong in [&b""[..], b"open sesam", b"open sesame\n", b"open sesame!", &[0xFF; 5000]] {
        let Err(ClientError::Failed { code, .. }) = with(wrong) else { panic!("{wrong:?} is let in") };
        assert_eq!(code, ErrorCode::Unauthorized);
    }
    let mut client = with(b"open sesame").unwrap();
    client.put(b"k", b"v").unwrap();
    let port = node.native.port().to_string();
    let ended = run(&["get", "k", "--port", &port, "--secret-file", secret.to_str().unwrap()]);
    assert_eq!((ended.code, ended.out.as_str()), (0, "v"));
    assert_eq!(run(&["get", "k", "--port", &port]).code, 1);
}

#[test]
fn metrics_health_and_info_answer() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let mut client = node.client();
    put_all(&mut client, 0..100, 0, 10);
    assert_eq!(node.ask("/health"), (200, "ok\n".to_owned()));
    let counted = || node.ask("/metrics").1.lines().any(|line| line.contains("command=\"put\"") && line.ends_with(" 100"));
    assert!(becomes(Duration::from_secs(10), counted), "{}", node.ask("/metrics").1);
    let (status, metrics) = node.ask("/metrics");
    assert_eq!(status, 200);
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let number = line.rsplit(' ').next().unwrap();
        assert!(line.starts_with("ringkv_") && number.parse::<f64>().is_ok(), "{line}");
    }
    let (status, info) = node.ask("/info");
    assert!(status == 200 && info.lines().any(|line| line == "state:ok"), "{info}");
    assert!(node.ask("/info?json").1.starts_with('{'));
    assert_eq!(node.ask("/nothing").0, 404);
    let info = client.info().unwrap();
    assert!(info.lines().any(|line| line == "state:ok") && info.lines().any(|line| line == "cores:1"), "{info}");
}

#[test]
fn the_shell_speaks_to_it() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let port = node.native.port().to_string();
    let shell = |words: &[&str]| {
        let ended = run(&[words, &["--port", &port]].concat());
        (ended.code, ended.out)
    };
    assert_eq!(shell(&["put", "greeting", "hello"]).0, 0);
    assert_eq!(shell(&["get", "greeting"]), (0, "hello".to_owned()));
    assert_eq!(shell(&["ttl", "greeting"]), (0, "never".to_owned()));
    assert_eq!(shell(&["expire", "greeting", "1h"]).0, 0);
    assert_eq!(shell(&["scan"]), (0, "greeting".to_owned()));
    assert_eq!(shell(&["put", "greeting", "x", "--if-absent"]).0, 1);
    assert_eq!(shell(&["del", "greeting"]).0, 0);
    assert_eq!(shell(&["get", "greeting"]), (1, String::new()));
    assert!(shell(&["info"]).1.contains("state:ok"));
    drop(node);
    let ended = run(&["get", "greeting", "--port", &port]);
    assert!(ended.code == 1 && ended.err.contains("--port"), "{ended:?}");
}

#[test]
fn keys_and_values_up_to_the_bounds_are_kept_and_larger_ones_refused() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let mut client = node.client();
    let sizes = [0, 1, 4095, 4096, 65_535, 65_536, 65_537, 1 << 20, VALUE_BYTES_MAX - 1, VALUE_BYTES_MAX];
    let key = |bytes: usize| vec![b'k'; bytes];
    for (number, &bytes) in sizes.iter().enumerate() {
        client.put(&name(number as u32), &value(number as u32, 0, bytes)).unwrap();
    }
    for bytes in [1, 1000, KEY_BYTES_MAX] {
        client.put(&key(bytes), b"v").unwrap();
    }
    client.put(&[&key(KEY_BYTES_MAX - 1)[..], b"l"].concat(), &value(7, 7, VALUE_BYTES_MAX)).unwrap();
    let too_large = |outcome: Result<(), ClientError>| {
        let Err(ClientError::Failed { code: ErrorCode::TooLarge, .. }) = outcome else { panic!("{outcome:?}") };
    };
    too_large(client.put(&key(KEY_BYTES_MAX + 1), b"v").map(drop));
    too_large(client.get(&key(KEY_BYTES_MAX + 1)).map(drop));
    too_large(client.delete(&key(KEY_BYTES_MAX + 1)).map(drop));
    too_large(client.put(b"large", &vec![0; VALUE_BYTES_MAX + 1]).map(drop));
    too_large(client.put(b"large", &vec![0; VALUE_BYTES_MAX + (1 << 20)]).map(drop));
    assert_eq!(client.get(b"large").unwrap(), None);
    node.kill();
    let node = Node::start(&folder.data(), &[]);
    let mut client = node.client();
    for (number, &bytes) in sizes.iter().enumerate() {
        let found = client.get(&name(number as u32)).unwrap().unwrap_or_else(|| panic!("the value of {bytes} bytes is lost")).value;
        assert!(found == value(number as u32, 0, bytes), "the value of {bytes} bytes is another");
    }
    for bytes in [1, 1000, KEY_BYTES_MAX] {
        assert_eq!(client.get(&key(bytes)).unwrap().expect("the key is there").value, b"v");
    }
    assert!(
        client.get(&[&key(KEY_BYTES_MAX - 1)[..], b"l"].concat()).unwrap().expect("the key is there").value == value(7, 7, VALUE_BYTES_MAX)
    );
}

#[test]
fn requests_of_many_keys_span_the_cores() {
    let Some(two) = two_cores("requests_of_many_keys_span_the_cores") else { return };
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &["--cores", &two]);
    // One by the map of cores, and one that knows of none: the node takes its requests apart.
    for single_connection in [false, true] {
        let mut client = Client::connect(ClientConfig { single_connection, ..node.config() }).unwrap();
        let rows: Vec<_> = (0..2000).map(|key| (name(key), value(key, u8::from(single_connection), 50))).collect();
        let items: Vec<_> = rows.iter().map(|(key, value)| PutItem { key, value, ttl_ms: 0 }).collect();
        assert_eq!(client.multi_put(&items).unwrap().len(), 2000);
        assert_all(&mut client, 0..2000, u8::from(single_connection), 50);
        let asked: Vec<&[u8]> = vec![b"absent", b"key-00000001", b"absent", b"key-00000001"];
        let found: Vec<bool> = client.multi_get(&asked).unwrap().iter().map(Option::is_some).collect();
        assert_eq!(found, [false, true, false, true]);
    }
    let mut whole = Client::connect(ClientConfig { single_connection: true, ..node.config() }).unwrap();
    let keys: Vec<_> = (0..1000).map(name).collect();
    let asked: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    let command = ringkv::wire::command::Command::MultiGet { keys: ringkv::wire::command::List::Borrowed(&asked) };
    let ringkv::client::Answer::Values(values) = whole.command(command).unwrap() else { panic!("values are the answer") };
    assert!(values.len() == 1000 && values.iter().all(Option::is_some), "one request over both cores");
}

/// Every key of a scan over all vnodes, with how often it came.
fn scan(client: &mut Client, limit: u32) -> BTreeMap<Vec<u8>, u32> {
    let mut found = BTreeMap::new();
    for vnode in 0..client.server().vnodes {
        let mut cursor = Vec::new();
        loop {
            let page = client.scan(vnode, &cursor, limit, false).unwrap();
            assert!(page.entries.len() <= limit as usize);
            page.entries.into_iter().for_each(|entry| *found.entry(entry.key).or_default() += 1);
            cursor = page.cursor;
            if cursor.is_empty() {
                break;
            }
        }
    }
    found
}

#[test]
fn a_scan_of_all_vnodes_finds_every_live_key_once() {
    let folder = Folder::new();
    let two = two_cores("a scan over two cores").unwrap_or_else(one_core);
    let node = Node::start(&folder.data(), &["--cores", &two, "--vnodes", "64"]);
    let mut client = node.client();
    put_all(&mut client, 0..3000, 0, 20);
    client.snapshot("flushes").unwrap();
    put_all(&mut client, 2000..4000, 1, 20);
    (0..4000).step_by(10).for_each(|key| _ = client.delete(&name(key)).unwrap());
    client.put_with(b"short", b"v", PutOptions { ttl: Some(Duration::from_millis(1)), ..PutOptions::default() }).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    let wanted: BTreeMap<_, _> = (0..4000).filter(|key| key % 10 != 0).map(|key| (name(key), 1)).collect();
    for limit in [7, 1000] {
        assert!(scan(&mut client, limit) == wanted, "pages of {limit} keys");
    }
    node.kill();
    let node = Node::start(&folder.data(), &[]);
    assert!(scan(&mut node.client(), 100) == wanted, "after a restart");
}

#[test]
fn namespaces_keep_their_ttl_and_durability_over_a_restart() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    let mut client = node.client();
    client.namespace_create("short", Duration::from_millis(2000), Durability::Sync).unwrap();
    client.namespace_create("fast", Duration::ZERO, Durability::Interval).unwrap();
    client.namespace_create("plain", Duration::from_secs(5), Durability::Interval).unwrap();
    client.namespace_alter("plain", Some(Duration::ZERO), Some(Durability::Sync)).unwrap();
    let again = client.namespace_create("short", Duration::ZERO, Durability::Sync);
    assert!(matches!(again, Err(ClientError::Failed { .. })), "{again:?}");
    let lz4 = NamespaceChanges { compression: Some(Compression::Lz4), ..NamespaceChanges::default() };
    client.namespace_alter_with("fast", lz4).unwrap();
    let missing = client.namespace_alter("missing", None, Some(Durability::Sync));
    assert!(matches!(missing, Err(ClientError::Failed { .. })), "{missing:?}");
    let before = client.namespaces().unwrap();
    let packed: Vec<_> = before.iter().filter(|row| row.compression == Compression::Lz4).map(|row| row.name.as_str()).collect();
    assert_eq!(packed, ["fast"]);
    let rows: Vec<_> = before.iter().map(|row| (row.name.as_str(), row.default_ttl.as_millis(), row.durability)).collect();
    let expected = [
        ("default", 0, Durability::Sync),
        ("fast", 0, Durability::Interval),
        ("plain", 0, Durability::Sync),
        ("short", 2000, Durability::Sync),
    ];
    assert!(rows.len() == 4 && expected.iter().all(|row| rows.contains(row)), "{rows:?}");
    let mut fast = node.client_of("fast");
    fast.put(b"k", b"in fast").unwrap();
    client.put(b"k", b"in default").unwrap();
    assert_eq!(fast.get(b"k").unwrap().unwrap().value, b"in fast");
    // Acknowledged before it is on disk, and there within 100 ms.
    std::thread::sleep(Duration::from_millis(500));
    node.kill();
    let node = Node::start(&folder.data(), &[]);
    assert_eq!(node.client().namespaces().unwrap(), before);
    assert_eq!(node.client_of("fast").get(b"k").unwrap().expect("older than 100 ms").value, b"in fast");
    assert_eq!(node.client().get(b"k").unwrap().unwrap().value, b"in default");
    let mut short = node.client_of("short");
    short.put(b"k", b"v").unwrap();
    let ttl = short.ttl(b"k").unwrap();
    assert!(matches!(ttl, TimeToLive::Remaining(left) if left <= Duration::from_millis(2000)), "{ttl:?}");
    std::thread::sleep(Duration::from_millis(2010));
    assert_eq!(short.get(b"k").unwrap(), None);
}

#[test]
fn a_snapshot_is_a_data_folder_of_its_own() {
    let folder = Folder::new();
    let two = two_cores("a snapshot of two cores").unwrap_or_else(one_core);
    let node = Node::start(&folder.data(), &["--cores", &two]);
    let mut client = node.client();
    put_all(&mut client, 0..3000, 1, 100);
    client.snapshot("monday").unwrap();
    put_all(&mut client, 0..3000, 2, 100);
    let again = client.snapshot("monday");
    assert!(matches!(again, Err(ClientError::Failed { .. })), "a name is used once: {again:?}");
    let evil = client.snapshot("../evil");
    assert!(matches!(evil, Err(ClientError::Failed { code: ErrorCode::BadRequest, .. })), "{evil:?}");
    let taken = folder.data().join("snapshots").join("monday");
    let other = Node::start(&taken, &["--cores", &two]);
    assert_all(&mut other.client(), 0..3000, 1, 100);
    put_all(&mut other.client(), 0..10, 3, 100);
    assert_all(&mut client, 0..3000, 2, 100);
    other.kill();
    assert_eq!(run(&["verify", taken.to_str().unwrap()]).code, 0);
}

/// Files of a data folder whose name has this beginning and end.
fn files(data: &Path, begin: &str, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "snapshots" {
                folders.push(path);
            } else if name.starts_with(begin) && name.ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// `text` names the file and an offset in it.
fn assert_names(text: &str, path: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let offset = text.split(name).nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty()));
    let offset: u64 = offset.unwrap_or_else(|| panic!("{name} and an offset are named in: {text}")).parse().unwrap();
    assert!(offset < std::fs::metadata(path).unwrap().len(), "{offset} is inside of {name}: {text}");
}

/// The verifier, and before it the node where that reads the file at its start, refuse it and say where.
fn assert_damage_is_found(data: &Path, path: &Path, at_start: bool) {
    if at_start {
        let ended = refused(data, &[]);
        assert_eq!(ended.code, 5, "{ended:?}");
        assert_names(&ended.err, path);
    }
    let ended = run(&["verify", data.to_str().unwrap()]);
    assert_eq!(ended.code, 5, "{ended:?}");
    assert_names(&format!("{}\n{}", ended.out, ended.err), path);
}

/// A stopped folder with a table, a manifest of several groups and a log of 40 groups that no table holds.
fn folder_with_everything() -> Folder {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &["--vnodes", "64"]);
    let mut client = node.client();
    put_all(&mut client, 0..2000, 1, 500);
    client.snapshot("s").unwrap();
    node.kill();
    // A new process begins with a segment of its own.
    let node = Node::start(&folder.data(), &[]);
    let mut client = node.client();
    (0..40).for_each(|key| _ = client.put(&name(key), b"later").unwrap());
    node.kill();
    folder
}

/// The blocks of the log that the last puts were written to: path, and block numbers of groups of one record.
fn last_blocks(data: &Path) -> (PathBuf, Vec<usize>) {
    let mut best: (PathBuf, Vec<usize>) = Default::default();
    for path in files(data, "wal-", ".seg") {
        let bytes = std::fs::read(&path).unwrap();
        let blocks = bytes.chunks(4096).enumerate().skip(1);
        let found: Vec<usize> = blocks.filter(|(_, block)| block.windows(5).any(|word| word == b"later")).map(|(at, _)| at).collect();
        if found.len() > best.1.len() {
            best = (path, found);
        }
    }
    assert!(best.1.len() >= 30, "one put after another is a group each");
    best
}

#[test]
fn verify_says_fine_of_a_stopped_folder() {
    let folder = folder_with_everything();
    let data = folder.data();
    let ended = run(&["verify", data.to_str().unwrap()]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(!ended.out.is_empty(), "it says what it read");
    assert_eq!(Node::start(&data, &[]).stop().code, 0);
    assert_eq!(run(&["verify", data.to_str().unwrap()]).code, 0);
    assert_ne!(run(&["verify", "/no/such/folder"]).code, 0);
}

#[test]
fn a_flipped_byte_in_a_table_is_found_with_file_and_offset() {
    let folder = folder_with_everything();
    let table = files(&folder.data(), "", ".table").pop().expect("the snapshot flushed");
    let bytes = std::fs::metadata(&table).unwrap().len() as usize;
    for offset in [100, bytes / 2, bytes - 50] {
        flip(&table, offset);
        assert_damage_is_found(&folder.data(), &table, false);
        flip(&table, offset);
    }
    assert_eq!(run(&["verify", folder.data().to_str().unwrap()]).code, 0);
}

#[test]
fn a_flipped_byte_in_a_manifest_is_found_with_file_and_offset() {
    let folder = folder_with_everything();
    let data = folder.data();
    let manifest = files(&data, "MANIFEST-", "").pop().expect("a shard has one");
    for path in [manifest, files(&data, "CURRENT", "").pop().unwrap(), files(&data, "LAYOUT", "").pop().unwrap()] {
        flip(&path, 5);
        assert_damage_is_found(&data, &path, true);
        flip(&path, 5);
    }
    assert_eq!(run(&["verify", data.to_str().unwrap()]).code, 0);
}

#[test]
fn a_flipped_byte_inside_the_log_is_found_with_file_and_offset() {
    let folder = folder_with_everything();
    let (segment, blocks) = last_blocks(&folder.data());
    let offset = blocks[blocks.len() / 2] * 4096 + 80;
    flip(&segment, offset);
    assert_damage_is_found(&folder.data(), &segment, true);
    flip(&segment, offset);
    let node = Node::start(&folder.data(), &[]);
    assert_eq!(node.client().get(&name(39)).unwrap().unwrap().value, b"later");
}

#[test]
fn a_torn_end_of_the_log_is_cut_and_the_rest_kept() {
    let folder = folder_with_everything();
    let (segment, blocks) = last_blocks(&folder.data());
    flip(&segment, blocks.last().unwrap() * 4096 + 80);
    let node = Node::start(&folder.data(), &[]);
    let mut client = node.client();
    for key in 0..39 {
        assert_eq!(client.get(&name(key)).unwrap().unwrap().value, b"later", "key {key}");
    }
    assert!(client.get(&name(39)).unwrap().unwrap().value == value(39, 1, 500), "the put of the torn group never was");
}

/// Runs `body` as on a host that answers `io_uring_setup` with `errno`; what it starts lives there too.
fn without_io_uring<T: Send>(errno: i32, body: impl FnOnce() -> T + Send) -> T {
    let on_such_a_host = || {
        forbid(libc::SYS_io_uring_setup, errno);
        body()
    };
    std::thread::scope(|scope| scope.spawn(on_such_a_host).join()).expect("the body passes")
}

#[test]
fn where_io_uring_is_forbidden_the_same_node_runs_on_epoll_and_says_so_in_one_line() {
    let folder = Folder::new();
    let cores: Vec<String> = ringkv::io::host::allowed_cpus().iter().take(2).map(usize::to_string).collect();
    let cores = cores.join(",");
    for (errno, word) in [(libc::EPERM, "seccomp"), (libc::ENOSYS, "no io_uring")] {
        let node = without_io_uring(errno, || Node::start(&folder.data(), &["--cores", &cores, "--io", "auto"]));
        let mut client = node.client();
        for key in 0..100u32 {
            client.put(&key.to_le_bytes(), word.as_bytes()).unwrap();
        }
        assert!((0..100u32).all(|key| client.get(&key.to_le_bytes()).unwrap().is_some_and(|found| found.value == word.as_bytes())));
        assert_eq!(node.ask("/health"), (200, "ok\n".to_owned()));
        let said = node.said();
        assert_eq!(said.matches("epoll").count(), 1, "{said}");
        assert!(said.lines().any(|line| line.contains("epoll") && line.contains(word)), "{said}");
        assert_eq!(node.stop().code, 0);
        let verified = without_io_uring(errno, || run(&["verify", folder.data().to_str().unwrap()]));
        assert_eq!(verified.code, 0, "{verified:?}");
    }
    // The data is the same on either.
    let node = Node::start(&folder.data(), &["--io", "uring"]);
    assert!(node.client().get(&7u32.to_le_bytes()).unwrap().is_some());
    assert!(!node.said().contains("epoll"));
}

#[test]
fn io_uring_that_is_forced_or_wanted_by_strict_start_and_not_there_is_one_sentence() {
    let folder = Folder::new();
    let refused = |flags: &[&str]| match without_io_uring(libc::EPERM, || Node::try_start(&folder.data(), flags)) {
        Ok(_) => panic!("{flags:?} starts"),
        Err(ended) => ended,
    };
    let forced = refused(&["--io", "uring"]);
    assert_eq!((forced.code, forced.err.lines().count()), (2, 1), "{forced:?}");
    assert!(forced.err.starts_with("io is uring") && forced.err.contains("seccomp"), "{forced:?}");
    let strict = refused(&["--io", "auto", "--strict-start"]);
    assert_eq!((strict.code, strict.err.lines().count()), (1, 1), "{strict:?}");
    assert!(strict.err.contains("--strict-start") && strict.err.contains("epoll"), "{strict:?}");
}

#[test]
fn epoll_that_is_forced_needs_no_word() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &["--io", "epoll", "--strict-start"]);
    node.client().put(b"key", b"value").unwrap();
    assert_eq!(node.ask("/health").0, 200);
    assert!(!node.said().contains("epoll"), "{}", node.said());
    assert_eq!(node.stop().code, 0);
}
