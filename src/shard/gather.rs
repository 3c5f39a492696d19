//! A request of many keys over several cores: taken apart, carried out a core at a time, put together.

use super::{Origin, Shard, Ticket};
use crate::base::record::Version;
use crate::limits::FRAME_BYTES_MAX;
use crate::wire::command::{ErrorCode, ErrorReply, Reply, VersionedValue};
use crate::wire::frame::FrameReader;
use crate::wire::native::decode_reply;
use std::cell::{Cell, RefCell};

/// What the parts make together.
pub enum Whole {
    /// Values in the order of the keys asked; a part's answers go to these places.
    Values { places: Vec<Vec<u32>>, values: RefCell<Vec<Option<(Version, Vec<u8>)>>> },
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

    /// One part's answer.
    pub fn take(&self, shard: &Shard, part: usize, frame: &[u8], last: bool) {
        if !last {
            return;
        }
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        let frame = reader.feed(frame).next().expect("one frame").expect("our own frame");
        match decode_reply(frame.kind, frame.body) {
            Ok(reply) => self.absorb(part, reply),
            Err(error) => self.fail(error.code, error.what, None),
        }
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 {
            self.answer(shard);
        }
    }

    fn absorb(&self, part: usize, reply: Reply<'_>) {
        match (&self.whole, reply) {
            (_, Reply::Error(error)) => self.fail(error.code, error.message, error.version),
            (Whole::Values { places, values }, Reply::Values(found)) => {
                let mut values = values.borrow_mut();
                for (&place, value) in places[part].iter().zip(found.iter()) {
                    values[place as usize] = value.map(|value| (value.version, value.value.to_vec()));
                }
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
                shard.answer(&self.ticket, &Reply::Values(found.collect::<Vec<_>>().into()));
            }
        }
    }
}
