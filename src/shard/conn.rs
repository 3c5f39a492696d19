//! One connection's outgoing side: the bytes to send, what is still being worked on, and when to stop reading.
//!
//! Answers are encoded straight into `out`; a writer task sends all that a turn left there with one operation. A connection whose
//! client does not read is not read from: the reader waits in `room` while too much is on its way.

use crate::io::signal::Signal;
use crate::limits::{CONNECTION_OUT_BYTES_MAX, CONNECTION_REQUESTS_MAX};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The outgoing side of a connection, shared by its reader, its writer and every answer on its way.
#[derive(Default)]
pub struct Conn {
    /// Encoded answers that the writer has not taken yet.
    pub out: RefCell<Vec<u8>>,
    /// Bytes that the writer handed to the driver.
    sending: Cell<usize>,
    /// Requests taken in and not answered.
    pending: Cell<usize>,
    /// Bytes of answers that are being made.
    promised: Cell<usize>,
    /// Room for an answer was given back.
    room: Signal,
    /// The writer has something to do, or the connection ended.
    pub work: Signal,
    /// Something was sent or answered.
    pub drained: Signal,
    pub closed: Cell<bool>,
    /// In the shard's list of connections to flush.
    pub dirty: Cell<bool>,
}

impl Conn {
    /// Bytes waiting or being sent.
    pub fn out_bytes(&self) -> usize {
        self.out.borrow().len() + self.sending.get()
    }

    /// Another request may be taken in.
    pub fn has_room(&self) -> bool {
        self.out_bytes() < CONNECTION_OUT_BYTES_MAX && self.pending.get() < CONNECTION_REQUESTS_MAX
    }

    /// Waits until another request may be taken in, or the connection ended.
    pub async fn room(&self) {
        self.drained.until(|| self.has_room() || self.closed.get()).await;
    }

    /// Waits until an answer of about `bytes` may be made; one that is larger than all that may wait is made alone. Without this, a client
    /// that asks for many large values and reads none would have them all made and kept. `None`: the connection ended.
    pub async fn promise(self: &Rc<Conn>, bytes: usize) -> Option<Promise> {
        let fits = || {
            let held = self.out_bytes() + self.promised.get();
            held == 0 || held + bytes <= CONNECTION_OUT_BYTES_MAX || self.closed.get()
        };
        self.room.until(fits).await;
        self.room.raise_first();
        if self.closed.get() {
            return None;
        }
        self.promised.set(self.promised.get() + bytes);
        Some(Promise { conn: self.clone(), bytes })
    }

    pub fn begin_request(&self) {
        self.pending.set(self.pending.get() + 1);
    }

    pub fn end_request(&self) {
        assert!(self.pending.get() > 0, "an answer without a request");
        self.pending.set(self.pending.get() - 1);
        self.drained.raise();
    }

    pub fn pending(&self) -> usize {
        self.pending.get()
    }

    /// The writer takes what there is, leaving an empty vector to encode into.
    pub fn take_out(&self, empty: Vec<u8>) -> Vec<u8> {
        debug_assert!(empty.is_empty());
        let out = self.out.replace(empty);
        self.sending.set(out.len());
        out
    }

    pub fn sent(&self) {
        self.sending.set(0);
        self.drained.raise();
        self.room.raise_first();
    }

    /// Ends it: the writer stops after what it is sending, the reader at its next look.
    pub fn close(&self) {
        self.closed.set(true);
        self.work.raise();
        self.drained.raise();
        self.room.raise();
    }
}

/// Room for an answer that is being made, given back when dropped.
pub struct Promise {
    conn: Rc<Conn>,
    bytes: usize,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.conn.promised.set(self.conn.promised.get() - self.bytes);
        self.conn.room.raise_first();
    }
}
