//! The bytes of a table, apart from its blocks (`block`), its index (`table_index`) and its filter (`engine::filter`).
//! `docs/format.md`, section Tables, is this file in prose.
//!
//! ```text
//! header | block … | volatile page … | filter | index | properties | zeros | footer
//! ```
//!
//! Blocks, pages and sections follow each other without padding and each ends with a trailer: codec, length of the encryption tag, key id,
//! checksum. The checksum is seeded with the table's salt and the offset, so that a block of another table or another place is not taken
//! for this one. The footer ends the file, and the file is a whole number of `BLOCK_BYTES`.

use super::Identity;
use crate::base::checksum::{hash64, hash64_seeded};
use crate::base::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::base::record::{NamespaceId, Version};
use crate::base::time::WallMs;
use crate::engine::EngineError;
use crate::limits::BLOCK_BYTES;

/// What is wrong with bytes of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Not what was written.
    Malformed(Malformed),
    /// Too new for this build.
    Unsupported(&'static str),
}

impl Bad {
    /// The error that names where it was found.
    pub fn at(self, file: &str, offset: u64) -> EngineError {
        match self {
            Bad::Malformed(what) => EngineError::corrupt(file, offset, what),
            Bad::Unsupported(what) => EngineError::Unsupported { file: file.to_owned(), what: what.to_owned() },
        }
    }
}

impl From<Malformed> for Bad {
    fn from(what: Malformed) -> Bad {
        Bad::Malformed(what)
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Trailer: the end of every block, page and section.
//
//   tag (tag length) | codec u8 | tag length u8 | key id u32 | checksum u64 of all before it, seeded with salt and offset

/// Bytes of a trailer without an encryption tag.
pub const TRAILER_BYTES: usize = 14;
const CODEC_NONE: u8 = 0;
/// Of blocks alone: `format::lz4`.
const CODEC_LZ4: u8 = 1;

fn seed(salt: u64, offset: u64) -> u64 {
    salt ^ offset.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Appends the trailer of the content that begins at `start` in `out` and will lie at `offset` of the file.
pub fn seal(out: &mut Vec<u8>, start: usize, salt: u64, offset: u64) {
    seal_as(CODEC_NONE, out, start, salt, offset);
}

/// As `seal`, of a block that was packed.
pub fn seal_packed(out: &mut Vec<u8>, start: usize, salt: u64, offset: u64) {
    seal_as(CODEC_LZ4, out, start, salt, offset);
}

fn seal_as(codec: u8, out: &mut Vec<u8>, start: usize, salt: u64, offset: u64) {
    out.extend_from_slice(&[codec, 0]);
    out.extend_from_slice(&0u32.to_le_bytes());
    let checksum = hash64_seeded(&out[start..], seed(salt, offset));
    out.extend_from_slice(&checksum.to_le_bytes());
}

/// A block as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored<'a> {
    /// The content itself.
    Raw(&'a [u8]),
    /// For `lz4::unpack`.
    Packed(&'a [u8]),
}

/// The content of sealed bytes that were read at `offset`.
pub fn unseal(sealed: &[u8], salt: u64, offset: u64) -> Result<&[u8], Bad> {
    match unseal_block(sealed, salt, offset)? {
        Stored::Raw(content) => Ok(content),
        Stored::Packed(_) => Err(Bad::Unsupported("a codec of what is no block")),
    }
}

/// As `unseal`, of a block, which may be packed.
pub fn unseal_block(sealed: &[u8], salt: u64, offset: u64) -> Result<Stored<'_>, Bad> {
    let (checked, checksum) = sealed.split_last_chunk::<8>().ok_or(Malformed("ends too early"))?;
    if hash64_seeded(checked, seed(salt, offset)) != u64::from_le_bytes(*checksum) {
        return Err(Malformed("checksum does not match").into());
    }
    let (content, trailer) = checked.split_last_chunk::<6>().ok_or(Malformed("ends too early"))?;
    match trailer {
        [CODEC_NONE, 0, 0, 0, 0, 0] => Ok(Stored::Raw(content)),
        [CODEC_LZ4, 0, 0, 0, 0, 0] => Ok(Stored::Packed(content)),
        [CODEC_NONE | CODEC_LZ4, ..] => Err(Bad::Unsupported("encryption")),
        _ => Err(Bad::Unsupported("a codec of blocks")),
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Header.
//
//   magic 8 | version u32 | zero u32 | required features u64 | optional features u64 | cluster u64 | node u64 | salt u64 | checksum u64

const MAGIC: [u8; 8] = *b"RINGKVTB";
const END_MAGIC: [u8; 8] = *b"RINGKVTE";
/// 2 since the index codes short lengths in its code byte.
const VERSION: u32 = 2;
/// Some block is packed with LZ4. A table without such a block does not say so, and builds that do not know LZ4 read it.
const REQUIRED_LZ4: u64 = 1;
/// Features that a reader must know.
const REQUIRED_KNOWN: u64 = REQUIRED_LZ4;
/// The first block begins here.
pub const HEADER_BYTES: usize = 64;
/// The last bytes of the file.
pub const FOOTER_BYTES: usize = 80;

/// The beginning of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub identity: Identity,
    /// Of this table alone; seeds its checksums.
    pub salt: u64,
    /// Some block is packed.
    pub has_packed: bool,
}

impl Header {
    /// The header of the table that a node numbers `table_id`.
    pub fn new(identity: Identity, table_id: u64) -> Header {
        let mut bytes = Vec::with_capacity(24);
        [identity.cluster, identity.node, table_id].iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        Header { identity, salt: hash64(&bytes), has_packed: false }
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        let required = if self.has_packed { REQUIRED_LZ4 } else { 0 };
        for word in [required, 0, self.identity.cluster, self.identity.node, self.salt] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let checksum = hash64(&out[start..]);
        out.extend_from_slice(&checksum.to_le_bytes());
    }

    pub fn parse(bytes: &[u8]) -> Result<Header, Bad> {
        let head = bytes.get(..HEADER_BYTES).ok_or(Malformed("ends too early"))?;
        let (checked, checksum) = head.split_last_chunk::<8>().ok_or(Malformed("ends too early"))?;
        let mut reader = Reader::new(checked);
        if reader.array()? != MAGIC {
            return Err(Malformed("not a table").into());
        }
        if hash64(checked) != u64::from_le_bytes(*checksum) {
            return Err(Malformed("checksum of the header does not match").into());
        }
        if reader.u32()? != VERSION {
            return Err(Bad::Unsupported("a version of the table format"));
        }
        reader.u32()?;
        let required = reader.u64()?;
        if required & !REQUIRED_KNOWN != 0 {
            return Err(Bad::Unsupported("a feature of tables"));
        }
        reader.u64()?;
        let identity = Identity { cluster: reader.u64()?, node: reader.u64()? };
        Ok(Header { identity, salt: reader.u64()?, has_packed: required & REQUIRED_LZ4 != 0 })
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Footer: the last bytes of the file.
//
//   offset of the volatile pages u64 | of the filter u64 | of the index u64 | of the properties u64 | their end u64 | file bytes u64
//   | salt u64 | version u32 | zero u32 | magic 8 | checksum u64

/// Where everything is. Each section ends where the next begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footer {
    pub volatile: u64,
    pub filter: u64,
    pub index: u64,
    pub properties: u64,
    pub end: u64,
    /// Length of the file.
    pub bytes: u64,
    pub salt: u64,
}

impl Footer {
    pub fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for word in [self.volatile, self.filter, self.index, self.properties, self.end, self.bytes, self.salt] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&END_MAGIC);
        let checksum = hash64(&out[start..]);
        out.extend_from_slice(&checksum.to_le_bytes());
    }

    /// The footer in the last bytes of a file of `bytes` bytes.
    pub fn parse(tail: &[u8], bytes: u64) -> Result<Footer, Bad> {
        let (checked, checksum) =
            tail.last_chunk::<FOOTER_BYTES>().and_then(|f| f.split_last_chunk::<8>()).ok_or(Malformed("too short"))?;
        if checked[FOOTER_BYTES - 16..] != END_MAGIC {
            return Err(Malformed("no footer of a table").into());
        }
        if hash64(checked) != u64::from_le_bytes(*checksum) {
            return Err(Malformed("checksum of the footer does not match").into());
        }
        let mut r = Reader::new(checked);
        let (volatile, filter, index, properties) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let footer = Footer { volatile, filter, index, properties, end: r.u64()?, bytes: r.u64()?, salt: r.u64()? };
        if r.u32()? != VERSION {
            return Err(Bad::Unsupported("a version of the table format"));
        }
        let rising = [HEADER_BYTES as u64, volatile, filter, index, properties, footer.end].is_sorted();
        let fits = footer.end.checked_add(FOOTER_BYTES as u64).is_some_and(|end| end <= bytes);
        if !rising || !fits || footer.bytes != bytes || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(Malformed("sections of the table do not fit").into());
        }
        Ok(footer)
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Versions in few bytes: clock against another clock, then writer, term and seq rotated so that plain puts take one byte.

fn put_low(out: &mut Vec<u8>, version: Version) {
    put_varint(out, (version.0 as u64).rotate_left(16));
}

fn read_version(reader: &mut Reader<'_>, hlc: u64) -> Result<Version, Malformed> {
    let low = reader.varint()?.rotate_right(16);
    Ok(Version(u128::from(hlc) << 64 | u128::from(low)))
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Volatile page: cells with a deadline, in order of (deadline, place).
//
//   (deadline since the one before varint | clock minus the clock before, zigzag varint | low varint | place with length) …

/// Pages are closed at this size.
pub const VOLATILE_PAGE_BYTES: usize = 16 * 1024;

/// A cell that will expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolatileEntry<'a> {
    pub deadline_ms: WallMs,
    /// The expiry part's version.
    pub version: Version,
    pub place: &'a [u8],
}

/// Where a reader of a volatile page is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolatileAt {
    pub at: usize,
    pub deadline_ms: WallMs,
    pub hlc: u64,
}

fn zigzag(from: u64, to: u64) -> u64 {
    let delta = to.wrapping_sub(from) as i64;
    (delta << 1 ^ delta >> 63) as u64
}

fn unzigzag(from: u64, coded: u64) -> u64 {
    from.wrapping_add((coded >> 1) ^ (coded & 1).wrapping_neg())
}

/// Appends an entry behind the one at which `at` stands.
pub fn put_volatile(out: &mut Vec<u8>, at: &mut VolatileAt, entry: &VolatileEntry<'_>) {
    assert!(entry.deadline_ms >= at.deadline_ms, "deadlines in order");
    put_varint(out, entry.deadline_ms - at.deadline_ms);
    put_varint(out, zigzag(at.hlc, entry.version.hlc()));
    put_low(out, entry.version);
    put_bytes(out, entry.place);
    *at = VolatileAt { at: out.len(), deadline_ms: entry.deadline_ms, hlc: entry.version.hlc() };
}

/// The next entry of a page's content; None at its end.
pub fn next_volatile<'a>(content: &'a [u8], at: &mut VolatileAt) -> Result<Option<VolatileEntry<'a>>, Malformed> {
    let mut reader = Reader::new(content.get(at.at..).ok_or(Malformed("ends too early"))?);
    if reader.is_empty() {
        return Ok(None);
    }
    let deadline_ms = at.deadline_ms.checked_add(reader.varint()?).ok_or(Malformed("deadline too large"))?;
    let hlc = unzigzag(at.hlc, reader.varint()?);
    let version = read_version(&mut reader, hlc)?;
    let place = reader.bytes()?;
    *at = VolatileAt { at: content.len() - reader.rest().len(), deadline_ms, hlc };
    Ok(Some(VolatileEntry { deadline_ms, version, place }))
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Version bounds: the least and greatest version a vnode of a namespace.
//
//   (key since the one before varint, whole at every 8th | least clock minus the base varint | low varint
//    | greatest clock minus least clock varint | low varint) …          key = namespace << 14 | vnode

const VNODE_BITS: u32 = 14;
const BOUNDS_RESTART: usize = 8;

/// The least and greatest version of one vnode of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub namespace: NamespaceId,
    pub vnode: u32,
    pub least: Version,
    pub greatest: Version,
}

impl Bounds {
    fn key(&self) -> u64 {
        bounds_key(self.namespace, self.vnode)
    }
}

fn bounds_key(namespace: NamespaceId, vnode: u32) -> u64 {
    u64::from(namespace) << VNODE_BITS | u64::from(vnode)
}

/// The version bounds of a table as they lie on disk, searchable.
#[derive(Debug, Default)]
pub struct VersionBounds {
    bytes: Box<[u8]>,
    restarts: Box<[u32]>,
    base_hlc: u64,
    count: usize,
}

impl VersionBounds {
    fn put(out: &mut Vec<u8>, bounds: &[Bounds]) {
        let base = bounds.iter().map(|b| b.least.hlc()).min().unwrap_or(0);
        put_varint(out, bounds.len() as u64);
        put_varint(out, base);
        let mut coded = Vec::with_capacity(bounds.len() * 16);
        let mut key = 0;
        for (n, bound) in bounds.iter().enumerate() {
            key = if n.is_multiple_of(BOUNDS_RESTART) { 0 } else { key };
            put_varint(&mut coded, bound.key() - key);
            key = bound.key();
            put_varint(&mut coded, bound.least.hlc() - base);
            put_low(&mut coded, bound.least);
            put_varint(&mut coded, bound.greatest.hlc() - bound.least.hlc());
            put_low(&mut coded, bound.greatest);
        }
        put_bytes(out, &coded);
    }

    fn parse(reader: &mut Reader<'_>) -> Result<VersionBounds, Malformed> {
        let count = usize::try_from(reader.varint()?).map_err(|_| Malformed("too many bounds"))?;
        let base_hlc = reader.varint()?;
        let bytes: Box<[u8]> = reader.bytes()?.into();
        let mut bounds = VersionBounds { bytes, restarts: Box::default(), base_hlc, count };
        let (mut restarts, mut key, mut rest) = (Vec::new(), None, Reader::new(&bounds.bytes));
        for n in 0..count {
            let at = bounds.bytes.len() - rest.rest().len();
            let restart = n.is_multiple_of(BOUNDS_RESTART);
            if restart {
                restarts.push(u32::try_from(at).map_err(|_| Malformed("bounds too large"))?);
            }
            let next = bounds.read(&mut rest, if restart { 0 } else { key.unwrap_or(0) })?;
            if key.is_some_and(|key| key >= next.key()) || next.least > next.greatest {
                return Err(Malformed("version bounds out of order"));
            }
            key = Some(next.key());
        }
        rest.end()?;
        bounds.restarts = restarts.into();
        Ok(bounds)
    }

    fn read(&self, reader: &mut Reader<'_>, key: u64) -> Result<Bounds, Malformed> {
        let key = key.checked_add(reader.varint()?).ok_or(Malformed("vnode too large"))?;
        let namespace = NamespaceId::try_from(key >> VNODE_BITS).map_err(|_| Malformed("namespace too large"))?;
        let hlc = self.base_hlc.checked_add(reader.varint()?).ok_or(Malformed("version too large"))?;
        let least = read_version(reader, hlc)?;
        let hlc = hlc.checked_add(reader.varint()?).ok_or(Malformed("version too large"))?;
        let greatest = read_version(reader, hlc)?;
        Ok(Bounds { namespace, vnode: key as u32 & ((1 << VNODE_BITS) - 1), least, greatest })
    }

    /// All of them, in order of namespace and vnode.
    pub fn iter(&self) -> impl Iterator<Item = Bounds> + '_ {
        let (mut reader, mut key) = (Reader::new(&self.bytes), 0);
        (0..self.count).map_while(move |n| {
            let bound = self.read(&mut reader, if n.is_multiple_of(BOUNDS_RESTART) { 0 } else { key }).ok()?;
            key = bound.key();
            Some(bound)
        })
    }

    /// Least and greatest version of any part of a cell in a vnode; None where the table holds nothing of it.
    pub fn get(&self, namespace: NamespaceId, vnode: u32) -> Option<(Version, Version)> {
        let wanted = bounds_key(namespace, vnode);
        let at = |restart: u32| Reader::new(&self.bytes[restart as usize..]);
        let after = self.restarts.partition_point(|&restart| at(restart).varint().is_ok_and(|key| key <= wanted));
        let group = after.checked_sub(1)?;
        let (mut reader, mut key) = (at(self.restarts[group]), 0);
        for _ in group * BOUNDS_RESTART..self.count.min((group + 1) * BOUNDS_RESTART) {
            let bound = self.read(&mut reader, key).ok()?;
            key = bound.key();
            if key >= wanted {
                return (key == wanted).then_some((bound.least, bound.greatest));
            }
        }
        None
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.restarts.len() * 4
    }
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Properties.
//
//   counts as varints (the order of `Counts`) | vnodes varint | first place | last place (with length) | version bounds
//   | number of volatile pages varint | (first deadline since the one before varint | length varint) …

/// What a table counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub entries: u64,
    /// Distinct keys: what the filter holds.
    pub keys: u64,
    pub blocks: u64,
    /// Places and cells before any coding.
    pub raw_bytes: u64,
    pub tombstones: u64,
    /// Cells with a deadline that are not tombstones.
    pub volatile: u64,
    /// Range tombstones' ends.
    pub range_ends: u64,
    /// Additive cells.
    pub sums: u64,
}

impl Counts {
    fn words(&self) -> [u64; 8] {
        [self.entries, self.keys, self.blocks, self.raw_bytes, self.tombstones, self.volatile, self.range_ends, self.sums]
    }
}

/// A volatile page's place in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolatilePage {
    pub first_deadline_ms: WallMs,
    pub bytes: u32,
}

/// The properties as a writer hands them over.
#[derive(Debug, Default)]
pub struct PropertiesDraft {
    pub counts: Counts,
    pub vnodes: u32,
    pub first: Vec<u8>,
    pub last: Vec<u8>,
    /// In order of namespace and vnode.
    pub bounds: Vec<Bounds>,
    pub pages: Vec<VolatilePage>,
}

impl PropertiesDraft {
    pub fn put(&self, out: &mut Vec<u8>) {
        self.counts.words().iter().for_each(|&count| put_varint(out, count));
        put_varint(out, u64::from(self.vnodes));
        put_bytes(out, &self.first);
        put_bytes(out, &self.last);
        VersionBounds::put(out, &self.bounds);
        put_varint(out, self.pages.len() as u64);
        let mut deadline_ms = 0;
        for page in &self.pages {
            put_varint(out, page.first_deadline_ms - deadline_ms);
            put_varint(out, u64::from(page.bytes));
            deadline_ms = page.first_deadline_ms;
        }
    }
}

/// The properties of an open table.
#[derive(Debug, Default)]
pub struct Properties {
    pub counts: Counts,
    pub vnodes: u32,
    pub first: Vec<u8>,
    pub last: Vec<u8>,
    pub bounds: VersionBounds,
    pub pages: Vec<VolatilePage>,
}

impl Properties {
    /// `volatile_bytes` is what the pages must add up to.
    pub fn parse(content: &[u8], volatile_bytes: u64) -> Result<Properties, Malformed> {
        let mut r = Reader::new(content);
        let mut counts = Counts { entries: r.varint()?, keys: r.varint()?, blocks: r.varint()?, ..Counts::default() };
        (counts.raw_bytes, counts.tombstones, counts.volatile) = (r.varint()?, r.varint()?, r.varint()?);
        (counts.range_ends, counts.sums) = (r.varint()?, r.varint()?);
        let vnodes = u32::try_from(r.varint()?).map_err(|_| Malformed("too many vnodes"))?;
        if !(2..=1 << VNODE_BITS).contains(&vnodes) || !vnodes.is_power_of_two() {
            return Err(Malformed("impossible number of vnodes"));
        }
        let (first, last) = (r.bytes()?.to_vec(), r.bytes()?.to_vec());
        if first > last {
            return Err(Malformed("first place above the last"));
        }
        let bounds = VersionBounds::parse(&mut r)?;
        let count = r.varint()?;
        if count > r.rest().len() as u64 {
            return Err(Malformed("too many volatile pages"));
        }
        let (mut pages, mut deadline_ms, mut sum) = (Vec::with_capacity(count as usize), 0u64, 0u64);
        for _ in 0..count {
            deadline_ms = deadline_ms.checked_add(r.varint()?).ok_or(Malformed("deadline too large"))?;
            let bytes = u32::try_from(r.varint()?).map_err(|_| Malformed("volatile page too large"))?;
            sum += u64::from(bytes);
            pages.push(VolatilePage { first_deadline_ms: deadline_ms, bytes });
        }
        r.end()?;
        if sum != volatile_bytes {
            return Err(Malformed("volatile pages do not add up"));
        }
        Ok(Properties { counts, vnodes, first, last, bounds, pages })
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.bounds.memory_bytes() + self.first.len() + self.last.len() + self.pages.len() * size_of::<VolatilePage>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_bounds_are_found_for_every_vnode_and_for_no_other() {
        let mut bounds = Vec::new();
        for namespace in [1u32, 2, 900] {
            for vnode in (0..300u32).map(|n| n * 3) {
                let least = Version::put(1000 + u64::from(vnode), vnode as u16);
                let greatest = Version::rmw(Version::put(5000 + u64::from(vnode), 7), 3, vnode);
                bounds.push(Bounds { namespace, vnode, least, greatest });
            }
        }
        let mut out = Vec::new();
        VersionBounds::put(&mut out, &bounds);
        let parsed = VersionBounds::parse(&mut Reader::new(&out)).unwrap();
        assert_eq!(parsed.iter().collect::<Vec<_>>(), bounds);
        for b in &bounds {
            assert_eq!(parsed.get(b.namespace, b.vnode), Some((b.least, b.greatest)));
            assert_eq!(parsed.get(b.namespace, b.vnode + 1), None);
            assert_eq!(parsed.get(b.namespace + 3, b.vnode), None);
        }
        assert_eq!(VersionBounds::default().get(1, 1), None);
    }

    #[test]
    fn plain_puts_take_few_bytes_of_bounds_a_vnode() {
        let bound = |vnode| {
            let now = 1_700_000_000_000u64 << 16;
            let least = Version::put(now + u64::from(vnode) * 7_000_000, 3);
            Bounds { namespace: 1, vnode, least, greatest: Version::put(now + (1 << 37), 3) }
        };
        let bounds: Vec<_> = (0..4096).map(bound).collect();
        let mut out = Vec::new();
        VersionBounds::put(&mut out, &bounds);
        let parsed = VersionBounds::parse(&mut Reader::new(&out)).unwrap();
        assert!(parsed.memory_bytes() <= 4096 * 16, "{}", parsed.memory_bytes());
    }

    #[test]
    fn sealed_bytes_belong_to_their_salt_and_offset() {
        let mut sealed = b"content".to_vec();
        seal(&mut sealed, 0, 5, 64);
        assert_eq!(unseal(&sealed, 5, 64), Ok(&b"content"[..]));
        assert!(unseal(&sealed, 6, 64).is_err() && unseal(&sealed, 5, 65).is_err());
        for (codec, tag) in [(1u8, 0u8), (2, 0), (0, 16), (1, 16)] {
            let mut other = b"content".to_vec();
            other.extend_from_slice(&[codec, tag, 0, 0, 0, 0]);
            let checksum = hash64_seeded(&other, seed(5, 64));
            other.extend_from_slice(&checksum.to_le_bytes());
            assert!(matches!(unseal(&other, 5, 64), Err(Bad::Unsupported(_))));
            let block = unseal_block(&other, 5, 64);
            assert!(if (codec, tag) == (1, 0) {
                block == Ok(Stored::Packed(b"content"))
            } else {
                matches!(block, Err(Bad::Unsupported(_)))
            });
        }
    }

    #[test]
    fn unknown_required_features_and_versions_are_refused_by_name() {
        let header = Header::new(Identity { cluster: 1, node: 2 }, 3);
        let mut bytes = Vec::new();
        header.put(&mut bytes);
        assert_eq!(Header::parse(&bytes), Ok(header));
        for at in [8, 16, 23] {
            let mut other = bytes.clone();
            other[at] ^= 0x40;
            let checksum = hash64(&other[..HEADER_BYTES - 8]);
            other[HEADER_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
            assert!(matches!(Header::parse(&other), Err(Bad::Unsupported(_))));
        }
        let (packed, mut bytes_packed) = (Header { has_packed: true, ..header }, Vec::new());
        packed.put(&mut bytes_packed);
        assert_eq!((Header::parse(&bytes_packed), bytes_packed[16]), (Ok(packed), 1));
        let mut optional = bytes.clone();
        optional[24] = 1;
        let checksum = hash64(&optional[..HEADER_BYTES - 8]);
        optional[HEADER_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::parse(&optional), Ok(header));
    }
}
