//! What is deleted goes from the disk: everything is deleted at rest, and when floors have passed that, merges are provoked.

use super::final_look::Quiet;
use super::workload::{FIRST_NAMESPACE, key_name};
use crate::client::Answer;
use crate::io::{Io, SocketAddr};
use crate::wire::command::{Command, Condition, Delete, Put, WriteOptions};

/// Values that go in a round, about as many bytes each as the smallest memtable has.
const VALUES: u32 = 24;
const VALUE_BYTES: usize = 60_000;

/// Deletes every key.
pub(super) async fn delete_all(io: Io, node: SocketAddr, keys: u32) -> Result<(), String> {
    let mut quiet = Quiet::open(io, node).await?;
    for key in 0..keys {
        let name = key_name(key);
        let delete = Delete { key: &name, condition: Condition::Always, write: WriteOptions::default() };
        match quiet.ask(FIRST_NAMESPACE, Command::Delete(delete)).await? {
            Ok(Answer::Done { .. }) => {}
            other => return Err(format!("key {key}: its last delete is answered with {other:?}")),
        }
    }
    Ok(())
}

/// Writes something over all vnodes.
pub(super) async fn fill(io: Io, node: SocketAddr, round: u32) -> Result<(), String> {
    let mut quiet = Quiet::open(io, node).await?;
    for number in 0..VALUES {
        let (name, value) = (format!("filler {round} {number}"), vec![round as u8; VALUE_BYTES]);
        let write = WriteOptions::default();
        let put = Put { key: name.as_bytes(), value: &value, ttl_ms: 0, condition: Condition::Always, write };
        match quiet.ask(FIRST_NAMESPACE, Command::Put(put)).await? {
            Ok(Answer::Done { .. }) => {}
            other => return Err(format!("a write at rest is answered with {other:?}")),
        }
    }
    Ok(())
}
