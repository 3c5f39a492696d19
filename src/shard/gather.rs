//! A request of many keys over several cores: taken apart, carried out a core at a time, put together.

use super::{Origin, Shard, Ticket};
use crate::base::record::Version;
use crate::io::signal::Signal;
use crate::limits::FRAME_BYTES_MAX;
use crate::wire::command::{ErrorCode, ErrorReply, Reply, VersionedValue};
use crate::wire::frame::FrameReader;
use crate::wire::native::{decode_reply, encode_values};
use std::cell::{Cell, RefCell};

/// A value that a part found.
type OwnedValue = (Version, Vec<u8>);

/// What the parts make together.
pub enum Whole {
    /// Values in the order of the keys asked; a part's answers go to these places.
    /// `taken` counts how many of a part have come.
    Values { places: Vec<Vec<u32>>, taken: RefCell<Vec<usize>>, values: RefCell<Vec<Option<OwnedValue>>> },
    /// One acknowledgement for all parts of a write under this version; `stored`: a part of it is.
    Put { version: Version, stored: Cell<bool> },
    /// Nobody is answered: a task of this core waits for all parts.
    Awaited(Signal),
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
            (Whole::Put { stored, .. }, Reply::Done { .. }) => stored.set(true),
            (Whole::Awaited(_), Reply::Done { .. }) => {}
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
