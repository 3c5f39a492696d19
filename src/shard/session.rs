//! Connections: accepted on core 0, which reads the hello and hands the connection to the core it wants; then a task each, which reads, on
//! that core.

use super::budget::Lease;
use super::conn::{Conn, Incoming};
use super::mailbox::Mail;
use super::replicate::{self, Greeted, PeerConnection};
use super::route::Asked;
use super::welcome::welcome;
use super::{Origin, Shard, Ticket};
use crate::base::time::Mono;
use crate::engine::PREFETCH_MAX;
use crate::io::{Class, Io, Listener, Parcel, Socket};
use crate::limits::{
    CORE_CONNECTIONS_MAX, CORE_UNFINISHED_WAIT_MAX, FRAME_BYTES_MAX, HELLO_BYTES_MAX, HELLO_MS_MAX, STALLED_MS_MAX, UNFINISHED_BYTES_FREE,
};
use crate::wire::command::{CORE_ANY, Command, ErrorCode, ErrorReply, Hello, HelloWants, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Reply};
use crate::wire::frame::{FrameError, FrameReader, Frames};
use crate::wire::native::{Form, decode_request, encode_reply, put_goodbye};
use crate::wire::peer_hello::{self, PeerHello};
use std::rc::Rc;
use std::time::Duration;

/// Takes connections in until the shard closes.
pub async fn listen(shard: Rc<Shard>, listener: Listener) {
    let io = shard.io.clone();
    let mut next_core = 0u16;
    while !shard.is_closing() {
        match io.accept(&listener).await {
            Ok((socket, _)) if shard.connections() < CORE_CONNECTIONS_MAX => {
                let turn = next_core;
                next_core = (next_core + 1) % shard.node.cores;
                let shard = shard.clone();
                drop(io.spawn(Class::Foreground, async move { greet(shard, socket, turn).await }));
            }
            Ok((socket, _)) => io.close(&socket),
            // Out of descriptors or the like: existing connections go on, and new ones are tried again after a pause.
            Err(_) if !shard.is_closing() => io.sleep(Duration::from_millis(10)).await,
            Err(_) => return,
        }
    }
}

/// The first frame of a connection: who it is and which core it wants. Whoever says no hello in time is cut.
async fn greet(shard: Rc<Shard>, socket: Socket, turn: u16) {
    let io = shard.io.clone();
    let _counted = Counted::new(&shard);
    let mut said = Vec::new();
    let until = io.now().plus(Duration::from_millis(HELLO_MS_MAX));
    let verdict = loop {
        match within(&io, until, io.receive(&socket)).await {
            Some(Ok(chunks)) if !chunks.is_empty() => chunks.iter().for_each(|chunk| said.extend_from_slice(chunk)),
            _ => return io.close(&socket),
        }
        if let Some(verdict) = judge(&shard, &said, turn) {
            break verdict;
        }
    };
    match verdict {
        Verdict::Refuse(bytes) => {
            let _ = within(&io, until, io.send(&socket, bytes)).await;
            io.close(&socket);
        }
        Verdict::Peer { hello, nonce, welcome, used } => {
            let rest = said.split_off(used);
            if !matches!(within(&io, until, io.send(&socket, welcome)).await, Some(Ok(_))) {
                return io.close(&socket);
            }
            if hello.core == shard.core() {
                replicate::serve(&shard, socket, &hello, &nonce, rest).await;
            } else if let Ok((parcel, unread)) = io.detach(socket).await {
                let mut rest = rest;
                rest.extend_from_slice(&unread);
                let core = usize::from(hello.core);
                if shard.mailbox.has_room_for_connections(core) {
                    shard.mailbox.send(core, Mail::Peer(PeerConnection { parcel, hello: *hello, nonce, rest }));
                    shard.mailbox.wake();
                }
            }
        }
        Verdict::Welcome { core, greeting, used } => {
            let rest = said.split_off(used);
            if core == shard.core() {
                serve(&shard, socket, greeting, rest).await;
            } else if let Ok((parcel, unread)) = io.detach(socket).await {
                let mut rest = rest;
                rest.extend_from_slice(&unread);
                // A core that does not take connections in as fast as they come loses some, which ends them.
                if shard.mailbox.has_room_for_connections(usize::from(core)) {
                    shard.mailbox.send(usize::from(core), Mail::Connection { parcel, greeting, rest });
                    shard.mailbox.wake();
                }
            }
        }
    }
}

/// What a hello is answered to: its request id, and what it wants to be told.
#[derive(Clone, Copy, Debug)]
pub struct Greeting {
    id: u64,
    wants: HelloWants,
}

enum Verdict {
    Refuse(Vec<u8>),
    /// The core that serves it, and how many bytes the hello took.
    Welcome {
        core: u16,
        greeting: Greeting,
        used: usize,
    },
    /// A link of another node.
    Peer {
        hello: Box<PeerHello>,
        nonce: [u8; 16],
        welcome: Vec<u8>,
        used: usize,
    },
}

/// None: the hello has not all arrived.
fn judge(shard: &Shard, said: &[u8], turn: u16) -> Option<Verdict> {
    let mut reader = FrameReader::new(HELLO_BYTES_MAX);
    let frame = match reader.feed(said).next()? {
        Ok(frame) => frame,
        Err(error) => {
            let mut bytes = Vec::new();
            put_goodbye(&mut bytes, &error);
            return Some(Verdict::Refuse(bytes));
        }
    };
    let refuse = |code, message: &str| {
        let mut bytes = Vec::new();
        encode_reply(&mut bytes, frame.id, &Reply::Error(ErrorReply::new(code, message)));
        Some(Verdict::Refuse(bytes))
    };
    if frame.kind == peer_hello::kind::HELLO {
        let used = crate::wire::frame::HEADER_BYTES + frame.body.len();
        return Some(match shard.greet_peer(&frame) {
            Greeted::Refuse(bytes) => Verdict::Refuse(bytes),
            Greeted::Welcome { hello, nonce, welcome } => Verdict::Peer { hello: Box::new(hello), nonce, welcome, used },
        });
    }
    let hello = match decode_request(&frame, frame.body) {
        Ok(request) => request,
        Err(error) => return refuse(error.code, error.what),
    };
    let Command::Hello(hello) = hello.command else {
        return refuse(ErrorCode::Unauthorized, "the first frame of a connection is a hello");
    };
    match check_hello(shard, &hello) {
        Err((code, message)) => refuse(code, message),
        Ok(()) => {
            let core = if hello.core == CORE_ANY { turn } else { hello.core };
            let greeting = Greeting { id: frame.id, wants: hello.wants };
            Some(Verdict::Welcome { core, greeting, used: crate::wire::frame::HEADER_BYTES + frame.body.len() })
        }
    }
}

fn check_hello(shard: &Shard, hello: &Hello<'_>) -> Result<(), (ErrorCode, &'static str)> {
    if hello.version_min > PROTOCOL_VERSION || hello.version_max < PROTOCOL_VERSION_MIN {
        return Err((ErrorCode::UnsupportedVersion, "no protocol version in common"));
    }
    if !shard.node.secret.as_deref().is_none_or(|secret| same_secret(secret, hello.credential)) {
        return Err((ErrorCode::Unauthorized, "the credential is wrong"));
    }
    if hello.core != CORE_ANY && hello.core >= shard.node.cores {
        return Err((ErrorCode::BadRequest, "no core of that number"));
    }
    Ok(())
}

/// Compares in a time that does not tell how much of it was right.
fn same_secret(ours: &[u8], theirs: &[u8]) -> bool {
    ours.len() == theirs.len() && ours.iter().zip(theirs).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// A connection from core 0.
pub async fn adopt(shard: Rc<Shard>, parcel: Parcel, greeting: Greeting, rest: Vec<u8>) {
    let _counted = Counted::new(&shard);
    match shard.io.attach(parcel).await {
        Ok(socket) if shard.connections() <= CORE_CONNECTIONS_MAX => serve(&shard, socket, greeting, rest).await,
        Ok(socket) => shard.io.close(&socket),
        Err(_) => {}
    }
}

/// Serves a connection that said hello: reads and carries out until either side ends.
async fn serve(shard: &Rc<Shard>, socket: Socket, greeting: Greeting, rest: Vec<u8>) {
    let conn = Rc::new(Conn::new(&shard.admit, Some((shard.io.clone(), socket.clone()))));
    welcome(shard, &conn, greeting.id, greeting.wants);
    shard.mark_dirty(&conn);
    shard.add_connection(&conn, &socket);
    if read(shard, &socket, &conn, rest).await {
        // The client ended its side: what it asked for is still answered.
        conn.drained.until(|| conn.closed.get() || conn.pending() == 0 && conn.out_bytes() == 0).await;
    }
    conn.close();
    // What the driver has may still arrive; who does not take it in time does not keep the connection.
    let until = shard.io.now().plus(Duration::from_secs(1));
    let _ = within(&shard.io, until, conn.drained.until(|| !conn.is_sending())).await;
    shard.io.close(&socket);
}

/// A connection's requests as they come in.
struct Intake {
    reader: FrameReader,
    /// The share of the core's budget that the large request has whose end has not come.
    lease: Option<Lease>,
}

/// Takes requests in until the stream ends (true) or cannot be read on (false).
async fn read(shard: &Rc<Shard>, socket: &Socket, conn: &Rc<Conn>, rest: Vec<u8>) -> bool {
    let mut intake = Intake { reader: FrameReader::new(FRAME_BYTES_MAX), lease: None };
    if !take_in(shard, conn, &mut intake, &rest).await {
        return false;
    }
    drop(rest);
    loop {
        shard.settle();
        intake.reader.release();
        conn.room().await;
        if conn.closed.get() {
            return false;
        }
        match shard.io.receive_chunk(socket).await {
            Err(_) => return false,
            Ok(None) => return true,
            Ok(Some(chunk)) if take_in(shard, conn, &mut intake, &chunk).await => {}
            Ok(Some(_)) => return false,
        }
    }
}

/// The requests that a chunk completes. False: the framing is lost, and the client was told.
async fn take_in(shard: &Rc<Shard>, conn: &Rc<Conn>, intake: &mut Intake, chunk: &[u8]) -> bool {
    if let Some(incoming) = conn.incoming.get() {
        conn.incoming.set(Some(Incoming { last: shard.io.now(), ..incoming }));
    }
    let mut frames = intake.reader.feed(chunk);
    loop {
        match carry_out(shard, conn, &mut intake.lease, &mut frames) {
            Halt::End => break,
            Halt::Closed => return false,
            Halt::Lost(error) => {
                say_goodbye(shard, conn, &error).await;
                return false;
            }
            Halt::Full { bytes } => {
                shard.settle();
                conn.room().await;
                shard.admit.room_to_keep(bytes).await;
            }
        }
    }
    room_for_the_rest(shard, conn, intake).await
}

/// Why no more of a chunk's requests are carried out.
enum Halt {
    /// There are none.
    End,
    /// The next one, of so many bytes, has no room yet.
    Full {
        bytes: usize,
    },
    Lost(FrameError),
    Closed,
}

/// Carries out a chunk's requests, as many as there is room for.
fn carry_out(shard: &Rc<Shard>, conn: &Rc<Conn>, lease: &mut Option<Lease>, frames: &mut Frames<'_>) -> Halt {
    loop {
        let mut at = frames.clone();
        // What a lookup touches is loaded for some requests at a time: a miss costs as much as all else that a small request does.
        let mut ahead = [const { None }; PREFETCH_MAX];
        let mut error = None;
        for slot in &mut ahead {
            match frames.next() {
                Some(Ok(frame)) => *slot = Some((frame.id, Asked::new(Form::from(&frame), frame.body))),
                Some(Err(lost)) => error = Some(lost),
                None => break,
            }
        }
        shard.engine.prefetch(ahead.iter().flatten().filter_map(|(_, asked)| asked.lookup()));
        for (id, asked) in ahead.iter().flatten() {
            let bytes = asked.body_bytes();
            if conn.closed.get() {
                return Halt::Closed;
            }
            if !conn.has_room() || !shard.admit.may_keep(bytes) {
                *frames = at;
                return Halt::Full { bytes };
            }
            at.next();
            (*lease, _) = (None, conn.incoming.take());
            conn.begin_request();
            shard.handle_asked(Ticket { origin: Origin::Connection(conn.clone()), id: *id }, asked);
        }
        match error {
            Some(error) => return Halt::Lost(error),
            None if ahead[PREFETCH_MAX - 1].is_none() => return Halt::End,
            None => {}
        }
    }
}

/// A large request has its share of the core's budget before more than its beginning is read, so that requests whose ends never come hold
/// little together. Small ones are free. False: there was no room for it in time, and the client was told.
async fn room_for_the_rest(shard: &Rc<Shard>, conn: &Rc<Conn>, intake: &mut Intake) -> bool {
    let Some((id, bytes)) = intake.reader.unfinished().filter(|(_, bytes)| *bytes > UNFINISHED_BYTES_FREE && intake.lease.is_none()) else {
        return true;
    };
    intake.lease = shard.admit.unfinished.try_take(bytes);
    if intake.lease.is_none() && shard.admit.unfinished.waiters() < CORE_UNFINISHED_WAIT_MAX {
        shard.settle();
        // Longer than who holds it may stall.
        let until = shard.io.now().plus(Duration::from_millis(2 * STALLED_MS_MAX));
        intake.lease = within(&shard.io, until, shard.admit.unfinished.take(bytes)).await.flatten();
    }
    if intake.lease.is_none() {
        refuse_rest(shard, conn, id, "too many large requests are coming in").await;
        return false;
    }
    let now = shard.io.now();
    conn.incoming.set(Some(Incoming { id, since: now, last: now }));
    true
}

/// Ends the connections that others wait for: whose large request does not come to its end, or whose client does not take its answers.
pub fn cut_stalled(shard: &Rc<Shard>) {
    let (answers, requests) = (shard.admit.answers.is_short(), shard.admit.unfinished.has_waiters());
    let now = shard.io.now();
    if !answers && !requests {
        return;
    }
    for (conn, socket) in shard.open_connections() {
        if answers && conn.is_stuck(now) {
            shard.stats.cut();
            conn.close();
            shard.io.close(&socket);
        } else if requests && conn.incoming.get().is_some_and(|incoming| incoming.is_stuck(now)) {
            shard.stats.cut();
            let (shard, incoming) = (shard.clone(), conn.incoming.take().expect("just seen"));
            drop(shard.io.clone().spawn(Class::Foreground, async move {
                refuse_rest(&shard, &conn, incoming.id, "others wait, and the rest of the request did not come").await;
                conn.close();
                shard.io.close(&socket);
            }));
        }
    }
}

/// Tells why a request is not read to its end; its connection ends with it.
async fn refuse_rest(shard: &Rc<Shard>, conn: &Rc<Conn>, id: u64, message: &str) {
    shard.stats.error(ErrorCode::Overloaded);
    encode_reply(&mut conn.out.borrow_mut(), id, &Reply::Error(ErrorReply::new(ErrorCode::Overloaded, message)));
    send_last(shard, conn).await;
}

async fn say_goodbye(shard: &Rc<Shard>, conn: &Rc<Conn>, error: &FrameError) {
    put_goodbye(&mut conn.out.borrow_mut(), error);
    send_last(shard, conn).await;
}

/// Sends what there is before a connection ends.
async fn send_last(shard: &Rc<Shard>, conn: &Rc<Conn>) {
    shard.mark_dirty(conn);
    shard.settle();
    let until = shard.io.now().plus(Duration::from_secs(1));
    let _ = within(&shard.io, until, conn.drained.until(|| conn.closed.get() || conn.out_bytes() == 0)).await;
}

/// Counts a connection for as long as it lives.
pub(super) struct Counted(Rc<Shard>);

impl Counted {
    pub(super) fn new(shard: &Rc<Shard>) -> Counted {
        shard.count_connection(1);
        Counted(shard.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count_connection(-1);
    }
}

/// A future's result, if it comes in time.
pub async fn within<T>(io: &Io, until: Mono, future: impl Future<Output = T>) -> Option<T> {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;
    let mut future = pin!(future);
    let mut timer = pin!(io.sleep_until(until));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => timer.as_mut().poll(context).map(|()| None),
    })
    .await
}
