//! What is written at once: cells of any keys of one shard that are in whole or not at all. A batch is its own log record.

use super::format::wal::{BatchReader, Record, parse_record, put_batch_cell, start_batch};
use super::format::{key_prefix_len, parse_place, put_place, unescape};
use crate::base::record::{Body, Cell, Expiry, Kind, NamespaceId, Token, Version};
use crate::base::time::WallMs;
use crate::limits::{CHUNK_BYTES, VALUE_BYTES_MAX};

/// A key, with its token as `base::record::token_of` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRef<'a> {
    pub namespace: NamespaceId,
    pub token: Token,
    pub key: &'a [u8],
}

impl KeyRef<'_> {
    /// The encoded place of one of its cells.
    pub fn place(&self, kind: Kind, element: &[u8]) -> Vec<u8> {
        let mut place = Vec::with_capacity(16 + self.key.len() + element.len());
        put_place(&mut place, self.namespace, self.token, self.key, kind, element);
        place
    }
}

/// Cells to write at once.
#[derive(Debug)]
pub struct Batch {
    record: Vec<u8>,
    last: Vec<u8>,
    place: Vec<u8>,
    scratch: Vec<u8>,
    cells: usize,
    urgent: bool,
    payload: bool,
    newest: Version,
}

impl Batch {
    /// An empty batch. An urgent one is durable as soon as the disk allows, another one within `INTERVAL_MS_MAX`.
    pub fn new(urgent: bool) -> Batch {
        let (last, place, scratch) = (Vec::new(), Vec::new(), Vec::new());
        let mut record = Vec::new();
        start_batch(&mut record);
        Batch { record, last, place, scratch, cells: 0, urgent, payload: false, newest: Version::ZERO }
    }

    /// Adds a cell.
    pub fn push(&mut self, key: KeyRef<'_>, kind: Kind, element: &[u8], cell: &Cell<'_>) {
        self.place.clear();
        put_place(&mut self.place, key.namespace, key.token, key.key, kind, element);
        self.push_cell(cell);
    }

    /// Adds a cell at an encoded place that was checked.
    pub(super) fn push_at(&mut self, place: &[u8], cell: &Cell<'_>) {
        self.place.clear();
        self.place.extend_from_slice(place);
        self.push_cell(cell);
    }

    /// The same, where a large string comes in one piece.
    pub(super) fn push_copy(&mut self, place: &[u8], cell: &Cell<'_>) {
        match (cell.body, parse_place(place)) {
            (Body::Bytes(value), Ok(parsed)) if value.len() > CHUNK_BYTES => {
                let key = unescape(parsed.escaped_key);
                let key = KeyRef { namespace: parsed.namespace, token: parsed.token, key: &key };
                self.put_copy(key, parsed.kind, parsed.element, cell);
            }
            _ => self.push_at(place, cell),
        }
    }

    fn push_cell(&mut self, cell: &Cell<'_>) {
        let shared = self.last.iter().zip(&self.place).take_while(|(a, b)| a == b).count();
        put_batch_cell(&mut self.record, shared, &self.place[shared..], &mut self.scratch, cell);
        std::mem::swap(&mut self.last, &mut self.place);
        self.cells += 1;
        self.payload |= !matches!(cell.body, Body::Tombstone | Body::Silent);
        self.newest = self.newest.max(cell.newest());
    }

    /// Adds a string: its head, and above `CHUNK_BYTES` its chunks, which have no deadline of their own: they die with their head.
    pub fn put_value(&mut self, key: KeyRef<'_>, value: &[u8], version: Version, deadline_ms: WallMs) {
        assert!(value.len() <= VALUE_BYTES_MAX, "{} bytes", value.len());
        let expiry = Expiry { version, deadline_ms };
        if value.len() <= CHUNK_BYTES {
            self.push(key, Kind::Head, b"", &Cell { version, body: Body::Bytes(value), expiry, request_id: None });
            return;
        }
        let body = Body::Chunked { len: value.len() as u32 };
        self.push(key, Kind::Head, b"", &Cell { version, body, expiry, request_id: None });
        for (number, chunk) in value.chunks(CHUNK_BYTES).enumerate() {
            self.push(key, Kind::Chunk, &(number as u32).to_be_bytes(), &Cell::value(version, chunk));
        }
    }

    /// Adds a cell as another replica gave it: a large string comes in one piece and lies in chunks.
    pub fn put_copy(&mut self, key: KeyRef<'_>, kind: Kind, element: &[u8], cell: &Cell<'_>) {
        match cell.body {
            Body::Bytes(value) if value.len() > CHUNK_BYTES => {
                self.push(key, kind, element, &Cell { body: Body::Chunked { len: value.len() as u32 }, ..*cell });
                for (number, chunk) in value.chunks(CHUNK_BYTES).enumerate() {
                    self.push(key, Kind::Chunk, &(number as u32).to_be_bytes(), &Cell::value(cell.version, chunk));
                }
            }
            _ => self.push(key, kind, element, cell),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.cells == 0
    }

    /// Cells in it.
    pub fn len(&self) -> usize {
        self.cells
    }

    /// Bytes of its log record.
    pub fn bytes(&self) -> usize {
        self.record.len()
    }

    /// Empties it for the next use; its memory stays.
    pub fn clear(&mut self) {
        self.record.truncate(1);
        self.last.clear();
        (self.cells, self.payload, self.newest) = (0, false, Version::ZERO);
    }

    pub(super) fn record(&self) -> &[u8] {
        &self.record
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// It stores something, rather than only removing it.
    pub(super) fn has_payload(&self) -> bool {
        self.payload
    }

    /// The highest version in it.
    pub(super) fn newest(&self) -> Version {
        self.newest
    }

    pub(super) fn cells(&self) -> BatchReader<'_> {
        match parse_record(&self.record) {
            Ok(Record::Batch(reader)) => reader,
            _ => unreachable!("a batch that was encoded here"),
        }
    }
}

/// The prefix that names the key of an encoded place.
pub(super) fn key_prefix(place: &[u8]) -> &[u8] {
    &place[..key_prefix_len(place).expect("a place that was encoded here")]
}

#[cfg(test)]
mod tests {
    use super::super::format::wal::RECORD_BYTES_MAX;
    use super::*;
    use crate::base::record::token_of;
    use crate::limits::KEY_BYTES_MAX;

    #[test]
    fn the_largest_value_under_the_worst_key_fits_into_one_record() {
        let key = vec![0; KEY_BYTES_MAX];
        let key = KeyRef { namespace: 1, token: token_of(&key), key: &key };
        let value = vec![7; VALUE_BYTES_MAX];
        let mut batch = Batch::new(true);
        batch.put_value(key, &value, Version::put(u64::MAX, 9), u64::MAX);
        assert!(batch.bytes() <= RECORD_BYTES_MAX, "{}", batch.bytes());
        let (mut cells, mut chunks, mut len) = (batch.cells(), 0, 0);
        while let Some(cell) = cells.next_cell().unwrap() {
            if let Body::Bytes(bytes) = cell.cell.body {
                assert_eq!(cell.place, key.place(Kind::Chunk, &(chunks as u32).to_be_bytes()));
                (chunks, len) = (chunks + 1, len + bytes.len());
            }
        }
        assert_eq!((len, chunks, batch.len()), (value.len(), 256, 257));
        batch.clear();
        assert!(batch.is_empty() && batch.cells().next_cell().unwrap().is_none());
    }
}
