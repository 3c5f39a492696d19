//! A topology as bytes, for disks and peers: magic, format version, body, checksum. What is read is checked as a whole (`is_sound`), so
//! that no decoded topology can surprise anybody.
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | `RKTP` |
//! | 2 | the cluster's version: a program that does not know it reads no further |
//! | 8, 8 | cluster, epoch |
//! | varint, then as many | nodes: id (8), token id (8); native, gossip, rack (behind varint lengths); cores, weight (varints); state (1) |
//! | varint, then as many | vnodes: owners, epochs since their last change (varint) |
//! | varint, then as many | moves: vnode (varint, distance from the one before), owners |
//! | 0 or 1 | replication factors, a bit each; nothing where there is only the usual one |
//! | 8 | xxh3 of all before |
//!
//! Owners are a count (1) and as many varint indexes of nodes. Integers are little-endian, varints LEB128.

use super::placement::{Owners, UNOWNED};
use super::topology::{FACTORS_DEFAULT, Node, NodeSpec, NodeState, Topology};
use crate::base::checksum::checksum;
use crate::base::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::limits::{ADDRESS_BYTES_MAX, CLUSTER_VERSION, CLUSTER_VERSION_MIN, NODES_MAX, RACK_BYTES_MAX, RF_MAX, VNODES_MAX};

const MAGIC: [u8; 4] = *b"RKTP";
const CHECKSUM_BYTES: usize = 8;

/// Why bytes are no topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Of a newer node.
    Version(u16),
    Malformed(Malformed),
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DecodeError::Version(theirs) => {
                write!(f, "the cluster is at version {theirs}, and this program knows version {CLUSTER_VERSION}: start a later one")
            }
            DecodeError::Malformed(what) => write!(f, "not a topology: {what}"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl From<Malformed> for DecodeError {
    fn from(what: Malformed) -> DecodeError {
        DecodeError::Malformed(what)
    }
}

/// Appends the topology.
pub fn encode(topology: &Topology, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&topology.version.to_le_bytes());
    out.extend_from_slice(&topology.cluster.to_le_bytes());
    out.extend_from_slice(&topology.epoch.to_le_bytes());
    put_varint(out, topology.nodes.len() as u64);
    topology.nodes.iter().for_each(|node| put_node(out, node));
    put_varint(out, topology.owners.len() as u64);
    for (list, since) in topology.owners.iter().zip(&topology.since) {
        put_owners(out, list);
        put_varint(out, topology.epoch - since);
    }
    put_varint(out, topology.pending.len() as u64);
    let mut before = 0;
    for (vnode, list) in &topology.pending {
        put_varint(out, u64::from(vnode - before));
        before = *vnode;
        put_owners(out, list);
    }
    if topology.factors != FACTORS_DEFAULT {
        out.push(topology.factors);
    }
    let sum = checksum(&out[start..]);
    out.extend_from_slice(&sum.to_le_bytes());
}

fn put_node(out: &mut Vec<u8>, node: &Node) {
    let spec = &node.spec;
    out.extend_from_slice(&spec.id.to_le_bytes());
    out.extend_from_slice(&node.token_id.to_le_bytes());
    put_bytes(out, spec.native.as_bytes());
    put_bytes(out, spec.gossip.as_bytes());
    put_bytes(out, spec.rack.as_bytes());
    put_varint(out, u64::from(spec.cores));
    put_varint(out, u64::from(spec.weight));
    out.push(node.state as u8);
}

fn put_owners(out: &mut Vec<u8>, list: &Owners) {
    let owners = list.iter().take_while(|owner| **owner != UNOWNED[0]);
    out.push(owners.clone().count() as u8);
    owners.for_each(|owner| put_varint(out, u64::from(*owner)));
}

/// Reads a topology; `bytes` hold it and nothing else.
pub fn decode(bytes: &[u8]) -> Result<Topology, DecodeError> {
    let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Malformed("ends too early"))?;
    let mut reader = Reader::new(body);
    if reader.array()? != MAGIC {
        return Err(Malformed("another magic").into());
    }
    // Before the checksum, which another version may have elsewhere.
    let version = reader.u16()?;
    if !(CLUSTER_VERSION_MIN..=CLUSTER_VERSION).contains(&version) {
        return Err(DecodeError::Version(version));
    }
    if checksum(body) != u64::from_le_bytes(*sum) {
        return Err(Malformed("another checksum").into());
    }
    let (cluster, epoch) = (reader.u64()?, reader.u64()?);
    let nodes = (0..count(&mut reader, NODES_MAX)?).map(|_| node(&mut reader)).collect::<Result<Vec<Node>, Malformed>>()?;
    let vnodes = count(&mut reader, VNODES_MAX as usize)?;
    let (mut lists, mut since) = (Vec::new(), Vec::new());
    for _ in 0..vnodes {
        lists.push(owners(&mut reader)?);
        since.push(epoch.checked_sub(reader.varint()?).ok_or(Malformed("changed before there was an epoch"))?);
    }
    let (mut pending, mut before) = (Vec::new(), 0u32);
    for _ in 0..count(&mut reader, vnodes)? {
        let distance = u32::try_from(reader.varint()?).map_err(|_| Malformed("number too large"))?;
        before = before.checked_add(distance).ok_or(Malformed("number too large"))?;
        pending.push((before, owners(&mut reader)?));
    }
    let factors = if reader.rest().is_empty() { FACTORS_DEFAULT } else { reader.u8()? };
    reader.end()?;
    let topology = Topology { version, cluster, epoch, nodes, owners: lists, since, pending, factors };
    topology.is_sound().map_err(Malformed)?;
    Ok(topology)
}

/// A number of things, each of at least one byte, so that what it makes us reserve came over the wire too.
fn count(reader: &mut Reader<'_>, most: usize) -> Result<usize, Malformed> {
    let count = reader.varint()?;
    let fits = usize::try_from(count).ok().filter(|count| *count <= most.min(reader.rest().len()));
    fits.ok_or(Malformed("more things than there may be"))
}

fn node(reader: &mut Reader<'_>) -> Result<Node, Malformed> {
    let (id, token_id) = (reader.u64()?, reader.u64()?);
    let (native, gossip) = (text(reader, ADDRESS_BYTES_MAX)?, text(reader, ADDRESS_BYTES_MAX)?);
    let rack = text(reader, RACK_BYTES_MAX)?;
    let cores = u16::try_from(reader.varint()?).map_err(|_| Malformed("number too large"))?;
    let weight = u32::try_from(reader.varint()?).map_err(|_| Malformed("number too large"))?;
    let state = match reader.u8()? {
        0 => NodeState::Joining,
        1 => NodeState::Member,
        2 => NodeState::Leaving,
        _ => return Err(Malformed("not a state of a node")),
    };
    Ok(Node { spec: NodeSpec { id, native, gossip, cores, weight, rack }, state, token_id })
}

fn text(reader: &mut Reader<'_>, most: usize) -> Result<String, Malformed> {
    let bytes = reader.bytes()?;
    if bytes.len() > most {
        return Err(Malformed("text too long"));
    }
    str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed("text is not UTF-8"))
}

fn owners(reader: &mut Reader<'_>) -> Result<Owners, Malformed> {
    let count = usize::from(reader.u8()?);
    let mut list = UNOWNED;
    let owners = list.get_mut(..count).ok_or(Malformed("a list longer than may be"))?;
    for owner in owners {
        *owner = u16::try_from(reader.varint()?).map_err(|_| Malformed("number too large"))?;
    }
    Ok(list)
}

const _: () = assert!(RF_MAX <= u8::MAX as usize, "a list's length is one byte");
