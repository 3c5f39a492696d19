//! The native client: `core` is the protocol without I/O, `blocking` a face over std's sockets. Pulls in no server code.

pub mod answer;
pub mod blocking;
pub mod core;

pub use answer::{Answer, ClientError, KeyInfo, NamespaceInfo, OwnedPage, OwnedValue, ServerInfo, TimeToLive, VersionedBytes};
pub use blocking::{Client, ClientConfig, DeleteOptions, NamespaceChanges, NamespaceOptions, Pipeline, PutOptions};
