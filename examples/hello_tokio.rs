//! The native client in an async program: `cargo run --release --features tokio --example hello_tokio` beside a node on the default port.
//! A hundred tasks share one client; what they ask at once travels together.

use ringkv::client::tokio::Client;
use ringkv::client::{ClientConfig, ClientError};

async fn hello(address: String) -> Result<(), ClientError> {
    let client = Client::connect(ClientConfig { addresses: vec![address], ..ClientConfig::default() }).await?;
    let tasks: Vec<_> = (0..100u32)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let key = number.to_be_bytes();
                match client.put(&key, b"hello").await {
                    Ok(version) => println!("{number}: {version:?}"),
                    // The write may have happened, now or later; only a read tells.
                    Err(ClientError::Unknown { .. }) => println!("{number}: {:?}", client.get(&key).await?),
                    Err(error) => return Err(error),
                }
                client.delete(&key).await.map(|_| ())
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no task panics")?;
    }
    Ok(())
}

fn main() -> Result<(), ClientError> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7400".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(hello(address))
}
