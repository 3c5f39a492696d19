//! How many requests a second the generator itself can make and judge. Run by hand:
//! `cargo test --release -p loadgen --test speed -- --ignored --nocapture`

use clap::Parser;
use loadgen::options::Options;
use ringkv::base::record::Version;
use ringkv::wire::command::{HelloOk, Limits, List, Reply, Value};
use ringkv::wire::frame::FrameReader;
use ringkv::wire::native::encode_reply;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// Answers anything at once and keeps nothing.
fn serve(mut stream: TcpStream) {
    let mut reader = FrameReader::new(1 << 24);
    let (mut chunk, mut out) = (vec![0; 256 * 1024], Vec::new());
    let limits = Limits {
        frame_bytes_max: 1 << 24,
        key_bytes_max: 1 << 15,
        value_bytes_max: 1 << 24,
        multi_keys_max: 1,
        scan_entries_max: 1,
        connection_bytes_max: 1 << 25,
        deadline_ms_default: 1,
    };
    let (nodes, owners) = (List::Owned(Vec::new()), List::Owned(Vec::new()));
    let hello = Reply::HelloOk(HelloOk {
        protocol_version: 1,
        core: 0,
        cores: 1,
        vnodes: 4096,
        node_id: 1,
        cluster_id: [0; 16],
        epoch: 1,
        features: 0,
        limits,
        nodes,
        owners,
    });
    let value = Reply::Value(Value { version: Version::put(1, 1), remaining_ms: None, value: &[7; 100] });
    while let Ok(len @ 1..) = stream.read(&mut chunk) {
        for frame in reader.feed(&chunk[..len]).flatten() {
            match frame.kind {
                1 => encode_reply(&mut out, frame.id, &hello),
                16 => encode_reply(&mut out, frame.id, &value),
                _ => encode_reply(&mut out, frame.id, &Reply::Done { version: Version::put(1, 1) }),
            }
        }
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}

#[test]
#[ignore = "a measurement"]
fn the_generator_makes_half_a_million_requests_a_core_second() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(std::thread::spawn(move || serve(stream)))));
    for flags in [
        "--closed --pipeline 32 --conns 8",
        "--closed --pipeline 32 --conns 8 --dist zipf:0.99",
        "--closed --pipeline 1 --conns 50",
        "--rate 300k --conns 50",
        "--rate 300k --conns 50 --dist zipf:0.99",
    ] {
        let line = format!("loadgen --target native://{address} --quiet --warmup 0.5 --seconds 2 {flags}");
        let report = loadgen::run::run(Options::try_parse_from(line.split_whitespace()).unwrap(), &mut |_| {}).unwrap();
        let tally = &report.tally;
        let seconds = tally.cpu_ns as f64 / 1e9 * 2.0 / 2.5;
        println!("{flags}: {:.0} requests a core second\n{}", tally.answered as f64 / seconds, report.table());
        assert!(!flags.contains("--pipeline 32") || tally.answered as f64 / seconds > 500_000.0);
    }
}
