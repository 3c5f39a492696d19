//! A request of many keys over several cores: taken apart, carried out a core at a time, put together.

use super::{Origin, Shard, Ticket};
use crate::base::record::Version;
use crate::limits::FRAME_BYTES_MAX;
use crate::wire::command::{ErrorCode, ErrorReply, Reply, VersionedValue};
use crate::wire::frame::FrameReader;
use crate::wire::native::{decode_reply, encode_values};
use std::cell::{Cell, RefCell};

/// What the parts make together.
pub enum Whole {
    /// Values in the order of the keys asked; a part's answers go to these places.
    /// `taken` counts how many of a part have come.
    Values { places: Vec<Vec<u32>>, taken: RefCell<Vec<usize>>, values: RefCell<Vec<Option<(Version, Vec<u8>)>>> },
    /// One acknowledgement for all; the newest version.
    Done { newest: Cell<Version> },
}

/// A request that was taken apart.
pub struct Gather {
    ticket: Ticket,
    left: Cell<usize>,
    whole: Whole,
    failed: RefCell<Option<(ErrorCode, String, Option<Version>)>>,
}

impl Gather {
    /// `parts` answers make the answer to `ticket`.
    pub fn new(ticket: Ticket, parts: usize, whole: Whole) -> Gather {
        assert!(parts > 0 && !matches!(ticket.origin, Origin::Part(_)), "a part is not taken apart again");
        Gather { ticket, left: Cell::new(parts), whole, failed: RefCell::new(None) }
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
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 {
            self.answer(shard);
        }
    }

    fn absorb(&self, part: usize, reply: Reply<'_>) {
        match (&self.whole, reply) {
            (_, Reply::Error(error)) => self.fail(error.code, error.message, error.version),
            (Whole::Values { places, taken, values }, Reply::Values(found)) => {
                let taken = &mut taken.borrow_mut()[part];
                let mut values = values.borrow_mut();
                for (&place, value) in places[part][*taken..].iter().zip(found.iter()) {
                    values[place as usize] = value.map(|value| (value.version, value.value.to_vec()));
                }
                *taken += found.len();
            }
            (Whole::Done { newest }, Reply::Done { version }) => newest.set(newest.get().max(version)),
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

    fn answer(&self, shard: &Shard) {
        if let Some((code, message, version)) = &*self.failed.borrow() {
            let error = ErrorReply { version: *version, ..ErrorReply::new(*code, message) };
            return shard.answer(&self.ticket, &Reply::Error(error));
        }
        match &self.whole {
            Whole::Done { newest } => shard.answer(&self.ticket, &Reply::Done { version: newest.get() }),
            Whole::Values { values, .. } => {
                let values = values.borrow();
                let found = values.iter().map(|value| value.as_ref().map(|(version, value)| VersionedValue { version: *version, value }));
                let mut frames = Vec::new();
                encode_values(&mut frames, self.ticket.id, &found.collect::<Vec<_>>());
                shard.answer_frame(&self.ticket, frames, true);
            }
        }
    }
}
