//! Repair's hands on one core: the hash trees of its vnodes and the scan that keeps them (`cluster::merkle`), and what a comparison
//! (`cluster::repair`) asks of the engine: lists, cells, and storing copies. Nothing here sends, and nothing decides what is compared when.
//!
//! A write marks a leaf dirty (`mark_dirty`), in the turn in which it becomes visible. `scan_step` looks at one page of one dirty leaf; its
//! caller sleeps in between, and so chooses what the scan costs. Memory: the trees within a bound, and one page.

use crate::base::record::{Body, Cell, Expiry, NamespaceId, Token, Version, vnode_of};
use crate::base::time::WallMs;
use crate::cluster::forget::{Admit, Marks};
use crate::cluster::merkle::{Digest, LeafScan, Tree, is_compared, leaves_log2_for};
use crate::cluster::repair::{CellCopy, Entry, Listing, Scope, Span};
use crate::engine::store_repair::{TokenRange, check_copy};
use crate::engine::{Engine, EngineError};
use crate::limits::REPAIR_PAGE_BYTES;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;

/// What a leaf takes in memory: its hash and two flags.
const LEAF_BYTES: usize = 18;

/// A vnode of a namespace.
type Pair = (NamespaceId, u32);

#[derive(Debug)]
struct Held {
    tree: Tree,
    /// Leaves scanned, and the cells in them, since its depth was last thought about.
    leaves: u64,
    cells: u64,
}

/// The leaf that is being scanned.
#[derive(Debug)]
struct Scan {
    pair: Pair,
    leaf: LeafScan,
    range: TokenRange,
    after: Option<Vec<u8>>,
    cells: u64,
}

#[derive(Debug, Default)]
struct State {
    trees: BTreeMap<Pair, Held>,
    scan: Option<Scan>,
    /// The pair that was scanned last; the next dirty one behind it comes next.
    last: Option<Pair>,
}

/// The trees of one core.
#[derive(Debug)]
pub struct Trees {
    seed: u64,
    vnodes: u32,
    bytes_max: usize,
    state: RefCell<State>,
}

impl Trees {
    /// `seed` is the cluster's, the same on every node; `vnodes`: how many the ring has; `bytes_max`: of all trees.
    pub fn new(seed: u64, vnodes: u32, bytes_max: usize) -> Trees {
        Trees { seed, vnodes, bytes_max, state: RefCell::default() }
    }

    /// Which trees there are from now on: those that stay keep what they know, of new ones nothing is known.
    pub fn set_pairs(&self, pairs: impl IntoIterator<Item = Pair>) {
        let mut state = self.state.borrow_mut();
        let mut before = std::mem::take(&mut state.trees);
        let fresh = |vnode| Held { tree: Tree::new(vnode, self.vnodes, 0), leaves: 0, cells: 0 };
        state.trees = pairs.into_iter().map(|pair| (pair, before.remove(&pair).unwrap_or_else(|| fresh(pair.1)))).collect();
    }

    /// A cell with this token was written, or dropped for good.
    pub fn mark_dirty(&self, namespace: NamespaceId, token: Token) {
        if let Some(held) = self.state.borrow_mut().trees.get_mut(&(namespace, vnode_of(token, self.vnodes))) {
            held.tree.mark(token);
        }
    }

    /// A part of a vnode is listed for a comparison, though hashes here are known: either the other replica's are not, or cells have died
    /// since a scan and lie below the floor, or have been forgotten, which no write tells. Another scan finds hashes that agree again.
    pub fn mark_listed(&self, namespace: NamespaceId, vnode: u32, span: &Span) {
        if let Some(held) = self.state.borrow_mut().trees.get_mut(&(namespace, vnode)) {
            held.tree.mark_range(span.first, span.last);
        }
    }

    /// A vnode's data was replaced.
    pub fn mark_all(&self, namespace: NamespaceId, vnode: u32) {
        if let Some(held) = self.state.borrow_mut().trees.get_mut(&(namespace, vnode)) {
            held.tree.mark_all();
        }
    }

    /// Looks at a tree; `None` where there is none.
    pub fn with<R>(&self, namespace: NamespaceId, vnode: u32, look: impl FnOnce(&Tree) -> R) -> Option<R> {
        self.state.borrow().trees.get(&(namespace, vnode)).map(|held| look(&held.tree))
    }

    /// Leaves that wait for a scan.
    pub fn dirty(&self) -> usize {
        self.state.borrow().trees.values().map(|held| held.tree.dirty()).sum()
    }

    /// Looks at one page of a dirty leaf; false where no leaf is dirty. One at a time.
    ///
    /// # Errors
    /// As `Engine::list_cells`; the leaf stays dirty.
    pub async fn scan_step(&self, engine: &Engine, now_ms: WallMs) -> Result<bool, EngineError> {
        let begun = self.state.borrow_mut().scan.take();
        let Some(mut scan) = begun.or_else(|| self.begin()) else { return Ok(false) };
        let floor = engine.marks(scan.pair.0, scan.pair.1).floor;
        let list = engine.list_cells(scan.range, scan.after.as_deref(), REPAIR_PAGE_BYTES, now_ms).await?;
        for listed in list.cells.iter().filter(|listed| is_compared(listed.kind, &listed.cell, floor, now_ms)) {
            scan.leaf.add(self.seed, &listed.place, &Digest::of(&listed.cell, now_ms));
            scan.cells += 1;
        }
        match list.stopped_at {
            Some(place) => self.state.borrow_mut().scan = Some(Scan { after: Some(place), ..scan }),
            None => self.finish(scan),
        }
        Ok(true)
    }

    fn begin(&self) -> Option<Scan> {
        let mut state = self.state.borrow_mut();
        let State { trees, last, .. } = &mut *state;
        let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
        let is_dirty = |(_, held): &(&Pair, &Held)| held.tree.next_dirty(0).is_some();
        let pair = trees.range((behind, Bound::Unbounded)).find(is_dirty).or_else(|| trees.iter().find(is_dirty)).map(|(pair, _)| *pair)?;
        *last = Some(pair);
        let tree = &mut trees.get_mut(&pair)?.tree;
        let leaf = tree.next_dirty(0)?;
        let (first, last) = tree.range(tree.leaves_log2(), leaf);
        Some(Scan { pair, leaf: tree.begin(leaf), range: TokenRange { namespace: pair.0, first, last }, after: None, cells: 0 })
    }

    fn finish(&self, scan: Scan) {
        let mut state = self.state.borrow_mut();
        let taken: usize = state.trees.values().map(|held| LEAF_BYTES << held.tree.leaves_log2()).sum();
        let Some(held) = state.trees.get_mut(&scan.pair) else { return };
        held.tree.finish(scan.leaf);
        (held.leaves, held.cells) = (held.leaves + 1, held.cells + scan.cells);
        let now_log2 = held.tree.leaves_log2();
        if held.leaves < 1 << now_log2 {
            return;
        }
        // So many leaves as there are have been looked at: that is about the vnode's cells.
        let mut log2 = leaves_log2_for((held.cells << now_log2) / held.leaves, now_log2);
        while log2 > now_log2 && taken - (LEAF_BYTES << now_log2) + (LEAF_BYTES << log2) > self.bytes_max {
            log2 -= 1;
        }
        if log2 != now_log2 {
            held.tree.resize(log2);
        }
        (held.leaves, held.cells) = (0, 0);
    }
}

/// What a replica keeps of the forgetting in a vnode, as `cluster` wants it.
pub fn marks(engine: &Engine, namespace: NamespaceId, vnode: u32) -> Marks {
    let marks = engine.marks(namespace, vnode);
    Marks { fence: marks.fence, floor: marks.floor }
}

/// A page of what is held in a span, for `Exchange::on_listed` and `Comparing::listed`. The span's tokens are of the scope's vnode.
///
/// # Errors
/// As `Engine::list_cells`.
pub async fn list(engine: &Engine, scope: &Scope, span: &Span, now_ms: WallMs) -> Result<Listing, EngineError> {
    let range = TokenRange { namespace: scope.namespace, first: span.first, last: span.last };
    let list = engine.list_cells(range, span.after.as_deref(), REPAIR_PAGE_BYTES, now_ms).await?;
    // Looked at behind the list: a floor that rose meanwhile makes no more absent than it says.
    let marks = marks(engine, scope.namespace, scope.vnode);
    let is_in = |place: &Vec<u8>| span.until.as_ref().is_none_or(|until| place <= until);
    let listed = list.cells.into_iter().filter(|listed| is_in(&listed.place));
    let compared = listed.filter(|listed| is_compared(listed.kind, &listed.cell, marks.floor, now_ms));
    let entries = compared.map(|listed| Entry { digest: Digest::of(&listed.cell, now_ms), place: listed.place }).collect();
    let stopped_at = list.stopped_at.filter(|place| span.until.as_ref().is_none_or(|until| place < until));
    Ok(Listing { entries, absent: marks.absent(None), stopped_at })
}

/// The cells at these places until a page is full: at how many places it looked, and what it found; for `Exchange::on_copied` and
/// `Reading::read`. One may be as large as the largest value.
///
/// # Errors
/// As `Engine::cells_at`.
pub async fn read(engine: &Engine, places: &[Vec<u8>], now_ms: WallMs) -> Result<(usize, Vec<CellCopy>), EngineError> {
    let (looked_at, found) = engine.cells_at(places, REPAIR_PAGE_BYTES, now_ms).await?;
    let copy = |found: crate::engine::store_repair::FoundCell| CellCopy {
        digest: Digest::of(&found.cell(), now_ms),
        place: found.place,
        cell: found.bytes,
    };
    Ok((looked_at, found.into_iter().map(copy).collect()))
}

/// Stores what is admitted of another replica's cells, durable when it returns: how many were refused, in part or as a whole. `judge` is
/// `forget::admits_cell` with what the follower says when it is called, which is after everything that is held was read.
///
/// # Errors
/// As `Engine::read`, `Engine::write` and `Engine::wait_durable`: nothing is promised, and the question may be asked again.
pub async fn store(
    engine: &Engine,
    trees: &Trees,
    scope: &Scope,
    copies: &[CellCopy],
    judge: impl Fn(Digest, Digest) -> (Admit, Admit),
) -> Result<u32, EngineError> {
    let (mut checked, mut refused) = (Vec::new(), 0);
    for copy in copies {
        let cell = check_copy(&copy.place, &copy.cell).ok().filter(|cell| fits(cell, copy) && is_of(&copy.place, scope, trees.vnodes));
        let Some(cell) = cell else {
            refused += 1;
            continue;
        };
        let read = engine.read_at(&copy.place).await?;
        checked.push((copy, cell, read));
    }
    let mut admitted = Vec::new();
    for (copy, cell, read) in checked {
        // Asked now: floors may have risen since it was read.
        let held = read.cell().filter(|held| !engine.may_forget(scope.namespace, scope.vnode, held));
        let verdict = judge(parts(&cell), held.as_ref().map(parts).unwrap_or_default());
        refused += u32::from(verdict.0 == Admit::RefuseFenced || verdict.1 == Admit::RefuseFenced);
        admitted.extend(parts_of(cell, verdict).map(|cell| (&copy.place[..], cell)));
    }
    if admitted.is_empty() {
        return Ok(refused);
    }
    let seq = engine.store_copies(&admitted)?;
    for (place, _) in &admitted {
        trees.mark_dirty(scope.namespace, token_in(place));
    }
    engine.wait_durable(seq).await?;
    Ok(refused)
}

/// What `forget::admits_cell` is asked with: a tombstone is one also where it is what an expired value left, which the value completes.
pub(super) fn parts(cell: &Cell<'_>) -> Digest {
    Digest { value: cell.version, is_gone: cell.body == Body::Tombstone, expiry: cell.expiry.version }
}

/// The copy says of its cell what the cell says.
fn fits(cell: &Cell<'_>, copy: &CellCopy) -> bool {
    (cell.version, cell.expiry.version) == (copy.digest.value, copy.digest.expiry)
}

/// The token in an encoded place that was checked.
fn token_in(place: &[u8]) -> Token {
    Token::from_be_bytes(place[4..12].try_into().expect("a place has one"))
}

fn is_of(place: &[u8], scope: &Scope, vnodes: u32) -> bool {
    place.starts_with(&scope.namespace.to_be_bytes()) && vnode_of(token_in(place), vnodes) == scope.vnode
}

/// The parts of a cell that are to be stored.
pub(super) fn parts_of(cell: Cell<'_>, (value, expiry): (Admit, Admit)) -> Option<Cell<'_>> {
    let mut kept = cell;
    if value != Admit::Store {
        (kept.version, kept.body, kept.request_id) = (Version::ZERO, Body::Silent, None);
    }
    if expiry != Admit::Store {
        kept.expiry = Expiry::default();
    }
    (kept.newest() > Version::ZERO).then_some(kept)
}
