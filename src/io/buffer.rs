//! Buffers that operations own: aligned ones for direct I/O, and chunks of a received stream.

use super::buffer_ring::BufferRing;
use super::pool::{Blocks, Pool};
use crate::limits::BLOCK_BYTES;
use std::rc::Rc;

/// A buffer whose address and length are multiples of `BLOCK_BYTES`. One of a pool goes back to it when dropped.
#[derive(Debug)]
pub struct Buf {
    memory: Blocks,
    len: usize,
    home: Option<Rc<Pool>>,
}

impl Buf {
    /// Zeroed, of `bytes` rounded up to blocks, of no pool.
    pub fn new(bytes: usize) -> Buf {
        let len = bytes.next_multiple_of(BLOCK_BYTES);
        Buf { memory: Blocks::zeroed(len), len, home: None }
    }
    /// Of `bytes` rounded up to blocks, with what its last user left in it.
    pub(super) fn stale(pool: &Rc<Pool>, bytes: usize) -> Buf {
        let len = bytes.next_multiple_of(BLOCK_BYTES);
        if len == 0 {
            return Buf::new(0);
        }
        Buf { memory: pool.take(len), len, home: Some(pool.clone()) }
    }
    /// It lies in the slab of this pool.
    pub(super) fn is_in_slab_of(&self, pool: &Rc<Pool>) -> bool {
        self.memory.is_in_slab() && self.home.as_ref().is_some_and(|home| Rc::ptr_eq(home, pool))
    }
    /// In bytes, a multiple of `BLOCK_BYTES`.
    pub fn len(&self) -> usize {
        self.len
    }
    /// No block at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Makes it shorter (a multiple of `BLOCK_BYTES`).
    pub fn truncate(&mut self, bytes: usize) {
        assert!(bytes.is_multiple_of(BLOCK_BYTES) && bytes <= self.len);
        self.len = bytes;
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Blocks::NONE);
        match &self.home {
            Some(pool) => pool.give_back(memory),
            None => memory.free(),
        }
    }
}

impl std::ops::Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory.as_slice()[..self.len]
    }
}

impl std::ops::DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.as_slice_mut()[..self.len]
    }
}

/// Bytes that a connection received; the buffer goes back to its ring when dropped.
pub struct Chunk {
    place: Place,
}

enum Place {
    Own(Vec<u8>),
    Ring { ring: Rc<BufferRing>, buffer: u16, len: u32 },
}

impl Chunk {
    /// The first `len` bytes of a buffer that the kernel has filled.
    pub(super) fn of_ring(ring: &Rc<BufferRing>, buffer: u16, len: u32) -> Chunk {
        ring.taken(buffer);
        let chunk = Chunk { place: Place::Ring { ring: ring.clone(), buffer, len } };
        if ring.is_short() { Chunk::from(chunk.to_vec()) } else { chunk }
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(bytes: Vec<u8>) -> Chunk {
        Chunk { place: Place::Own(bytes) }
    }
}

impl std::ops::Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.place {
            Place::Own(bytes) => bytes,
            Place::Ring { ring, buffer, len } => ring.bytes(*buffer, *len),
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Place::Ring { ring, buffer, .. } = &self.place {
            ring.give_back(*buffer);
        }
    }
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chunk of {} bytes", self.len())
    }
}
