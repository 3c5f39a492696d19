//! The host outside the shards: threads and their cores, limits, signals, the lock on the data folder, small files at startup.
//! These calls may block; a shard makes none of them while it serves.

use super::sys::{checked, random_seed};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The CPUs that this process may use, ascending.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: all zeros are an empty set; the call is given its size, and CPU_ISSET stays inside of it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return vec![0];
        }
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    }
}

/// Pins the calling thread to a CPU.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeros are an empty set; the index was checked; the call is given the set's size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        checked(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)).map(|_| ())
    }
}

/// A thread that somebody may wait for.
pub type Thread<T> = std::thread::JoinHandle<T>;
/// Threads that end before what they borrow.
pub use std::thread::scope;

/// Starts a named thread.
pub fn spawn_thread<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<Thread<T>> {
    std::thread::Builder::new().name(name.into()).spawn(body)
}

/// A lock on a folder; released when dropped, or when the process ends however it ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
    path: PathBuf,
}

impl DirLock {
    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Locks a folder against other processes by `flock` on its file `lock`.
///
/// # Errors
/// `WouldBlock`, whose text names the folder, while another process holds it.
pub fn lock_dir(folder: &Path) -> io::Result<DirLock> {
    let path = folder.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    // SAFETY: no pointers.
    match unsafe { checked(libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB)) } {
        Ok(_) => Ok(DirLock { _file: file, path }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let text = format!("{} is already in use by another process", folder.display());
            Err(io::Error::new(io::ErrorKind::WouldBlock, text))
        }
        Err(error) => Err(error),
    }
}

/// Memory that this process may use: the smallest of RAM and the limits of its cgroup (v2 or v1) and the cgroups above.
pub fn memory_total_bytes() -> u64 {
    let ram = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let mut total = ram.unwrap_or(1 << 30);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (mount, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            v1 if v1.split(',').any(|controller| controller == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        for ancestor in group.ancestors() {
            let limit = std::fs::read_to_string(Path::new(mount).join(ancestor).join(name));
            if let Some(limit) = limit.ok().and_then(|text| text.trim().parse::<u64>().ok()) {
                total = total.min(limit);
            }
        }
    }
    total
}

/// How many descriptors this process may open now.
pub fn nofile() -> u64 {
    limits(libc::RLIMIT_NOFILE).map_or(1024, |limits| limits.rlim_cur)
}

/// Raises the limit of open descriptors to what is allowed; gives the new one.
pub fn raise_nofile() -> io::Result<u64> {
    let mut limits = limits(libc::RLIMIT_NOFILE)?;
    limits.rlim_cur = limits.rlim_max;
    // SAFETY: a filled rlimit.
    unsafe { checked(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits))? };
    Ok(limits.rlim_cur)
}

/// How much memory this process may lock, in bytes.
pub fn memlock_bytes() -> u64 {
    let read = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    if may_lock_all(&read("/proc/self/status"), &read("/proc/self/uid_map")) {
        return u64::MAX;
    }
    limits(libc::RLIMIT_MEMLOCK).map_or(0, |limits| limits.rlim_cur)
}

/// The process has CAP_IPC_LOCK, and in the first user namespace: the kernel takes no other.
fn may_lock_all(status: &str, uid_map: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    effective >> CAP_IPC_LOCK & 1 == 1 && uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn limits(of: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a writable rlimit.
    unsafe { checked(libc::getrlimit(of, &raw mut limits))? };
    Ok(limits)
}

fn ending_signals() -> libc::sigset_t {
    // SAFETY: sigemptyset fills the set before anything reads it; both signals are valid.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        set
    }
}

/// Keeps SIGTERM and SIGINT pending for `wait_for_signal`. Call it first in `main`: threads started later inherit it.
pub fn block_signals() -> io::Result<()> {
    let set = ending_signals();
    // SAFETY: a filled set; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// A signal that asks for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Interrupt,
}

/// Waits for SIGTERM or SIGINT, at most `timeout` (for ever, if `None`). They must have been blocked.
pub fn wait_for_signal(timeout: Option<std::time::Duration>) -> Option<Signal> {
    let set = ending_signals();
    let deadline = timeout.map(|timeout| std::time::Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
        let pause = left.map(|left| libc::timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        // SAFETY: a filled set; nothing is asked of the siginfo; the timespec lives through the call.
        let signal = unsafe {
            match &pause {
                Some(pause) => libc::sigtimedwait(&raw const set, std::ptr::null_mut(), pause),
                None => libc::sigwaitinfo(&raw const set, std::ptr::null_mut()),
            }
        };
        match signal {
            libc::SIGTERM => return Some(Signal::Terminate),
            libc::SIGINT => return Some(Signal::Interrupt),
            _ if left == Some(std::time::Duration::ZERO) => return None,
            _ => {}
        }
    }
}

/// What may be done to a process of ours, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nudge {
    /// It ends in its own time.
    Terminate,
    /// It stands still until it is resumed.
    Pause,
    Resume,
    /// It is gone at once.
    Kill,
}

/// Sends a signal to one process.
pub fn nudge(process: u32, what: Nudge) -> io::Result<()> {
    let signal = match what {
        Nudge::Terminate => libc::SIGTERM,
        Nudge::Pause => libc::SIGSTOP,
        Nudge::Resume => libc::SIGCONT,
        Nudge::Kill => libc::SIGKILL,
    };
    let process = libc::pid_t::try_from(process).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: kill takes two numbers and touches no memory of ours.
    match unsafe { libc::kill(process, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Wall time in ms since 1970, for threads without an `Io`.
pub fn wall_ms() -> crate::base::time::WallMs {
    super::sys::wall_ms()
}

/// Monotonic time on the clock of every core, for threads without an `Io`.
pub fn mono() -> crate::base::time::Mono {
    super::sys::mono()
}

/// Bits from the kernel's generator.
pub fn random_u64() -> u64 {
    random_seed()
}

/// Puts the calling thread to sleep.
pub fn sleep(pause: std::time::Duration) {
    std::thread::sleep(pause);
}

/// A whole small file as text.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

/// A whole small file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

/// Makes a folder and those above it.
pub fn create_dirs(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

/// Writes a small file so that after a crash it is the old or the new one, whole, and the new one when this has returned.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_os_string();
    name.push(".new");
    let fresh = folder.join(name);
    let mut file = File::create(&fresh)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    File::open(folder)?.sync_all()
}

/// Bytes free for this process on the file system of `path`.
pub fn disk_free_bytes(path: &Path) -> io::Result<u64> {
    let path = super::sys::c_path(path)?;
    // SAFETY: a terminated path and a writable statvfs, which all zeros are.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        checked(libc::statvfs(path.as_ptr(), &raw mut stat))?;
        Ok(stat.f_bavail * stat.f_frsize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        let path = std::env::temp_dir().join(format!("ringkv-host-{}-{:x}", std::process::id(), random_u64()));
        create_dirs(&path.join("below")).unwrap();
        path
    }

    #[test]
    fn only_the_capability_of_the_first_namespace_lifts_the_limit_of_locked_memory() {
        let (first, nested) = ("         0          0 4294967295\n", "         0       1000          1\n");
        assert!(may_lock_all("Name:\tringkv\nCapEff:\t000001ffffffffff\n", first));
        assert!(!may_lock_all("Name:\tringkv\nCapEff:\t000001ffffffffff\n", nested));
        assert!(!may_lock_all("Name:\tringkv\nCapEff:\t00000000a80425fb\n", first));
        assert!(!may_lock_all("", ""));
        assert!(memlock_bytes() > 0);
    }

    #[test]
    fn a_folder_is_locked_once_and_free_again_after() {
        let folder = folder();
        let lock = lock_dir(&folder).unwrap();
        let error = lock_dir(&folder).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(error.to_string().contains("already in use") && error.to_string().contains(&*folder.to_string_lossy()));
        drop(lock);
        lock_dir(&folder).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_small_file_is_replaced_whole() {
        let folder = folder();
        let path = folder.join("file");
        write_file(&path, b"one, long").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
        assert!(disk_free_bytes(&folder).unwrap() > 0);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_thread_runs_where_it_was_pinned() {
        let cpus = allowed_cpus();
        let last = *cpus.last().unwrap();
        let pinned = spawn_thread("pinned", move || {
            pin_to_cpu(last).unwrap();
            allowed_cpus()
        });
        assert_eq!(pinned.unwrap().join().unwrap(), [last]);
        assert_eq!(allowed_cpus(), cpus, "only that thread");
        assert!(pin_to_cpu(usize::MAX).is_err());
    }

    #[test]
    fn limits_are_found() {
        assert!(memory_total_bytes() > 1 << 20);
        assert!(raise_nofile().unwrap() >= nofile());
    }

    #[test]
    fn a_blocked_signal_reaches_the_one_who_waits() {
        let signal = spawn_thread("signals", || {
            block_signals().unwrap();
            let none = wait_for_signal(Some(std::time::Duration::from_millis(1)));
            // SAFETY: no pointers; the signal is blocked in this thread, to which it is sent.
            assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) }, 0);
            (none, wait_for_signal(Some(std::time::Duration::from_secs(10))))
        });
        assert_eq!(signal.unwrap().join().unwrap(), (None, Some(Signal::Terminate)));
    }
}
