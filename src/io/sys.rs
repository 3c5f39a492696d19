//! Thin faces of the system calls that are made outside the ring: none of them waits for a disk or a peer, but `epoll_wait`.

use super::SocketAddr;
use crate::base::time::{Mono, WallMs};
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

const LISTEN_BACKLOG: i32 = 4096;

/// `result` of a call that says -1 and errno.
pub(super) fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is fresh and owned by nobody else.
    unsafe { Ok(OwnedFd::from_raw_fd(checked(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?)) }
}

pub(super) fn ring_eventfd(event: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight readable bytes. A full counter means that it rings already.
    unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
}

pub(super) fn drain_eventfd(event: RawFd) {
    let mut count = 0u64;
    // SAFETY: eight writable bytes. The descriptor does not block.
    unsafe { libc::read(event, (&raw mut count).cast(), 8) };
}

fn clock(which: libc::clockid_t) -> libc::timespec {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: a valid place to write; both clocks in use exist on every Linux, so it is written.
    unsafe {
        assert!(libc::clock_gettime(which, time.as_mut_ptr()) == 0);
        time.assume_init()
    }
}

/// CLOCK_MONOTONIC: the same on all cores of the process.
pub(super) fn mono() -> Mono {
    let time = clock(libc::CLOCK_MONOTONIC);
    Mono(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

pub(super) fn wall_ms() -> WallMs {
    let time = clock(libc::CLOCK_REALTIME);
    (time.tv_sec.max(0) as u64) * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Bits from the kernel's generator.
pub(super) fn random_seed() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: eight writable bytes; a request this small is answered whole.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert!(got == 8, "getrandom gave {got}");
    u64::from_le_bytes(bytes)
}

pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// An address as the kernel wants it.
pub(super) struct RawAddress {
    pub(super) storage: libc::sockaddr_storage,
    pub(super) len: libc::socklen_t,
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> RawAddress {
        // SAFETY: all zeros are a sockaddr_storage; it is large enough and aligned for both families.
        unsafe {
            let mut storage: libc::sockaddr_storage = std::mem::zeroed();
            let len = match address {
                SocketAddr::V4(v4) => {
                    let raw = &mut *(&raw mut storage).cast::<libc::sockaddr_in>();
                    raw.sin_family = libc::AF_INET as libc::sa_family_t;
                    raw.sin_port = v4.port().to_be();
                    raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
                    size_of::<libc::sockaddr_in>()
                }
                SocketAddr::V6(v6) => {
                    let raw = &mut *(&raw mut storage).cast::<libc::sockaddr_in6>();
                    raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                    raw.sin6_port = v6.port().to_be();
                    raw.sin6_addr.s6_addr = v6.ip().octets();
                    raw.sin6_scope_id = v6.scope_id();
                    size_of::<libc::sockaddr_in6>()
                }
            };
            RawAddress { storage, len: len as libc::socklen_t }
        }
    }
}

fn to_address(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    // SAFETY: the family says which of the two it is, and the storage is large enough and aligned for both.
    unsafe {
        match i32::from(storage.ss_family) {
            libc::AF_INET => {
                let raw = &*(&raw const *storage).cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
                Ok(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(raw.sin_port))))
            }
            libc::AF_INET6 => {
                let raw = &*(&raw const *storage).cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                Ok(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id)))
            }
            family => Err(io::Error::other(format!("an address of family {family}"))),
        }
    }
}

type NameCall = unsafe extern "C" fn(RawFd, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn name_of(fd: &OwnedFd, call: NameCall) -> io::Result<SocketAddr> {
    // SAFETY: all zeros are a sockaddr_storage, and the call is given its size.
    unsafe {
        let mut storage: libc::sockaddr_storage = std::mem::zeroed();
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        checked(call(fd.as_raw_fd(), (&raw mut storage).cast(), &raw mut len))?;
        to_address(&storage)
    }
}

pub(super) fn peer_address(fd: &OwnedFd) -> io::Result<SocketAddr> {
    name_of(fd, libc::getpeername)
}

pub(super) fn set_option(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: an int and its size.
    unsafe {
        let size = size_of::<i32>() as libc::socklen_t;
        checked(libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size)).map(|_| ())
    }
}

/// A TCP socket of the address's family, without Nagle's delay.
pub(super) fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers; the descriptor is fresh and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(checked(libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?) };
    set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    Ok(fd)
}

pub(super) fn bind(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let raw = RawAddress::from(address);
    // SAFETY: an address and its length.
    unsafe { checked(libc::bind(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.len)).map(|_| ()) }
}

/// A listening socket and where it listens. Accepted sockets inherit TCP_NODELAY.
pub(super) fn listen(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let fd = tcp_socket(address)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    bind(&fd, address)?;
    // SAFETY: no pointers.
    unsafe { checked(libc::listen(fd.as_raw_fd(), LISTEN_BACKLOG))? };
    let bound = name_of(&fd, libc::getsockname)?;
    Ok((fd, bound))
}

pub(super) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe {
        let flags = checked(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        checked(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(|_| ())
    }
}

/// Begins to connect a socket that does not block: true if it is connected already. One that blocks is connected, or false: its time to
/// send has passed.
pub(super) fn connect(fd: &OwnedFd, address: SocketAddr) -> io::Result<bool> {
    let raw = RawAddress::from(address);
    // SAFETY: an address and its length.
    match unsafe { checked(libc::connect(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.len)) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How connecting has ended, and whatever else befell the socket.
pub(super) fn socket_outcome(fd: &OwnedFd) -> io::Result<()> {
    let (mut code, mut size) = (0i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: an int and its size.
    unsafe { checked(libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut code).cast(), &raw mut size))? };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// The next connection of a listener that does not block, and whose it is.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, SocketAddr)> {
    // SAFETY: all zeros are a sockaddr_storage, and the call is given its size; the descriptor is fresh and owned by nobody else.
    unsafe {
        let mut storage: libc::sockaddr_storage = std::mem::zeroed();
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let fd = checked(libc::accept4(listener.as_raw_fd(), (&raw mut storage).cast(), &raw mut len, flags))?;
        let fd = OwnedFd::from_raw_fd(fd);
        to_address(&storage).map(|address| (fd, address))
    }
}

/// What has come, at most `bytes.len()`, without waiting; 0 is the end of the stream.
pub(super) fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: a writable slice and its length.
    let got = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as usize) }
}

/// Sends what the socket's buffer has room for, without waiting.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: a readable slice and its length.
    let put = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if put < 0 { Err(io::Error::last_os_error()) } else { Ok(put as usize) }
}

pub(super) fn epoll_create() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is fresh and owned by nobody else.
    unsafe { Ok(OwnedFd::from_raw_fd(checked(libc::epoll_create1(libc::EPOLL_CLOEXEC))?)) }
}

/// From now on, changes of `fd` in either direction are told once each (edge-triggered), and its state now, if it is ready.
pub(super) fn epoll_add(epoll: &OwnedFd, fd: RawFd, token: u64) -> io::Result<()> {
    let wanted = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
    let mut event = libc::epoll_event { events: wanted as u32, u64: token };
    // SAFETY: a filled event, which the call copies.
    unsafe { checked(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event)).map(|_| ()) }
}

/// For a descriptor that lives on; a close takes it out as well.
pub(super) fn epoll_remove(epoll: &OwnedFd, fd: RawFd) -> io::Result<()> {
    // SAFETY: no event is read.
    unsafe { checked(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut())).map(|_| ()) }
}

/// Fills `events` with what is told, and gives their number. Waits for the first at most `pause`; for ever, if `None`.
pub(super) fn epoll_wait(epoll: &OwnedFd, events: &mut [libc::epoll_event], pause: Option<Duration>) -> io::Result<usize> {
    let (fd, room, at) = (epoll.as_raw_fd(), events.len() as i32, events.as_mut_ptr());
    // SAFETY: a writable slice and its length.
    let coarse = |ms| unsafe { checked(libc::epoll_wait(fd, at, room, ms)) }.map(|count| count as usize);
    let Some(pause) = pause else { return coarse(-1) };
    if pause.is_zero() {
        return coarse(0);
    }
    let time = libc::timespec { tv_sec: pause.as_secs() as libc::time_t, tv_nsec: i64::from(pause.subsec_nanos()) };
    let no_mask = std::ptr::null::<libc::sigset_t>();
    // SAFETY: as above, and a timespec that lives through the call. (By number: the wrapper is younger than some C libraries.)
    let count = unsafe { libc::syscall(libc::SYS_epoll_pwait2, fd, at, room, &raw const time, no_mask, 0usize) };
    if count >= 0 {
        return Ok(count as usize);
    }
    match io::Error::last_os_error() {
        // Before Linux 5.11, or a sandbox that does not know the call: whole milliseconds.
        error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            coarse(pause.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32)
        }
        error => Err(error),
    }
}

pub(super) fn shutdown_socket(fd: &OwnedFd) {
    // SAFETY: no pointers. An error means that it is not connected any more.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}

/// What fstat says.
pub(super) struct Stat {
    pub(super) bytes: u64,
    pub(super) names: u64,
    pub(super) is_regular: bool,
}

pub(super) fn stat(fd: &OwnedFd) -> io::Result<Stat> {
    // SAFETY: all zeros are a stat, and the call fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        checked(libc::fstat(fd.as_raw_fd(), &raw mut stat))?;
        let is_regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        Ok(Stat { bytes: stat.st_size as u64, names: stat.st_nlink as u64, is_regular })
    }
}

/// May wait for a disk: on a helper thread, or on kernels whose ring cannot.
pub(super) fn truncate(fd: RawFd, bytes: u64) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe { checked(libc::ftruncate(fd, bytes as i64)).map(|_| ()) }
}
