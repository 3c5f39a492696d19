//! Buffers that operations own: aligned ones for direct I/O, and chunks of a received stream.

use super::buffer_ring::BufferRing;
use crate::limits::BLOCK_BYTES;
use std::rc::Rc;

/// A zeroed buffer whose address and length are multiples of `BLOCK_BYTES`.
#[derive(Debug)]
pub struct Buf {
    blocks: Vec<Block>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

impl Buf {
    /// Zeroed, of `bytes` rounded up to blocks.
    pub fn new(bytes: usize) -> Buf {
        let len = bytes.next_multiple_of(BLOCK_BYTES);
        Buf { blocks: vec![Block([0; BLOCK_BYTES]); len / BLOCK_BYTES], len }
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

impl std::ops::Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.blocks.as_flattened_bytes()[..self.len]
    }
}

impl std::ops::DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.blocks.as_flattened_bytes_mut()[..len]
    }
}

trait Flatten {
    fn as_flattened_bytes(&self) -> &[u8];
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8];
}

impl Flatten for Vec<Block> {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: Block is repr(C) over exactly BLOCK_BYTES initialized bytes without padding (size equals alignment).
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() * BLOCK_BYTES) }
    }
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() * BLOCK_BYTES) }
    }
}

const _: () = assert!(std::mem::size_of::<Block>() == BLOCK_BYTES);

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
