//! The bytes of `LAYOUT`: which generation of a node's folders is in force, for how many cores, and whose they are.
//!
//!   magic 8 | version u32 | zero u32 | required features u64 | optional features u64 | cluster u64 | node u64 | generation u64
//!   | cores u32 | vnodes u32 | checksum u64 of all before it | zeros up to a block

use super::Identity;
use crate::base::checksum::checksum;
use crate::base::codec::{Malformed, Reader};
use crate::limits::{BLOCK_BYTES, CLUSTER_VERSION, CLUSTER_VERSION_MIN, CORES_MAX};

const MAGIC: [u8; 8] = *b"RINGKVLO";
const BYTES: usize = 64;

/// What `LAYOUT` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The newest version of what may lie in the folder: a program that does not know it must not read on.
    pub format: u16,
    pub identity: Identity,
    /// Rises each time that the data moves to another list of cores.
    pub generation: u64,
    pub cores: u16,
    pub vnodes: u32,
    /// A snapshot, or what was salvaged: it may lack what its node has acknowledged since. An optional feature: a build that does not know
    /// it takes the folder for the node's own.
    pub is_copy: bool,
}

/// The bit of the optional features that says `is_copy`.
const COPY: u64 = 1;

/// The file's only block.
pub fn layout_block(layout: &Layout) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&u32::from(layout.format).to_le_bytes());
    out.extend_from_slice(&[0; 4 + 8]);
    out.extend_from_slice(&if layout.is_copy { COPY } else { 0 }.to_le_bytes());
    for word in [layout.identity.cluster, layout.identity.node, layout.generation] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&u32::from(layout.cores).to_le_bytes());
    out.extend_from_slice(&layout.vnodes.to_le_bytes());
    assert_eq!(out.len(), BYTES);
    out.extend_from_slice(&checksum(&out).to_le_bytes());
    out.resize(BLOCK_BYTES, 0);
    out
}

/// Why it cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadLayout {
    Damaged(Malformed),
    TooNew,
}

impl std::fmt::Display for BadLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadLayout::Damaged(what) => f.write_str(what.0),
            BadLayout::TooNew => {
                write!(f, "a data folder of a later version; this program knows version {CLUSTER_VERSION}: start the one that wrote it")
            }
        }
    }
}

/// Takes the file apart.
pub fn parse_layout(bytes: &[u8]) -> Result<Layout, BadLayout> {
    parse(bytes).map_err(BadLayout::Damaged)?.ok_or(BadLayout::TooNew)
}

fn parse(bytes: &[u8]) -> Result<Option<Layout>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut body = Reader::new(reader.take(BYTES)?);
    if body.rest()[..8] != MAGIC {
        return Err(Malformed("no layout of a ringkv data folder"));
    }
    if reader.u64()? != checksum(body.rest()) {
        return Err(Malformed("checksum of the layout"));
    }
    body.take(8)?;
    let (version, _, required, optional) = (body.u32()?, body.u32()?, body.u64()?, body.u64()?);
    let known = u16::try_from(version).ok().filter(|format| (CLUSTER_VERSION_MIN..=CLUSTER_VERSION).contains(format) && required == 0);
    let Some(format) = known else { return Ok(None) };
    let identity = Identity { cluster: body.u64()?, node: body.u64()? };
    let generation = body.u64()?;
    let (cores, vnodes) = (body.u32()?, body.u32()?);
    if cores == 0 || cores as usize > CORES_MAX || !vnodes.is_power_of_two() || vnodes < 2 {
        return Err(Malformed("a layout of no cores, too many, or an odd number of vnodes"));
    }
    Ok(Some(Layout { format, identity, generation, cores: cores as u16, vnodes, is_copy: optional & COPY != 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_the_layout_are_frozen_and_damage_is_noticed() {
        let identity = Identity { cluster: 1, node: 2 };
        let layout = Layout { format: 1, identity, generation: 3, cores: 4, vnodes: 4096, is_copy: false };
        let block = layout_block(&layout);
        let hex: String = block[..72].iter().map(|b| format!("{b:02x}")).collect();
        let words = ["0100000000000000", "0200000000000000", "0300000000000000", "0400000000100000", "ac72f8433026da1b"];
        assert_eq!(hex, format!("52494e474b564c4f01000000{}{}", "00".repeat(20), words.concat()));
        assert_eq!(parse_layout(&block), Ok(layout));
        for at in 0..72 {
            let mut bad = block.clone();
            bad[at] ^= 1;
            assert!(parse_layout(&bad).is_err(), "{at}");
        }
        assert!(parse_layout(&block[..71]).is_err());
        let copy = Layout { is_copy: true, ..layout };
        assert_eq!((parse_layout(&layout_block(&copy)), layout_block(&copy)[24]), (Ok(copy), 1));
        let newest = Layout { format: CLUSTER_VERSION, ..layout };
        assert_eq!(parse_layout(&layout_block(&newest)), Ok(newest));
        let later = Layout { format: CLUSTER_VERSION + 1, ..layout };
        assert_eq!(parse_layout(&layout_block(&later)), Err(BadLayout::TooNew));
    }
}
