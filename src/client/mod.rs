//! The native client: `core` is the protocol without I/O, `request` and `ring` what its faces share, `blocking` a face over std's sockets,
//! `tokio` (feature `tokio`) one over tokio's. Pulls in no server code.

pub mod answer;
pub mod blocking;
pub mod core;
mod request;
mod ring;
#[cfg(feature = "tokio")]
pub mod tokio;

pub use answer::{Answer, ClientError, KeyInfo, NamespaceInfo, NodeInfo, OwnedPage, OwnedValue, ServerInfo, TimeToLive, VersionedBytes};
pub use blocking::{Client, Pipeline};
pub use request::{ClientConfig, DeleteOptions, NEVER, NamespaceChanges, NamespaceOptions, PutOptions};
