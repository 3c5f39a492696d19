//! Gossip's sockets on glommio: one task reads datagrams, one ticks, one accepts, and each stream that comes in has a task. Asking another
//! node for its table goes to the executor's helper thread, because the socket must be bound before it connects, which glommio cannot do.

use super::super::admin::{ACCEPT_PAUSE, first};
use super::super::signal::Signal;
use super::{EXCHANGE_MAX, EXCHANGES_MAX, GossipSetup, LEAVE_MAX, ROOM_BYTES, Shell, Todo, now};
use crate::base::time::Mono;
use crate::io::paired::{self, LENGTH_BYTES, PART_BYTES, Pair, framed, message_length};
use crate::io::signal::{self, race};
use crate::io::{SocketAddr, host};
use crate::limits::GOSSIP_SYNC_BYTES_MAX;
use futures_io::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream, UdpSocket};
use glommio::timer::sleep;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Datagrams that are taken in before others have a turn.
const BATCH: usize = 64;
/// How often a goodbye is looked after.
const LEAVE_LOOK: Duration = Duration::from_millis(10);

struct Core {
    shell: RefCell<Shell>,
    datagrams: UdpSocket,
    /// When the ticking task will wake, and what wakes it before.
    armed: Cell<Mono>,
    sooner: signal::Signal,
    asking: Cell<usize>,
    answering: Cell<usize>,
}

/// Gossips until `stop` is fired, then says goodbye, unless it is to end as if it had fallen.
pub(in crate::control) async fn run(pair: Pair, setup: GossipSetup, stop: Arc<Signal>) {
    // Bound sockets know their address.
    let local = pair.address().unwrap_or(setup.listen);
    let (datagrams, listener) = pair.into_sockets::<UdpSocket, TcpListener>();
    let core = Rc::new(Core {
        shell: RefCell::new(Shell::new(setup, local, now(), host::random_u64())),
        datagrams,
        armed: Cell::new(Mono(0)),
        sooner: signal::Signal::new(),
        asking: Cell::new(0),
        answering: Cell::new(0),
    });
    let tasks = [
        glommio::spawn_local(read(core.clone())),
        glommio::spawn_local(tick(core.clone())),
        glommio::spawn_local(accept(core.clone(), listener)),
    ];
    stop.fired().await;
    if !stop.is_abrupt() {
        let began = host::mono();
        core.shell.borrow_mut().leave(now());
        core.sooner.raise();
        while !core.shell.borrow().is_told() && host::mono().since(began) < LEAVE_MAX {
            sleep(LEAVE_LOOK).await;
        }
    }
    for task in tasks {
        task.cancel().await;
    }
}

async fn read(core: Rc<Core>) {
    let mut room = vec![0; ROOM_BYTES];
    let mut taken = 0;
    loop {
        let Ok((count, from)) = core.datagrams.recv_from(&mut room).await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let todo = core.shell.borrow_mut().take_datagram(now(), from, &room[..count]);
        core.perform(todo).await;
        if core.shell.borrow().wakes_at() < core.armed.get() {
            core.sooner.raise();
        }
        taken += 1;
        if taken % BATCH == 0 {
            glommio::executor().yield_now().await;
        }
    }
}

async fn tick(core: Rc<Core>) {
    loop {
        let (wakes_at, pause) = (core.shell.borrow().wakes_at(), core.shell.borrow().pause(now()));
        if !pause.is_zero() {
            core.armed.set(wakes_at);
            race(sleep(pause), core.sooner.wait()).await;
            core.armed.set(Mono(0));
        }
        // Whoever reads has been woken as well, if there is anything to read, and goes first.
        glommio::executor().yield_now().await;
        if core.shell.borrow().pause(now()).is_zero() {
            let todo = core.shell.borrow_mut().tick(now());
            core.perform(todo).await;
        }
    }
}

async fn accept(core: Rc<Core>, listener: TcpListener) {
    loop {
        let Ok(stream) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // One too many is dropped, hence closed.
        if core.answering.get() < EXCHANGES_MAX {
            core.answering.set(core.answering.get() + 1);
            let core = core.clone();
            glommio::spawn_local(async move {
                // A stream that fails concerns its other end alone.
                let _ = first(pin!(answer(&core, stream)), pin!(sleep(EXCHANGE_MAX))).await;
                core.answering.set(core.answering.get() - 1);
            })
            .detach();
        }
    }
}

/// A stream from its first byte to its last: one question, one answer.
async fn answer(core: &Rc<Core>, mut stream: TcpStream) -> io::Result<()> {
    let from = stream.peer_addr().map_err(|_| ErrorKind::NotConnected)?;
    let mut prefix = Vec::new();
    fill(&mut stream, &mut prefix, LENGTH_BYTES).await?;
    let length = message_length(&prefix, GOSSIP_SYNC_BYTES_MAX)?;
    let mut question = Vec::new();
    fill(&mut stream, &mut question, length).await?;
    let (answer, todo) = core.shell.borrow_mut().take_stream(now(), from, &question);
    core.perform(todo).await;
    let Some(answer) = answer.map(|answer| framed(&answer)) else { return Ok(()) };
    let mut rest = &answer[..];
    while !rest.is_empty() {
        match poll_fn(|context| Pin::new(&mut stream).poll_write(context, rest)).await? {
            0 => return Err(ErrorKind::WriteZero.into()),
            count => rest = &rest[count..],
        }
    }
    poll_fn(|context| Pin::new(&mut stream).poll_flush(context)).await
}

async fn fill(stream: &mut TcpStream, out: &mut Vec<u8>, length: usize) -> io::Result<()> {
    let mut part = vec![0; length.min(PART_BYTES)];
    while out.len() < length {
        let room = part.len().min(length - out.len());
        match poll_fn(|context| Pin::new(&mut *stream).poll_read(context, &mut part[..room])).await? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => out.extend_from_slice(&part[..count]),
        }
    }
    Ok(())
}

impl Core {
    async fn perform(self: &Rc<Core>, todo: Todo) {
        for (to, datagram) in todo.sends {
            // One that cannot be sent is lost, as others are on their way.
            let _ = self.datagrams.send_to(&datagram, to).await;
        }
        for with in todo.syncs {
            if self.asking.get() < EXCHANGES_MAX {
                self.asking.set(self.asking.get() + 1);
                glommio::spawn_local(ask(self.clone(), with)).detach();
            }
        }
    }
}

/// Asks for a table; what it says is taken in.
async fn ask(core: Rc<Core>, with: SocketAddr) {
    let question = core.shell.borrow_mut().sync_request(now());
    let mut from = core.shell.borrow().local();
    from.set_port(0);
    let asked = move || paired::ask(from, with, &question, GOSSIP_SYNC_BYTES_MAX, EXCHANGE_MAX);
    let answer = glommio::executor().spawn_blocking(asked).await;
    core.asking.set(core.asking.get() - 1);
    // Without an answer gossip asks again, this one or another.
    if let Ok(answer) = answer {
        let (_, todo) = core.shell.borrow_mut().take_stream(now(), with, &answer);
        for (to, datagram) in todo.sends {
            let _ = core.datagrams.send_to(&datagram, to).await;
        }
        core.sooner.raise();
    }
}
