//! The operations of the io_uring driver: how each is submitted, and what each of its completions leads to.
//!
//! An operation may take several steps (a short write goes on, a removal truncates first): all steps carry the operation's id, one at a
//! time, and a `Flight` owns what the kernel reads or writes meanwhile.

use super::buffer::{Buf, Chunk};
use super::driver::Kind;
use super::files::{TRUNCATE_STEP_BYTES, list, make_dir, open_flags};
use super::op::{Done, Fd, Op, OpId, OpenHow, Parcel, Parcelled, cancelled};
use super::recording::{Recorded, Recording};
use super::sys::{self, RawAddress, c_path};
use super::uring::{BUFFER_GROUP, SLAB_BUFFER, UringDriver};
use crate::limits::BLOCK_BYTES;
use io_uring::{cqueue, opcode, squeue, types};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// An operation that the kernel has not finished.
pub(super) struct Flight {
    /// The descriptor that it is on.
    pub(super) on: Option<Fd>,
    /// Somebody wants it to end: no further step.
    pub(super) cancelled: bool,
    job: Job,
}

impl Flight {
    pub(super) fn is_close(&self) -> bool {
        matches!(self.job, Job::CloseFile { .. })
    }

    fn is_read(&self) -> bool {
        matches!(self.job, Job::Read { .. })
    }
}

/// What is in flight, by the low half of the ids: the executor counts operations densely.
#[derive(Default)]
pub(super) struct Flights {
    slots: Vec<Option<(OpId, Flight)>>,
    count: usize,
    /// How many of them are reads of files.
    reads: usize,
}

impl Flights {
    fn slot(&mut self, id: OpId) -> Option<&mut Option<(OpId, Flight)>> {
        self.slots.get_mut(id as u32 as usize).filter(|slot| slot.as_ref().is_some_and(|(of, _)| *of == id))
    }

    pub(super) fn insert(&mut self, id: OpId, flight: Flight) {
        let index = id as u32 as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.reads += usize::from(flight.is_read());
        let before = self.slots[index].replace((id, flight));
        assert!(before.is_none(), "two flights of one number: {id:x}");
        self.count += 1;
    }

    pub(super) fn remove(&mut self, id: OpId) -> Option<Flight> {
        let (_, flight) = self.slot(id)?.take()?;
        self.count -= 1;
        self.reads -= usize::from(flight.is_read());
        Some(flight)
    }

    pub(super) fn get_mut(&mut self, id: OpId) -> Option<&mut Flight> {
        self.slot(id)?.as_mut().map(|(_, flight)| flight)
    }

    pub(super) fn get(&self, id: OpId) -> Option<&Flight> {
        self.slots.get(id as u32 as usize)?.as_ref().filter(|(of, _)| *of == id).map(|(_, flight)| flight)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (OpId, &Flight)> {
        self.slots.iter().flatten().map(|(id, flight)| (*id, flight))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn reads(&self) -> usize {
        self.reads
    }
}

enum Job {
    Open { path: CString, name: PathBuf, how: OpenHow, buffered: bool },
    Read { offset: u64, buf: Buf, done: usize },
    Write { offset: u64, buf: Buf, done: usize, sync: bool },
    Sync { covers: usize },
    Resize { bytes: u64 },
    Punch { offset: u64, bytes: u64 },
    Rename { from: CString, to: CString, names: (PathBuf, PathBuf) },
    Link { from: CString, to: CString, names: (PathBuf, PathBuf) },
    Unlink { path: CString, name: PathBuf, step: Removal },
    RemoveDir { path: CString },
    SyncDir { path: CString, name: PathBuf, covers: usize, folder: Option<OwnedFd> },
    Accept,
    Connect { address: Box<RawAddress> },
    Receive,
    Send { bytes: Vec<u8>, done: usize },
    CloseFile { raw: RawFd },
}

enum Removal {
    /// To see how large it is.
    Opening,
    Truncating {
        file: OwnedFd,
        bytes: u64,
    },
    Unlinking,
}

const HERE: types::Fd = types::Fd(libc::AT_FDCWD);

impl UringDriver {
    /// Begins an operation: a flight, or an answer at once.
    pub(super) fn begin(&mut self, id: OpId, op: Op) {
        let begun = match op {
            Op::Open { path, how } => c_path(&path).map(|c| (None, Job::Open { path: c, name: path, how, buffered: false })),
            Op::Read { file, offset, buf } => Ok((Some(file), Job::Read { offset, buf, done: 0 })),
            Op::Write { file, offset, buf, sync } => Ok((Some(file), Job::Write { offset, buf, done: 0, sync })),
            Op::Sync { file } => Ok((Some(file), Job::Sync { covers: self.recorded_len() })),
            Op::Resize { file, bytes } if !self.can_truncate => return self.resize_blocking(id, file, bytes),
            Op::Resize { file, bytes } => Ok((Some(file), Job::Resize { bytes })),
            Op::Punch { file, offset, bytes } => Ok((Some(file), Job::Punch { offset, bytes })),
            Op::Rename { from, to } => pair(from, to).map(|(from, to, names)| (None, Job::Rename { from, to, names })),
            Op::Link { from, to } => pair(from, to).map(|(from, to, names)| (None, Job::Link { from, to, names })),
            Op::Unlink { path } => c_path(&path).map(|c| (None, Job::Unlink { path: c, name: path, step: Removal::Opening })),
            Op::RemoveDir { path } => c_path(&path).map(|path| (None, Job::RemoveDir { path })),
            Op::SyncDir { path } => {
                let covers = self.recorded_len();
                c_path(&path).map(|c| (None, Job::SyncDir { path: c, name: path, covers, folder: None }))
            }
            Op::Accept { listener } => Ok((Some(listener), Job::Accept)),
            Op::Receive { socket } => Ok((Some(socket), Job::Receive)),
            Op::Send { socket, bytes } => Ok((Some(socket), Job::Send { bytes, done: 0 })),
            Op::Close { fd } => return self.begin_close(id, fd),
            at_once => return self.do_at_once(id, at_once),
        };
        match begun {
            Ok((on, job)) => self.take_off(id, on, job),
            Err(error) => self.answer(id, Err(error)),
        }
    }

    /// Operations that need no ring. `List` and `MakeDir` block: they are for the start only.
    fn do_at_once(&mut self, id: OpId, op: Op) {
        let result = match op {
            Op::Size { file } => sys::stat(&self.descriptor(file).raw).map(|stat| Done::Size(stat.bytes)),
            Op::MakeDir { path } => self.make_dir(&path).map(|()| Done::Unit),
            Op::List { path } => list(&path).map(Done::Entries),
            Op::Listen { address } => {
                sys::listen(address).and_then(|(raw, bound)| self.install(raw, Kind::Listener).map(|fd| Done::Bound(fd, bound)))
            }
            Op::Connect { address } => match sys::tcp_socket(address).and_then(|raw| self.install(raw, Kind::Stream)) {
                Ok(fd) => return self.take_off(id, Some(fd), Job::Connect { address: Box::new(address.into()) }),
                Err(error) => Err(error),
            },
            Op::Detach { socket } if !self.descriptor(socket).flights.is_empty() => Err(io::ErrorKind::ResourceBusy.into()),
            Op::Detach { socket } => Ok(Done::Detached(Parcel(Parcelled::Os(self.uninstall(socket).raw)))),
            Op::Attach { parcel: Parcel(Parcelled::Os(raw)) } => self.install(raw, Kind::Stream).map(Done::Opened),
            other => panic!("not an operation that is done at once: {other:?}"),
        };
        self.answer(id, result);
    }

    fn take_off(&mut self, id: OpId, on: Option<Fd>, job: Job) {
        if let Some(fd) = on {
            let is_send = matches!(job, Job::Send { .. });
            let descriptor = self.descriptor_mut(fd);
            if descriptor.closing.is_some() {
                return self.answer(id, Err(cancelled()));
            }
            descriptor.flights.push(id);
            if is_send {
                descriptor.sends.push_back(id);
                if descriptor.sends.len() > 1 {
                    self.flights.insert(id, Flight { on, cancelled: false, job });
                    return;
                }
            }
        }
        self.launch(id, Flight { on, cancelled: false, job });
    }

    /// Submits the flight's next step.
    fn launch(&mut self, id: OpId, mut flight: Flight) {
        let entry = self.entry(&mut flight).user_data(id);
        let is_read = flight.is_read();
        self.flights.insert(id, flight);
        self.push(entry);
        if is_read {
            self.read_queued();
        }
    }

    pub(super) fn relaunch(&mut self, id: OpId) {
        let flight = self.flights.remove(id).expect("a flight that waits");
        self.launch(id, flight);
    }

    fn entry(&self, flight: &mut Flight) -> squeue::Entry {
        match &mut flight.job {
            Job::Open { path, how, buffered, .. } => {
                opcode::OpenAt::new(HERE, path.as_ptr()).flags(open_flags(*how, *buffered)).mode(0o640).build()
            }
            Job::Rename { from, to, .. } => opcode::RenameAt::new(HERE, from.as_ptr(), HERE, to.as_ptr()).build(),
            Job::Link { from, to, .. } => opcode::LinkAt::new(HERE, from.as_ptr(), HERE, to.as_ptr()).build(),
            Job::Unlink { path, step, .. } => match step {
                Removal::Opening => {
                    opcode::OpenAt::new(HERE, path.as_ptr()).flags(libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW).build()
                }
                Removal::Truncating { file, bytes } => opcode::Ftruncate::new(types::Fd(file.as_raw_fd()), *bytes).build(),
                Removal::Unlinking => opcode::UnlinkAt::new(HERE, path.as_ptr()).build(),
            },
            Job::RemoveDir { path } => opcode::UnlinkAt::new(HERE, path.as_ptr()).flags(libc::AT_REMOVEDIR).build(),
            Job::SyncDir { path, folder, .. } => match folder {
                None => opcode::OpenAt::new(HERE, path.as_ptr()).flags(libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC).build(),
                Some(folder) => opcode::Fsync::new(types::Fd(folder.as_raw_fd())).build(),
            },
            // On a worker of the ring: the last close of a removed file frees its blocks.
            Job::CloseFile { raw } => opcode::Close::new(types::Fd(*raw)).build().flags(squeue::Flags::ASYNC),
            job => {
                let fd = flight.on.expect("these are on a descriptor");
                let target = types::Fd(if self.direct { fd.0 as i32 } else { self.descriptor(fd).raw.as_raw_fd() });
                let entry = self.fixed_entry(job, target).unwrap_or_else(|| job_entry(job, target));
                if self.direct { entry.flags(squeue::Flags::FIXED_FILE) } else { entry }
            }
        }
    }

    /// The entry of a transfer whose buffer the kernel has pinned already.
    fn fixed_entry(&self, job: &mut Job, target: types::Fd) -> Option<squeue::Entry> {
        match job {
            Job::Read { offset, buf, done } if self.fixed_buffers && buf.is_in_slab_of(&self.pool) => {
                let rest = &mut buf[*done..];
                let entry = opcode::ReadFixed::new(target, rest.as_mut_ptr(), length(rest.len()), SLAB_BUFFER);
                Some(entry.offset(*offset + *done as u64).build())
            }
            Job::Write { offset, buf, done, sync } if self.fixed_buffers && buf.is_in_slab_of(&self.pool) => {
                let rest = &buf[*done..];
                let entry = opcode::WriteFixed::new(target, rest.as_ptr(), length(rest.len()), SLAB_BUFFER);
                Some(entry.offset(*offset + *done as u64).rw_flags(if *sync { libc::RWF_DSYNC } else { 0 }).build())
            }
            _ => None,
        }
    }

    /// A completion of a flight's step.
    pub(super) fn step(&mut self, id: OpId, result: i32, flags: u32) {
        match self.flights.get(id) {
            Some(Flight { job: Job::Receive, cancelled, .. }) => return self.step_receive(id, *cancelled, result, flags),
            Some(Flight { job: Job::Accept, cancelled, .. }) => return self.step_accept(id, *cancelled, result, flags),
            _ => {}
        }
        let Some(mut flight) = self.flights.remove(id) else { panic!("a completion for no flight: {id:x}") };
        let outcome = sys_result(result);
        let again = matches!(&outcome, Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)));
        if again && !flight.cancelled {
            return self.launch(id, flight);
        }
        if let Some(done) = self.advance(&mut flight, outcome) {
            let on = flight.on;
            self.answer(id, done);
            if let Some(fd) = on {
                self.left(fd, id);
            }
        } else {
            self.launch(id, flight);
        }
    }

    /// What a step's outcome leads to: the operation's result, or `None` for another step.
    fn advance(&mut self, flight: &mut Flight, outcome: io::Result<i32>) -> Option<io::Result<Done>> {
        let on = flight.on;
        match &mut flight.job {
            Job::Open { how, buffered, name, .. } => match outcome {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !*buffered && !flight.cancelled => {
                    *buffered = true;
                    None
                }
                Err(error) => Some(Err(error)),
                Ok(fd) => Some(self.opened(owned(fd), name, *how)),
            },
            Job::Unlink { .. } => self.advance_removal(flight, outcome),
            Job::SyncDir { folder, name, covers, .. } => match outcome {
                Ok(fd) if folder.is_none() => {
                    *folder = Some(owned(fd));
                    None
                }
                outcome => {
                    let (name, covers) = (std::mem::take(name), *covers);
                    Some(outcome.map(|_| self.note(|log| log.push(Recorded::SyncDir { path: name, covers }))))
                }
            },
            Job::Read { buf, done, .. } => {
                outcome.map_or_else(|error| Some(Err(error)), |got| advance_read(buf, done, got as usize).map(Ok))
            }
            Job::Write { buf, done, offset, sync } => match outcome {
                Err(error) => Some(Err(error)),
                Ok(0) if !buf.is_empty() => Some(Err(io::ErrorKind::WriteZero.into())),
                Ok(put) => {
                    *done += put as usize;
                    if *done < buf.len() {
                        // Direct I/O goes on at a whole block.
                        *done -= *done % BLOCK_BYTES;
                        return None;
                    }
                    let buf = std::mem::replace(buf, Buf::new(0));
                    self.record_write(on, *offset, &buf, *sync);
                    Some(Ok(Done::Wrote(buf)))
                }
            },
            Job::Send { bytes, done } => match outcome {
                Err(error) => Some(Err(error)),
                Ok(0) if !bytes.is_empty() => Some(Err(io::ErrorKind::WriteZero.into())),
                Ok(sent) => {
                    *done += sent as usize;
                    if *done == bytes.len() {
                        return Some(Ok(Done::Sent(std::mem::take(bytes))));
                    }
                    flight.cancelled.then(|| Err(cancelled()))
                }
            },
            Job::Connect { .. } => match outcome {
                Ok(_) => Some(Ok(Done::Opened(on.expect("a connect has a socket")))),
                Err(error) => {
                    let fd = flight.on.take().expect("a connect has a socket");
                    self.abandon(fd);
                    Some(Err(error))
                }
            },
            job => {
                let recorded = self.recorded_unit(on, job);
                if let (Ok(_), Some(entry)) = (&outcome, recorded) {
                    self.note(|log| log.push(entry));
                }
                Some(outcome.map(|_| Done::Unit))
            }
        }
    }

    /// A socket that could not connect has no other operation: it goes at once.
    fn abandon(&mut self, fd: Fd) {
        self.descriptor_mut(fd).flights.clear();
        drop(self.uninstall(fd));
    }

    fn advance_removal(&mut self, flight: &mut Flight, outcome: io::Result<i32>) -> Option<io::Result<Done>> {
        let Job::Unlink { step, name, .. } = &mut flight.job else { panic!("not a removal") };
        match (&mut *step, outcome) {
            (Removal::Unlinking, outcome) => {
                let name = std::mem::take(name);
                return Some(outcome.map(|_| self.note(|log| log.push(Recorded::Unlink { path: name }))));
            }
            _ if flight.cancelled => return Some(Err(cancelled())),
            (Removal::Opening, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Some(Err(error)),
            (_, Err(_)) => *step = Removal::Unlinking,
            (Removal::Opening, Ok(fd)) => {
                let file = owned(fd);
                match sys::stat(&file) {
                    Ok(stat) if self.can_truncate && stat.is_regular && stat.names == 1 && stat.bytes > TRUNCATE_STEP_BYTES => {
                        *step = Removal::Truncating { file, bytes: stat.bytes - TRUNCATE_STEP_BYTES };
                    }
                    _ => *step = Removal::Unlinking,
                }
            }
            (Removal::Truncating { bytes: 0, .. }, Ok(_)) => *step = Removal::Unlinking,
            (Removal::Truncating { bytes, .. }, Ok(_)) => *bytes = bytes.saturating_sub(TRUNCATE_STEP_BYTES),
        }
        None
    }

    fn opened(&mut self, raw: OwnedFd, name: &Path, how: OpenHow) -> io::Result<Done> {
        let fd = self.install(raw, Kind::File)?;
        if let Some(recording) = &self.recording {
            let recorded = recording.opened(name, how == OpenHow::Create);
            self.descriptor_mut(fd).recorded = recorded;
        }
        Ok(Done::Opened(fd))
    }

    fn step_receive(&mut self, id: OpId, is_cancelled: bool, result: i32, flags: u32) {
        let more = cqueue::more(flags);
        match sys_result(result) {
            Ok(0) => {
                if let Some(buffer) = cqueue::buffer_select(flags) {
                    drop(Chunk::of_ring(&self.buffers, buffer, 0));
                }
                assert!(!more, "more after the end of a stream");
                self.end(id, Ok(Done::Received(Chunk::from(Vec::new()))));
            }
            Ok(bytes) => {
                let buffer = cqueue::buffer_select(flags).expect("a receive fills a buffer of the ring");
                let chunk = Chunk::of_ring(&self.buffers, buffer, bytes as u32);
                self.give(id, Ok(Done::Received(chunk)));
                match more {
                    true => {}
                    false if is_cancelled => self.end(id, Err(cancelled())),
                    false => self.relaunch(id),
                }
            }
            Err(_) if more => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOBUFS | libc::EINTR | libc::EAGAIN) if is_cancelled => self.end(id, Err(cancelled())),
                Some(libc::ENOBUFS) => self.starved.push(id),
                Some(libc::EINTR | libc::EAGAIN) => self.relaunch(id),
                _ => self.end(id, Err(error)),
            },
        }
    }

    fn step_accept(&mut self, id: OpId, is_cancelled: bool, result: i32, flags: u32) {
        let more = cqueue::more(flags);
        match sys_result(result) {
            Ok(fd) => {
                let raw = owned(fd);
                // A connection that is gone already is nobody's; for one too many there is an error, and the listener goes on.
                if let Ok(address) = sys::peer_address(&raw) {
                    let accepted = self.install(raw, Kind::Stream).map(|fd| Done::Accepted(fd, address));
                    self.give(id, accepted);
                }
                match more {
                    true => {}
                    false if is_cancelled => self.end(id, Err(cancelled())),
                    false => self.relaunch(id),
                }
            }
            Err(_) if more => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::ECONNABORTED) if !is_cancelled => self.relaunch(id),
                _ => self.end(id, Err(error)),
            },
        }
    }

    fn begin_close(&mut self, id: OpId, fd: Fd) {
        let descriptor = self.descriptor_mut(fd);
        assert!(descriptor.closing.is_none(), "closed twice");
        descriptor.closing = Some(id);
        let flights = descriptor.flights.clone();
        if flights.is_empty() {
            return self.release(fd);
        }
        if descriptor.kind == Kind::Stream {
            sys::shutdown_socket(&descriptor.raw);
        }
        flights.into_iter().for_each(|flight| self.cancel(flight));
    }

    /// Nothing is in flight on it any more: the descriptor goes.
    pub(super) fn release(&mut self, fd: Fd) {
        let descriptor = self.uninstall(fd);
        let id = descriptor.closing.expect("only a close releases");
        if descriptor.kind == Kind::File {
            let raw = descriptor.raw.into_raw_fd();
            self.launch(id, Flight { on: None, cancelled: false, job: Job::CloseFile { raw } });
        } else {
            drop(descriptor.raw);
            self.answer(id, Ok(Done::Unit));
        }
    }

    fn recorded_len(&self) -> usize {
        self.recording.as_ref().map_or(0, Recording::len)
    }

    fn note(&self, note: impl FnOnce(&Recording)) -> Done {
        self.recording.as_ref().inspect(|recording| note(recording));
        Done::Unit
    }

    fn record_write(&self, on: Option<Fd>, offset: u64, buf: &Buf, sync: bool) {
        if let (Some(recording), Some(fd)) = (&self.recording, on) {
            recording.push(Recorded::Write { file: self.descriptor(fd).recorded, offset, bytes: buf.to_vec(), sync });
        }
    }

    /// What the recording says of a job that gives nothing but its success.
    fn recorded_unit(&self, on: Option<Fd>, job: &mut Job) -> Option<Recorded> {
        self.recording.as_ref()?;
        let file = on.map_or(0, |fd| self.descriptor(fd).recorded);
        match job {
            Job::Sync { covers } => Some(Recorded::Sync { file, covers: *covers }),
            Job::Resize { bytes } => Some(Recorded::Resize { file, bytes: *bytes }),
            Job::Punch { offset, bytes } => Some(Recorded::Punch { file, offset: *offset, bytes: *bytes }),
            Job::Rename { names, .. } => Some(Recorded::Rename { from: names.0.clone(), to: names.1.clone() }),
            Job::Link { names, .. } => Some(Recorded::Link { from: names.0.clone(), to: names.1.clone() }),
            _ => None,
        }
    }

    fn resize_blocking(&mut self, id: OpId, file: Fd, bytes: u64) {
        let result = sys::truncate(self.descriptor(file).raw.as_raw_fd(), bytes);
        if result.is_ok()
            && let Some(entry) = self.recorded_unit(Some(file), &mut Job::Resize { bytes })
        {
            self.note(|log| log.push(entry));
        }
        self.answer(id, result.map(|()| Done::Unit));
    }

    fn make_dir(&mut self, path: &Path) -> io::Result<()> {
        if make_dir(path)? {
            self.note(|log| log.push(Recorded::MakeDir { path: path.into() }));
        }
        Ok(())
    }
}

/// The operation's result when the end of the buffer or of the file is reached.
fn advance_read(buf: &mut Buf, done: &mut usize, got: usize) -> Option<Done> {
    *done += got;
    let ended = got == 0 || *done == buf.len() || !done.is_multiple_of(BLOCK_BYTES);
    ended.then(|| Done::Read(std::mem::replace(buf, Buf::new(0)), *done))
}

/// The entry of a job on a descriptor (`target` is a number: of the process's table, or of the ring's with a flag that the caller sets).
fn job_entry(job: &mut Job, target: types::Fd) -> squeue::Entry {
    match job {
        Job::Read { offset, buf, done } => {
            let rest = &mut buf[*done..];
            opcode::Read::new(target, rest.as_mut_ptr(), length(rest.len())).offset(*offset + *done as u64).build()
        }
        Job::Write { offset, buf, done, sync } => {
            let rest = &buf[*done..];
            let flags = if *sync { libc::RWF_DSYNC } else { 0 };
            opcode::Write::new(target, rest.as_ptr(), length(rest.len())).offset(*offset + *done as u64).rw_flags(flags).build()
        }
        Job::Sync { .. } => opcode::Fsync::new(target).build(),
        Job::Resize { bytes } => opcode::Ftruncate::new(target, *bytes).build(),
        Job::Punch { offset, bytes } => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            opcode::Fallocate::new(target, *bytes).offset(*offset).mode(mode).build()
        }
        Job::Accept => opcode::AcceptMulti::new(target).flags(libc::SOCK_CLOEXEC).build(),
        Job::Connect { address } => opcode::Connect::new(target, (&raw const address.storage).cast(), address.len).build(),
        Job::Receive => opcode::RecvMulti::new(target, BUFFER_GROUP).build(),
        Job::Send { bytes, done } => {
            let rest = &bytes[*done..];
            opcode::Send::new(target, rest.as_ptr(), length(rest.len())).flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL).build()
        }
        _ => panic!("not a job on a descriptor"),
    }
}

/// The kernel moves less at a time anyway; the rest follows as after any short transfer.
fn length(bytes: usize) -> u32 {
    bytes.min(1 << 30) as u32
}

fn sys_result(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// A descriptor that a completion gave.
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just put it into this process's table for this operation; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn pair(from: PathBuf, to: PathBuf) -> io::Result<(CString, CString, (PathBuf, PathBuf))> {
    Ok((c_path(&from)?, c_path(&to)?, (from, to)))
}
