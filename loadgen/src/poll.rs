//! The few system calls that the standard library lacks: epoll with a timeout in nanoseconds, pinning, a thread's processor time, the
//! bound on open files, being interrupted.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Readiness of sockets, level triggered.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
    /// The kernel is too old for nanoseconds.
    coarse: bool,
}

/// One socket's readiness.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub token: usize,
    pub readable: bool,
    pub writable: bool,
}

impl Poll {
    pub fn new() -> io::Result<Poll> {
        // SAFETY: no pointer is passed; the descriptor is new and ours.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Poll { epoll, events: vec![libc::epoll_event { events: 0, u64: 0 }; 256], coarse: false })
    }

    /// Watches a socket for reading. Closing it ends that.
    pub fn add(&self, fd: RawFd, token: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, false)
    }

    /// Watches for room to write as well, or no longer.
    pub fn watch_writes(&self, fd: RawFd, token: usize, on: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, on)
    }

    fn control(&self, op: i32, fd: RawFd, token: usize, writes: bool) -> io::Result<()> {
        let events = libc::EPOLLIN as u32 | if writes { libc::EPOLLOUT as u32 } else { 0 };
        let mut event = libc::epoll_event { events, u64: token as u64 };
        // SAFETY: the event lives through the call, which copies it.
        let result = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), op, fd, &mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for readiness, at most `timeout_ns`, and appends to `ready`.
    pub fn wait(&mut self, timeout_ns: u64, ready: &mut Vec<Ready>) -> io::Result<()> {
        let (fd, events, room) = (self.epoll.as_raw_fd(), self.events.as_mut_ptr(), self.events.len() as i32);
        let time = libc::timespec { tv_sec: (timeout_ns / 1_000_000_000) as _, tv_nsec: (timeout_ns % 1_000_000_000) as _ };
        let mut count = -1;
        if !self.coarse {
            let (time, no_mask) = (&raw const time, std::ptr::null::<libc::sigset_t>());
            // SAFETY: `events` has room for `room` events, `time` lives through the call, a null mask is allowed.
            count = unsafe { libc::syscall(libc::SYS_epoll_pwait2, fd, events, room, time, no_mask, 0usize) } as i32;
            self.coarse = count < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS);
        }
        if self.coarse {
            // SAFETY: `events` has room for `room` events.
            count = unsafe { libc::epoll_wait(fd, events, room, (timeout_ns / 1_000_000) as i32) };
        }
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        for event in &self.events[..count as usize] {
            let (bits, token) = (event.events, event.u64 as usize);
            let readable = bits & !(libc::EPOLLOUT as u32) != 0;
            ready.push(Ready { token, readable, writable: bits & libc::EPOLLOUT as u32 != 0 });
        }
        Ok(())
    }
}

/// Ties this thread to a core.
///
/// # Errors
/// The system's, where there is no such core.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    // SAFETY: a zeroed set is an empty one; it lives through the call, and `core` is below 1024 (`parse_cores`).
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets this thread's timers fire on time instead of up to 50 µs late.
pub fn sharpen_timers() {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1usize) };
}

/// Processor time of this thread, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Raises the bound on open files as far as it goes, for thousands of connections.
pub fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM end the run in order, with its report and its journal. A second one ends the process at once.
pub fn catch_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: a zeroed action is a valid one; the handler only stores to an atomic, which a signal handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_interrupt as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Whether SIGINT or SIGTERM came.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
