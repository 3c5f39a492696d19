//! What is deleted goes from the disk: everything is deleted at rest, and when floors have passed that, merges are provoked.

use super::final_look::Quiet;
use super::workload::{Keyspace, key_name};
use crate::base::record::NamespaceId;
use crate::client::{Answer, ClientError};
use crate::io::{Io, SocketAddr};
use crate::wire::command::{Command, Condition, Delete, Put, WriteOptions};

/// Values that go in a round, about as many bytes each as the smallest memtable has: few, so that not all nodes merge at a time.
const VALUES: u32 = 6;
const VALUE_BYTES: usize = 60_000;

/// A write that comes late is refused as too old, and is made anew.
const TRIES: u32 = 30;

/// Deletes every key.
pub(super) async fn delete_all(io: Io, node: SocketAddr, space: Keyspace) -> Result<(), String> {
    let mut quiet = Quiet::open(io, node).await?;
    for key in 0..space.keys {
        let name = key_name(key);
        let delete = Delete { key: &name, condition: Condition::Always, write: WriteOptions::default() };
        write(&mut quiet, space.namespace, || Command::Delete(delete.clone())).await?;
    }
    Ok(())
}

/// Writes something over all vnodes.
pub(super) async fn fill(io: Io, node: SocketAddr, namespace: NamespaceId, round: u32) -> Result<(), String> {
    let mut quiet = Quiet::open(io, node).await?;
    for number in 0..VALUES {
        let (name, value) = (format!("filler {round} {number}"), vec![round as u8; VALUE_BYTES]);
        let options = WriteOptions::default();
        let put = Put { key: name.as_bytes(), value: &value, ttl_ms: 0, condition: Condition::Always, write: options };
        write(&mut quiet, namespace, || Command::Put(put.clone())).await?;
    }
    Ok(())
}

async fn write<'a>(quiet: &mut Quiet, namespace: NamespaceId, command: impl Fn() -> Command<'a>) -> Result<(), String> {
    let mut tries = 0;
    loop {
        tries += 1;
        match quiet.ask(namespace, command()).await? {
            Ok(Answer::Done { .. }) => return Ok(()),
            Err(ClientError::Unknown { .. }) if tries < TRIES => {}
            other => return Err(format!("a write at rest is answered with {other:?}")),
        }
    }
}

/// No key is there.
pub(super) async fn all_absent(io: Io, node: SocketAddr, space: Keyspace) -> Result<(), String> {
    let mut quiet = Quiet::open(io, node).await?;
    for key in 0..space.keys {
        match quiet.ask(space.namespace, Command::Get { key: &key_name(key) }).await? {
            Ok(Answer::Absent) => {}
            other => return Err(format!("key {key} was deleted, and is answered with {other:?}")),
        }
    }
    Ok(())
}
