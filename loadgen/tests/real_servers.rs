//! The generator against the real redis-server and memcached: golden dialogues of its codecs, byte for byte, and checked runs. They need
//! these servers, so they run by name only (`scripts/check.sh peers` does, where they are installed):
//! `cargo test -p loadgen --test real_servers -- --ignored`

use clap::Parser;
use loadgen::options::Options;
use loadgen::plan::OpKind;
use loadgen::protocol::{Common, Protocol, encode};
use loadgen::report::Report;
use loadgen::run::{exit_code, run};
use ringkv::wire::command::LevelsAsked;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server of our own, gone when dropped.
struct Peer {
    child: Child,
    port: u16,
}

impl Peer {
    fn start(command: &mut Command, port: u16) -> Peer {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the server is installed");
        let peer = Peer { child, port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "the server does not listen on {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
        peer
    }

    fn redis() -> Peer {
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
        Peer::start(&mut command, port)
    }

    fn memcached() -> Peer {
        let port = free_port();
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap();
        let mut command = Command::new("memcached");
        command.args(["-l", "127.0.0.1", "-U", "0", "-m", "256", "-u", user.trim(), "-p", &port.to_string()]);
        Peer::start(&mut command, port)
    }

    fn of(protocol: Protocol) -> Peer {
        if protocol == Protocol::Resp { Peer::redis() } else { Peer::memcached() }
    }

    /// Sends all requests at once; what comes back, as long as `expected`.
    fn talk(&self, requests: &[u8], expected: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(requests).unwrap();
        let (mut answers, mut chunk) = (Vec::new(), [0; 4096]);
        while answers.len() < expected.len() {
            match stream.read(&mut chunk) {
                Ok(len @ 1..) => answers.extend_from_slice(&chunk[..len]),
                _ => break,
            }
        }
        String::from_utf8(answers).unwrap()
    }

    fn load(&self, protocol: Protocol, flags: &str) -> Report {
        let target = format!("{}://127.0.0.1:{}", protocol.scheme(), self.port);
        let flags = ["loadgen", "--target", &target, "--quiet"].into_iter().chain(flags.split_whitespace());
        run(Options::try_parse_from(flags).unwrap(), &mut |_| {}).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Requests and what the real server answers to each.
type Dialogue = [(OpKind, &'static [u8], &'static [u8], u64, &'static str)];

fn hold(protocol: Protocol, dialogue: &Dialogue) {
    let peer = Peer::of(protocol);
    let (mut requests, mut expected) = (Vec::new(), String::new());
    for &(kind, key, value, ttl_ms, answer) in dialogue {
        encode(
            &mut requests,
            0,
            &Common { protocol, deadline_ms: 0, namespace: 1, levels: LevelsAsked::default(), ttl_ms },
            kind,
            key,
            value,
        );
        expected += answer;
    }
    assert_eq!(peer.talk(&requests, &expected), expected);
}

#[test]
#[ignore = "needs redis-server"]
fn redis_answers_as_the_codec_expects() {
    hold(
        Protocol::Resp,
        &[
            (OpKind::Get, b"k:1", b"", 0, "$-1\r\n"),
            (OpKind::Put, b"k:1", b"a\r\nb", 0, "+OK\r\n"),
            (OpKind::Get, b"k:1", b"", 0, "$4\r\na\r\nb\r\n"),
            (OpKind::Put, b"k:1", b"", 100_000, "+OK\r\n"),
            (OpKind::Get, b"k:1", b"", 0, "$0\r\n\r\n"),
            (OpKind::Put, b"k:2", b"gone", 1, "+OK\r\n"),
            (OpKind::Del, b"k:1", b"", 0, ":1\r\n"),
            (OpKind::Del, b"k:1", b"", 0, ":0\r\n"),
            (OpKind::Put, b"k:1", b"", i64::MAX as u64, "-ERR invalid expire time in 'set' command\r\n"),
            (OpKind::Get, b"k:1", b"", 0, "$-1\r\n"),
        ],
    );
}

#[test]
#[ignore = "needs memcached"]
fn memcached_answers_as_the_text_codec_expects() {
    hold(
        Protocol::MemcachedText,
        &[
            (OpKind::Get, b"k:1", b"", 0, "END\r\n"),
            (OpKind::Put, b"k:1", b"END\r\n", 0, "STORED\r\n"),
            (OpKind::Get, b"k:1", b"", 0, "VALUE k:1 0 5\r\nEND\r\n\r\nEND\r\n"),
            (OpKind::Put, b"k:1", b"", 100_000, "STORED\r\n"),
            (OpKind::Get, b"k:1", b"", 0, "VALUE k:1 0 0\r\n\r\nEND\r\n"),
            (OpKind::Del, b"k:1", b"", 0, "DELETED\r\n"),
            (OpKind::Del, b"k:1", b"", 0, "NOT_FOUND\r\n"),
        ],
    );
}

#[test]
#[ignore = "needs memcached"]
fn memcached_answers_as_the_meta_codec_expects() {
    hold(
        Protocol::MemcachedMeta,
        &[
            (OpKind::Get, b"k:1", b"", 0, "EN\r\n"),
            (OpKind::Put, b"k:1", b"END\r\n", 0, "HD\r\n"),
            (OpKind::Get, b"k:1", b"", 0, "VA 5\r\nEND\r\n\r\n"),
            (OpKind::Put, b"k:1", b"", 100_000, "HD\r\n"),
            (OpKind::Get, b"k:1", b"", 0, "VA 0\r\n\r\n"),
            (OpKind::Del, b"k:1", b"", 0, "HD\r\n"),
            (OpKind::Del, b"k:1", b"", 0, "NF\r\n"),
        ],
    );
}

fn checked_runs(protocol: Protocol) {
    let peer = Peer::of(protocol);
    for flags in [
        "--seconds 1 --closed --pipeline 16 --preload --mix get=5,put=4,del=1 --value 32..3000 --keys 2k",
        "--seconds 1 --closed --pipeline 3 --key-size 8..40 --dist latest --mix get=1,put=1 --value lognormal:300,1,32..20000 --keys 1k",
        "--seconds 1 --rate 3000 --dist hotspot:0.1,0.9 --cores 0 --mix get=1,put=1 --keys 1k",
        "--seconds 2 --closed --value 200K --keys 20 --pipeline 4 --mix get=3,put=1",
        "--rate 2000 --ttl 2s --seconds 6 --keys 300 --mix get=97,put=3 --preload",
    ] {
        let report = peer.load(protocol, &format!("--warmup 0.1 --conns 8 --check --verify {flags}"));
        let tally = &report.tally;
        assert_eq!((tally.wrong, tally.lost, exit_code(&report)), (0, 0, 0), "{flags}:\n{}", report.table());
        assert!(tally.errors.is_empty() && tally.checked >= 20, "{flags}:\n{}", report.table());
        assert!(report.server.starts_with("redis 7") || report.server.starts_with("memcached 1."), "{}", report.server);
        assert!(!flags.contains("--ttl") || tally.absent > 0, "what expired is absent:\n{}", report.table());
    }
}

#[test]
#[ignore = "needs redis-server"]
fn redis_passes_the_check() {
    checked_runs(Protocol::Resp);
}

#[test]
#[ignore = "needs memcached"]
fn memcached_passes_the_check() {
    checked_runs(Protocol::MemcachedText);
    checked_runs(Protocol::MemcachedMeta);
}

/// Keys that vanish behind the generator's back are lost.
#[test]
#[ignore = "needs redis-server and memcached"]
fn what_a_server_drops_is_found_lost() {
    for protocol in [Protocol::Resp, Protocol::MemcachedText] {
        let peer = Peer::of(protocol);
        let drop_all = if protocol == Protocol::Resp { "*1\r\n$8\r\nFLUSHALL\r\n" } else { "flush_all\r\n" };
        let report = std::thread::scope(|scope| {
            let load = scope.spawn(|| peer.load(protocol, "--rate 2000 --warmup 0 --seconds 4 --keys 100 --check --preload"));
            while !load.is_finished() {
                std::thread::sleep(Duration::from_millis(300));
                peer.talk(drop_all.as_bytes(), "OK\r\n");
            }
            load.join().unwrap()
        });
        assert!(report.tally.lost > 0 && exit_code(&report) == 1, "{}", report.table());
    }
}

#[test]
#[ignore = "needs redis-server"]
fn errors_of_a_server_are_counted_by_kind() {
    let peer = Peer::redis();
    peer.talk(b"CONFIG SET maxmemory 1\r\n", "+OK\r\n");
    let report = peer.load(Protocol::Resp, "--closed --warmup 0 --seconds 1 --keys 100 --check");
    assert!(report.tally.errors["OOM"] > 0 && report.tally.errors.len() == 1, "{}", report.table());
    assert_eq!((report.tally.wrong, report.tally.lost), (0, 0), "{}", report.table());
}

#[test]
#[ignore = "needs redis-server"]
fn a_password_is_sent_and_missed() {
    let peer = Peer::redis();
    peer.talk(b"CONFIG SET requirepass sesame\r\n", "+OK\r\n");
    let secret = std::env::temp_dir().join(format!("loadgen-secret-{}", std::process::id()));
    std::fs::write(&secret, "sesame\n").unwrap();
    let with =
        format!("loadgen --quiet --warmup 0 --seconds 0.2 --target redis://127.0.0.1:{} --secret-file {}", peer.port, secret.display());
    let without: Vec<&str> = with.split_whitespace().take(8).collect();
    assert!(run(Options::try_parse_from(&without).unwrap(), &mut |_| {}).is_err());
    let report = run(Options::try_parse_from(with.split_whitespace()).unwrap(), &mut |_| {}).unwrap();
    assert!(report.tally.answered > 0 && report.tally.errors.is_empty(), "{}", report.table());
    std::fs::remove_file(&secret).unwrap();
}

#[test]
#[ignore = "needs redis-server"]
fn a_search_ends_with_a_rate_that_holds() {
    let peer = Peer::redis();
    let report = peer.load(Protocol::Resp, "--find-p99-us 30000000 --rate 1000 --warmup 0.05 --seconds 0.15 --keys 100 --conns 4");
    let search = report.search.as_ref().unwrap();
    assert!(search.steps.len() > 3 && report.json().contains("\"find\": {\"p99_us\": 30000000.000"), "{}", report.table());
    if let Some(found) = search.found() {
        assert!(report.rate_wanted == Some(found), "{}", report.table());
    }
}
