//! Thin faces of the system calls that are made outside the ring: none of them waits for a disk or a peer.

use super::SocketAddr;
use crate::base::time::{Mono, WallMs};
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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

/// A listening socket and where it listens. Accepted sockets inherit TCP_NODELAY.
pub(super) fn listen(address: SocketAddr, backlog: i32) -> io::Result<(OwnedFd, SocketAddr)> {
    let fd = tcp_socket(address)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    let raw = RawAddress::from(address);
    // SAFETY: an address and its length.
    unsafe {
        checked(libc::bind(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.len))?;
        checked(libc::listen(fd.as_raw_fd(), backlog))?;
    }
    let bound = name_of(&fd, libc::getsockname)?;
    Ok((fd, bound))
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

/// Blocking; only on kernels whose ring cannot.
pub(super) fn truncate(fd: RawFd, bytes: u64) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe { checked(libc::ftruncate(fd, bytes as i64)).map(|_| ()) }
}
