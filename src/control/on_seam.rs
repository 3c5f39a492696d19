//! The admin port's connections on the data cores' executor over epoll, for hosts where glommio has no io_uring to run on.

use super::admin::{ACCEPT_PAUSE, CONNECTIONS_MAX, First, Shown, first, talk};
use crate::io::{Chunk, Class, Io, Listener, Socket};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// The most bytes of one send.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// Serves until the inbox is told of the end; the executor then closes what is open.
pub(super) async fn serve(io: Io, listener: Listener, source: Shown, idle_max: Duration) {
    let busy = Rc::new(Cell::new(0));
    loop {
        let accepted = match first(pin!(io.inbox()), pin!(io.accept(&listener))).await {
            First::A(()) => break,
            First::B(accepted) => accepted,
        };
        let Ok((socket, _)) = accepted else {
            io.sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // One too many is dropped, hence closed.
        if busy.get() == CONNECTIONS_MAX {
            continue;
        }
        busy.set(busy.get() + 1);
        let (sleeper, busy, source) = (io.clone(), busy.clone(), source.clone());
        let stream = Stream { io: io.clone(), socket, unread: Vec::new(), taken: 0, receiving: None, sending: None };
        drop(io.spawn(Class::Foreground, async move {
            talk(stream, source, idle_max, async |pause| sleeper.sleep(pause).await).await;
            busy.set(busy.get() - 1);
        }));
    }
}

type Pending<T> = Option<Pin<Box<dyn Future<Output = io::Result<T>>>>>;

/// hyper's view of a socket: one receive and one send at a time.
struct Stream {
    io: Io,
    socket: Socket,
    unread: Vec<u8>,
    /// Of `unread`.
    taken: usize,
    receiving: Pending<Vec<Chunk>>,
    sending: Pending<Vec<u8>>,
}

impl Stream {
    /// Ready when nothing is being sent.
    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let sent = ready!(sending.as_mut().poll(context));
        self.sending = None;
        Poll::Ready(sent.map(drop))
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, mut cursor: hyper::rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let stream = &mut *self;
        if stream.taken == stream.unread.len() {
            let receiving = stream.receiving.get_or_insert_with(|| {
                let (io, socket) = (stream.io.clone(), stream.socket.clone());
                Box::pin(async move { io.receive(&socket).await })
            });
            let received = ready!(receiving.as_mut().poll(context));
            stream.receiving = None;
            // None at all is the end, and reads as nothing.
            stream.unread = received?.iter().flat_map(|chunk| chunk.iter().copied()).collect();
            stream.taken = 0;
        }
        let rest = &stream.unread[stream.taken..];
        let count = rest.len().min(cursor.remaining());
        cursor.put_slice(&rest[..count]);
        stream.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(context))?;
        let part = bytes[..bytes.len().min(SEND_BYTES_MAX)].to_vec();
        let (io, socket, count) = (self.io.clone(), self.socket.clone(), part.len());
        self.sending = Some(Box::pin(async move { io.send(&socket, part).await }));
        match self.poll_sent(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(context)
    }

    /// What was sent goes out before the close that dropping the stream is.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(context)
    }
}
