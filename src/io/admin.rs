//! What the control core needs of the host before its own executor can serve: a listening socket that belongs to this process alone,
//! and niceness.
//!
//! The control core's executor would bind with SO_REUSEPORT, under which two nodes share a port without noticing. So the socket
//! is made here, where a busy port is an error, and handed over.

use super::SocketAddr;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, IntoRawFd};

/// A bound, listening TCP socket that no executor owns yet.
#[derive(Debug)]
pub struct BoundListener(TcpListener);

impl BoundListener {
    /// Binds and listens. Port 0 draws a free one.
    ///
    /// Errors: `AddrInUse` when any other socket listens there.
    pub fn bind(address: SocketAddr) -> std::io::Result<BoundListener> {
        TcpListener::bind(address).map(BoundListener)
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Hands the socket to an executor's own type of listener.
    pub fn into_listener<T: FromRawFd>(self) -> T {
        // SAFETY: the descriptor is open, and `into_raw_fd` gives up its only owner; `T` becomes the new one.
        unsafe { T::from_raw_fd(self.0.into_raw_fd()) }
    }
}

/// Makes the calling thread give way to every other of the process (on Linux, niceness belongs to a thread: setpriority(2)).
/// Lowering is always allowed; where it fails all the same, the thread runs on as it was.
pub fn give_way() {
    const NICENESS: i32 = 10;
    // SAFETY: plain numbers in; 0 means the calling thread.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
}
