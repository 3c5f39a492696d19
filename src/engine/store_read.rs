//! Reading: what memory can answer at once (`peek`), what may need the disk (`read`), and strings with their chunks (`read_value`).

use super::batch::{KeyRef, key_prefix};
use super::block::CellBuf;
use super::filter::prefix_hash;
use super::format::{place_namespace_token, put_cell};
use super::levels::{TableRef, Tree, is_settled};
use super::store::{Core, Engine, NeedsDisk, add};
use super::table::{Peeked, Table};
use super::tables::Tables;
use super::{EngineError, Seq};
use crate::base::codec::Malformed;
use crate::base::record::{Body, Cell, Kind, NamespaceId, Version, join, vnode_of};
use crate::base::time::WallMs;
use crate::limits::CHUNK_BYTES;
use std::rc::Rc;

/// How often a large string is begun anew that is overwritten while it is read.
const ATTEMPTS_MAX: usize = 64;

/// Keys whose lookups are prefetched together.
pub const PREFETCH_MAX: usize = 16;

/// What is stored at a place, all tables and memtables joined.
#[derive(Clone, Debug, Default)]
pub struct ReadCell {
    cell: Option<CellBuf>,
    /// The log sequence that must be durable before this may be shown to anybody; 0 if it is already.
    pub settled: Seq,
}

impl ReadCell {
    /// The cell; `None` where nothing was ever stored, or nothing is left of it.
    pub fn cell(&self) -> Option<Cell<'_>> {
        self.cell.as_ref().map(CellBuf::cell)
    }
}

/// A head with all of its string.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    head: ReadCell,
    /// The chunks of a large one, put together.
    chunks: Option<Vec<u8>>,
}

impl Whole {
    /// The cell, a large string in one piece.
    pub fn cell(&self) -> Option<Cell<'_>> {
        let cell = self.head.cell()?;
        Some(match &self.chunks {
            Some(bytes) => Cell { body: Body::Bytes(bytes), ..cell },
            None => cell,
        })
    }

    /// As in `ReadCell`.
    pub fn settled(&self) -> Seq {
        self.head.settled
    }
}

/// A live string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub version: Version,
    pub bytes: Vec<u8>,
    /// 0: never.
    pub deadline_ms: WallMs,
    /// As in `ReadCell`.
    pub settled: Seq,
}

/// Two cells of one place from tables.
fn join_bufs(a: Option<CellBuf>, b: CellBuf) -> CellBuf {
    let Some(a) = a else { return b };
    let joined = join(a.cell(), b.cell());
    if joined == a.cell() {
        return a;
    }
    if joined == b.cell() {
        return b;
    }
    copied(&joined)
}

fn copied(cell: &Cell<'_>) -> CellBuf {
    let mut bytes = Vec::new();
    put_cell(&mut bytes, cell);
    CellBuf::copied(&bytes).expect("a cell that was encoded here")
}

fn join_some<'a>(a: Option<Cell<'a>>, b: Option<Cell<'a>>) -> Option<Cell<'a>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(join(a, b)),
        (a, b) => a.or(b),
    }
}

impl Core {
    /// What the memtables hold of a place, handed to `f`, with the newest log record that put it there.
    fn in_memory<R>(&self, place: &[u8], f: impl FnOnce(Option<Cell<'_>>, Seq) -> R) -> R {
        let mems = self.mems.borrow();
        let (mut found, mut seq) = mems.active.get(place).map_or((None, 0), |(cell, seq)| (Some(cell), seq));
        for sealed in &mems.sealed {
            if let Some((cell, at)) = sealed.table.get(place) {
                (found, seq) = (join_some(found, Some(cell)), seq.max(at));
            }
        }
        f(found, seq)
    }

    fn settled(&self, seq: Seq) -> Seq {
        if seq > self.wal.durable() { seq } else { 0 }
    }

    fn peek_place<R>(&self, place: &[u8], f: impl FnOnce(Option<&Cell<'_>>, Seq) -> R) -> Result<R, NeedsDisk> {
        // Handed on to whichever place knows the answer; only one does.
        let mut f = Some(f);
        let mut answer = |cell: Option<&Cell<'_>>, seq| f.take().expect("called once")(cell, seq);
        if let Some(given) = self.cells.with(place, |cell| answer(Some(cell), 0)) {
            return Ok(given);
        }
        let (given, found) = self.in_memory(place, |above, seq| {
            let below = self.peek_tables(place, above)?;
            let joined = join_some(above, below.as_ref().map(CellBuf::cell));
            Ok((answer(joined.as_ref(), self.settled(seq)), below.filter(|_| above.is_none())))
        })?;
        if let Some(cell) = found {
            self.remember(place, &cell, &self.tables.tree());
        }
        Ok(given)
    }

    /// What tables say of a place, as far as memory knows, joined over `above`.
    fn peek_tables(&self, place: &[u8], above: Option<Cell<'_>>) -> Result<Option<CellBuf>, NeedsDisk> {
        let tree = self.tables.tree();
        let lookup = Lookup::new(self, &tree, place);
        let mut below: Option<CellBuf> = None;
        let mut hash = None;
        if above.is_some_and(|cell| lookup.is_settled(0, &cell)) {
            return Ok(None);
        }
        for (run, table) in lookup.tables() {
            if below.is_some() && join_some(above, below.as_ref().map(CellBuf::cell)).is_some_and(|cell| lookup.is_settled(run, &cell)) {
                break;
            }
            if !table.table.may_hold(*hash.get_or_insert_with(|| prefix_hash(key_prefix(place)))) {
                continue;
            }
            match table.table.peek(place, &self.tables.cache).map_err(|_| NeedsDisk)? {
                Peeked::Hit(cell) => below = Some(join_bufs(below.take(), cell)),
                Peeked::Absent => {}
                Peeked::NeedsRead => return Err(NeedsDisk),
            }
        }
        Ok(below)
    }

    /// Everything that is stored at a place.
    pub(super) async fn read_place(&self, place: &[u8]) -> Result<ReadCell, EngineError> {
        add(&self.counters.reads, 1);
        if let Some(cell) = self.cells.with(place, copied) {
            return Ok(ReadCell { cell: Some(cell), settled: 0 });
        }
        // Memory and tree are looked at in one instant: what a flush moves meanwhile is seen once, here or there.
        let (above, seq) = self.in_memory(place, |cell, seq| (cell.map(|cell| copied(&cell)), seq));
        let tree = self.tables.tree();
        let lookup = Lookup::new(self, &tree, place);
        let mut found = above.clone();
        let mut hash = None;
        for (run, table) in lookup.tables() {
            if found.as_ref().is_some_and(|cell| lookup.is_settled(run, &cell.cell())) {
                break;
            }
            if !table.table.may_hold(*hash.get_or_insert_with(|| prefix_hash(key_prefix(place)))) {
                continue;
            }
            if let Some(cell) = table.table.get(place, &self.tables.cache).await? {
                found = Some(join_bufs(found.take(), cell));
            }
        }
        // A vnode that was made void meanwhile has forgotten it.
        if let Some(cell) = found.as_ref().filter(|_| above.is_none() && lookup.drop_seq == Lookup::new(self, &tree, place).drop_seq) {
            self.remember(place, cell, &tree);
        }
        Ok(ReadCell { cell: found, settled: self.settled(seq) })
    }

    /// Keeps a head that was joined over all tables of `tree`, unless something was written there meanwhile, or moved. Elements stay in
    /// their blocks.
    fn remember(&self, place: &[u8], cell: &CellBuf, tree: &Rc<Tree<Table>>) {
        let is_head = place.len() == key_prefix(place).len() + 1 && place.last() == Some(&(Kind::Head as u8));
        if is_head && Rc::ptr_eq(tree, &self.tables.tree()) && self.in_memory(place, |cell, _| cell.is_none()) {
            self.cells.insert(place, cell.bytes());
        }
    }
}

/// Where the tables of one tree may hold a place.
struct Lookup<'a> {
    tree: &'a Tree<Table>,
    place: &'a [u8],
    namespace: NamespaceId,
    vnode: u32,
    drop_seq: Seq,
}

impl<'a> Lookup<'a> {
    fn new(core: &'a Core, tree: &'a Tree<Table>, place: &'a [u8]) -> Lookup<'a> {
        let (namespace, token) = place_namespace_token(place);
        let vnode = vnode_of(token, core.store.vnodes());
        let drop_seq = core.tables.manifest().state().vnodes.get(namespace, vnode).drop_seq;
        Lookup { tree, place, namespace, vnode, drop_seq }
    }

    /// Newest run first.
    fn tables(&self) -> impl Iterator<Item = (usize, &'a Rc<TableRef<Table>>)> {
        self.tree.lookup(self.place, self.vnode, self.drop_seq, 0)
    }

    /// Nothing in this run or an older one can change what was found.
    fn is_settled(&self, run: usize, found: &Cell<'_>) -> bool {
        is_settled(found, self.tree.newest_from(run, Tables::newest_of)) || {
            let newest = |table: &Table| Tables::newest_in(table, self.namespace, self.vnode);
            is_settled(found, self.tree.newest_of_vnode(run, self.place, self.vnode, self.drop_seq, newest))
        }
    }
}

impl Engine {
    /// Begins to load what `peek` looks at, for keys that are looked up next: all their index lines, then their entries, so that their
    /// misses overlap; of those that the cache of cells has not, what memtables have. What is beyond `PREFETCH_MAX` is left alone.
    #[inline]
    pub fn prefetch<'k>(&self, keys: impl Iterator<Item = KeyRef<'k>>) {
        let core = &self.core;
        let mut hashes = [const { None }; PREFETCH_MAX];
        hashes.iter_mut().zip(keys).for_each(|(slot, key)| *slot = Some((core.cells.hash(key.namespace, key.token), key)));
        hashes.iter().flatten().for_each(|(hash, _)| core.cells.prefetch_index(*hash));
        let mems = core.mems.borrow();
        let mut place = core.scratch.take();
        for (hash, key) in hashes.iter().flatten() {
            if core.cells.prefetch_entry(*hash) {
                continue;
            }
            place.clear();
            super::format::put_place(&mut place, key.namespace, key.token, key.key, Kind::Head, b"");
            let all = std::iter::once(&mems.active).chain(mems.sealed.iter().map(|sealed| &*sealed.table));
            all.filter(|memtable| !memtable.is_empty()).for_each(|memtable| memtable.prefetch(&place));
        }
        core.scratch.replace(place);
    }

    /// The head of a key, if memory alone decides: cells in the cache, memtables, blocks in the cache, filters, version bounds. `f` gets
    /// the joined cell and the log sequence that must be durable before it may be shown (0: it is).
    ///
    /// # Errors
    /// A block must be read first: `read`.
    pub fn peek<R>(&self, key: KeyRef<'_>, f: impl FnOnce(Option<&Cell<'_>>, Seq) -> R) -> Result<R, NeedsDisk> {
        let core = &self.core;
        add(&core.counters.peeks, 1);
        let mut place = core.scratch.take();
        place.clear();
        super::format::put_place(&mut place, key.namespace, key.token, key.key, Kind::Head, b"");
        let given = core.peek_place(&place, f);
        core.scratch.replace(place);
        given
    }

    /// Looks at a cell and the log record that put it there, as far as memory knows. What is only on disk is not looked for.
    pub fn held<R>(&self, key: KeyRef<'_>, kind: Kind, element: &[u8], look: impl Fn(&Cell<'_>, Seq) -> R) -> Option<R> {
        let core = &self.core;
        let mut place = core.scratch.take();
        place.clear();
        super::format::put_place(&mut place, key.namespace, key.token, key.key, kind, element);
        let found = core.in_memory(&place, |cell, seq| cell.map(|cell| look(&cell, seq)));
        let found = found.or_else(|| core.cells.with(&place, |cell| look(cell, 0)));
        core.scratch.replace(place);
        found
    }

    /// The head of a key.
    ///
    /// # Errors
    /// `Corrupt` naming file and offset; of the disk.
    pub async fn read(&self, key: KeyRef<'_>) -> Result<ReadCell, EngineError> {
        self.core.read_place(&key.place(Kind::Head, b"")).await
    }

    /// Any cell of a key.
    ///
    /// # Errors
    /// As `read`.
    pub async fn read_element(&self, key: KeyRef<'_>, kind: Kind, element: &[u8]) -> Result<ReadCell, EngineError> {
        self.core.read_place(&key.place(kind, element)).await
    }

    /// A live string, its chunks put together; `None` where there is none at `now_ms`, or something else.
    ///
    /// # Errors
    /// As `read`; `Overloaded` where it is overwritten again and again while it is read.
    pub async fn read_value(&self, key: KeyRef<'_>, now_ms: WallMs) -> Result<Option<Value>, EngineError> {
        let mut missing = Version::ZERO;
        for _ in 0..ATTEMPTS_MAX {
            let head = self.read(key).await?;
            let Some(cell) = head.cell().filter(|cell| cell.is_live(now_ms)) else { return Ok(None) };
            let (version, deadline_ms, settled) = (cell.version, cell.expiry.deadline_ms, head.settled);
            let bytes = match cell.body {
                Body::Bytes(bytes) => Some(bytes.to_vec()),
                Body::Chunked { len } => self.read_chunks(key, version, len as usize).await?,
                _ => return Ok(None),
            };
            if let Some(bytes) = bytes {
                return Ok(Some(Value { version, bytes, deadline_ms, settled }));
            }
            if missing == version {
                let what = Malformed("a chunk of a string is missing");
                return Err(EngineError::corrupt(&format!("the tables of shard {}", self.core.config.core), 0, what));
            }
            missing = version;
        }
        Err(EngineError::Overloaded)
    }

    /// The head of a key as it is stored, live or not, and a large string's chunks with it.
    ///
    /// # Errors
    /// As `read_value`.
    pub async fn read_whole(&self, key: KeyRef<'_>) -> Result<Whole, EngineError> {
        let mut missing = Version::ZERO;
        for _ in 0..ATTEMPTS_MAX {
            let head = self.read(key).await?;
            let Some(Cell { version, body: Body::Chunked { len }, .. }) = head.cell() else { return Ok(Whole { head, chunks: None }) };
            if let Some(bytes) = self.read_chunks(key, version, len as usize).await? {
                return Ok(Whole { head, chunks: Some(bytes) });
            }
            if missing == version {
                let what = Malformed("a chunk of a string is missing");
                return Err(EngineError::corrupt(&format!("the tables of shard {}", self.core.config.core), 0, what));
            }
            missing = version;
        }
        Err(EngineError::Overloaded)
    }

    /// The chunks of one write; `None` if another one has come over them.
    async fn read_chunks(&self, key: KeyRef<'_>, version: Version, len: usize) -> Result<Option<Vec<u8>>, EngineError> {
        let mut bytes = Vec::with_capacity(len.min(crate::limits::VALUE_BYTES_MAX));
        for number in 0..len.div_ceil(CHUNK_BYTES) as u32 {
            let chunk = self.read_element(key, Kind::Chunk, &number.to_be_bytes()).await?;
            match chunk.cell() {
                Some(Cell { version: of, body: Body::Bytes(part), .. }) if of == version => bytes.extend_from_slice(part),
                _ => return Ok(None),
            }
        }
        Ok((bytes.len() == len).then_some(bytes))
    }
}
