//! The operations of the epoll driver: what each needs to begin, and how it ends.

use super::buffer::{Buf, Chunk};
use super::driver::Kind;
use super::epoll::EpollDriver;
use super::files::{Call, Lent, Outcome};
use super::op::{Done, Fd, Op, OpId, OpenHow, Parcel, Parcelled, cancelled};
use super::recording::{Recorded, Recording};
use super::sys::{self, c_path};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What one socket may do in one turn.
const RECEIVES_A_TURN: usize = 4;
const SENDS_A_TURN: usize = 8;
const ACCEPTS_A_TURN: usize = 64;

/// An operation that has not ended.
pub(super) enum Flight {
    /// A receive, an accept or a connect.
    Waits(Fd),
    Send(Fd),
    /// On a file or a name.
    File {
        on: Option<Fd>,
        job: Job,
    },
}

impl Flight {
    pub(super) fn is_close(&self) -> bool {
        matches!(self, Flight::File { job: Job::Close, .. })
    }
}

/// What a call's outcome is made into. The buffers are lent to the call until then.
pub(super) enum Job {
    Open {
        name: PathBuf,
        how: OpenHow,
    },
    Read(Buf),
    Write {
        offset: u64,
        buf: Buf,
        sync: bool,
    },
    List,
    Close,
    /// Nothing but success, which a recording tells like this.
    Unit(Option<Recorded>),
}

/// A send that is not whole yet.
pub(super) struct Sending {
    id: OpId,
    bytes: Vec<u8>,
    done: usize,
}

impl EpollDriver {
    /// Begins an operation: a flight, or an answer at once.
    pub(super) fn begin(&mut self, id: OpId, op: Op) {
        let at_once = match op {
            Op::Size { file } => sys::stat(&self.descriptor(file).raw).map(|stat| Done::Size(stat.bytes)),
            Op::Listen { address } => self.listen(address),
            Op::Connect { address } => match self.connect(id, address) {
                Ok(None) => return,
                Ok(Some(fd)) => Ok(Done::Opened(fd)),
                Err(error) => Err(error),
            },
            Op::Accept { listener: fd } | Op::Receive { socket: fd } => return self.wait_on(id, fd),
            Op::Send { socket, bytes } => return self.begin_send(id, socket, bytes),
            Op::Close { fd } => return self.begin_close(id, fd),
            Op::Detach { socket } => self.detached(socket),
            Op::Attach { parcel: Parcel(Parcelled::Os(raw)) } => self.install(raw, Kind::Stream).map(Done::Opened),
            on_files => match self.file_call(on_files) {
                Ok((on, call, job)) => return self.begin_call(id, on, call, job),
                Err(error) => Err(error),
            },
        };
        self.answer(id, at_once);
    }

    fn listen(&mut self, address: SocketAddr) -> io::Result<Done> {
        let (raw, bound) = sys::listen(address)?;
        sys::set_nonblocking(&raw)?;
        self.install(raw, Kind::Listener).map(|fd| Done::Bound(fd, bound))
    }

    /// The socket if it is connected at once, else `None` and a flight.
    fn connect(&mut self, id: OpId, address: SocketAddr) -> io::Result<Option<Fd>> {
        if !self.has_room() {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let raw = sys::tcp_socket(address)?;
        sys::set_nonblocking(&raw)?;
        // Before it is watched: a socket that was never connected counts as hung up.
        let connected = sys::connect(&raw, address)?;
        let fd = self.install(raw, Kind::Stream)?;
        if connected {
            return Ok(Some(fd));
        }
        let descriptor = self.descriptor_mut(fd);
        (descriptor.connecting, descriptor.writable, descriptor.waiting) = (true, false, Some(id));
        self.flights.insert(id, Flight::Waits(fd));
        Ok(None)
    }

    fn detached(&mut self, socket: Fd) -> io::Result<Done> {
        let descriptor = self.descriptor(socket);
        if descriptor.waiting.is_some() || !descriptor.sends.is_empty() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Done::Detached(Parcel(Parcelled::Os(self.detach(socket)))))
    }

    /// A receive or an accept waits for the socket.
    fn wait_on(&mut self, id: OpId, fd: Fd) {
        let descriptor = self.descriptor_mut(fd);
        assert!(descriptor.waiting.is_none() && descriptor.closing.is_none(), "one at a time, and none after a close");
        descriptor.waiting = Some(id);
        self.flights.insert(id, Flight::Waits(fd));
        self.activate(fd);
    }

    /// Sends at once, if nothing stands before it; what does not fit into the socket's buffer waits.
    fn begin_send(&mut self, id: OpId, fd: Fd, bytes: Vec<u8>) {
        let descriptor = self.descriptor_mut(fd);
        let first = descriptor.sends.is_empty();
        descriptor.sends.push_back(Sending { id, bytes, done: 0 });
        if first && descriptor.writable {
            self.send_on(fd);
        }
        if self.descriptor(fd).sends.back().is_some_and(|last| last.id == id) {
            self.flights.insert(id, Flight::Send(fd));
            self.activate(fd);
        }
    }

    /// One turn of an active socket; how many chunks it received.
    pub(super) fn turn_of(&mut self, fd: Fd) -> usize {
        let descriptor = self.descriptor(fd);
        if descriptor.connecting {
            self.finish_connect(fd);
            return 0;
        }
        if descriptor.kind == Kind::Listener {
            self.accept_on(fd);
            return 0;
        }
        if descriptor.writable {
            self.send_on(fd);
        }
        if self.descriptor(fd).readable { self.receive_on(fd) } else { 0 }
    }

    fn send_on(&mut self, fd: Fd) {
        for _ in 0..SENDS_A_TURN {
            let descriptor = self.descriptor_mut(fd);
            let Some(first) = descriptor.sends.front_mut() else { return };
            let result = match sys::send(&descriptor.raw, &first.bytes[first.done..]) {
                Ok(sent) => {
                    first.done += sent;
                    if first.done < first.bytes.len() {
                        continue;
                    }
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    descriptor.writable = false;
                    return;
                }
                Err(error) => Err(error),
            };
            let Some(first) = descriptor.sends.pop_front() else { return };
            self.flights.remove(&first.id);
            self.answer(first.id, result.map(|()| Done::Sent(first.bytes)));
        }
    }

    fn receive_on(&mut self, fd: Fd) -> usize {
        for chunks in 0..RECEIVES_A_TURN {
            let descriptor = self.descriptors[fd.0 as usize].as_mut().expect("an active socket");
            let Some(id) = descriptor.waiting else { return chunks };
            let into = |room: &mut [u8]| sys::receive(&descriptor.raw, room);
            let received = match self.buffers.fill(into) {
                Some(filled) => {
                    filled.map(|(buffer, bytes)| (bytes as usize, (bytes > 0).then(|| Chunk::of_ring(&self.buffers, buffer, bytes))))
                }
                None => into(&mut self.spare).map(|bytes| (bytes, (bytes > 0).then(|| Chunk::from(self.spare[..bytes].to_vec())))),
            };
            match received {
                Ok((bytes, Some(chunk))) => {
                    // A buffer that is not full was the rest of it, but for the end of the stream.
                    descriptor.readable = descriptor.hung_up || bytes == self.spare.len();
                    let goes_on = descriptor.readable;
                    self.give(id, Ok(Done::Received(chunk)));
                    if !goes_on {
                        return chunks + 1;
                    }
                }
                Ok((_, None)) => {
                    self.end_waiting(fd, Ok(Done::Received(Chunk::from(Vec::new()))));
                    return chunks;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    descriptor.readable = false;
                    return chunks;
                }
                Err(error) => {
                    self.end_waiting(fd, Err(error));
                    return chunks;
                }
            }
        }
        RECEIVES_A_TURN
    }

    fn accept_on(&mut self, fd: Fd) {
        for _ in 0..ACCEPTS_A_TURN {
            let descriptor = self.descriptor_mut(fd);
            let Some(id) = descriptor.waiting else { return };
            match sys::accept(&descriptor.raw) {
                Ok((raw, address)) => {
                    // For one too many there is an error, and the listener goes on.
                    let accepted = self.install(raw, Kind::Stream).map(|fd| Done::Accepted(fd, address));
                    self.give(id, accepted);
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::ECONNABORTED) => {}
                    Some(libc::EAGAIN) => {
                        descriptor.readable = false;
                        return;
                    }
                    _ => return self.end_waiting(fd, Err(error)),
                },
            }
        }
    }

    fn finish_connect(&mut self, fd: Fd) {
        let outcome = sys::socket_outcome(&self.descriptor(fd).raw);
        self.descriptor_mut(fd).connecting = false;
        match outcome {
            Ok(()) => self.end_waiting(fd, Ok(Done::Opened(fd))),
            Err(error) => {
                self.end_waiting(fd, Err(error));
                drop(self.uninstall(fd));
            }
        }
    }

    /// The final completion of what waits for a socket.
    fn end_waiting(&mut self, fd: Fd, result: io::Result<Done>) {
        let id = self.descriptor_mut(fd).waiting.take().expect("something waits");
        self.flights.remove(&id);
        self.answer(id, result);
    }

    pub(super) fn cancel(&mut self, id: OpId) {
        match self.flights.get(&id) {
            Some(&Flight::Waits(fd)) => {
                self.end_waiting(fd, Err(cancelled()));
                if self.descriptor(fd).connecting {
                    drop(self.uninstall(fd));
                }
            }
            Some(&Flight::Send(fd)) => {
                self.flights.remove(&id);
                self.descriptor_mut(fd).sends.retain(|sending| sending.id != id);
                self.answer(id, Err(cancelled()));
            }
            Some(Flight::File { .. }) if self.files.cancel(id) => self.end_call(id, Err(cancelled())),
            // It has ended, or a thread has begun it: it goes on to its end.
            _ => {}
        }
    }

    fn begin_close(&mut self, id: OpId, fd: Fd) {
        let descriptor = self.descriptor_mut(fd);
        assert!(descriptor.closing.is_none(), "closed twice");
        descriptor.closing = Some(id);
        let flights = descriptor.calls.iter().chain(&descriptor.waiting).copied();
        let flights: Vec<OpId> = flights.chain(descriptor.sends.iter().map(|sending| sending.id)).collect();
        let idle = descriptor.calls.is_empty();
        flights.into_iter().for_each(|flight| self.cancel(flight));
        if idle {
            self.release(fd);
        } // Else the last call to end does so.
    }

    /// Nothing is in flight on it any more: the descriptor goes.
    fn release(&mut self, fd: Fd) {
        let descriptor = self.uninstall(fd);
        let id = descriptor.closing.expect("only a close releases");
        if descriptor.kind == Kind::File {
            self.begin_call(id, None, Call::Close(descriptor.raw), Job::Close);
        } else {
            drop(descriptor.raw);
            self.answer(id, Ok(Done::Unit));
        }
    }

    /// The call that an operation on files is, and what its outcome is made into.
    fn file_call(&self, op: Op) -> io::Result<(Option<Fd>, Call, Job)> {
        let (covers, is_recorded) = (self.recording.as_ref().map_or(0, Recording::len), self.recording.is_some());
        let raw = |fd: Fd| self.descriptor(fd).raw.clone();
        let number = |fd: Fd| self.descriptor(fd).recorded;
        let unit = |recorded: Recorded| Job::Unit(is_recorded.then_some(recorded));
        Ok(match op {
            Op::Open { path, how } => (None, Call::Open { path: c_path(&path)?, how }, Job::Open { name: path, how }),
            Op::Read { file, offset, mut buf } => {
                (Some(file), Call::Read { file: raw(file), offset, memory: Lent::new(&mut buf) }, Job::Read(buf))
            }
            Op::Write { file, offset, mut buf, sync } => {
                let call = Call::Write { file: raw(file), offset, memory: Lent::new(&mut buf), sync };
                (Some(file), call, Job::Write { offset, buf, sync })
            }
            Op::Sync { file } => (Some(file), Call::Sync { file: raw(file) }, unit(Recorded::Sync { file: number(file), covers })),
            Op::Resize { file, bytes } => {
                (Some(file), Call::Resize { file: raw(file), bytes }, unit(Recorded::Resize { file: number(file), bytes }))
            }
            Op::Punch { file, offset, bytes } => {
                let recorded = Recorded::Punch { file: number(file), offset, bytes };
                (Some(file), Call::Punch { file: raw(file), offset, bytes }, unit(recorded))
            }
            Op::Rename { from, to } => (None, Call::Rename { from: c_path(&from)?, to: c_path(&to)? }, unit(Recorded::Rename { from, to })),
            Op::Link { from, to } => (None, Call::Link { from: c_path(&from)?, to: c_path(&to)? }, unit(Recorded::Link { from, to })),
            Op::Unlink { path } => (None, Call::Unlink { path: c_path(&path)? }, unit(Recorded::Unlink { path })),
            Op::MakeDir { path } => (None, Call::MakeDir { path: path.clone() }, unit(Recorded::MakeDir { path })),
            Op::RemoveDir { path } => (None, Call::RemoveDir { path: c_path(&path)? }, Job::Unit(None)),
            Op::SyncDir { path } => (None, Call::SyncDir { path: c_path(&path)? }, unit(Recorded::SyncDir { path, covers })),
            Op::List { path } => (None, Call::List { path }, Job::List),
            other => panic!("not an operation on files: {other:?}"),
        })
    }

    fn begin_call(&mut self, id: OpId, on: Option<Fd>, call: Call, job: Job) {
        if let Some(fd) = on {
            let descriptor = self.descriptor_mut(fd);
            if descriptor.closing.is_some() {
                return self.answer(id, Err(cancelled()));
            }
            descriptor.calls.push(id);
        }
        self.flights.insert(id, Flight::File { on, job });
        self.files.submit(id, call);
    }

    /// Ends the operations whose calls have ended.
    pub(super) fn take_outcomes(&mut self) {
        let mut outcomes = Vec::new();
        self.files.take(&mut outcomes);
        outcomes.into_iter().for_each(|(id, outcome)| self.end_call(id, outcome));
    }

    fn end_call(&mut self, id: OpId, outcome: io::Result<Outcome>) {
        let Some(Flight::File { on, job }) = self.flights.remove(&id) else { panic!("an outcome for no call: {id:x}") };
        let result = outcome.and_then(|outcome| self.made_of(job, on, outcome));
        self.answer(id, result);
        if let Some(fd) = on {
            let descriptor = self.descriptor_mut(fd);
            descriptor.calls.retain(|call| *call != id);
            if descriptor.calls.is_empty() && descriptor.closing.is_some() {
                self.release(fd);
            }
        }
    }

    fn made_of(&mut self, job: Job, on: Option<Fd>, outcome: Outcome) -> io::Result<Done> {
        Ok(match (job, outcome) {
            (Job::Open { name, how }, Outcome::Opened(raw)) => Done::Opened(self.opened(raw, &name, how)?),
            (Job::Read(buf), Outcome::Read(bytes)) => Done::Read(buf, bytes),
            (Job::Write { offset, buf, sync }, _) => {
                if let (Some(recording), Some(fd)) = (&self.recording, on) {
                    recording.push(Recorded::Write { file: self.descriptor(fd).recorded, offset, bytes: buf.to_vec(), sync });
                }
                Done::Wrote(buf)
            }
            (Job::List, Outcome::Entries(entries)) => Done::Entries(entries),
            (Job::Close, _) | (Job::Unit(_), Outcome::Unchanged) => Done::Unit,
            (Job::Unit(recorded), _) => {
                if let (Some(recording), Some(entry)) = (&self.recording, recorded) {
                    recording.push(entry);
                }
                Done::Unit
            }
            _ => panic!("a call answered another question"),
        })
    }

    fn opened(&mut self, raw: OwnedFd, name: &Path, how: OpenHow) -> io::Result<Fd> {
        let fd = self.install(raw, Kind::File)?;
        if let Some(recording) = &self.recording {
            let recorded = recording.opened(name, how == OpenHow::Create);
            self.descriptor_mut(fd).recorded = recorded;
        }
        Ok(fd)
    }
}
