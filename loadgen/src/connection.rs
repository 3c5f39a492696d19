//! One nonblocking connection: what waits to be sent, what is in flight, and the bytes on their way.

use crate::ledger::{ReadTicket, WriteTicket};
use crate::plan::OpKind;
use crate::protocol::{Greeted, Reader};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;

/// Bytes waiting for the kernel above which no further request is encoded.
pub const OUT_BYTES_MAX: usize = 1 << 20;

/// A request that is due, or will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    pub at_ns: u64,
    pub key: u64,
    pub kind: OpKind,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub planned: Planned,
    pub write: WriteTicket,
    pub read: ReadTicket,
    generation: u32,
    is_used: bool,
}

/// Requests in flight, found again by the id that their answers carry, or by their order.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Which slots, the oldest first, where answers come in order.
    order: Option<VecDeque<u32>>,
    /// When a slot last became free while all were taken.
    pub freed_ns: u64,
}

impl Slots {
    pub fn new(inflight_max: usize, is_in_order: bool) -> Slots {
        let planned = Planned { at_ns: 0, key: 0, kind: OpKind::Get };
        let slot = Slot { planned, write: WriteTicket::default(), read: ReadTicket::default(), generation: 0, is_used: false };
        let order = is_in_order.then(|| VecDeque::with_capacity(inflight_max));
        Slots { slots: vec![slot; inflight_max], free: (0..inflight_max as u32).rev().collect(), order, freed_ns: 0 }
    }

    pub fn inflight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a slot; there must be one. The id for the wire.
    pub fn take(&mut self, planned: Planned, write: WriteTicket, read: ReadTicket) -> u64 {
        let index = self.free.pop().expect("has_room was asked");
        let slot = &mut self.slots[index as usize];
        let generation = slot.generation.wrapping_add(1);
        *slot = Slot { planned, write, read, generation, is_used: true };
        if let Some(order) = &mut self.order {
            order.push_back(index);
        }
        u64::from(generation) << 32 | u64::from(index)
    }

    /// The request whose answer comes next, where answers come in order; `release` goes on to the one after it.
    #[inline]
    pub fn oldest(&self) -> Option<(u64, OpKind)> {
        let index = *self.order.as_ref()?.front()?;
        let slot = &self.slots[index as usize];
        Some((u64::from(slot.generation) << 32 | u64::from(index), slot.planned.kind))
    }

    /// What is in flight under an id.
    pub fn get(&self, id: u64) -> Option<Slot> {
        let slot = self.slots.get((id & 0xFFFF_FFFF) as usize)?;
        (slot.is_used && u64::from(slot.generation) == id >> 32).then_some(*slot)
    }

    /// Gives a slot back; `get` must have found it.
    pub fn release(&mut self, id: u64, now_ns: u64) {
        let index = (id & 0xFFFF_FFFF) as u32;
        let slot = &mut self.slots[index as usize];
        assert!(slot.is_used, "slot {index} is free already");
        slot.is_used = false;
        if let Some(order) = &mut self.order {
            assert_eq!(order.pop_front(), Some(index), "answers come in order");
        }
        if self.free.is_empty() {
            self.freed_ns = now_ns;
        }
        self.free.push(index);
    }

    /// Gives all slots back; what was in flight.
    pub fn drain(&mut self) -> Vec<Slot> {
        let lost = self.slots.iter().filter(|slot| slot.is_used).copied().collect();
        self.slots.iter_mut().for_each(|slot| slot.is_used = false);
        self.free = (0..self.slots.len() as u32).rev().collect();
        self.order.iter_mut().for_each(VecDeque::clear);
        lost
    }
}

/// A connection. Without a stream it is lost and waits for the server.
pub struct Connection {
    /// Number among all connections of the run: the writer in values.
    pub number: u32,
    pub stream: Option<TcpStream>,
    pub reader: Reader,
    /// The server's core behind it.
    pub core: u16,
    /// Which of the target's addresses it leads to, or last led to.
    pub address: usize,
    /// When bytes last came, or requests began to wait.
    pub heard_ns: u64,
    /// Lost, and to be made again from here on.
    pub retry_ns: u64,
    /// Being made again.
    pub is_dialled: bool,
    pub slots: Slots,
    pub backlog: VecDeque<Planned>,
    pub out: Vec<u8>,
    out_at: usize,
    pub is_blocked: bool,
    /// Already on the list of connections that may have something to send.
    pub is_listed: bool,
}

impl Connection {
    pub fn new(number: u32, greeted: Greeted, inflight_max: usize) -> Connection {
        let slots = Slots::new(inflight_max, matches!(greeted.reader, Reader::InOrder(_)));
        Connection {
            number,
            stream: Some(greeted.stream),
            reader: greeted.reader,
            core: greeted.core,
            address: greeted.address,
            heard_ns: 0,
            retry_ns: 0,
            is_dialled: false,
            slots,
            backlog: VecDeque::new(),
            out: Vec::new(),
            out_at: 0,
            is_blocked: false,
            is_listed: false,
        }
    }

    /// Starts over on a new stream; nothing may be in flight.
    pub fn revive(&mut self, greeted: Greeted, now_ns: u64) {
        assert_eq!(self.slots.inflight(), 0);
        (self.stream, self.reader, self.core) = (Some(greeted.stream), greeted.reader, greeted.core);
        (self.address, self.heard_ns, self.slots.freed_ns) = (greeted.address, now_ns, now_ns);
        self.out.clear();
        (self.out_at, self.is_blocked, self.is_dialled) = (0, false, false);
    }

    /// Requests wait, and nothing has come for so long.
    pub fn is_silent(&self, now_ns: u64, patience_ns: u64) -> bool {
        self.stream.is_some() && self.slots.inflight() > 0 && now_ns.saturating_sub(self.heard_ns) > patience_ns
    }

    /// One more request may be encoded.
    pub fn has_room(&self) -> bool {
        self.stream.is_some() && self.slots.has_room() && self.out.len() - self.out_at < OUT_BYTES_MAX
    }

    /// Hands what waits to the kernel. False: it would not take all.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn flush(&mut self) -> io::Result<bool> {
        let Some(stream) = self.stream.as_mut() else { return Ok(true) };
        while self.out_at < self.out.len() {
            match stream.write(&self.out[self.out_at..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.out_at += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Keep the buffer from growing behind what was sent.
                    self.out.drain(..self.out_at);
                    self.out_at = 0;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.out_at = 0;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_finds_its_request_and_only_once() {
        let mut slots = Slots::new(2, false);
        let planned = |key| Planned { at_ns: 0, key, kind: OpKind::Get };
        let first = slots.take(planned(1), WriteTicket::default(), ReadTicket::default());
        let second = slots.take(planned(2), WriteTicket::default(), ReadTicket::default());
        assert!(!slots.has_room());
        assert_eq!(slots.get(first).unwrap().planned.key, 1);
        slots.release(first, 77);
        assert_eq!((slots.freed_ns, slots.inflight()), (77, 1));
        assert!(slots.get(first).is_none(), "a second answer");
        let third = slots.take(planned(3), WriteTicket::default(), ReadTicket::default());
        assert!(slots.get(first).is_none() && slots.get(third).is_some(), "the slot is taken by another");
        assert!(slots.get(999).is_none());
        assert_eq!(slots.drain().len(), 2);
        assert!(slots.get(second).is_none() && slots.inflight() == 0);
    }

    #[test]
    fn answers_in_order_find_the_oldest_request() {
        let mut slots = Slots::new(2, true);
        let planned = |key, kind| Planned { at_ns: 0, key, kind };
        assert_eq!(slots.oldest(), None);
        for key in 0..5 {
            let id = slots.take(planned(key, OpKind::Get), WriteTicket::default(), ReadTicket::default());
            let next = slots.take(planned(key + 100, OpKind::Put), WriteTicket::default(), ReadTicket::default());
            assert_eq!(slots.oldest(), Some((id, OpKind::Get)));
            slots.release(id, 1);
            assert_eq!(slots.oldest(), Some((next, OpKind::Put)));
            if key < 4 {
                slots.release(next, 1);
            }
        }
        assert_eq!((slots.drain().len(), slots.oldest()), (1, None));
    }
}
