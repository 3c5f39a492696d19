//! The tokio face of the client against the built node.

mod common;

use common::{Folder, Node, PATIENCE, two_cores};
use ringkv::base::record::Version;
use ringkv::client::tokio::Client;
use ringkv::client::{ClientConfig, ClientError, PutOptions, TimeToLive};
use ringkv::wire::command::{Condition, ErrorCode, PutItem};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(async { tokio::time::timeout(4 * PATIENCE, test).await.expect("the test ends") });
}

#[test]
fn a_node_answers_every_kind_of_call() {
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &[]);
    run(async {
        let client = Client::connect(node.config()).await.unwrap();
        let version = client.put(b"k", b"one").await.unwrap();
        let if_version = PutOptions { condition: Condition::IfVersion(version), ..PutOptions::default() };
        let newer = client.put_with(b"k", b"two", if_version).await.unwrap();
        assert_eq!(client.put_with(b"k", b"x", if_version).await, Err(ClientError::NotMet { present: Some(newer) }));
        assert_eq!(client.get(b"k").await.unwrap().expect("it was put").value, b"two");
        assert!(client.expire(b"k", Duration::from_secs(100)).await.unwrap().is_some());
        assert!(matches!(client.ttl(b"k").await.unwrap(), TimeToLive::Remaining(left) if left <= Duration::from_secs(100)));
        client.delete(b"k").await.unwrap();
        assert_eq!(client.get(b"k").await.unwrap(), None);
        let keys: Vec<_> = (0..5000u32).map(u32::to_be_bytes).collect();
        let items: Vec<_> = keys.iter().map(|key| PutItem { key, value: key, ttl_ms: 0 }).collect();
        assert!(client.multi_put(&items).await.unwrap().iter().all(|version| *version > Version::ZERO));
        let asked: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let values = client.multi_get(&asked).await.unwrap();
        assert!(values.iter().zip(&asked).all(|(value, key)| value.as_ref().is_some_and(|(_, value)| value == key)));
        let wrong = ClientConfig { namespace: "missing".into(), ..node.config() };
        assert!(matches!(Client::connect(wrong).await, Err(ClientError::Failed { code: ErrorCode::NoSuchNamespace, .. })));
    });
}

/// Writes rounds until told to stop: the last that was acknowledged, and the last that was tried.
async fn write_until(client: &Client, key: &[u8], stop: &AtomicBool) -> (u32, u32) {
    let (mut acknowledged, mut tried) = (0u32, 0u32);
    while !stop.load(Ordering::Relaxed) {
        tried += 1;
        match client.put(key, &tried.to_be_bytes()).await {
            Ok(_) => acknowledged = tried,
            Err(ClientError::Unknown { .. } | ClientError::Disconnected(_) | ClientError::TimedOut) => {}
            Err(ClientError::Failed { code: ErrorCode::Overloaded, .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    (acknowledged, tried)
}

#[test]
fn writes_that_were_acknowledged_are_there_when_a_killed_node_is_back_on_other_cores() {
    let Some(cores) = two_cores("a killed node is back on other cores") else { return };
    let folder = Folder::new();
    let node = Node::start(&folder.data(), &["--cores", &cores]);
    let port = node.native.port().to_string();
    run(async {
        let client = Client::connect(ClientConfig { retries: 20, ..node.config() }).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..20u32)
            .map(|task| {
                let (client, stop) = (client.clone(), stop.clone());
                tokio::spawn(async move { write_until(&client, &task.to_be_bytes(), &stop).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.kill();
        let again = Node::start(&folder.data(), &["--port", &port]);
        client.ping().await.expect("it is back");
        stop.store(true, Ordering::Relaxed);
        for (task, key) in tasks.into_iter().zip(0u32..) {
            let (acknowledged, tried) = task.await.expect("its errors are the ones that a killed node may cause");
            let found = client.get(&key.to_be_bytes()).await.unwrap();
            let round = found.map_or(0, |got| u32::from_be_bytes(got.value.try_into().unwrap()));
            assert!((acknowledged..=tried).contains(&round), "{round} is there, {acknowledged} was acknowledged, {tried} tried");
        }
        assert_eq!(client.server().cores, 1);
        drop(again);
    });
}
