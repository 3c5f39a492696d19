//! What this host gives a node, found by doing it: a ring is set up, a block is written past the page cache, the clock is read.
//! A policy (seccomp, a security module, a container's limits) shows only like this; what the kernel says of itself does not tell.
//!
//! Each fact is a name and a text. Nothing here fails: what cannot be done is a fact too.

use super::buffer::Buf;
use super::sys;
use super::uring::{UringConfig, UringDriver};
use super::wakers::Wakers;
use io_uring::{IoUring, Probe, opcode};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A name in snake case, units last, and what was found.
pub type Fact = (&'static str, String);

/// The operations that a node asks of its rings, by the kernel's names. Of `send_zc` only the presence counts: it tells multishot receive.
const OPERATIONS: &[(u8, &str)] = &[
    (opcode::AcceptMulti::CODE, "accept"),
    (opcode::AsyncCancel::CODE, "async_cancel"),
    (opcode::Close::CODE, "close"),
    (opcode::Connect::CODE, "connect"),
    (opcode::Fallocate::CODE, "fallocate"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::LinkAt::CODE, "linkat"),
    (opcode::MsgRingData::CODE, "msg_ring"),
    (opcode::OpenAt::CODE, "openat"),
    (opcode::PollAdd::CODE, "poll_add"),
    (opcode::Read::CODE, "read"),
    (opcode::RecvMulti::CODE, "recv"),
    (opcode::RenameAt::CODE, "renameat"),
    (opcode::Send::CODE, "send"),
    (opcode::SendZc::CODE, "send_zc"),
    (opcode::UnlinkAt::CODE, "unlinkat"),
    (opcode::Write::CODE, "write"),
];
/// Reads of the clock in one measurement, and measurements of which the fastest counts: others may run in between.
const CLOCK_READS: u32 = 2000;
const CLOCK_ROUNDS: u32 = 20;
/// Durable writes of which the median counts.
const DURABLE_WRITES: usize = 32;

/// Facts of the host: rings, limits, clocks.
pub fn host() -> Vec<Fact> {
    let mut facts = ring();
    facts.push(("memlock_bytes", limit(libc::RLIMIT_MEMLOCK)));
    facts.push(("nofile", limit(libc::RLIMIT_NOFILE)));
    facts.push(("clock_read_ns", clock_read_ns().to_string()));
    facts.push(("clock_synchronized", clock_synchronized()));
    facts
}

fn ring() -> Vec<Fact> {
    let mut facts = vec![("io_uring_missing", missing().unwrap_or_else(|error| format!("unknown: {error}")))];
    match UringDriver::new(UringConfig::default(), 0, &Wakers::new(1)) {
        Ok(driver) => {
            facts.push(("io_uring", "ok".to_owned()));
            facts.extend(driver.degraded().into_iter().map(|line| ("io_uring_slower", line)));
        }
        Err(error) => facts.push(("io_uring", error.to_string())),
    }
    facts
}

/// The operations that this kernel's rings lack.
fn missing() -> io::Result<String> {
    let (ring, mut probe) = (IoUring::new(4)?, Probe::new());
    ring.submitter().register_probe(&mut probe)?;
    let names: Vec<&str> = OPERATIONS.iter().filter(|(code, _)| !probe.is_supported(*code)).map(|(_, name)| *name).collect();
    Ok(if names.is_empty() { "none".to_owned() } else { names.join(",") })
}

/// The hard limit: what a process can raise itself to.
fn limit(which: libc::__rlimit_resource_t) -> String {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a writable rlimit.
    match unsafe { sys::checked(libc::getrlimit(which, &raw mut limits)) } {
        Ok(_) if limits.rlim_max == libc::RLIM_INFINITY => "unlimited".to_owned(),
        Ok(_) => limits.rlim_max.to_string(),
        Err(error) => format!("unknown: {error}"),
    }
}

/// One read of the monotonic clock. Tens of nanoseconds through the vDSO; many hundreds where each is a system call.
fn clock_read_ns() -> u64 {
    let round = || {
        let began = sys::mono();
        for _ in 1..CLOCK_READS {
            std::hint::black_box(sys::mono());
        }
        sys::mono().since(began).as_nanos() as u64 / u64::from(CLOCK_READS)
    };
    (0..CLOCK_ROUNDS).map(|_| round()).min().expect("there are rounds")
}

/// Whether something keeps the wall clock right, by the kernel's own flag (adjtimex(2)).
fn clock_synchronized() -> String {
    // SAFETY: all zeros ask only; the call fills the rest.
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    match state {
        ..0 => format!("unknown: {}", io::Error::last_os_error()),
        _ if status & libc::STA_UNSYNC != 0 => "no".to_owned(),
        _ => "yes".to_owned(),
    }
}

/// Facts of a data folder, or where it is not made yet, of the folder in which it would be.
pub fn folder(path: &Path) -> Vec<Fact> {
    let place = nearest(path);
    let file = place.join(format!(".ringkv-probe-{}-{:x}", std::process::id(), sys::random_seed()));
    let facts = direct(&file).unwrap_or_else(|error| vec![("direct_write_align_bytes", format!("unknown: {}: {error}", place.display()))]);
    // It may never have been made.
    let _ = std::fs::remove_file(&file);
    facts
}

/// The path itself if it is a folder, else the nearest above it that is one.
fn nearest(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// Writes past the page cache, as a node does. An error is one of the folder, not of direct I/O.
fn direct(path: &Path) -> io::Result<Vec<Fact>> {
    let plain = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    let mut facts = Vec::new();
    let flags = libc::O_DIRECT | libc::O_DSYNC;
    let block = Buf::new(4096);
    let file = match OpenOptions::new().write(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => return Ok(vec![("direct_write_align_bytes", format!("none: {error}"))]),
    };
    let smallest = [512, 4096].into_iter().find(|&bytes| file.write_all_at(&block[..bytes], bytes as u64).is_ok());
    facts.push(("direct_write_align_bytes", smallest.map_or_else(|| "none".to_owned(), |bytes| bytes.to_string())));
    if let Some((memory, offset)) = alignment(&file) {
        facts.push(("direct_said_align_bytes", memory.max(offset).to_string()));
    }
    if smallest.is_some() {
        plain.write_all_at(&vec![0; DURABLE_WRITES * block.len()], 0)?;
        plain.sync_all()?;
        facts.push(("durable_write_us", durable_write_us(&file, &block)?.to_string()));
    }
    Ok(facts)
}

/// The median of writes into space that the file already has, each on disk when it returns: what a write to the log costs.
fn durable_write_us(file: &File, block: &Buf) -> io::Result<u64> {
    let mut micros = Vec::with_capacity(DURABLE_WRITES);
    for number in 0..DURABLE_WRITES {
        let began = sys::mono();
        file.write_all_at(block, (number * block.len()) as u64)?;
        micros.push(sys::mono().since(began).as_micros() as u64);
    }
    micros.sort_unstable();
    Ok(micros[DURABLE_WRITES / 2])
}

/// What the file system says that addresses and offsets must be multiples of; `None` before Linux 6.1 and where it does not say.
fn alignment(file: &File) -> Option<(u32, u32)> {
    // SAFETY: an empty, terminated path with AT_EMPTY_PATH names the descriptor; all zeros are a statx, and the call fills it.
    unsafe {
        let mut stat: libc::statx = std::mem::zeroed();
        let mask = libc::STATX_DIOALIGN;
        sys::checked(libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut stat)).ok()?;
        (stat.stx_mask & mask != 0 && stat.stx_dio_offset_align > 0).then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named<'f>(facts: &'f [Fact], name: &str) -> Option<&'f str> {
        facts.iter().find(|(other, _)| *other == name).map(|(_, text)| &text[..])
    }

    #[test]
    fn a_host_that_runs_these_tests_has_rings_limits_and_a_clock() {
        let facts = host();
        assert_eq!(named(&facts, "io_uring"), Some("ok"), "{facts:?}");
        assert_eq!(named(&facts, "io_uring_missing"), Some("none"));
        assert!(named(&facts, "clock_read_ns").unwrap().parse::<u64>().is_ok());
        assert!(named(&facts, "nofile").is_some_and(|text| text == "unlimited" || text.parse::<u64>().is_ok()));
    }

    #[test]
    fn a_folder_is_written_to_and_left_as_it_was() {
        let folder_path = std::env::temp_dir().join(format!("ringkv-probe-{}-{:x}", std::process::id(), sys::random_seed()));
        std::fs::create_dir_all(&folder_path).unwrap();
        for path in [folder_path.clone(), folder_path.join("not/yet")] {
            let facts = folder(&path);
            assert!(named(&facts, "direct_write_align_bytes").is_some(), "{facts:?}");
            assert_eq!(std::fs::read_dir(&folder_path).unwrap().count(), 0);
        }
        std::fs::remove_dir_all(folder_path).unwrap();
        let facts = folder(Path::new("/proc/1"));
        assert!(named(&facts, "direct_write_align_bytes").unwrap().starts_with("unknown"), "{facts:?}");
    }
}
