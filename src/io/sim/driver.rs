//! The simulated driver of one core: takes operations, hands disk operations to the machine's disk after a drawn time, and the rest to
//! the network.

use super::disk::{Ino, os_error};
use super::faults::Faults;
use super::world::{CrashSite, Doom, Event, State};
use crate::base::prng::Prng;
use crate::base::time::{Mono, WallMs};
use crate::io::op::{Completion, Done, Fd, Op, OpId, OpenHow, cancelled};
use crate::io::pool::Pool;
use crate::limits::BLOCK_BYTES;
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;

/// What a descriptor names.
#[derive(Clone)]
pub(super) enum Handle {
    /// The inode, the leading letters of the name by which it was opened, and whether it may be changed through this handle.
    File(Ino, Rc<str>, bool),
    Listener(u16),
    Socket {
        conn: u64,
        side: usize,
    },
}

/// An operation under way.
pub(super) enum InFlight {
    Disk(DiskOp),
    Connect,
    Accept { port: u16 },
    Receive { conn: u64, side: usize },
    Send { conn: u64, side: usize },
}

pub(super) struct DiskOp {
    op: Op,
    ino: Option<Ino>,
    /// What had completed when this was asked for.
    mark: u64,
    site: Option<CrashSite>,
    kind: Rc<str>,
}

/// The driver of one simulated core.
pub struct SimDriver {
    state: Rc<RefCell<State>>,
    slot: usize,
    rng: Prng,
}

impl SimDriver {
    pub(super) fn new(state: Rc<RefCell<State>>, slot: usize, rng: Prng) -> SimDriver {
        SimDriver { state, slot, rng }
    }

    pub fn submit(&mut self, id: OpId, op: Op) {
        self.state.borrow_mut().submit(self.slot, id, op);
    }

    pub fn cancel(&mut self, id: OpId) {
        self.state.borrow_mut().cancel(self.slot, id);
    }

    pub fn poll(&mut self, out: &mut Vec<Completion>) {
        let mut state = self.state.borrow_mut();
        let core = &mut state.cores[self.slot];
        core.in_flight -= core.ready.iter().filter(|completion| !completion.more).count();
        out.extend(core.ready.drain(..));
    }

    /// One for all cores of the world.
    pub(in crate::io) fn pool(&self) -> Rc<Pool> {
        self.state.borrow().pool.clone()
    }

    /// The world's time, or the core's own where it was held up.
    pub fn now(&self) -> Mono {
        self.state.borrow_mut().look(self.slot)
    }

    pub fn wall_ms(&self) -> WallMs {
        let state = self.state.borrow();
        state.wall_ms(state.cores[self.slot].machine)
    }

    pub fn random_u64(&mut self) -> u64 {
        self.rng.next_u64()
    }

    pub fn in_flight(&self) -> usize {
        self.state.borrow().cores[self.slot].in_flight
    }
}

/// The leading letters of a path's last name: what kind of file it is.
fn kind_of(path: &Path) -> Rc<str> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    let letters = name.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(name.len());
    Rc::from(&name[..letters])
}

fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Open { how: OpenHow::Create, .. } => "create",
        Op::Open { .. } => "open",
        Op::Read { .. } => "read",
        Op::Write { sync: true, .. } => "durable write",
        Op::Write { .. } => "write",
        Op::Sync { .. } => "sync",
        Op::Resize { .. } => "resize",
        Op::Punch { .. } => "punch",
        Op::Size { .. } => "size",
        Op::Rename { .. } => "rename",
        Op::Link { .. } => "link",
        Op::Unlink { .. } => "unlink",
        Op::MakeDir { .. } => "make_dir",
        Op::RemoveDir { .. } => "remove_dir",
        Op::SyncDir { .. } => "sync_dir",
        Op::List { .. } => "list",
        _ => panic!("{op:?} is not for a disk"),
    }
}

fn path_of(op: &Op) -> Option<&Path> {
    match op {
        Op::Open { path, .. } | Op::Unlink { path } | Op::MakeDir { path } => Some(path),
        Op::RemoveDir { path } | Op::SyncDir { path } | Op::List { path } => Some(path),
        Op::Rename { to, .. } | Op::Link { to, .. } => Some(to),
        _ => None,
    }
}

fn file_of(op: &Op) -> Option<Fd> {
    match op {
        Op::Read { file, .. } | Op::Write { file, .. } | Op::Sync { file } => Some(*file),
        Op::Resize { file, .. } | Op::Punch { file, .. } | Op::Size { file } => Some(*file),
        _ => None,
    }
}

/// It needs a file that was opened for writing.
fn changes(op: &Op) -> bool {
    matches!(op, Op::Write { .. } | Op::Resize { .. } | Op::Punch { .. })
}

/// Direct I/O takes nothing else: an operation that is not aligned is a mistake of ours, not of the world.
fn assert_aligned(op: &Op) {
    let block = BLOCK_BYTES as u64;
    match op {
        Op::Read { offset, buf, .. } | Op::Write { offset, buf, .. } => {
            assert!(offset.is_multiple_of(block) && buf.len().is_multiple_of(BLOCK_BYTES), "unaligned: {} at {offset}", name_of(op));
            assert!((buf.as_ptr() as usize).is_multiple_of(BLOCK_BYTES) && !buf.is_empty(), "a buffer for direct I/O");
        }
        Op::Punch { offset, bytes, .. } => assert!(offset.is_multiple_of(block) && bytes.is_multiple_of(block), "unaligned punch"),
        _ => {}
    }
}

// Descriptors.
impl State {
    pub(super) fn add_handle(&mut self, slot: usize, handle: Handle) -> Fd {
        let core = &mut self.cores[slot];
        match core.handles_free.pop() {
            Some(fd) => {
                core.handles[fd as usize] = Some(handle);
                Fd(fd)
            }
            None => {
                core.handles.push(Some(handle));
                Fd(core.handles.len() as u32 - 1)
            }
        }
    }

    pub(super) fn take_handle(&mut self, slot: usize, fd: u32) -> Option<Handle> {
        let core = &mut self.cores[slot];
        let handle = core.handles.get_mut(fd as usize)?.take()?;
        core.handles_free.push(fd);
        Some(handle)
    }

    fn handle(&self, slot: usize, fd: Fd) -> io::Result<Handle> {
        self.cores[slot].handles.get(fd.0 as usize).cloned().flatten().ok_or_else(|| os_error(libc::EBADF))
    }

    fn socket(&self, slot: usize, fd: Fd) -> io::Result<(u64, usize)> {
        match self.handle(slot, fd)? {
            Handle::Socket { conn, side } => Ok((conn, side)),
            _ => Err(os_error(libc::ENOTSOCK)),
        }
    }

    /// Ends a descriptor with everything that is in flight on it. False where there is none.
    pub(super) fn close_handle(&mut self, slot: usize, fd: u32) -> bool {
        match self.take_handle(slot, fd) {
            None => return false,
            Some(Handle::File(ino, ..)) => {
                let machine = self.cores[slot].machine;
                self.machines[machine].disk.close(ino);
            }
            Some(Handle::Listener(port)) => self.net_close_listener(slot, port),
            Some(Handle::Socket { conn, side }) => self.net_close(conn, side),
        }
        true
    }
}

// Operations.
impl State {
    fn submit(&mut self, slot: usize, id: OpId, op: Op) {
        let core = &mut self.cores[slot];
        if !core.alive || self.machines[core.machine].doom.is_some() {
            return;
        }
        if let Op::Wake { core: other } = op {
            let machine = core.machine;
            return self.wake(machine, other);
        }
        core.in_flight += 1;
        let outcome = match op {
            Op::Listen { address } => self.net_listen(slot, address).map(Some),
            Op::Accept { listener } => self.submit_accept(slot, id, listener),
            Op::Connect { address } => self.net_connect(slot, id, address),
            Op::Receive { socket } => self.socket(slot, socket).and_then(|(conn, side)| self.net_receive(slot, id, conn, side)),
            Op::Send { socket, bytes } => self.socket(slot, socket).and_then(|(conn, side)| self.net_send(slot, id, conn, side, bytes)),
            Op::Close { fd } => match self.close_handle(slot, fd.0) {
                true => Ok(Some(Done::Unit)),
                false => Err(os_error(libc::EBADF)),
            },
            Op::Detach { socket } => self.net_detach(slot, socket),
            Op::Attach { parcel } => self.net_attach(slot, parcel),
            op => self.submit_disk(slot, id, op),
        };
        if let Some(result) = outcome.transpose() {
            self.complete(slot, id, result, false);
        }
    }

    fn submit_accept(&mut self, slot: usize, id: OpId, listener: Fd) -> io::Result<Option<Done>> {
        match self.handle(slot, listener)? {
            Handle::Listener(port) => self.net_accept(slot, id, port),
            _ => Err(os_error(libc::EINVAL)),
        }
    }

    fn cancel(&mut self, slot: usize, id: OpId) {
        let core = &mut self.cores[slot];
        // What a disk has begun it ends; so do the kernel's workers.
        if !core.alive || matches!(core.ops.get(&id), None | Some(InFlight::Disk(_))) {
            return;
        }
        match core.ops.remove(&id).expect("looked up above") {
            InFlight::Accept { port } => self.net_disarm_accept(slot, port),
            InFlight::Receive { conn, side } => self.net_disarm_receive(conn, side),
            InFlight::Send { conn, side } => self.net_forget_send(conn, side, id),
            InFlight::Connect | InFlight::Disk(_) => {}
        }
        self.complete(slot, id, Err(cancelled()), false);
    }

    fn submit_disk(&mut self, slot: usize, id: OpId, op: Op) -> io::Result<Option<Done>> {
        assert_aligned(&op);
        let at = self.cores[slot].machine;
        let (ino, kind) = match file_of(&op) {
            Some(file) => match self.handle(slot, file)? {
                Handle::File(_, _, false) if changes(&op) => return Err(os_error(libc::EBADF)),
                Handle::File(ino, kind, _) => (Some(ino), kind),
                _ => return Err(os_error(libc::EINVAL)),
            },
            None => (None, kind_of(path_of(&op).expect("an operation on names has a path"))),
        };
        let machine = &mut self.machines[at];
        machine.disk_ops += 1;
        let site = match machine.crash_at {
            Some((n, site, of)) if n <= machine.disk_ops && of.is_none_or(|of| *kind == *of) => {
                machine.crash_at = None;
                Some(site)
            }
            _ => None,
        };
        if site == Some(CrashSite::Before) {
            self.crash_here("before", name_of(&op), &kind, at);
            return Ok(None);
        }
        if let Some(ino) = ino {
            machine.disk.hold(ino);
        }
        let mark = machine.disk.mark();
        let word = match &op {
            Op::Write { offset, buf, .. } => xxhash_rust::xxh3::xxh3_64(buf) ^ offset,
            Op::Read { offset, .. } => *offset,
            _ => 0,
        };
        self.note(word ^ id << 40);
        let latency = self.disk_latency_ns(at, &op);
        self.at(self.now + latency, Event::Disk { slot, id });
        self.cores[slot].ops.insert(id, InFlight::Disk(DiskOp { op, ino, mark, site, kind }));
        Ok(None)
    }

    fn crash_here(&mut self, site: &'static str, op: &str, kind: &str, machine: usize) {
        self.stats.add(match site {
            "before" => "crash before",
            "during" => "crash during",
            _ => "crash after",
        });
        self.stats.site(format!("{site} {op} {kind}"));
        self.doom(machine, Doom::Crash);
    }

    fn disk_latency_ns(&mut self, machine: usize, op: &Op) -> u64 {
        let Faults { read_us, write_us, sync_us, name_us, slow_one_in, slow_us_max, .. } = self.machines[machine].faults;
        let (mean_us, bytes) = match op {
            Op::Read { buf, .. } => (read_us, buf.len()),
            Op::Write { buf, sync, .. } => (write_us + if *sync { sync_us } else { 0 }, buf.len()),
            Op::Sync { .. } | Op::SyncDir { .. } => (sync_us, 0),
            _ => (name_us, 0),
        };
        if slow_one_in > 0 && self.rng.one_in(slow_one_in) {
            self.stats.add("slow io");
            return self.rng.below(slow_us_max.max(1)) * 1000;
        }
        // A floor, a tail, and 2 GB/s.
        mean_us * 700 + self.rng.exponential(mean_us as f64 * 300.0) as u64 + bytes as u64 / 2
    }

    /// A disk operation's time has come.
    pub(super) fn disk_done(&mut self, slot: usize, id: OpId) {
        let core = &mut self.cores[slot];
        let at = core.machine;
        if !core.alive || self.machines[at].doom.is_some() {
            return;
        }
        let Some(InFlight::Disk(operation)) = core.ops.remove(&id) else { return };
        let DiskOp { op, ino, mark, site, kind } = operation;
        match site {
            Some(CrashSite::During) => {
                self.crash_here("during", name_of(&op), &kind, at);
                self.disk_half_done(at, op, ino);
                return;
            }
            Some(CrashSite::After) => self.crash_here("after", name_of(&op), &kind, at),
            Some(CrashSite::Before) | None => {}
        }
        let result = self.disk_do(slot, op, ino, mark, &kind);
        if let Some(ino) = ino {
            self.machines[at].disk.close(ino);
        }
        if site.is_none() {
            self.complete(slot, id, result, false);
        }
    }

    /// What a crash finds under way: it may have happened, but nothing of it is durable, and a write may be torn.
    fn disk_half_done(&mut self, machine: usize, op: Op, ino: Option<Ino>) {
        let disk = &mut self.machines[machine].disk;
        let _ = match (op, ino) {
            (Op::Write { offset, buf, .. }, Some(ino)) => disk.write(ino, offset, &buf, false, true, true),
            (Op::Resize { bytes, .. }, Some(ino)) => {
                disk.resize(ino, bytes);
                Ok(())
            }
            (Op::Punch { offset, bytes, .. }, Some(ino)) => {
                disk.punch(ino, offset, bytes);
                Ok(())
            }
            (Op::Open { path, how: OpenHow::Create }, _) => disk.open(&path, OpenHow::Create).map(|_| ()),
            (Op::Rename { from, to }, _) => disk.rename(&from, &to),
            (Op::Link { from, to }, _) => disk.link(&from, &to),
            (Op::Unlink { path }, _) => disk.unlink(&path),
            (Op::MakeDir { path }, _) => disk.make_dir(&path),
            (Op::RemoveDir { path }, _) => disk.remove_dir(&path),
            _ => Ok(()),
        };
    }

    /// A core falls with operations under way: each has begun or has not.
    pub(super) fn disk_abandon(&mut self, slot: usize, doom: Doom) {
        let at = self.cores[slot].machine;
        let mut ops: Vec<(OpId, InFlight)> = self.cores[slot].ops.drain().collect();
        ops.sort_by_key(|(id, _)| *id);
        for (_, operation) in ops {
            let InFlight::Disk(DiskOp { op, ino, mark, kind, .. }) = operation else { continue };
            self.stats.add(if doom == Doom::Crash { "operation under way at a crash" } else { "operation under way at a kill" });
            if self.rng.one_in(2) {
                match doom {
                    Doom::Crash => self.disk_half_done(at, op, ino),
                    Doom::Kill => drop(self.disk_do(slot, op, ino, mark, &kind)),
                }
            }
            if let Some(ino) = ino {
                self.machines[at].disk.close(ino);
            }
        }
    }

    fn disk_do(&mut self, slot: usize, op: Op, ino: Option<Ino>, mark: u64, kind: &Rc<str>) -> io::Result<Done> {
        let at = self.cores[slot].machine;
        if let Some(ino) = ino {
            return self.file_do(at, op, ino, mark);
        }
        let sync_fails = matches!(op, Op::SyncDir { .. }) && self.draw(self.machines[at].faults.sync_error_one_in, "EIO sync");
        let State { machines, rng, stats, .. } = self;
        let disk = &mut machines[at].disk;
        match op {
            Op::Open { path, how } => {
                let ino = disk.open(&path, how)?;
                return Ok(Done::Opened(self.add_handle(slot, Handle::File(ino, kind.clone(), how != OpenHow::Read))));
            }
            Op::Rename { from, to } => disk.rename(&from, &to)?,
            Op::Link { from, to } => disk.link(&from, &to)?,
            Op::Unlink { path } => disk.unlink(&path)?,
            Op::MakeDir { path } => disk.make_dir(&path)?,
            Op::RemoveDir { path } => disk.remove_dir(&path)?,
            Op::SyncDir { path } if sync_fails => {
                disk.sync_dir_failed(&path, rng, stats);
                return Err(os_error(libc::EIO));
            }
            Op::SyncDir { path } => disk.sync_dir(&path, mark)?,
            Op::List { path } => return Ok(Done::Entries(disk.list(&path)?)),
            op => panic!("{op:?} is not for names"),
        }
        Ok(Done::Unit)
    }

    fn draw(&mut self, one_in: u64, name: &'static str) -> bool {
        let hit = one_in > 0 && self.rng.one_in(one_in);
        if hit {
            self.stats.add(name);
        }
        hit
    }

    fn file_do(&mut self, at: usize, op: Op, ino: Ino, mark: u64) -> io::Result<Done> {
        let Faults { read_error_one_in, write_error_one_in, sync_error_one_in, .. } = self.machines[at].faults;
        let fails = match &op {
            Op::Read { .. } => self.draw(read_error_one_in, "EIO read"),
            Op::Write { sync, .. } => {
                self.draw(write_error_one_in, "EIO write") || (*sync && self.draw(sync_error_one_in, "EIO durable write"))
            }
            Op::Sync { .. } => self.draw(sync_error_one_in, "EIO sync"),
            _ => false,
        };
        let State { machines, rng, stats, .. } = self;
        let disk = &mut machines[at].disk;
        match op {
            Op::Read { .. } if fails => return Err(os_error(libc::EIO)),
            Op::Read { offset, mut buf, .. } => {
                let bytes = disk.read(ino, offset, &mut buf);
                return Ok(Done::Read(buf, bytes));
            }
            Op::Write { offset, buf, sync, .. } if fails => {
                disk.write_failed(ino, offset, &buf, sync, rng);
                return Err(os_error(libc::EIO));
            }
            Op::Write { offset, buf, sync, .. } => {
                let partial = rng.one_in(2);
                let written = disk.write(ino, offset, &buf, sync, false, partial);
                if written.is_err() {
                    stats.add("ENOSPC");
                }
                return written.map(|()| Done::Wrote(buf));
            }
            Op::Sync { .. } if fails => {
                disk.sync_failed(ino, mark, rng, stats);
                return Err(os_error(libc::EIO));
            }
            Op::Sync { .. } => disk.sync(ino, mark),
            Op::Resize { bytes, .. } => disk.resize(ino, bytes),
            Op::Punch { offset, bytes, .. } => disk.punch(ino, offset, bytes),
            Op::Size { .. } => return Ok(Done::Size(disk.size(ino))),
            op => panic!("{op:?} is not for a file"),
        }
        Ok(Done::Unit)
    }
}
