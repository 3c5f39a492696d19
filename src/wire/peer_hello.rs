//! How a link between two nodes begins: three frames, in which each side shows that it has the cluster's key and that the other is whom
//! it means. Who dials asks, who was dialled answers; so two nodes that talk to each other have a link each way.
//!
//! ```text
//! dialler → Hello: who I am, whom and which core I want, a nonce        (a challenge)
//!         ← Welcome: who I am, a nonce, a MAC over both nonces           (or an error of the native protocol: one sentence)
//! dialler → Proof: a MAC over both nonces the other way round, and messages at once behind it
//! ```
//!
//! The MACs are the caller's (`cluster::gossip::wire::Key`); what they cover is `transcript`.

use super::frame::Frame;
use super::native::{WireError, Writer, access, bad, frozen};
use crate::base::time::WallMs;
use crate::limits::{CLUSTER_VERSION, CLUSTER_VERSION_MIN};

/// The newest version of the messages between nodes that this build speaks.
pub const PEER_VERSION: u16 = CLUSTER_VERSION;
/// The oldest one.
pub const PEER_VERSION_MIN: u16 = CLUSTER_VERSION_MIN;
/// Bytes of a MAC.
pub const PROOF_BYTES: usize = 32;

/// The bodies as they lie on the wire.
pub mod body {
    super::frozen! {
        /// 0x0100
        PeerHello / ArchivedPeerHello [74] {
            version_min: u16, version_max: u16, cluster: u64, vnodes: u32, from: u64, to: u64, boot: u64, core: u16, epoch: u64,
            wall_ms: u64, nonce: [u8; 16],
        }
        /// 0x8100
        PeerWelcome / ArchivedPeerWelcome [82] {
            version: u16, from: u64, boot: u64, epoch: u64, wall_ms: u64, nonce: [u8; 16], proof: [u8; 32],
        }
        /// 0x0110
        PeerProof / ArchivedPeerProof [32] { proof: [u8; 32] }
    }
}

/// Kinds of frames.
pub mod kind {
    pub const HELLO: u16 = 0x0100;
    pub const WELCOME: u16 = 0x8100;
    pub const PROOF: u16 = 0x0110;
}

/// A dialler's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHello {
    pub version_min: u16,
    pub version_max: u16,
    pub cluster: u64,
    pub vnodes: u32,
    pub from: u64,
    /// Whom it means to reach.
    pub to: u64,
    /// Drawn by the dialler's process: tells it from another with its id.
    pub boot: u64,
    /// Of the other node.
    pub core: u16,
    /// Of the dialler's topology.
    pub epoch: u64,
    pub wall_ms: WallMs,
    pub nonce: [u8; 16],
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerWelcome {
    pub version: u16,
    pub from: u64,
    pub boot: u64,
    pub epoch: u64,
    pub wall_ms: WallMs,
    pub nonce: [u8; 16],
    pub proof: [u8; PROOF_BYTES],
}

/// The highest version of messages in common.
pub fn negotiate(version_min: u16, version_max: u16) -> Option<u16> {
    let version = version_max.min(PEER_VERSION);
    (version >= version_min.max(PEER_VERSION_MIN)).then_some(version)
}

/// What a MAC covers: whose it is, both nodes, the cluster, the nonces with the other's first.
pub fn transcript(of_dialler: bool, hello: &PeerHello, welcome_nonce: &[u8; 16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(80);
    bytes.extend_from_slice(if of_dialler { b"ringkv link dial" } else { b"ringkv link take" });
    for number in [hello.cluster, hello.from, hello.to, u64::from(hello.core)] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let (first, second) = if of_dialler { (welcome_nonce, &hello.nonce) } else { (&hello.nonce, welcome_nonce) };
    bytes.extend_from_slice(first);
    bytes.extend_from_slice(second);
    bytes
}

pub fn encode_hello(out: &mut Vec<u8>, hello: &PeerHello) {
    let mut w = Writer::new(out);
    w.u16(hello.version_min).u16(hello.version_max).u64(hello.cluster).u32(hello.vnodes).u64(hello.from).u64(hello.to).u64(hello.boot);
    w.u16(hello.core).u64(hello.epoch).u64(hello.wall_ms).put(&hello.nonce);
    w.finish(kind::HELLO, 0, 0);
}

pub fn encode_welcome(out: &mut Vec<u8>, welcome: &PeerWelcome) {
    let mut w = Writer::new(out);
    w.u16(welcome.version).u64(welcome.from).u64(welcome.boot).u64(welcome.epoch).u64(welcome.wall_ms);
    w.put(&welcome.nonce).put(&welcome.proof);
    w.finish(kind::WELCOME, 0, 0);
}

pub fn encode_proof(out: &mut Vec<u8>, proof: &[u8; PROOF_BYTES]) {
    let mut w = Writer::new(out);
    w.put(proof);
    w.finish(kind::PROOF, 0, 0);
}

pub fn decode_hello(frame: &Frame<'_>) -> Result<PeerHello, WireError> {
    let b = access::<body::ArchivedPeerHello>(of_kind(frame, kind::HELLO)?)?;
    Ok(PeerHello {
        version_min: b.version_min.to_native(),
        version_max: b.version_max.to_native(),
        cluster: b.cluster.to_native(),
        vnodes: b.vnodes.to_native(),
        from: b.from.to_native(),
        to: b.to.to_native(),
        boot: b.boot.to_native(),
        core: b.core.to_native(),
        epoch: b.epoch.to_native(),
        wall_ms: b.wall_ms.to_native(),
        nonce: b.nonce,
    })
}

pub fn decode_welcome(frame: &Frame<'_>) -> Result<PeerWelcome, WireError> {
    let b = access::<body::ArchivedPeerWelcome>(of_kind(frame, kind::WELCOME)?)?;
    Ok(PeerWelcome {
        version: b.version.to_native(),
        from: b.from.to_native(),
        boot: b.boot.to_native(),
        epoch: b.epoch.to_native(),
        wall_ms: b.wall_ms.to_native(),
        nonce: b.nonce,
        proof: b.proof,
    })
}

pub fn decode_proof(frame: &Frame<'_>) -> Result<[u8; PROOF_BYTES], WireError> {
    Ok(access::<body::ArchivedPeerProof>(of_kind(frame, kind::PROOF)?)?.proof)
}

fn of_kind<'a>(frame: &Frame<'a>, kind: u16) -> Result<&'a [u8], WireError> {
    if frame.kind == kind { Ok(frame.body) } else { Err(bad("not the frame that a link begins with")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HELLO_BYTES_MAX;
    use crate::wire::frame::FrameReader;

    #[test]
    fn the_three_frames_come_back_and_each_transcript_is_another() {
        let hello = PeerHello {
            version_min: 1,
            version_max: 3,
            cluster: 5,
            vnodes: 4096,
            from: 1,
            to: 2,
            boot: 77,
            core: 3,
            epoch: 9,
            wall_ms: 1234,
            nonce: [7; 16],
        };
        let welcome = PeerWelcome { version: 1, from: 2, boot: 78, epoch: 8, wall_ms: 1235, nonce: [9; 16], proof: [3; 32] };
        let mut bytes = Vec::new();
        encode_hello(&mut bytes, &hello);
        encode_welcome(&mut bytes, &welcome);
        encode_proof(&mut bytes, &[4; 32]);
        let mut reader = FrameReader::new(HELLO_BYTES_MAX);
        let frames: Vec<_> = reader.feed(&bytes).map(|frame| frame.expect("whole")).collect();
        assert_eq!((decode_hello(&frames[0]), decode_welcome(&frames[1])), (Ok(hello), Ok(welcome)));
        assert_eq!(decode_proof(&frames[2]), Ok([4; 32]));
        assert!(decode_hello(&frames[1]).is_err() && decode_proof(&Frame { body: &[1; 31], ..frames[2] }).is_err());
        let swapped = PeerHello { from: 2, to: 1, ..hello };
        let all = [transcript(true, &hello, &[9; 16]), transcript(false, &hello, &[9; 16]), transcript(true, &swapped, &[9; 16])];
        assert!(all[0] != all[1] && all[0] != all[2]);
        assert_eq!((negotiate(1, 9), negotiate(PEER_VERSION + 1, 9), negotiate(0, 0)), (Some(PEER_VERSION), None, None));
    }
}
