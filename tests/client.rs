//! The blocking client against a server of a few lines, which speaks the real protocol and can be told to misbehave.

#![cfg(feature = "client")]

mod fake_server;

use fake_server::{CORES, Mishap, Shared, VNODES, config, hello_ok, key_of_core, serve, serve_cluster};
use ringkv::client::{Answer, Client, ClientConfig, ClientError, PutOptions, TimeToLive};
use ringkv::wire::command::*;
use ringkv::wire::frame::FrameReader;
use ringkv::wire::native::encode_reply;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

#[test]
fn every_method_gets_a_typed_result_and_keys_go_to_their_core() {
    let (address, shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    client.ping().unwrap();
    assert_eq!(client.info().unwrap(), "role:test\n");
    assert_eq!(client.get(b"none").unwrap(), None);
    for n in 0..50u32 {
        let key = n.to_le_bytes();
        let version = client.put(&key, b"value").unwrap();
        let got = client.get(&key).unwrap().expect("present");
        assert_eq!((got.version, got.remaining, &got.value[..]), (version, None, &b"value"[..]));
    }
    let options = PutOptions { condition: Condition::IfAbsent, ..PutOptions::default() };
    assert!(matches!(client.put_with(&[0; 4], b"x", options), Err(ClientError::NotMet { present: Some(_) })));
    assert_eq!(client.ttl(b"none").unwrap(), TimeToLive::Absent);
    assert_eq!(client.expire(b"none", Duration::from_secs(1)).unwrap(), None);
    assert!(client.expire(&[0; 4], Duration::from_secs(1)).unwrap().is_some());
    assert_eq!(client.ttl(&[0; 4]).unwrap(), TimeToLive::Remaining(Duration::from_secs(1)));
    assert!(client.persist(&[0; 4]).unwrap().is_some());
    assert_eq!(client.ttl(&[0; 4]).unwrap(), TimeToLive::Never);
    client.delete(&[0; 4]).unwrap();
    assert_eq!(client.get(&[0; 4]).unwrap(), None);
    let found: usize = (0..VNODES).map(|vnode| client.scan(vnode, b"", 0, false).unwrap().entries.len()).sum();
    assert_eq!(found, 49);
    assert_eq!(client.namespaces().unwrap().len(), 2);
    let refused = client.snapshot("s").unwrap_err();
    assert!(matches!(refused, ClientError::Failed { code: ErrorCode::Failed, .. }), "{refused}");
    let state = shared.lock().unwrap();
    assert_eq!((state.misrouted, state.connections), (0, u32::from(CORES)));
}

#[test]
fn multi_commands_keep_the_order_of_their_keys_over_cores_and_parts() {
    let (address, _shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    let keys: Vec<Vec<u8>> = (0..500u32).map(|n| n.to_be_bytes().to_vec()).collect();
    let items: Vec<_> = keys.iter().map(|key| PutItem { key, value: key, ttl_ms: 0 }).collect();
    assert_eq!(client.multi_put(&items).unwrap().len(), 500);
    let mut asked: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    asked.insert(7, b"absent");
    let values = client.multi_get(&asked).unwrap();
    for (key, value) in asked.iter().zip(values) {
        assert_eq!(value.map(|(_, value)| value), (*key != b"absent").then(|| key.to_vec()));
    }
    assert_eq!(client.multi_get(&[]).unwrap(), []);
}

#[test]
fn a_pipeline_larger_than_all_buffers_does_not_deadlock() {
    let (address, _shared) = serve();
    let mut client = Client::connect(ClientConfig { request_timeout: Duration::from_secs(20), ..config(&address) }).unwrap();
    let value = vec![7u8; 1 << 20];
    let mut pipeline = client.pipeline();
    for _ in 0..40 {
        pipeline.put(b"key", &value);
        pipeline.get(b"key");
    }
    let outcomes = pipeline.run();
    assert_eq!(outcomes.len(), 80);
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match (index % 2, outcome.unwrap()) {
            (0, Answer::Done(_)) => {}
            (1, Answer::Value(got)) => assert!(got.value == value),
            other => panic!("{other:?}"),
        }
    }
    let mut pipeline = client.pipeline();
    let keys: Vec<[u8; 4]> = (0..5000u32).map(u32::to_le_bytes).collect();
    keys.iter().for_each(|key| _ = pipeline.put(key, key));
    assert!(pipeline.run().iter().all(|outcome| matches!(outcome, Ok(Answer::Done(_)))));
}

#[test]
fn an_announced_write_whose_answer_is_lost_is_retried_under_its_version() {
    let (address, shared) = serve();
    let mut client = Client::connect(ClientConfig { announce: true, ..config(&address) }).unwrap();
    for mishap in [Mishap::AnnounceThenClose, Mishap::UnknownWithVersion] {
        shared.lock().unwrap().mishap = Some(mishap);
        let version = client.put(b"k", b"v").unwrap();
        let mut state = shared.lock().unwrap();
        assert_eq!(state.carried, [None, Some(version)], "{mishap:?}");
        state.carried.clear();
    }
}

#[test]
fn an_unannounced_write_without_an_answer_is_unknown_and_never_sent_again() {
    let (address, shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    for mishap in [Mishap::Close, Mishap::Silence] {
        shared.lock().unwrap().mishap = Some(mishap);
        assert_eq!(client.put(b"k", b"v"), Err(ClientError::Unknown { version: None }), "{mishap:?}");
        assert_eq!(std::mem::take(&mut shared.lock().unwrap().carried), [None]);
        assert!(client.put(b"k", b"v").is_ok(), "the next one finds a way");
        shared.lock().unwrap().carried.clear();
    }
}

#[test]
fn reads_survive_a_lost_connection_and_a_missing_server_fails_in_time() {
    let (address, shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    client.put(b"k", b"v").unwrap();
    shared.lock().unwrap().close_all = true;
    assert_eq!(client.get(b"k").unwrap().map(|got| got.value), Some(b"v".to_vec()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let unused = listener.local_addr().unwrap().to_string();
    drop(listener);
    let begin = Instant::now();
    assert!(matches!(Client::connect(config(&unused)), Err(ClientError::Disconnected(_))));
    let missing = ClientConfig { namespace: "missing".into(), ..config(&address) };
    assert!(matches!(Client::connect(missing), Err(ClientError::Failed { code: ErrorCode::NoSuchNamespace, .. })));
    let other = ClientConfig { namespace: "other".into(), single_connection: true, ..config(&address) };
    assert_eq!(Client::connect(other).unwrap().namespace_id(), 2);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_server_that_comes_back_with_other_cores_is_learnt_anew() {
    let (address, shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    for cores in [5, 1] {
        let mut state = shared.lock().unwrap();
        (state.cores, state.close_all) = (Some(cores), true);
        drop(state);
        client.ping().unwrap();
        assert_eq!(client.server().cores, cores);
        shared.lock().unwrap().misrouted = 0;
        (0..20u32).for_each(|n| _ = client.put(&n.to_le_bytes(), b"v").unwrap());
        assert_eq!(shared.lock().unwrap().misrouted, 0);
    }
}

#[test]
fn a_core_that_is_gone_is_no_reason_to_give_up() {
    let (address, shared) = serve();
    let mut client = Client::connect(config(&address)).unwrap();
    shared.lock().unwrap().cores = Some(1);
    client.put(&key_of_core(1), b"v").unwrap();
    assert_eq!(client.server().cores, 1);
}

/// Forty keys are put, each at the node and core that own it first.
fn all_arrive_at_once(client: &mut Client, servers: &[(String, Shared)]) -> bool {
    servers.iter().for_each(|(_, shared)| shared.lock().unwrap().misrouted = 0);
    (0..40u32).for_each(|n| _ = client.put(&n.to_le_bytes(), b"v").unwrap());
    servers.iter().all(|(_, shared)| shared.lock().unwrap().misrouted == 0)
}

fn soon(mut holds: impl FnMut() -> bool) -> bool {
    (0..200).any(|_| {
        holds() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }
    })
}

#[test]
fn keys_of_a_cluster_go_to_the_node_that_has_them_and_follow_it() {
    let servers = serve_cluster(3);
    let mut client = Client::connect(config(&servers[1].0)).unwrap();
    assert_eq!(client.server().node_id, 2);
    assert!(soon(|| all_arrive_at_once(&mut client, &servers)), "the owners are not asked");
    let keys: Vec<Vec<u8>> = (0..200u32).map(|n| n.to_be_bytes().to_vec()).collect();
    let items: Vec<_> = keys.iter().map(|key| PutItem { key, value: key, ttl_ms: 0 }).collect();
    client.multi_put(&items).unwrap();
    let asked: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let found = client.multi_get(&asked).unwrap();
    assert!(found.iter().zip(&keys).all(|(found, key)| found.as_ref().is_some_and(|(_, value)| value == key)), "each has data of its own");
    let mut pipeline = client.pipeline();
    asked.iter().for_each(|key| _ = pipeline.get(key));
    assert!(pipeline.run().iter().zip(&keys).all(|(found, key)| matches!(found, Ok(Answer::Value(found)) if found.value == *key)));
    // One connection a node wants to be told, or two: the first was made for any core.
    assert!(servers.iter().all(|(_, shared)| matches!(shared.lock().unwrap().told, 1 | 2)));
    // Everything moves on by one node, and one of them says so.
    for (_, shared) in &servers {
        let mut state = shared.lock().unwrap();
        let ring = state.ring.as_mut().unwrap();
        ring.epoch = 2;
        ring.owners.iter_mut().for_each(|owner| *owner = (*owner + 1) % 3);
    }
    let connections = |at: usize| servers[at].1.lock().unwrap().connections;
    let before = [0, 1, 2].map(connections);
    servers[2].1.lock().unwrap().has_news = true;
    assert!(soon(|| all_arrive_at_once(&mut client, &servers)), "the move is not heard of");
    assert_eq!((client.server().epoch, [0, 1, 2].map(connections)), (2, before), "connections stay where they are");
    // What is older than what is known says nothing.
    {
        let mut state = servers[0].1.lock().unwrap();
        let ring = state.ring.as_mut().unwrap();
        (ring.epoch, ring.owners) = (1, vec![0; VNODES as usize]);
        state.has_news = true;
    }
    (0..40u32).for_each(|n| _ = client.put(&n.to_le_bytes(), b"v").unwrap());
    assert_eq!(client.server().epoch, 2);
}

#[test]
fn a_node_that_cannot_be_reached_is_stood_in_for_at_once() {
    let servers = serve_cluster(3);
    // Nobody is where the third should be, and the second is not who it should be.
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (_, shared) in &servers {
        let mut state = shared.lock().unwrap();
        let ring = state.ring.as_mut().unwrap();
        ring.ports[2] = unused;
        if ring.id == 2 {
            ring.id = 3;
        }
    }
    let mut client = Client::connect(config(&servers[0].0)).unwrap();
    let begin = Instant::now();
    for n in 0..200u32 {
        client.put(&n.to_le_bytes(), b"v").unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    let carried = |at: usize| servers[at].1.lock().unwrap().carried.len();
    assert_eq!([0, 1, 2].map(carried), [200, 0, 0]);
    let alone = ClientConfig { follow_ring: false, ..config(&servers[2].0) };
    let mut client = Client::connect(alone).unwrap();
    (0..40u32).for_each(|n| _ = client.put(&n.to_le_bytes(), b"v").unwrap());
    assert_eq!([0, 1, 2].map(carried), [200, 0, 40], "who does not follow the ring asks one node");
}

#[test]
fn a_pipeline_without_a_server_ends_in_time_as_a_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let bytes = stream.read(&mut buffer).unwrap();
        let id = FrameReader::new(4096).feed(&buffer[..bytes]).next().unwrap().unwrap().id;
        let mut out = Vec::new();
        encode_reply(&mut out, id, &hello_ok(0, CORES));
        stream.write_all(&out).unwrap();
    });
    let mut client = Client::connect(config(&address)).unwrap();
    server.join().unwrap();
    let begin = Instant::now();
    let mut pipeline = client.pipeline();
    (0..500).for_each(|_| _ = pipeline.get(b"k"));
    let outcomes = pipeline.run();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(ClientError::Disconnected(_)))));
    assert_eq!(outcomes.len(), 500);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}
