//! A datagram socket and a listener at one port, for a protocol that sends small messages by UDP and now and then a large one by TCP: one
//! question a connection, one answer, each with its length (u32, little endian) before it.
//!
//! An executor of its own may take the sockets over (`Pair::into_sockets`). Without one, a plain thread waits for both (`Pair::watch`), and
//! other threads talk on the streams, which may block: until a deadline, and no longer.

use super::SocketAddr;
use super::sys;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the length before a message.
pub const LENGTH_BYTES: usize = 4;
/// A port that is free for TCP need not be for UDP: so often another is drawn.
const DRAWS: usize = 32;
/// What is taken of a stream at a time, so that memory follows what came and not what was announced.
pub const PART_BYTES: usize = 16 * 1024;

/// The two sockets, bound.
#[derive(Debug)]
pub struct Pair {
    datagrams: UdpSocket,
    listener: TcpListener,
}

impl Pair {
    /// Binds both. Port 0 draws one that is free for both.
    ///
    /// # Errors
    /// `AddrInUse` when another socket has the port, of either kind.
    pub fn bind(address: SocketAddr) -> io::Result<Pair> {
        let mut draws = if address.port() == 0 { DRAWS } else { 1 };
        loop {
            let listener = TcpListener::bind(address)?;
            draws -= 1;
            match UdpSocket::bind(listener.local_addr()?) {
                Ok(datagrams) => return Ok(Pair { datagrams, listener }),
                Err(error) if error.kind() == ErrorKind::AddrInUse && draws > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where both are.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.datagrams.local_addr()
    }

    /// Hands both over to an executor's own types.
    pub fn into_sockets<U: FromRawFd, T: FromRawFd>(self) -> (U, T) {
        // SAFETY: the descriptors are open, and `into_raw_fd` gives up their only owners; `U` and `T` become the new ones.
        unsafe { (U::from_raw_fd(self.datagrams.into_raw_fd()), T::from_raw_fd(self.listener.into_raw_fd())) }
    }

    /// For a thread that waits for both.
    pub fn watch(self) -> io::Result<(Watched, Bell)> {
        let Pair { datagrams, listener } = self;
        datagrams.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        let bell = Bell(Arc::new(sys::eventfd()?));
        Ok((Watched { datagrams, listener, bell: bell.clone() }, bell))
    }
}

/// Ends the wait of a thread, or the next one.
#[derive(Clone, Debug)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    pub fn ring(&self) {
        sys::ring_eventfd(&self.0);
    }
}

/// The two sockets of a thread that waits for both. Other threads may send.
#[derive(Debug)]
pub struct Watched {
    datagrams: UdpSocket,
    listener: TcpListener,
    bell: Bell,
}

impl Watched {
    /// Until a datagram is there, the bell rings, or `pause` has passed; with `accepts`, also until somebody connects.
    pub fn wait(&self, pause: Duration, accepts: bool) {
        let entry = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut entries = [entry(self.bell.0.as_raw_fd()), entry(self.datagrams.as_raw_fd()), entry(self.listener.as_raw_fd())];
        let count = if accepts { 3 } else { 2 };
        let time = libc::timespec { tv_sec: pause.as_secs() as libc::time_t, tv_nsec: i64::from(pause.subsec_nanos()) };
        // SAFETY: `count` writable entries, and a timespec that lives through the call; no mask is set. That it fails means that a signal
        // came, and is as good as a wake.
        let woken = unsafe { libc::ppoll(entries.as_mut_ptr(), count, &raw const time, std::ptr::null()) };
        if woken > 0 && entries[0].revents != 0 {
            sys::drain_eventfd(self.bell.0.as_raw_fd());
        }
    }

    /// The next datagram, if one is there: its length, at most that of `room`, which cuts it off, and its sender.
    pub fn receive(&self, room: &mut [u8]) -> Option<(usize, SocketAddr)> {
        // What fails here was told about some datagram sent before, or is a lack of memory: in both cases a datagram is lost.
        self.datagrams.recv_from(room).ok()
    }

    /// Sends a datagram, or loses it.
    pub fn send(&self, to: SocketAddr, datagram: &[u8]) {
        let _ = self.datagrams.send_to(datagram, to);
    }

    /// The next connection, if one is there, which has to be done within `within`.
    pub fn accept(&self, within: Duration) -> io::Result<Option<(Stream, SocketAddr)>> {
        match self.listener.accept() {
            Ok((socket, from)) => Ok(Some((Stream { socket, deadline: Instant::now() + within }, from))),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A connection that blocks, until its deadline.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    deadline: Instant,
}

impl Stream {
    /// Connects to `to` from the address `from` (port 0 draws one).
    fn connect(from: SocketAddr, to: SocketAddr, within: Duration) -> io::Result<Stream> {
        let deadline = Instant::now() + within;
        let fd = sys::tcp_socket(to)?;
        sys::bind(&fd, from)?;
        let socket = TcpStream::from(fd);
        // A connect that waits longer fails: socket(7), SO_SNDTIMEO.
        socket.set_write_timeout(Some(within))?;
        let fd = OwnedFd::from(socket);
        if !sys::connect(&fd, to)? {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(Stream { socket: TcpStream::from(fd), deadline })
    }

    /// The time left.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    /// One message of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` where the stream ends before it, `InvalidData` where it is longer, and those of the network.
    pub fn take(&mut self, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut prefix = Vec::new();
        self.fill(&mut prefix, LENGTH_BYTES)?;
        let length = message_length(&prefix, bytes_max)?;
        let mut message = Vec::new();
        self.fill(&mut message, length)?;
        Ok(message)
    }

    fn fill(&mut self, out: &mut Vec<u8>, length: usize) -> io::Result<()> {
        let mut part = vec![0; length.min(PART_BYTES)];
        while out.len() < length {
            self.socket.set_read_timeout(self.left()?)?;
            let room = part.len().min(length - out.len());
            match self.socket.read(&mut part[..room])? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => out.extend_from_slice(&part[..count]),
            }
        }
        Ok(())
    }

    /// Sends one message.
    pub fn give(&mut self, message: &[u8]) -> io::Result<()> {
        let framed = framed(message);
        let mut rest = &framed[..];
        while !rest.is_empty() {
            self.socket.set_write_timeout(self.left()?)?;
            match self.socket.write(rest)? {
                0 => return Err(ErrorKind::WriteZero.into()),
                count => rest = &rest[count..],
            }
        }
        Ok(())
    }
}

/// Asks over a connection of its own and gives the answer; blocks for `within` at most.
///
/// # Errors
/// Those of `Stream::take`: `UnexpectedEof` where no answer came.
pub fn ask(from: SocketAddr, to: SocketAddr, question: &[u8], answer_bytes_max: usize, within: Duration) -> io::Result<Vec<u8>> {
    let mut stream = Stream::connect(from, to, within)?;
    stream.give(question)?;
    stream.take(answer_bytes_max)
}

/// A message with its length before it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(LENGTH_BYTES + message.len());
    out.extend_from_slice(&(message.len() as u32).to_le_bytes());
    out.extend_from_slice(message);
    out
}

/// The length that stands before a message.
///
/// # Errors
/// `InvalidData` where it is above `bytes_max`.
pub fn message_length(prefix: &[u8], bytes_max: usize) -> io::Result<usize> {
    let prefix: [u8; LENGTH_BYTES] = prefix.try_into().map_err(|_| io::Error::from(ErrorKind::UnexpectedEof))?;
    let length = u32::from_le_bytes(prefix) as usize;
    if length > bytes_max { Err(ErrorKind::InvalidData.into()) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watched() -> (Watched, Bell, SocketAddr) {
        let pair = Pair::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = pair.address().unwrap();
        let (watched, bell) = pair.watch().unwrap();
        (watched, bell, address)
    }

    #[test]
    fn a_port_is_taken_for_both_kinds() {
        let (watched, _bell, address) = watched();
        assert_eq!(watched.listener.local_addr().unwrap(), address);
        assert_eq!(Pair::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse);
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(Pair::bind(datagrams.local_addr().unwrap()).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn datagrams_streams_and_the_bell_end_a_wait() {
        let ((watched, bell, address), (other, _, from)) = (watched(), watched());
        let began = Instant::now();
        bell.ring();
        watched.wait(20 * SECOND, true);
        other.send(address, b"hello");
        watched.wait(20 * SECOND, true);
        let mut room = [0; 16];
        assert_eq!(watched.receive(&mut room), Some((5, from)));
        assert_eq!((&room[..5], watched.receive(&mut [0; 16])), (&b"hello"[..], None));
        let _socket = TcpStream::connect(address).unwrap();
        watched.wait(20 * SECOND, true);
        assert!(watched.accept(SECOND).unwrap().is_some() && watched.accept(SECOND).unwrap().is_none());
        assert!(began.elapsed() < 10 * SECOND);
        watched.wait(Duration::from_millis(1), true);
    }

    #[test]
    fn a_question_has_an_answer_from_the_address_that_was_asked_from() {
        let (watched, _bell, address) = watched();
        let answer = vec![7; 300_000];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                watched.wait(20 * SECOND, true);
                let (mut stream, from) = watched.accept(10 * SECOND).unwrap().unwrap();
                assert_eq!(from.ip().to_string(), "127.0.0.2");
                let question = stream.take(100).unwrap();
                stream.give(&answer[question.len()..]).unwrap();
            });
            let got = ask("127.0.0.2:0".parse().unwrap(), address, b"abc", 300_000, 10 * SECOND).unwrap();
            assert_eq!(got, answer[3..]);
        });
    }

    #[test]
    fn nobody_is_waited_for_longer_than_was_said_and_nothing_longer_is_taken() {
        let (watched, _bell, address) = watched();
        let began = Instant::now();
        let from = "127.0.0.1:0".parse().unwrap();
        let error = ask(from, address, b"anybody there?", 10, SECOND / 5).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        let _ = watched.accept(SECOND).unwrap().unwrap();
        let mut dripping = TcpStream::connect(address).unwrap();
        watched.wait(20 * SECOND, true);
        let (mut stream, _) = watched.accept(SECOND / 5).unwrap().unwrap();
        dripping.write_all(&[200, 0, 0, 0, 1]).unwrap();
        assert!(stream.take(200).is_err());
        assert!(began.elapsed() < 10 * SECOND);
        assert_eq!(message_length(&[201, 0, 0, 0], 200).unwrap_err().kind(), ErrorKind::InvalidData);
        assert!(message_length(&[200, 0, 0, 0], 200).is_ok() && message_length(&[1], 200).is_err());
    }
}
