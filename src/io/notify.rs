//! Telling the service manager how the process is: the protocol of sd_notify(3), a datagram of `NAME=value` lines to the unix socket
//! that `NOTIFY_SOCKET` names. Without one nobody listens, and nothing is said.
//!
//! A datagram that cannot be sent is dropped: a node does not stop serving because its manager went away.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// What the environment names; `None` where there is no manager that listens.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` names what is no unix socket, or no socket can be made.
    pub fn from_environment() -> io::Result<Option<Notifier>> {
        let of = |name: &str| std::env::var_os(name).filter(|text| !text.is_empty());
        let Some(socket) = of("NOTIFY_SOCKET") else { return Ok(None) };
        let watchdog = watchdog_of(of("WATCHDOG_USEC").as_deref(), of("WATCHDOG_PID").as_deref(), std::process::id());
        Notifier::new(&socket, watchdog).map(Some)
    }

    fn new(socket: &OsStr, watchdog: Option<Duration>) -> io::Result<Notifier> {
        let manager = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(socket)?,
            _ => {
                let text = format!("{} is neither a path nor an abstract name", socket.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Notifier { socket, manager, watchdog })
    }

    /// How often the manager wants to hear that the process is alive, if it watches.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The node serves; `status` is one line for people.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The node ends, as asked or not.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The node is alive.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, text: &str) {
        let _ = self.socket.send_to_addr(text.as_bytes(), &self.manager);
    }
}

/// The watchdog's time out of its two variables; none if it watches another process than `own`.
fn watchdog_of(usec: Option<&OsStr>, pid: Option<&OsStr>, own: u32) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str().and_then(|text| text.parse::<u64>().ok());
    if pid.is_some_and(|pid| number(pid) != Some(u64::from(own))) {
        return None;
    }
    usec.and_then(number).filter(|&usec| usec > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(at: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        at.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let bytes = at.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    }

    #[test]
    fn a_manager_on_a_path_and_on_an_abstract_name_hears_every_word() {
        let unique = format!("ringkv-notify-{}-{:x}", std::process::id(), super::super::sys::random_seed());
        let path = std::env::temp_dir().join(&unique);
        let on_path = UnixDatagram::bind(&path).unwrap();
        let on_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&unique).unwrap()).unwrap();
        for (manager, spelled) in [(&on_path, path.clone().into_os_string()), (&on_name, format!("@{unique}").into())] {
            let notifier = Notifier::new(&spelled, None).unwrap();
            notifier.ready("serving here");
            notifier.alive();
            notifier.stopping();
            assert_eq!([heard(manager), heard(manager), heard(manager)], ["READY=1\nSTATUS=serving here", "WATCHDOG=1", "STOPPING=1"]);
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_manager_that_is_gone_is_no_failure_and_an_odd_address_is_one() {
        Notifier::new(OsStr::new("/nowhere/at/all"), None).unwrap().ready("serving");
        assert!(Notifier::new(OsStr::new("vsock:2:1"), None).is_err());
        assert!(Notifier::new(OsStr::from_bytes(&[b'/'; 300]), None).is_err());
    }

    #[test]
    fn the_watchdog_watches_this_process_only() {
        let text = |text: &'static str| Some(OsStr::new(text));
        assert_eq!(watchdog_of(text("30000000"), None, 7), Some(Duration::from_secs(30)));
        assert_eq!(watchdog_of(text("30000000"), text("7"), 7), Some(Duration::from_secs(30)));
        for (usec, pid) in
            [(text("30000000"), text("8")), (text("30000000"), text("x")), (text("0"), None), (text("soon"), None), (None, None)]
        {
            assert_eq!(watchdog_of(usec, pid, 7), None, "{usec:?} {pid:?}");
        }
    }
}
