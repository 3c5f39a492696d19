//! A node that is of no cluster yet asks one of a cluster for its topology: before it has shards, over a link like any other's. Both show
//! that they have the cluster's key; the node does not know yet which cluster and which node it talks to, and says so with zeros.

use crate::base::time::WallMs;
use crate::cluster::gossip::CLUSTER_UNKNOWN;
use crate::cluster::gossip::wire::Key;
use crate::cluster::topology::Topology;
use crate::cluster::topology_codec;
use crate::io::{Io, Socket, SocketAddr};
use crate::limits::{HELLO_BYTES_MAX, PEER_FRAME_BYTES_MAX};
use crate::wire::command::Reply;
use crate::wire::frame::{Frame, FrameReader, HEADER_BYTES};
use crate::wire::native::{decode_reply, kind::ERROR};
use crate::wire::peer::{Head, Message, decode, encode};
use crate::wire::peer_hello::{self, PEER_VERSION, PEER_VERSION_MIN, PeerHello, transcript};
use std::time::Duration;

/// In a hello: whoever answers is meant.
pub const ANY_NODE: u64 = 0;
/// How long a node may take for all of it.
pub const VISIT_MAX: Duration = Duration::from_secs(3);

/// The topology of the node at `address`.
///
/// # Errors
/// A sentence: why it is not to be had.
pub async fn fetch_topology(io: &Io, address: SocketAddr, key: &Key, wall_ms: WallMs) -> Result<Topology, String> {
    let gone = |error: std::io::Error| format!("{address}: {error}");
    let socket = io.connect(address).await.map_err(gone)?;
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&io.random_u64().to_le_bytes());
    nonce[8..].copy_from_slice(&io.random_u64().to_le_bytes());
    let hello = PeerHello {
        version_min: PEER_VERSION_MIN,
        version_max: PEER_VERSION,
        cluster: CLUSTER_UNKNOWN,
        vnodes: 0,
        from: ANY_NODE,
        to: ANY_NODE,
        boot: io.random_u64(),
        core: 0,
        epoch: 0,
        wall_ms,
        nonce,
    };
    let mut bytes = Vec::new();
    peer_hello::encode_hello(&mut bytes, &hello);
    io.send(&socket, bytes).await.map_err(gone)?;
    let mut said = Vec::new();
    let welcome = next_frame(io, &socket, &mut said, HELLO_BYTES_MAX, |frame| {
        if frame.kind == ERROR {
            return Err(match decode_reply(frame.kind, frame.body) {
                Ok(Reply::Error(error)) => error.message.to_owned(),
                _ => "it refuses".to_owned(),
            });
        }
        peer_hello::decode_welcome(frame).map_err(|error| error.what.to_owned())
    });
    let welcome = welcome.await.map_err(|why| format!("{address}: {why}"))?;
    if !key.is_proven(&transcript(false, &hello, &welcome.nonce), &welcome.proof) {
        return Err(format!("{address}: it has another cluster key"));
    }
    let mut bytes = Vec::new();
    peer_hello::encode_proof(&mut bytes, &key.prove(&transcript(true, &hello, &welcome.nonce)));
    encode(&mut bytes, 1, Head { epoch: 0, deadline_ms: VISIT_MAX.as_millis() as u32 }, &Message::FetchTopology);
    io.send(&socket, bytes).await.map_err(gone)?;
    let topology = next_frame(io, &socket, &mut said, PEER_FRAME_BYTES_MAX, |frame| match decode(frame) {
        Ok((_, Message::Topology { bytes })) => topology_codec::decode(bytes).map_err(|error| error.to_string()),
        _ => Err("its answer is no topology".to_owned()),
    });
    let topology = topology.await.map_err(|why| format!("{address}: {why}"))?;
    io.close(&socket);
    Ok(topology)
}

/// Reads until there is a frame, and takes it out of what was read.
async fn next_frame<T>(
    io: &Io,
    socket: &Socket,
    said: &mut Vec<u8>,
    bytes_max: usize,
    mut take: impl FnMut(&Frame<'_>) -> Result<T, String>,
) -> Result<T, String> {
    loop {
        let mut reader = FrameReader::new(bytes_max);
        let taken = match reader.feed(said).next() {
            Some(Ok(frame)) => Some((take(&frame)?, HEADER_BYTES + frame.body.len())),
            Some(Err(_)) => return Err("what answers there is no node of ringkv".to_owned()),
            None => None,
        };
        if let Some((taken, used)) = taken {
            said.drain(..used);
            return Ok(taken);
        }
        let chunk = io.receive_chunk(socket).await.map_err(|error| error.to_string())?;
        said.extend_from_slice(&chunk.ok_or("it ended the connection; is its cluster key another one?")?);
    }
}
