//! Reads a table whole and checks all that readers rely on: checksums, order, that every key is in the filter and leads through the
//! index to its block, that counts, first and last place and version bounds are exact, and that the list of cells that will expire is
//! complete.

use super::EngineError;
use super::filter::prefix_hash;
use super::format::Identity;
use super::format::table::{Bounds, Counts};
use super::format::{key_prefix_len, parse_cell, parse_place};
use super::table::{Table, TableStats};
use super::table_iter::TableIter;
use super::table_writer::{TableInfo, cell_versions, is_volatile};
use crate::base::checksum::hash64_seeded;
use crate::base::codec::Malformed;
use crate::base::record::{Body, Version, vnode_of};
use crate::io::Io;
use std::path::Path;
use std::rc::Rc;

/// What a table that holds together is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableReport {
    pub identity: Identity,
    /// Of this table alone.
    pub salt: u64,
    pub info: TableInfo,
    /// Entries that were read: all, or those from a place on.
    pub entries: u64,
}

/// Verifies a whole table, of whatever node.
///
/// # Errors
/// `Corrupt` naming file and offset, `Unsupported`, I/O errors.
pub async fn verify_table(io: &Io, path: &Path) -> Result<TableReport, EngineError> {
    verify_table_from(io, path, &[]).await
}

/// Verifies a table whose blocks before place `from` are void, perhaps punched out.
///
/// # Errors
/// As `verify_table`.
pub async fn verify_table_from(io: &Io, path: &Path, from: &[u8]) -> Result<TableReport, EngineError> {
    let table = Table::open_any(io, path, 0, &Rc::new(TableStats::default())).await?;
    let mut seen = Seen::default();
    let mut iter = table.iter(from, None);
    while iter.advance().await? {
        let at = iter.position().1;
        seen.entry(&table, &iter).map_err(|what| table.corrupt(at, what))?;
        if io.slice_is_over() {
            io.yield_now().await;
        }
    }
    let listed = list_volatile(io, &table, from).await?;
    if listed != seen.volatile {
        return Err(table.corrupt(table.footer.volatile, Malformed("the list of cells that will expire is not theirs")));
    }
    seen.compare(&table, from).map_err(|what| table.corrupt(table.footer.properties, what))?;
    Ok(TableReport { identity: table.identity(), salt: table.header.salt, info: table.info().clone(), entries: seen.counts.entries })
}

/// Number and hash of cells that will expire; the order does not matter.
type VolatileSum = (u64, u64);

fn add_volatile(sum: &mut VolatileSum, deadline_ms: u64, version: Version, place: &[u8]) {
    let seed = hash64_seeded(&version.to_bytes(), deadline_ms);
    *sum = (sum.0 + 1, sum.1.wrapping_add(hash64_seeded(place, seed)));
}

async fn list_volatile(io: &Io, table: &Rc<Table>, from: &[u8]) -> Result<VolatileSum, EngineError> {
    let (mut sum, mut last) = ((0, 0), (0, Vec::new()));
    let mut expiring = table.expiring(0);
    while let Some(entry) = expiring.next_until(u64::MAX).await? {
        let next = (entry.deadline_ms, entry.place.to_vec());
        if next <= last {
            return Err(table.corrupt(table.footer.volatile, Malformed("deadlines out of order")));
        }
        if entry.place >= from {
            add_volatile(&mut sum, entry.deadline_ms, entry.version, entry.place);
        }
        last = next;
        if io.slice_is_over() {
            io.yield_now().await;
        }
    }
    Ok(sum)
}

/// What the entries themselves say.
#[derive(Default)]
struct Seen {
    counts: Counts,
    first: Vec<u8>,
    last: Vec<u8>,
    prefix: Vec<u8>,
    block: Option<u32>,
    has_packed: bool,
    bounds: Vec<Bounds>,
    volatile: VolatileSum,
}

impl Seen {
    fn entry(&mut self, table: &Rc<Table>, iter: &TableIter) -> Result<(), Malformed> {
        let (place, bytes) = (iter.place(), iter.cell());
        let (parsed, cell) = (parse_place(place)?, parse_cell(bytes)?);
        if self.counts.entries == 0 {
            self.first = place.to_vec();
        } else if self.last[..] >= *place {
            return Err(Malformed("places out of order"));
        }
        self.last = place.to_vec();
        if table.index.find(place)?.map(|block| block.number) != iter.block_number() {
            return Err(Malformed("the index leads to another block"));
        }
        if self.block != iter.block_number() {
            self.block = iter.block_number();
            self.counts.blocks += 1;
            self.has_packed |= iter.is_packed();
        }
        let prefix = &place[..key_prefix_len(place)?];
        if self.prefix != prefix {
            self.prefix = prefix.to_vec();
            self.counts.keys += 1;
            if !table.filter.may_hold(prefix_hash(prefix)) {
                return Err(Malformed("the filter does not know a key"));
            }
        }
        self.counts.entries += 1;
        self.counts.raw_bytes += (place.len() + bytes.len()) as u64;
        self.counts.tombstones += u64::from(cell.body == Body::Tombstone);
        self.counts.range_ends += u64::from(matches!(cell.body, Body::RangeEnd(_)));
        self.counts.sums += u64::from(matches!(cell.body, Body::Sum { .. }));
        if is_volatile(&cell) {
            self.counts.volatile += 1;
            add_volatile(&mut self.volatile, cell.expiry.deadline_ms, cell.expiry.version, place);
        }
        let Some((least, greatest)) = cell_versions(&cell) else { return Ok(()) };
        let (namespace, vnode) = (parsed.namespace, vnode_of(parsed.token, table.properties.vnodes));
        match self.bounds.last_mut() {
            Some(bound) if (bound.namespace, bound.vnode) == (namespace, vnode) => {
                bound.least = bound.least.min(least);
                bound.greatest = bound.greatest.max(greatest);
            }
            _ => self.bounds.push(Bounds { namespace, vnode, least, greatest }),
        }
        Ok(())
    }

    fn compare(&self, table: &Table, from: &[u8]) -> Result<(), Malformed> {
        let stored = &table.properties;
        let within = |bound: &Bounds| {
            let known = stored.bounds.get(bound.namespace, bound.vnode);
            known.is_some_and(|(least, greatest)| least <= bound.least && bound.greatest <= greatest)
        };
        if !self.bounds.iter().all(within) {
            return Err(Malformed("a version lies outside its bounds"));
        }
        if self.counts.entries > 0 && self.last != stored.last {
            return Err(Malformed("the last place is another one"));
        }
        if from > &stored.first[..] {
            return Ok(());
        }
        if self.has_packed != table.header.has_packed {
            return Err(Malformed("the header says that blocks are packed, and none is"));
        }
        if self.counts != stored.counts || u64::from(table.index.blocks()) != stored.counts.blocks {
            return Err(Malformed("counts are not those of the entries"));
        }
        if self.first != stored.first || self.last != stored.last {
            return Err(Malformed("first or last place is another one"));
        }
        if !stored.bounds.iter().eq(self.bounds.iter().copied()) {
            return Err(Malformed("version bounds are not exact"));
        }
        Ok(())
    }
}
