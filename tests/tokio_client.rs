//! The tokio face of the client against a server of a few lines, which speaks the real protocol and can be told to misbehave.

mod fake_server;

use fake_server::{CORES, Mishap, Shared, VNODES, config, hello_ok, key_of_core, serve, serve_cluster};
use ringkv::client::tokio::Client;
use ringkv::client::{Answer, ClientConfig, ClientError, PutOptions, TimeToLive};
use ringkv::wire::command::*;
use ringkv::wire::frame::FrameReader;
use ringkv::wire::native::encode_reply;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where the server answers, no loaded machine is too slow for it.
fn patient(address: &str) -> ClientConfig {
    ClientConfig { request_timeout: PATIENCE, connect_timeout: PATIENCE, ..config(address) }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// Runs a test to its end, which must come.
fn run(test: impl Future<Output = ()>) {
    runtime().block_on(async { tokio::time::timeout(Duration::from_secs(120), test).await.expect("the test ends") });
}

/// A server that says hello to one client and then neither reads nor answers, until `TcpStream` is dropped.
fn deaf() -> (String, std::thread::JoinHandle<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let bytes = stream.read(&mut buffer).unwrap();
        let id = FrameReader::new(4096).feed(&buffer[..bytes]).next().unwrap().unwrap().id;
        let mut out = Vec::new();
        encode_reply(&mut out, id, &hello_ok(0, 1));
        stream.write_all(&out).unwrap();
        stream
    });
    (address, server)
}

#[test]
fn handles_can_be_sent_and_their_calls_too() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    fn is_shared<T: Clone + Send + Sync + 'static>() {}
    is_shared::<Client>();
    run(async {
        let (address, _shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        is_send(client.put(b"k", b"v")).await.unwrap();
        is_send(client.multi_get(&[b"k"])).await.unwrap();
        is_send(client.pipeline().run()).await;
    });
}

#[test]
fn every_method_gets_a_typed_result_and_keys_go_to_their_core() {
    run(async {
        let (address, shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        client.ping().await.unwrap();
        assert_eq!(client.info().await.unwrap(), "role:test\n");
        assert_eq!(client.get(b"none").await.unwrap(), None);
        for n in 0..50u32 {
            let key = n.to_le_bytes();
            let version = client.put(&key, b"value").await.unwrap();
            let got = client.get(&key).await.unwrap().expect("present");
            assert_eq!((got.version, got.remaining, &got.value[..]), (version, None, &b"value"[..]));
        }
        let options = PutOptions { condition: Condition::IfAbsent, ..PutOptions::default() };
        assert!(matches!(client.put_with(&[0; 4], b"x", options).await, Err(ClientError::NotMet { present: Some(_) })));
        assert_eq!(client.ttl(b"none").await.unwrap(), TimeToLive::Absent);
        assert_eq!(client.expire(b"none", Duration::from_secs(1)).await.unwrap(), None);
        assert!(client.expire(&[0; 4], Duration::from_secs(1)).await.unwrap().is_some());
        assert_eq!(client.ttl(&[0; 4]).await.unwrap(), TimeToLive::Remaining(Duration::from_secs(1)));
        assert!(client.persist(&[0; 4]).await.unwrap().is_some());
        assert_eq!(client.ttl(&[0; 4]).await.unwrap(), TimeToLive::Never);
        client.delete(&[0; 4]).await.unwrap();
        assert_eq!(client.get(&[0; 4]).await.unwrap(), None);
        let mut found = 0;
        for vnode in 0..VNODES {
            found += client.scan(vnode, b"", 0, false).await.unwrap().entries.len();
        }
        assert_eq!(found, 49);
        assert_eq!(client.namespaces().await.unwrap().len(), 2);
        let refused = client.snapshot("s").await.unwrap_err();
        assert!(matches!(refused, ClientError::Failed { code: ErrorCode::Failed, .. }), "{refused}");
        let state = shared.lock().unwrap();
        assert_eq!((state.misrouted, state.connections), (0, u32::from(CORES)));
    });
}

#[test]
fn calls_that_run_at_once_share_a_connection_a_core() {
    run(async {
        let (address, shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        let tasks: Vec<_> = (0..3000u32)
            .map(|n| {
                let client = client.clone();
                tokio::spawn(async move {
                    let key = n.to_le_bytes();
                    let version = client.put(&key, &key).await.unwrap();
                    let got = client.get(&key).await.unwrap().expect("present");
                    assert_eq!((got.version, &got.value[..]), (version, &key[..]));
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("every caller has its own answer");
        }
        let state = shared.lock().unwrap();
        assert_eq!((state.misrouted, state.connections), (0, u32::from(CORES)));
    });
}

#[test]
fn multi_commands_keep_the_order_of_their_keys_over_cores_and_parts() {
    run(async {
        let (address, _shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        let keys: Vec<Vec<u8>> = (0..500u32).map(|n| n.to_be_bytes().to_vec()).collect();
        let items: Vec<_> = keys.iter().map(|key| PutItem { key, value: key, ttl_ms: 0 }).collect();
        assert_eq!(client.multi_put(&items).await.unwrap().len(), 500);
        let mut asked: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        asked.insert(7, b"absent");
        let values = client.multi_get(&asked).await.unwrap();
        for (key, value) in asked.iter().zip(values) {
            assert_eq!(value.map(|(_, value)| value), (*key != b"absent").then(|| key.to_vec()));
        }
        assert_eq!(client.multi_get(&[]).await.unwrap(), []);
    });
}

#[test]
fn a_pipeline_larger_than_all_buffers_does_not_deadlock() {
    run(async {
        let (address, _shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        let value = vec![7u8; 1 << 20];
        let mut pipeline = client.pipeline();
        for _ in 0..60 {
            pipeline.put(b"key", &value);
            pipeline.get(b"key");
        }
        let outcomes = pipeline.run().await;
        assert_eq!(outcomes.len(), 120);
        for (index, outcome) in outcomes.into_iter().enumerate() {
            match (index % 2, outcome.unwrap()) {
                (0, Answer::Done(_)) => {}
                // The two may be executed in any order, the first pair too.
                (1, Answer::Value(got)) => assert!(got.value == value),
                (1, Answer::Absent) => {}
                other => panic!("{other:?}"),
            }
        }
        let mut pipeline = client.pipeline();
        let keys: Vec<[u8; 4]> = (0..5000u32).map(u32::to_le_bytes).collect();
        keys.iter().for_each(|key| _ = pipeline.put(key, key));
        assert!(pipeline.run().await.iter().all(|outcome| matches!(outcome, Ok(Answer::Done(_)))));
    });
}

#[test]
fn an_announced_write_whose_answer_is_lost_is_retried_under_its_version() {
    run(async {
        let (address, shared) = serve();
        let client = Client::connect(ClientConfig { announce: true, ..patient(&address) }).await.unwrap();
        for mishap in [Mishap::AnnounceThenClose, Mishap::UnknownWithVersion] {
            shared.lock().unwrap().mishap = Some(mishap);
            let version = client.put(b"k", b"v").await.unwrap();
            let mut state = shared.lock().unwrap();
            assert_eq!(state.carried, [None, Some(version)], "{mishap:?}");
            state.carried.clear();
        }
    });
}

#[test]
fn an_unannounced_write_without_an_answer_is_unknown_and_never_sent_again() {
    run(async {
        let (address, shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        for mishap in [Mishap::Close, Mishap::Silence] {
            shared.lock().unwrap().mishap = Some(mishap);
            let client = if mishap == Mishap::Silence { client.with_timeout(Duration::from_millis(400)) } else { client.clone() };
            assert_eq!(client.put(b"k", b"v").await, Err(ClientError::Unknown { version: None }), "{mishap:?}");
            assert_eq!(std::mem::take(&mut shared.lock().unwrap().carried), [None]);
            assert!(client.with_timeout(PATIENCE).put(b"k", b"v").await.is_ok(), "the next one finds a way");
            shared.lock().unwrap().carried.clear();
        }
    });
}

#[test]
fn reads_survive_a_lost_connection_and_a_missing_server_is_told() {
    run(async {
        let (address, shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        client.put(b"k", b"v").await.unwrap();
        shared.lock().unwrap().close_all = true;
        assert_eq!(client.get(b"k").await.unwrap().map(|got| got.value), Some(b"v".to_vec()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let unused = listener.local_addr().unwrap().to_string();
        drop(listener);
        assert!(matches!(Client::connect(patient(&unused)).await, Err(ClientError::Disconnected(_))));
        let missing = ClientConfig { namespace: "missing".into(), ..patient(&address) };
        assert!(matches!(Client::connect(missing).await, Err(ClientError::Failed { code: ErrorCode::NoSuchNamespace, .. })));
        let other = ClientConfig { namespace: "other".into(), single_connection: true, ..patient(&address) };
        assert_eq!(Client::connect(other).await.unwrap().namespace_id(), 2);
    });
}

#[test]
fn a_server_that_comes_back_with_other_cores_is_learnt_anew() {
    run(async {
        let (address, shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        for cores in [5, 1] {
            {
                let mut state = shared.lock().unwrap();
                (state.cores, state.close_all) = (Some(cores), true);
            }
            client.ping().await.unwrap();
            assert_eq!(client.server().cores, cores);
            shared.lock().unwrap().misrouted = 0;
            for n in 0..20u32 {
                client.put(&n.to_le_bytes(), b"v").await.unwrap();
            }
            assert_eq!(shared.lock().unwrap().misrouted, 0);
        }
    });
}

/// Forty keys are put, each at the node and core that own it first; tried again for a while.
async fn all_arrive_at_once(client: &Client, servers: &[(String, Shared)]) -> bool {
    for _ in 0..200 {
        servers.iter().for_each(|(_, shared)| shared.lock().unwrap().misrouted = 0);
        for n in 0..40u32 {
            client.put(&n.to_le_bytes(), b"v").await.unwrap();
        }
        if servers.iter().all(|(_, shared)| shared.lock().unwrap().misrouted == 0) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[test]
fn keys_of_a_cluster_go_to_the_node_that_has_them_and_follow_it() {
    run(async {
        let servers = serve_cluster(3);
        let client = Client::connect(patient(&servers[1].0)).await.unwrap();
        assert_eq!(client.server().node_id, 2);
        assert!(all_arrive_at_once(&client, &servers).await, "the owners are not asked");
        for (_, shared) in &servers {
            let mut state = shared.lock().unwrap();
            let ring = state.ring.as_mut().unwrap();
            ring.epoch = 2;
            ring.owners.iter_mut().for_each(|owner| *owner = (*owner + 1) % 3);
        }
        let connections = |at: usize| servers[at].1.lock().unwrap().connections;
        let before = [0, 1, 2].map(connections);
        servers[2].1.lock().unwrap().has_news = true;
        assert!(all_arrive_at_once(&client, &servers).await, "the move is not heard of");
        assert_eq!((client.server().epoch, [0, 1, 2].map(connections)), (2, before), "connections stay where they are");
        // A node is gone: what it had is asked of the others, and its lanes end with their last answer.
        for (_, shared) in &servers {
            let mut state = shared.lock().unwrap();
            let ring = state.ring.as_mut().unwrap();
            ring.epoch = 3;
            ring.ports.pop();
            ring.owners.iter_mut().for_each(|owner| *owner %= 2);
        }
        servers[0].1.lock().unwrap().has_news = true;
        assert!(all_arrive_at_once(&client, &servers).await, "the leave is not heard of");
        let carried = servers[2].1.lock().unwrap().carried.len();
        assert!(all_arrive_at_once(&client, &servers).await);
        assert_eq!(servers[2].1.lock().unwrap().carried.len(), carried);
    });
}

#[test]
fn a_node_that_cannot_be_reached_is_stood_in_for_at_once() {
    run(async {
        let servers = serve_cluster(2);
        let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        servers[0].1.lock().unwrap().ring.as_mut().unwrap().ports[1] = unused;
        let client = Client::connect(patient(&servers[0].0)).await.unwrap();
        let begin = Instant::now();
        for n in 0..200u32 {
            client.put(&n.to_le_bytes(), b"v").await.unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        assert_eq!(servers[0].1.lock().unwrap().carried.len(), 200);
    });
}

#[test]
fn a_core_that_is_gone_is_no_reason_to_give_up() {
    run(async {
        let (address, shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        shared.lock().unwrap().cores = Some(1);
        client.put(&key_of_core(1), b"v").await.unwrap();
        assert_eq!(client.server().cores, 1);
    });
}

#[test]
fn what_is_in_flight_is_bounded_and_deadlines_hold_where_nobody_answers() {
    run(async {
        let (address, server) = deaf();
        let config = ClientConfig { retries: 0, ..patient(&address) };
        let client = Client::connect(config).await.unwrap();
        let _stream = server.join().unwrap();
        let short = client.with_timeout(Duration::from_millis(200));
        let begun = Instant::now();
        let tasks: Vec<_> = (0..1500)
            .map(|_| {
                let client = short.clone();
                tokio::spawn(async move { client.get(b"k").await.unwrap_err() })
            })
            .collect();
        let (mut late, mut full) = (0, 0);
        for task in tasks {
            match task.await.unwrap() {
                ClientError::TimedOut => late += 1,
                ClientError::Full => full += 1,
                other => panic!("{other}"),
            }
        }
        assert!(begun.elapsed() >= Duration::from_millis(200));
        assert!(late >= 1024 && late + full == 1500, "{late} were sent and {full} were not");
        let value = vec![0; 8 << 20];
        let mut gathered = 0;
        // The socket is full soon, so the deadlines of what waits for it are all that ends these.
        loop {
            match short.put(b"k", &value).await {
                Err(ClientError::Unknown { version: None }) => gathered += 1,
                Err(ClientError::Full) => break,
                // A machine that stood still for so long.
                Err(ClientError::TimedOut) => {}
                other => panic!("{other:?}"),
            }
            assert!(gathered < 20, "what the server does not take is not gathered without a bound");
        }
    });
}

#[test]
fn a_caller_that_stops_waiting_leaves_the_others_alone() {
    run(async {
        let (address, shared) = serve();
        let client = Client::connect(patient(&address)).await.unwrap();
        // Every core is connected: a caller that stops waiting for a connection takes that along.
        for n in 0..20u32 {
            client.put(&n.to_le_bytes(), b"v").await.unwrap();
        }
        for n in 0..200u32 {
            let key = n.to_le_bytes();
            let impatient = tokio::time::timeout(Duration::ZERO, client.put(&key, b"v"));
            let (_, got) = (impatient.await, client.get(&key).await);
            assert!(got.is_ok(), "{got:?}");
        }
        assert_eq!(shared.lock().unwrap().connections, u32::from(CORES));
    });
}

#[test]
fn a_client_outlives_the_runtime_that_carried_its_connections() {
    let (address, shared) = serve();
    let first = runtime();
    let client = first.block_on(async {
        let client = Client::connect(patient(&address)).await.unwrap();
        client.put(b"k", b"v").await.unwrap();
        client
    });
    drop(first);
    run(async { assert_eq!(client.get(b"k").await.unwrap().map(|got| got.value), Some(b"v".to_vec())) });
    assert!(shared.lock().unwrap().connections > 1);
}
