//! The admin port's connections on glommio.

use super::admin::{ACCEPT_PAUSE, CONNECTIONS_MAX, First, Shown, first, talk};
use super::signal::Signal;
use crate::io::admin::BoundListener;
use glommio::net::{TcpListener, TcpStream};
use glommio::timer::sleep;
use std::cell::Cell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Serves until `stop` is fired; then the port and all connections are closed.
pub(super) async fn serve(listener: BoundListener, source: Shown, idle_max: Duration, stop: Arc<Signal>) {
    let listener: TcpListener = listener.into_listener();
    let mut slots: Vec<Slot> = (0..CONNECTIONS_MAX).map(|_| Slot::default()).collect();
    let mut fired = pin!(stop.fired());
    loop {
        let accepted = match first(fired.as_mut(), pin!(listener.accept())).await {
            First::A(()) => break,
            First::B(accepted) => accepted,
        };
        let Ok(stream) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Without a free slot the stream is dropped, hence closed.
        if let Some(slot) = slots.iter_mut().find(|slot| !slot.busy.get()) {
            slot.take(stream, source.clone(), idle_max);
        }
    }
    for task in slots.into_iter().filter_map(|slot| slot.task) {
        task.cancel().await;
    }
}

/// Room for one connection.
#[derive(Default)]
struct Slot {
    busy: Rc<Cell<bool>>,
    task: Option<glommio::Task<()>>,
}

impl Slot {
    fn take(&mut self, stream: TcpStream, source: Shown, idle_max: Duration) {
        self.busy.set(true);
        let busy = self.busy.clone();
        self.task = Some(glommio::spawn_local(async move {
            talk(Adapter(stream), source, idle_max, sleep).await;
            busy.set(false);
        }));
    }
}

/// hyper's view of the executor's stream.
struct Adapter(TcpStream);

impl hyper::rt::Read for Adapter {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut bytes = [0; 2048];
        let room = bytes.len().min(cursor.remaining());
        let read = futures_io::AsyncRead::poll_read(Pin::new(&mut self.0), context, &mut bytes[..room]);
        read.map_ok(|count| cursor.put_slice(&bytes[..count]))
    }
}

impl hyper::rt::Write for Adapter {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        futures_io::AsyncWrite::poll_write(Pin::new(&mut self.0), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        futures_io::AsyncWrite::poll_flush(Pin::new(&mut self.0), context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        futures_io::AsyncWrite::poll_close(Pin::new(&mut self.0), context)
    }
}
