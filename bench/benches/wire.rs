//! Frames, requests and answers of the native protocol, encoded and decoded as a server and a client do it.

use bench::Suite;
use ringkv::base::record::Version;
use ringkv::limits::FRAME_BYTES_MAX;
use ringkv::wire::command::{Command, Condition, LevelsAsked, Put, Reply, Request, Value, WriteOptions};
use ringkv::wire::frame::FrameReader;
use ringkv::wire::native::{decode_reply, decode_request, encode_reply, encode_request, value_frame_ends};
use std::hint::black_box;

const KEY: &[u8] = b"key:000000123456";
/// Frames in one chunk, as from a pipelining client.
const BATCH: usize = 256;

fn get() -> Request<'static> {
    Request { deadline_ms: 1000, namespace: 1, levels: LevelsAsked::default(), command: Command::Get { key: KEY } }
}

fn put(value: &[u8]) -> Request<'_> {
    let put = Put { key: KEY, value, ttl_ms: 0, condition: Condition::Always, write: WriteOptions::default() };
    Request { deadline_ms: 1000, namespace: 1, levels: LevelsAsked::default(), command: Command::Put(put) }
}

fn batch(mut encode: impl FnMut(&mut Vec<u8>, u64)) -> Vec<u8> {
    let mut out = Vec::new();
    (0..BATCH as u64).for_each(|id| encode(&mut out, id));
    out
}

fn main() {
    let suite = Suite::new("wire");
    let mut out = Vec::new();
    suite.run("encode get", BATCH, || {
        out.clear();
        (0..BATCH as u64).for_each(|id| encode_request(&mut out, id, black_box(&get())));
    });
    for bytes in [100, 1024, 16 * 1024] {
        let value = vec![5u8; bytes];
        suite.run(&format!("encode put of {bytes} B"), BATCH, || {
            out.clear();
            (0..BATCH as u64).for_each(|id| encode_request(&mut out, id, black_box(&put(&value))));
        });
        let reply = Reply::Value(Value { version: Version::put(1, 1), remaining_ms: None, value: &value });
        suite.run(&format!("encode value of {bytes} B"), BATCH, || {
            out.clear();
            (0..BATCH as u64).for_each(|id| encode_reply(&mut out, id, black_box(&reply)));
        });
    }
    suite.run("encode value around bytes in place", 1, || value_frame_ends(black_box(7), Version::put(1, 1), None, black_box(1024)));
    suite.run("encode done", BATCH, || {
        out.clear();
        (0..BATCH as u64).for_each(|id| encode_reply(&mut out, id, &Reply::Done { version: black_box(Version::put(1, 1)) }));
    });
    decode(&suite);
}

fn decode(suite: &Suite) {
    let value = [5u8; 100];
    let requests = [
        ("get", batch(|out, id| encode_request(out, id, &get()))),
        ("put of 100 B", batch(|out, id| encode_request(out, id, &put(&value)))),
    ];
    for (name, bytes) in &requests {
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        suite.run(&format!("frames of a {name}"), BATCH, || reader.feed(black_box(bytes)).map(|frame| frame.unwrap().id).sum::<u64>());
        suite.run(&format!("frames and decode {name}"), BATCH, || {
            reader.feed(black_box(bytes)).for_each(|frame| {
                let frame = frame.unwrap();
                black_box(decode_request(frame.kind, frame.body).unwrap());
            });
        });
        // A chunk that ends within a frame: one frame of the batch is assembled.
        suite.run(&format!("frames and decode {name}, cut"), BATCH, || {
            let (first, second) = bytes.split_at(bytes.len() / 2 + 9);
            for chunk in [first, second] {
                reader.feed(black_box(chunk)).for_each(|frame| {
                    let frame = frame.unwrap();
                    black_box(decode_request(frame.kind, frame.body).unwrap());
                });
            }
        });
    }
    let reply = Reply::Value(Value { version: Version::put(1, 1), remaining_ms: None, value: &value });
    for (name, reply) in [("value of 100 B", reply), ("done", Reply::Done { version: Version::put(1, 1) })] {
        let bytes = batch(|out, id| encode_reply(out, id, &reply));
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        suite.run(&format!("frames and decode {name}"), BATCH, || {
            reader.feed(black_box(&bytes)).for_each(|frame| {
                let frame = frame.unwrap();
                black_box(decode_reply(frame.kind, frame.body).unwrap());
            });
        });
    }
}
