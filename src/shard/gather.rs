//! A request of many keys over several cores: taken apart, carried out a core at a time, put together.

use super::admit::Kept;
use super::conn::Promise;
use super::perform::{MULTI_GET_ROUNDS, MULTI_GROWS, MULTI_TOO_LARGE, multi_value_bytes};
use super::{Origin, Shard, Ticket};
use crate::base::record::Version;
use crate::base::time::Mono;
use crate::io::signal::Signal;
use crate::limits::{FRAME_BYTES_MAX, MULTI_BYTES_MAX};
use crate::wire::command::{ErrorCode, ErrorReply, List, Reply, VersionedValue};
use crate::wire::frame::FrameReader;
use crate::wire::native::{Form, decode_reply, encode_values};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

/// A value that a part found.
type OwnedValue = (Version, Vec<u8>);

/// What the parts make together.
pub enum Whole {
    /// Values in the order of the keys asked.
    Values(Box<Values>),
    /// One acknowledgement for all parts of a write under this version; `stored`: a part of it is.
    Put { version: Version, stored: Cell<bool> },
    /// Nobody is answered: a task of this core waits for all parts.
    Awaited(Signal),
}

/// A multi-get as it was asked, to be asked again with more room.
pub struct Again {
    pub form: Form,
    pub body: Vec<u8>,
    pub deadline: Mono,
    /// How often it was asked before.
    pub round: usize,
    /// Bytes that the answer of each part may have.
    pub rooms: Vec<usize>,
}

/// The values of a multi-get as they come in.
pub struct Values {
    shard: Weak<Shard>,
    asked: Cell<Option<Again>>,
    /// Bytes that each part may answer with; those that it has, or wants.
    rooms: Vec<usize>,
    bytes: RefCell<Vec<usize>>,
    /// A part's answers go to these places; so many of it have come.
    pub places: Vec<Vec<u32>>,
    taken: RefCell<Vec<usize>>,
    values: RefCell<Vec<Option<OwnedValue>>>,
    /// A part's values are larger than it may answer with.
    short: Cell<bool>,
    /// Room for the whole answer on the client's connection.
    room: Cell<Option<Promise>>,
}

impl Values {
    /// Of `count` keys, with `room` for the answer.
    pub fn new(shard: &Rc<Shard>, asked: Again, places: Vec<Vec<u32>>, count: usize, room: Promise) -> Values {
        let parts = places.len();
        assert!(asked.rooms.len() == parts, "room for each part");
        Values {
            shard: Rc::downgrade(shard),
            rooms: asked.rooms.clone(),
            asked: Cell::new(Some(asked)),
            bytes: RefCell::new(vec![0; parts]),
            places,
            taken: RefCell::new(vec![0; parts]),
            values: RefCell::new(vec![None; count]),
            short: Cell::new(false),
            room: Cell::new(Some(room)),
        }
    }

    fn absorb(&self, part: usize, found: &List<'_, Option<VersionedValue<'_>>>) {
        let (taken, bytes) = (&mut self.taken.borrow_mut()[part], &mut self.bytes.borrow_mut()[part]);
        let mut values = self.values.borrow_mut();
        for (&place, value) in self.places[part][*taken..].iter().zip(found.iter()) {
            *bytes += multi_value_bytes(value.map_or(0, |value| value.value.len()));
            // Once a part has to be asked again, all are, and what the others found is not kept.
            values[place as usize] = value.filter(|_| !self.short.get()).map(|value| (value.version, value.value.to_vec()));
        }
        *taken += found.len();
    }

    /// All parts have answered, some of them only how much room they need: asks anew with so much.
    fn ask_again(&self, shard: &Shard, ticket: &Ticket, kept: Option<Kept>) {
        drop((self.values.take(), self.room.take()));
        let Some(mut asked) = self.asked.take() else { unreachable!("asked again once") };
        asked.rooms = self.bytes.take();
        asked.round += 1;
        if asked.rooms.iter().sum::<usize>() > MULTI_BYTES_MAX {
            return shard.fail(ticket, ErrorCode::TooLarge, MULTI_TOO_LARGE);
        }
        match self.shard.upgrade() {
            Some(shard) if asked.round < MULTI_GET_ROUNDS => shard.gather_later(ticket.clone(), asked, kept),
            _ => shard.fail(ticket, ErrorCode::Overloaded, MULTI_GROWS),
        }
    }

    fn answer(&self, shard: &Shard, ticket: &Ticket) {
        let values = self.values.borrow();
        let found = values.iter().map(|value| value.as_ref().map(|(version, value)| VersionedValue { version: *version, value }));
        let mut frames = Vec::new();
        encode_values(&mut frames, ticket.id, &found.collect::<Vec<_>>());
        shard.answer_frame(ticket, frames, true);
    }
}

/// A request that was taken apart.
pub struct Gather {
    ticket: Ticket,
    left: Cell<usize>,
    whole: Whole,
    failed: RefCell<Option<(ErrorCode, String, Option<Version>)>>,
    /// The parts' bytes, counted until all are answered.
    kept: Cell<Option<Kept>>,
}

impl Gather {
    /// `parts` answers make the answer to `ticket`.
    pub fn new(ticket: Ticket, parts: usize, whole: Whole, kept: Option<Kept>) -> Gather {
        assert!(parts > 0 && !matches!(ticket.origin, Origin::Part(_)), "a part is not taken apart again");
        Gather { ticket, left: Cell::new(parts), whole, failed: RefCell::new(None), kept: Cell::new(kept) }
    }

    /// One part's answer, in one frame or several.
    pub fn take(&self, shard: &Shard, part: usize, frames: &[u8], last: bool) {
        if !last {
            return;
        }
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        for frame in reader.feed(frames) {
            let frame = frame.expect("our own frame");
            match decode_reply(frame.kind, frame.body) {
                Ok(reply) => self.absorb(part, reply),
                Err(error) => self.fail(error.code, error.what, None),
            }
        }
        self.count(shard);
    }

    /// Bytes that a part's answer may have.
    pub fn room(&self, part: usize) -> usize {
        if let Whole::Values(values) = &self.whole { values.rooms[part] } else { usize::MAX }
    }

    /// A part's answer would have so many bytes, and may not.
    pub fn needs_room(&self, shard: &Shard, part: usize, bytes: usize) {
        if let Whole::Values(values) = &self.whole {
            values.short.set(true);
            values.bytes.borrow_mut()[part] = bytes;
        }
        self.count(shard);
    }

    /// One part less is under way.
    fn count(&self, shard: &Shard) {
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 {
            self.answer(shard);
        }
    }

    fn absorb(&self, part: usize, reply: Reply<'_>) {
        match (&self.whole, reply) {
            (_, Reply::Error(error)) => self.fail(error.code, error.message, error.version),
            (Whole::Values(values), Reply::Values(found)) => values.absorb(part, &found),
            (Whole::Put { stored, .. }, Reply::Done { .. }) => stored.set(true),
            (Whole::Awaited(_), Reply::Done { .. } | Reply::Pong) => {}
            _ => self.fail(ErrorCode::Failed, "a part answered with another kind", None),
        }
    }

    /// The first failure stands for all, but an unknown outcome outranks a certain failure: part of the write may have happened.
    fn fail(&self, code: ErrorCode, message: &str, version: Option<Version>) {
        let mut failed = self.failed.borrow_mut();
        if failed.is_none() || code == ErrorCode::Unknown {
            *failed = Some((code, message.to_owned(), version));
        }
    }

    /// Waits until every part is answered: how it went.
    ///
    /// # Errors
    /// The first part's that failed.
    pub async fn wait(&self) -> Result<(), (ErrorCode, String)> {
        if let Whole::Awaited(done) = &self.whole {
            done.until(|| self.left.get() == 0).await;
        }
        self.failed.borrow().as_ref().map_or(Ok(()), |(code, message, _)| Err((*code, message.clone())))
    }

    fn answer(&self, shard: &Shard) {
        if let Whole::Awaited(done) = &self.whole {
            return done.raise();
        }
        if let Some((code, message, version)) = &*self.failed.borrow() {
            return match &self.whole {
                // Refused in one part and stored in another: to call that undone would be untrue.
                Whole::Put { version, stored } if stored.get() => shard.unknown(&self.ticket, *version, message),
                _ => shard.answer(&self.ticket, &Reply::Error(ErrorReply { version: *version, ..ErrorReply::new(*code, message) })),
            };
        }
        match &self.whole {
            Whole::Awaited(_) => unreachable!("answered above"),
            Whole::Put { version, .. } => shard.answer(&self.ticket, &Reply::Done { version: *version }),
            Whole::Values(values) if values.short.get() => values.ask_again(shard, &self.ticket, self.kept.take()),
            Whole::Values(values) => values.answer(shard, &self.ticket),
        }
    }
}
