//! Brings lost connections back, on a thread of its own: a server that takes a connection and then says nothing holds up no request to
//! the others.

use crate::protocol::handshake::connect_to;
use crate::protocol::{Greeted, Target};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// An address that did not answer is tried again only after this, unless no other one does.
const SHUNNED: Duration = Duration::from_secs(1);

/// A connection that is to be made.
struct Ask {
    conn: usize,
    core: u16,
    /// The address to begin with.
    first: usize,
}

/// What became of it.
pub struct Told {
    pub conn: usize,
    /// `None`: no address answered.
    pub greeted: Option<Greeted>,
}

/// The thread; it ends when this is dropped.
pub struct Dialer {
    ask: SyncSender<Ask>,
    told: Receiver<Told>,
}

impl Dialer {
    /// For so many connections, each of which may be asked for once at a time. An address has `timeout` to answer.
    ///
    /// # Errors
    /// The system's, where it gives no thread.
    pub fn start(target: &Target, credential: &[u8], timeout: Duration, conns: usize) -> std::io::Result<Dialer> {
        let (ask, asked) = sync_channel::<Ask>(conns);
        let (tell, told) = sync_channel(conns);
        let (target, credential) = (target.clone(), credential.to_vec());
        let body = move || {
            let mut shunned: Vec<Option<Instant>> = vec![None; target.addresses.len()];
            for Ask { conn, core, first } in asked {
                let greeted = dial(&target, first, core, &credential, timeout, &mut shunned);
                if tell.send(Told { conn, greeted }).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("dialer".into()).spawn(body)?;
        Ok(Dialer { ask, told })
    }

    /// Asks for a connection. False: the thread is gone.
    pub fn ask(&self, conn: usize, core: u16, first: usize) -> bool {
        self.ask.try_send(Ask { conn, core, first }).is_ok()
    }

    /// The next outcome, if there is one by now.
    pub fn told(&self) -> Option<Told> {
        self.told.try_recv().ok()
    }
}

/// The first address that answers, from `first` on; those that did not lately come last.
fn dial(
    target: &Target,
    first: usize,
    core: u16,
    credential: &[u8],
    timeout: Duration,
    shunned: &mut [Option<Instant>],
) -> Option<Greeted> {
    let count = target.addresses.len();
    let mut order: Vec<usize> = (0..count).map(|at| (first + at) % count).collect();
    order.sort_by_key(|at| shunned[*at].is_some_and(|since| since.elapsed() < SHUNNED));
    for at in order {
        match connect_to(target, at, Some(core), credential, timeout) {
            Ok(greeted) => {
                shunned[at] = None;
                return Some(greeted);
            }
            Err(_) => shunned[at] = Some(Instant::now()),
        }
    }
    None
}
