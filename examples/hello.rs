//! The native client in ten lines: `cargo run --release --example hello` beside a node on the default port.

use ringkv::client::{Client, ClientConfig, PutOptions};
use std::time::Duration;

fn main() -> Result<(), ringkv::client::ClientError> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let mut client = Client::connect(ClientConfig { addresses: vec![address], ..ClientConfig::default() })?;
    let version = client.put(b"greeting", b"hello")?;
    let found = client.get(b"greeting")?.expect("just put");
    assert!(found.value == b"hello" && found.version >= version);
    client.put_with(b"session", b"42", PutOptions { ttl: Some(Duration::from_secs(60)), ..PutOptions::default() })?;
    println!("{:?}", client.ttl(b"session")?);
    client.delete(b"greeting")?;
    Ok(())
}
