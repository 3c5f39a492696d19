//! What repair needs of the engine: every cell of a range of tokens in order, with its versions; the cells at given places; and storing
//! those of another replica. What is given here is durable: whoever is told that a cell is held may forget, on the strength of it, what is
//! older (PROTOCOL.md G2).
//!
//! A large string is one cell here, as it is between nodes: it is read with its chunks, and stored with them in one batch. Copied apart, a
//! chunk of a newer string would come over one of the older string that is still held, and neither could be read.

use super::batch::{Batch, KeyRef};
use super::format::{PLACE_HEADER_BYTES, key_prefix_len, parse_cell, parse_place, put_cell, unescape};
use super::memtable::expired_form;
use super::merge::elements_dead_below;
use super::store::{Core, Engine};
use super::store_read::ReadCell;
use super::store_scan::{Source, Walk};
use super::{EngineError, Seq};
use crate::base::codec::Malformed;
use crate::base::record::{Body, Cell, Kind, NamespaceId, Token, Version, token_of, vnode_of};
use crate::base::time::WallMs;
use crate::limits::{CHUNK_BYTES, KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// What a cell costs of a list beside its place: about what its versions take.
const LISTED_BYTES: usize = 40;
/// A list looks at so many times the bytes that it may give: the dead cost, too.
const LOOKED_AT: usize = 16;

/// Tokens of one vnode, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRange {
    pub namespace: NamespaceId,
    pub first: Token,
    pub last: Token,
}

/// A cell of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedCell {
    pub place: Vec<u8>,
    pub kind: Kind,
    /// Versions, deadline, and which body it has; without payload.
    pub cell: Cell<'static>,
}

/// A part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CellList {
    /// In order of places.
    pub cells: Vec<ListedCell>,
    /// Where to go on: give it as `after`. `None`: the range ends here.
    pub stopped_at: Option<Vec<u8>>,
}

/// A cell that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundCell {
    pub place: Vec<u8>,
    /// Encoded.
    pub bytes: Vec<u8>,
}

impl FoundCell {
    pub fn cell(&self) -> Cell<'_> {
        parse_cell(&self.bytes).expect("encoded here")
    }
}

/// Takes a copy of another replica apart: a place as `format` writes it, with the token of its key, and a cell that may stand there.
///
/// # Errors
/// What is wrong with it.
pub fn check_copy<'a>(place: &[u8], cell: &'a [u8]) -> Result<Cell<'a>, Malformed> {
    let parsed = parse_place(place)?;
    let key = unescape(parsed.escaped_key);
    if parsed.kind.is_derived() || parsed.kind == Kind::Chunk || parsed.kind == Kind::Head && !parsed.element.is_empty() {
        return Err(Malformed("no place that nodes exchange"));
    }
    if key.len() > KEY_BYTES_MAX || parsed.element.len() > KEY_BYTES_MAX {
        return Err(Malformed("a key or an element longer than any"));
    }
    if parsed.token != token_of(&key) {
        return Err(Malformed("the token of another key"));
    }
    let cell = parse_cell(cell)?;
    let is_silent = cell.body == Body::Silent;
    if matches!(cell.body, Body::Sum { .. } | Body::Chunked { .. })
        || is_silent != (cell.version == Version::ZERO)
        || cell.newest() == Version::ZERO
    {
        return Err(Malformed("no cell that nodes exchange"));
    }
    let bytes_max = if parsed.kind == Kind::Head { VALUE_BYTES_MAX } else { CHUNK_BYTES };
    match cell.body {
        Body::Bytes(bytes) | Body::RangeEnd(bytes) if bytes.len() > bytes_max => Err(Malformed("a value longer than any")),
        _ => Ok(cell),
    }
}

impl TokenRange {
    /// The first place, or the first behind `after`; and the first behind the range.
    fn places(&self, after: Option<&[u8]>) -> (Vec<u8>, Vec<u8>) {
        let place = |namespace: NamespaceId, token: Token| [&namespace.to_be_bytes()[..], &token.to_be_bytes()].concat();
        let first = place(self.namespace, self.first);
        // No place lies between one and the same with a zero behind it.
        let from = after.map_or(first.clone(), |after| [after, &[0]].concat().max(first));
        let to = match (self.last.checked_add(1), self.namespace.checked_add(1)) {
            (Some(token), _) => place(self.namespace, token),
            (None, Some(namespace)) => place(namespace, 0),
            (None, None) => vec![0xFF; PLACE_HEADER_BYTES + 1],
        };
        (from, to)
    }
}

/// What is compared of a cell.
fn without_payload(cell: &Cell<'_>) -> Cell<'static> {
    let body = match cell.body {
        Body::Silent => Body::Silent,
        Body::Bytes(_) => Body::Bytes(b""),
        Body::Chunked { len } => Body::Chunked { len },
        Body::Collection { of, floor, .. } => Body::Collection { of, floor, context: b"" },
        Body::Sum { floor, delta } => Body::Sum { floor, delta },
        Body::RangeEnd(_) => Body::RangeEnd(b""),
        Body::Tombstone => Body::Tombstone,
    };
    Cell { version: cell.version, body, expiry: cell.expiry, request_id: None }
}

fn kind_of(place: &[u8]) -> Result<Kind, EngineError> {
    parse_place(place).map(|place| place.kind).map_err(|what| EngineError::corrupt("a table", 0, what))
}

/// What a list has taken out of memory.
struct InMemory {
    sources: Vec<Source>,
    /// Up to which place all were taken, if not to the end.
    bound: Option<Vec<u8>>,
    /// The newest log record that touched any of them.
    seq: Seq,
}

impl Core {
    fn list_memory(&self, namespace: NamespaceId, vnode: u32, (from, to): (&[u8], &[u8]), bytes_max: usize) -> InMemory {
        let drop_seq = self.tables.manifest().state().vnodes.get(namespace, vnode).drop_seq;
        let mems = self.mems.borrow();
        let mut found = InMemory { sources: Vec::new(), bound: None, seq: 0 };
        for table in mems.sealed.iter().map(|sealed| &*sealed.table).chain([&mems.active]) {
            let (mut entries, mut bytes) = (Vec::<(Vec<u8>, Vec<u8>)>::new(), 0);
            for (place, cell, seq) in table.entries_between(namespace, vnode, from, Some(to)).filter(|(.., seq)| *seq >= drop_seq) {
                if bytes >= bytes_max {
                    let last = entries.last().map(|(place, _)| place.clone()).unwrap_or_default();
                    found.bound = Some(found.bound.map_or(last.clone(), |bound| bound.min(last)));
                    break;
                }
                bytes += place.len() + LISTED_BYTES;
                found.seq = found.seq.max(seq);
                let mut light = Vec::new();
                put_cell(&mut light, &without_payload(&parse_cell(cell).expect("a cell that was encoded here")));
                entries.push((place.to_vec(), light));
            }
            found.sources.push(Source::Memory { entries, at: 0 });
        }
        found
    }
}

/// The key that passes by, and up to which version its head makes elements dead (itself included where the second is true).
#[derive(Default)]
struct Key {
    prefix: Vec<u8>,
    dead: Option<(Version, bool)>,
}

impl Key {
    fn set_head(&mut self, head: Option<Cell<'_>>, now_ms: WallMs) {
        // As a merge does, which may have dropped them here and not at the other replica.
        self.dead = head.and_then(|head| {
            let is_expired = head.is_expired(now_ms);
            elements_dead_below(&if is_expired { expired_form(head) } else { head }, is_expired)
        });
    }

    fn is_dead(&self, cell: &Cell<'_>) -> bool {
        self.dead.is_some_and(|(bound, inclusive)| cell.newest() < bound || inclusive && cell.newest() == bound)
    }
}

impl Engine {
    /// The cells of a range behind place `after` (`None`: from its start): heads and elements, the dead included, without those elements
    /// that their key's head makes dead and without derived cells. Ends when it has listed `bytes_max` bytes (one cell may lie beyond), or
    /// looked at many times that. All of it is durable.
    ///
    /// # Errors
    /// `Corrupt` naming file and offset; of the disk; `Stopped` where something listed never will be durable. Panics if the tokens are not
    /// of one vnode.
    pub async fn list_cells(
        &self,
        range: TokenRange,
        after: Option<&[u8]>,
        bytes_max: usize,
        now_ms: WallMs,
    ) -> Result<CellList, EngineError> {
        let core = &self.core;
        let vnode = vnode_of(range.first, core.store.vnodes());
        assert!(range.first <= range.last && vnode_of(range.last, core.store.vnodes()) == vnode, "{range:?} is of one vnode");
        let (from, to) = range.places(after);
        let bytes_max = bytes_max.max(1);
        let mut memory = core.list_memory(range.namespace, vnode, (&from, &to), bytes_max);
        core.scan_tables(range.namespace, vnode, (&from, &to), &mut memory.sources).await?;
        let (mut walk, bound, mut seq) = (Walk::new(memory.sources), memory.bound, memory.seq);
        let (mut list, mut key, mut looked_at, mut bytes) = (CellList::default(), Key::default(), 0, 0);
        while walk.next().await? {
            if core.io.slice_is_over() {
                core.io.yield_now().await;
            }
            let damaged = |what| EngineError::corrupt("a table", 0, what);
            let (kind, cell) = (kind_of(&walk.place)?, without_payload(&parse_cell(&walk.cell).map_err(damaged)?));
            let cost = walk.place.len() + LISTED_BYTES;
            looked_at += cost;
            seq = seq.max(self.enter(&mut key, &walk.place, kind, &cell, now_ms).await?);
            if !kind.is_derived() && (kind == Kind::Head || !key.is_dead(&cell)) {
                bytes += cost;
                list.cells.push(ListedCell { place: walk.place.clone(), kind, cell });
            }
            let is_bound = bound.as_ref().is_some_and(|bound| *bound <= walk.place);
            if bytes >= bytes_max || looked_at >= bytes_max.saturating_mul(LOOKED_AT) || is_bound {
                list.stopped_at = Some(walk.place);
                break;
            }
        }
        self.wait_durable(seq).await?;
        Ok(list)
    }

    /// Makes the place's key the current one. A head that lies before the list's start is read. Gives the log sequence that decided.
    async fn enter(&self, key: &mut Key, place: &[u8], kind: Kind, cell: &Cell<'_>, now_ms: WallMs) -> Result<Seq, EngineError> {
        let len = key_prefix_len(place).map_err(|what| EngineError::corrupt("a table", 0, what))?;
        let is_same = key.prefix == place[..len];
        if !is_same {
            key.prefix.clear();
            key.prefix.extend_from_slice(&place[..len]);
        }
        if kind == Kind::Head {
            key.set_head(Some(*cell), now_ms);
        } else if !is_same {
            let head = self.core.read_place(&[&place[..len], &[Kind::Head as u8]].concat()).await?;
            key.set_head(head.cell(), now_ms);
            return Ok(head.settled);
        }
        Ok(0)
    }

    /// What is stored at an encoded place; nothing where it is none that `check_copy` takes. It may not be durable yet (`settled`).
    ///
    /// # Errors
    /// As `read`.
    pub async fn read_at(&self, place: &[u8]) -> Result<ReadCell, EngineError> {
        match parse_place(place) {
            Ok(parsed) if !parsed.kind.is_derived() => self.core.read_place(place).await,
            _ => Ok(ReadCell::default()),
        }
    }

    /// How long the string at a place is, if it lies in chunks.
    ///
    /// # Errors
    /// As `read`.
    pub async fn large_at(&self, place: &[u8]) -> Result<Option<usize>, EngineError> {
        match self.read_at(place).await?.cell() {
            Some(Cell { body: Body::Chunked { len }, .. }) => Ok(Some(len as usize)),
            _ => Ok(None),
        }
    }

    /// The cells at encoded places, in the order given, until `bytes_max` bytes are read, the first whatever its size: at how many places
    /// it looked, and what it found there. All of it is durable. A large string comes in one piece; it is read where its place is the first
    /// one, and ends the list before it where it is not. One that lacks chunks, or whose chunks are damaged, counts as not found: it must
    /// not keep others from being copied, and is reported by who reads it.
    ///
    /// # Errors
    /// As `read`; `Stopped` where something found never will be durable.
    pub async fn cells_at(&self, places: &[Vec<u8>], bytes_max: usize, now_ms: WallMs) -> Result<(usize, Vec<FoundCell>), EngineError> {
        let (mut found, mut bytes, mut seq, mut looked_at) = (Vec::new(), 0, 0, 0);
        for place in places {
            if self.core.io.slice_is_over() {
                self.core.io.yield_now().await;
            }
            let read = self.read_at(place).await?;
            if matches!(read.cell(), Some(Cell { body: Body::Chunked { .. }, .. })) {
                if looked_at > 0 {
                    break;
                }
                if let Some((encoded, settled)) = self.in_one_piece(place, &read, now_ms).await? {
                    (bytes, seq) = (place.len() + encoded.len() + LISTED_BYTES, settled);
                    found.push(FoundCell { place: place.clone(), bytes: encoded });
                }
            } else if let Some(cell) = read.cell() {
                let mut encoded = Vec::new();
                put_cell(&mut encoded, &cell);
                bytes += place.len() + encoded.len() + LISTED_BYTES;
                if bytes > bytes_max && !found.is_empty() {
                    break;
                }
                seq = seq.max(read.settled);
                found.push(FoundCell { place: place.clone(), bytes: encoded });
            }
            looked_at += 1;
        }
        self.wait_durable(seq).await?;
        Ok((looked_at, found))
    }

    /// A large string, encoded, and its log sequence. `head` is what was just read at its place.
    async fn in_one_piece(&self, place: &[u8], head: &ReadCell, now_ms: WallMs) -> Result<Option<(Vec<u8>, Seq)>, EngineError> {
        let parsed = parse_place(place).map_err(|what| EngineError::corrupt("a table", 0, what))?;
        let key = unescape(parsed.escaped_key);
        let mut encoded = Vec::new();
        match self.read_whole(KeyRef { namespace: parsed.namespace, token: parsed.token, key: &key }).await {
            Ok(whole) => {
                let Some(cell) = whole.cell() else { return Ok(None) };
                put_cell(&mut encoded, &cell);
                Ok(Some((encoded, whole.settled())))
            }
            // A merge has dropped the chunks, and would make of the head what it is as good as already.
            Err(EngineError::Corrupt { .. }) => {
                let Some(cell) = head.cell().filter(|cell| cell.is_expired(now_ms)) else { return Ok(None) };
                put_cell(&mut encoded, &cell.remnant());
                Ok(Some((encoded, head.settled)))
            }
            Err(error) => Err(error),
        }
    }

    /// Joins copies in as one batch: places and cells that `check_copy` took, of vnodes of this shard, with only those parts that
    /// `cluster::forget::admits_cell` has let through in this turn. Durable when `durable()` has reached what this gives.
    ///
    /// # Errors
    /// As `write_admitted`. Panics if there are none.
    pub fn store_copies(&self, copies: &[(&[u8], Cell<'_>)]) -> Result<Seq, EngineError> {
        let mut batch = Batch::new(true);
        for (place, cell) in copies {
            batch.push_copy(place, cell);
        }
        self.write_admitted(&batch)
    }
}
