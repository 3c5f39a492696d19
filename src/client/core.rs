//! The client's protocol without I/O: commands in, bytes out; bytes in, events out. One `Core` a connection, thrown away with it.
//!
//! It knows which requests are in flight, until when each is waited for, and how much of the output has left, because that decides
//! what a missing answer means: a write whose bytes left whole is `Unknown`, one that did not certainly never happened.

use super::answer::ClientError;
use crate::base::map::{Map, Seeded};
use crate::base::record::{NamespaceId, Version};
use crate::base::time::Mono;
use crate::limits::FRAME_BYTES_MAX;
use crate::wire::command::{Access, Command, ErrorCode, ErrorReply, LevelsAsked, Reply, Request};
use crate::wire::frame::{FrameReader, HEADER_BYTES};
use crate::wire::native::{decode_reply, encode_request};
use std::time::Duration;

/// What comes under no request's id: a server tells of a new topology with another `HelloOk`.
pub const NEWS: u64 = 0;

/// Something happened to request `id`.
#[derive(Debug)]
pub struct Event<'a> {
    /// `NEWS`: the server said this unasked.
    pub id: u64,
    /// The request is over; nothing more comes under its id.
    pub last: bool,
    /// The answer, still in the receive buffer.
    pub outcome: Result<Reply<'a>, ClientError>,
}

#[derive(Debug)]
struct Pending {
    deadline: Mono,
    is_write: bool,
    /// Of the write: what a retry carries.
    version: Option<Version>,
    /// Where its frame ends in all output ever queued.
    end: u64,
}

impl Pending {
    /// What it means that no answer comes.
    fn without_answer(&self, sent: u64, why: ClientError) -> ClientError {
        if self.is_write && self.end <= sent { ClientError::Unknown { version: self.version } } else { why }
    }
}

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Core {
    reader: FrameReader,
    /// Output that has not left, from `out_start` on.
    out: Vec<u8>,
    out_start: usize,
    /// Bytes of output that ever left.
    sent: u64,
    next_id: u64,
    pending: Map<u64, Pending>,
    in_flight_max: usize,
    levels: LevelsAsked,
    /// No pending deadline lies before it.
    earliest: Mono,
}

impl Core {
    /// For a fresh connection with at most `in_flight_max` requests unanswered.
    pub fn new(in_flight_max: usize) -> Core {
        Core {
            reader: FrameReader::new(FRAME_BYTES_MAX),
            out: Vec::new(),
            out_start: 0,
            sent: 0,
            next_id: 1,
            pending: Map::with_hasher(Seeded(0)),
            in_flight_max,
            levels: LevelsAsked::default(),
            earliest: Mono(u64::MAX),
        }
    }

    /// Of all requests from now on.
    pub fn set_levels(&mut self, levels: LevelsAsked) {
        self.levels = levels;
    }

    /// Queues a command; its id. The server is told how long `deadline` is away. `Full` at the bound, `Failed` for too large a frame.
    pub fn submit(&mut self, now: Mono, deadline: Mono, namespace: NamespaceId, command: Command<'_>) -> Result<u64, ClientError> {
        if self.pending.len() >= self.in_flight_max {
            return Err(ClientError::Full);
        }
        self.compact();
        let is_write = matches!(command.row().access, Access::Write | Access::Admin);
        let has_keys = command.row().has_keys;
        let namespace = if has_keys { namespace } else { 0 };
        let levels = if has_keys { self.levels } else { LevelsAsked::default() };
        // A little less than we wait, so that the server's own word ("not executed") can arrive in time.
        let deadline_ms = (deadline.since(now).as_millis() * 7 / 8).clamp(1, u128::from(u32::MAX)) as u32;
        let version = version_of(&command);
        let before = self.out.len();
        encode_request(&mut self.out, self.next_id, &Request { deadline_ms, namespace, levels, command });
        if self.out.len() - before > FRAME_BYTES_MAX + HEADER_BYTES {
            self.out.truncate(before);
            return Err(ClientError::Failed { code: ErrorCode::TooLarge, message: "the request is larger than a frame may be".into() });
        }
        let end = self.sent + self.output().len() as u64;
        self.earliest = self.earliest.min(deadline);
        self.pending.insert(self.next_id, Pending { deadline, is_write, version, end });
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    /// What is to be sent.
    pub fn output(&self) -> &[u8] {
        &self.out[self.out_start..]
    }

    /// The first `bytes` of the output have left.
    pub fn mark_sent(&mut self, bytes: usize) {
        assert!(bytes <= self.output().len(), "more sent than there was");
        self.out_start += bytes;
        self.sent += bytes as u64;
        self.compact();
    }

    fn compact(&mut self) {
        if self.out_start == self.out.len() {
            self.out.clear();
            self.out_start = 0;
        } else if self.out_start > 1 << 20 {
            self.out.drain(..self.out_start);
            self.out_start = 0;
        }
    }

    /// Requests without their last answer.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// The earliest deadline in flight, or one before it.
    pub fn next_deadline(&self) -> Option<Mono> {
        (!self.pending.is_empty()).then_some(self.earliest)
    }

    /// Takes received bytes in. An error means that the stream is lost: call `disconnect` and close.
    pub fn receive(&mut self, chunk: &[u8], mut on: impl FnMut(Event<'_>)) -> Result<(), ClientError> {
        for frame in self.reader.feed(chunk) {
            let frame = frame.map_err(|_| ClientError::Protocol("its stream is not made of frames"))?;
            let Some(pending) = self.pending.get_mut(&frame.id) else {
                // Else late, after its deadline; or a goodbye that belongs to no request.
                if frame.id == NEWS
                    && let Ok(news @ Reply::HelloOk(_)) = decode_reply(frame.kind, frame.body)
                {
                    on(Event { id: NEWS, last: false, outcome: Ok(news) });
                }
                continue;
            };
            let mut last = !frame.more();
            let outcome = match decode_reply(frame.kind, frame.body) {
                Ok(Reply::Announced { version }) => {
                    pending.version = Some(version);
                    last = false;
                    Ok(Reply::Announced { version })
                }
                Ok(Reply::NotMet { present }) => Err(ClientError::NotMet { present }),
                Ok(Reply::Error(error)) => Err(error_of(&error, pending)),
                Ok(reply) => Ok(reply),
                Err(error) => Err(pending.without_answer(u64::MAX, ClientError::Protocol(error.what))),
            };
            last |= outcome.is_err();
            if last {
                self.pending.remove(&frame.id);
            }
            on(Event { id: frame.id, last, outcome });
        }
        Ok(())
    }

    /// Gives up what is past its deadline.
    pub fn expire(&mut self, now: Mono, mut on: impl FnMut(Event<'_>)) {
        if now < self.earliest {
            return;
        }
        let mut earliest = Mono(u64::MAX);
        self.pending.retain(|&id, pending| {
            if pending.deadline > now {
                earliest = earliest.min(pending.deadline);
                return true;
            }
            // Its bytes stay queued and may still leave, so a write that has not left is not known to have failed either.
            on(Event { id, last: true, outcome: Err(pending.without_answer(u64::MAX, ClientError::TimedOut)) });
            false
        });
        self.earliest = earliest;
    }

    /// The connection is gone: every request in flight is over.
    pub fn disconnect(&mut self, why: &str, mut on: impl FnMut(Event<'_>)) {
        let sent = self.sent;
        for (id, pending) in self.pending.drain() {
            let outcome = Err(pending.without_answer(sent, ClientError::Disconnected(why.to_owned())));
            on(Event { id, last: true, outcome });
        }
    }
}

/// The version that a write carries from an earlier try.
fn version_of(command: &Command<'_>) -> Option<Version> {
    match command {
        Command::Put(put) => put.write.version,
        Command::Delete(delete) => delete.write.version,
        Command::MultiPut(multi) => multi.write.version,
        Command::Expire { write, .. } | Command::Persist { write, .. } => write.version,
        _ => None,
    }
}

fn error_of(error: &ErrorReply<'_>, pending: &Pending) -> ClientError {
    match error.code {
        ErrorCode::Unknown => ClientError::Unknown { version: error.version.or(pending.version) },
        ErrorCode::Unavailable => ClientError::Unavailable { need: error.need, alive: error.alive },
        code => ClientError::Failed { code, message: error.message.to_owned() },
    }
}

/// How long to wait before try number `attempt` (from 1): doubling from `min` up to `max`, and somewhere in the upper half of it, so that
/// clients that lost a server together do not come back together. `unit` is uniform over [0, 1).
pub fn backoff(attempt: u32, min: Duration, max: Duration, unit: f64) -> Duration {
    let full = min.saturating_mul(1u32 << attempt.saturating_sub(1).min(20)).min(max);
    full.mul_f64(0.5 + unit / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::command::{Condition, Put, WriteOptions};
    use crate::wire::native::encode_reply;

    const V: Version = Version(99);

    fn put(announce: bool) -> Command<'static> {
        let write = WriteOptions { version: None, announce };
        Command::Put(Put { key: b"k", value: b"v", ttl_ms: 0, condition: Condition::Always, write })
    }

    fn submit(core: &mut Core, command: Command<'_>) -> u64 {
        core.submit(Mono(0), Mono(1_000_000_000), 1, command).expect("room")
    }

    fn send_all(core: &mut Core) {
        core.mark_sent(core.output().len());
    }

    fn reply(core: &mut Core, id: u64, reply: &Reply<'_>) -> Vec<(u64, bool, Result<(), ClientError>)> {
        let mut bytes = Vec::new();
        encode_reply(&mut bytes, id, reply);
        let mut seen = Vec::new();
        core.receive(&bytes, |event| seen.push((event.id, event.last, event.outcome.map(|_| ())))).expect("frames");
        seen
    }

    fn lost(core: &mut Core) -> Vec<(u64, ClientError)> {
        let mut seen = Vec::new();
        core.disconnect("gone", |event| seen.push((event.id, event.outcome.unwrap_err())));
        seen.sort_by_key(|entry| entry.0);
        seen
    }

    #[test]
    fn answers_come_back_by_id_in_any_order() {
        let mut core = Core::new(10);
        let (a, b) = (submit(&mut core, Command::Ping), submit(&mut core, Command::Get { key: b"k" }));
        send_all(&mut core);
        assert_eq!(reply(&mut core, b, &Reply::Absent), [(b, true, Ok(()))]);
        assert_eq!(reply(&mut core, b, &Reply::Absent), [], "over is over");
        assert_eq!(reply(&mut core, a, &Reply::Pong), [(a, true, Ok(()))]);
        assert_eq!(core.in_flight(), 0);
    }

    #[test]
    fn a_lost_connection_tells_writes_that_left_from_those_that_did_not() {
        let mut core = Core::new(10);
        let announced = submit(&mut core, put(true));
        let sent = submit(&mut core, put(false));
        let read = submit(&mut core, Command::Get { key: b"k" });
        send_all(&mut core);
        let half = submit(&mut core, put(false));
        core.mark_sent(core.output().len() - 1);
        assert_eq!(reply(&mut core, announced, &Reply::Announced { version: V }), [(announced, false, Ok(()))]);
        let gone = || ClientError::Disconnected("gone".into());
        let expected = [
            (announced, ClientError::Unknown { version: Some(V) }),
            (sent, ClientError::Unknown { version: None }),
            (read, gone()),
            (half, gone()),
        ];
        assert_eq!(lost(&mut core), expected);
    }

    #[test]
    fn deadlines_end_requests_and_late_answers_are_ignored() {
        let mut core = Core::new(10);
        let early = core.submit(Mono(0), Mono(5), 1, Command::Get { key: b"k" }).unwrap();
        let write = core.submit(Mono(0), Mono(5), 1, put(false)).unwrap();
        let late = core.submit(Mono(0), Mono(50), 1, Command::Ping).unwrap();
        send_all(&mut core);
        assert_eq!(core.next_deadline(), Some(Mono(5)));
        let mut seen = Vec::new();
        core.expire(Mono(4), |event| seen.push((event.id, event.outcome.unwrap_err())));
        assert_eq!(seen, []);
        core.expire(Mono(5), |event| seen.push((event.id, event.outcome.unwrap_err())));
        seen.sort_by_key(|entry| entry.0);
        assert_eq!(seen, [(early, ClientError::TimedOut), (write, ClientError::Unknown { version: None })]);
        assert_eq!(core.next_deadline(), Some(Mono(50)));
        assert_eq!(reply(&mut core, early, &Reply::Absent), []);
        assert_eq!(reply(&mut core, late, &Reply::Pong).len(), 1);
    }

    #[test]
    fn errors_are_typed_and_the_flight_is_bounded() {
        let mut core = Core::new(3);
        let ids: Vec<u64> = (0..3).map(|_| submit(&mut core, put(false))).collect();
        assert_eq!(core.submit(Mono(0), Mono(9), 1, Command::Ping), Err(ClientError::Full));
        send_all(&mut core);
        let error = ErrorReply { version: Some(V), ..ErrorReply::new(ErrorCode::Unknown, "") };
        assert_eq!(reply(&mut core, ids[0], &Reply::Error(error))[0].2, Err(ClientError::Unknown { version: Some(V) }));
        let error = ErrorReply::new(ErrorCode::Overloaded, "later");
        let failed = ClientError::Failed { code: ErrorCode::Overloaded, message: "later".into() };
        assert_eq!(reply(&mut core, ids[1], &Reply::Error(error))[0].2, Err(failed));
        let not_met = ClientError::NotMet { present: Some(V) };
        assert_eq!(reply(&mut core, ids[2], &Reply::NotMet { present: Some(V) })[0].2, Err(not_met));
        let huge = vec![0; FRAME_BYTES_MAX];
        let before = core.output().len();
        assert!(matches!(core.submit(Mono(0), Mono(9), 1, Command::Get { key: &huge }), Err(ClientError::Failed { .. })));
        assert_eq!(core.output().len(), before);
        assert!(core.receive(b"HTTP/1.1 200 OK\r\n\r\n", |_| ()).is_err());
    }

    #[test]
    fn backoff_doubles_up_to_its_bound_with_jitter() {
        let (min, max) = (Duration::from_millis(10), Duration::from_millis(100));
        assert_eq!(backoff(1, min, max, 0.0), Duration::from_millis(5));
        assert!(backoff(3, min, max, 0.99) > Duration::from_millis(39) && backoff(3, min, max, 0.99) <= Duration::from_millis(40));
        assert!(backoff(40, min, max, 0.5) <= max);
    }
}
