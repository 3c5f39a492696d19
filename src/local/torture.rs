//! Torture: clients that never stop asking, while nodes are killed, stopped and started again, one at a time; and one line that says how it
//! goes.
//!
//! Each client writes keys that nobody else writes, so what a get may show is known exactly: at or above the last value that was
//! acknowledged, and no value that was never sent. A value that is older, or gone, is *lost*; anything else that was not written is
//! *wrong*.
//! The *gap* is the longest time in which no client at all was answered.

use crate::base::prng::Prng;
use crate::base::record::Version;
use crate::client::{Client, ClientConfig, ClientError, PutOptions};
use crate::io::host;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const CLIENTS: u64 = 6;
/// Of each client.
const KEYS: u64 = 200;
/// A client that cannot get on pauses for about this long.
const PAUSE: Duration = Duration::from_millis(5);
/// The last look at all keys may take so long.
const LAST_LOOK_MAX: Duration = Duration::from_secs(20);

/// What all clients have seen together.
#[derive(Default)]
pub struct Seen {
    pub acknowledged: AtomicU64,
    pub read: AtomicU64,
    pub lost: AtomicU64,
    pub wrong: AtomicU64,
    /// Answers that said neither yes nor a value: unavailable, not in time.
    pub refused: AtomicU64,
    /// When somebody was answered last, and the longest time between two answers, in nanoseconds.
    answered_at: AtomicU64,
    gap: AtomicU64,
    stop: AtomicBool,
}

impl Seen {
    fn answered(&self) {
        let now = host::mono().0;
        let before = self.answered_at.swap(now, Ordering::Relaxed);
        if before != 0 {
            self.gap.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// As people read it.
    pub fn line(&self) -> String {
        let count = |counter: &AtomicU64| thousands(counter.load(Ordering::Relaxed));
        let gap_ms = self.gap.load(Ordering::Relaxed) / 1_000_000;
        let (acknowledged, lost, wrong) = (count(&self.acknowledged), count(&self.lost), count(&self.wrong));
        format!(
            "acknowledged {acknowledged} · lost {lost} · wrong {wrong} · longest gap {gap_ms} ms · reads {} · refused {}",
            count(&self.read),
            count(&self.refused)
        )
    }

    /// Nothing acknowledged was lost, and nothing was shown that nobody wrote.
    pub fn is_clean(&self) -> bool {
        self.lost.load(Ordering::Relaxed) == 0 && self.wrong.load(Ordering::Relaxed) == 0
    }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Clients at work, each on a thread of its own.
pub struct Torture {
    pub seen: Arc<Seen>,
    threads: Vec<host::Thread<()>>,
}

impl Torture {
    /// `addresses`: of the nodes' native ports.
    pub fn start(addresses: &[String]) -> std::io::Result<Torture> {
        let seen = Arc::new(Seen::default());
        let mut threads = Vec::new();
        for number in 0..CLIENTS {
            let mut own = addresses.to_vec();
            own.rotate_left(number as usize % addresses.len());
            let seen = seen.clone();
            threads.push(host::spawn_thread("torture", move || Worker::new(number, own, seen).run())?);
        }
        Ok(Torture { seen, threads })
    }

    /// No more new requests; each client looks at all of its keys a last time.
    pub fn end(self) -> Arc<Seen> {
        self.seen.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
        self.seen
    }
}

/// What a client knows of one of its keys.
#[derive(Clone, Copy, Default)]
struct Known {
    /// The last value that was acknowledged.
    acknowledged: u64,
    /// The last that was sent.
    sent: u64,
    /// A write of it may still happen, at any time: a stopped node has it, say. What it shows from now on says nothing.
    is_uncertain: bool,
}

struct Worker {
    number: u64,
    addresses: Vec<String>,
    seen: Arc<Seen>,
    prng: Prng,
    client: Option<Client>,
    known: Vec<Known>,
}

impl Worker {
    fn new(number: u64, addresses: Vec<String>, seen: Arc<Seen>) -> Worker {
        let prng = Prng::new(host::random_u64());
        Worker { number, addresses, seen, prng, client: None, known: vec![Known::default(); KEYS as usize] }
    }

    fn run(mut self) {
        while !self.seen.is_over() {
            let key = self.prng.below(KEYS);
            if self.known[key as usize].is_uncertain {
                // Should all be, there is nothing to be learnt any more.
                host::sleep(Duration::from_micros(100));
                continue;
            }
            if self.prng.one_in(3) {
                self.look(key);
            } else {
                self.write(key);
            }
        }
        let until = host::mono().plus(LAST_LOOK_MAX);
        for key in 0..KEYS {
            while !self.known[key as usize].is_uncertain && !self.look(key) && host::mono() < until {}
        }
    }

    fn key(&self, key: u64) -> Vec<u8> {
        format!("torture:{}:{key}", self.number).into_bytes()
    }

    /// A connection to some node that answers.
    fn client(&mut self) -> Option<&mut Client> {
        if self.client.is_none() {
            let config = ClientConfig {
                addresses: self.addresses.clone(),
                client_name: "ringkv-torture".to_owned(),
                connect_timeout: Duration::from_millis(200),
                request_timeout: Duration::from_millis(400),
                retries: 0,
                announce: true,
                single_connection: true,
                ..ClientConfig::default()
            };
            self.client = Client::connect(config).ok();
            // The next attempt begins with another node.
            self.addresses.rotate_left(1);
        }
        if self.client.is_none() {
            host::sleep(PAUSE);
        }
        self.client.as_mut()
    }

    fn write(&mut self, key: u64) {
        let name = self.key(key);
        let number = self.known[key as usize].sent + 1;
        self.known[key as usize].sent = number;
        let mut version: Option<Version> = None;
        // A retry under the version that the first try had is the same write, whatever node it goes through.
        for _ in 0..20 {
            let Some(client) = self.client() else { continue };
            let options = PutOptions { version, ..PutOptions::default() };
            match client.put_with(&name, number.to_string().as_bytes(), options) {
                Ok(_) => {
                    self.known[key as usize].acknowledged = number;
                    self.seen.acknowledged.fetch_add(1, Ordering::Relaxed);
                    return self.seen.answered();
                }
                Err(ClientError::Unknown { version: told }) => {
                    version = told.or(version);
                    self.give_up();
                    if version.is_none() {
                        break;
                    }
                }
                Err(_) => self.give_up(),
            }
        }
        self.known[key as usize].is_uncertain = true;
    }

    /// Another node is asked next.
    fn give_up(&mut self) {
        self.seen.refused.fetch_add(1, Ordering::Relaxed);
        self.client = None;
        host::sleep(PAUSE);
    }

    /// False: nobody answered.
    fn look(&mut self, key: u64) -> bool {
        let name = self.key(key);
        let Known { acknowledged, sent, .. } = self.known[key as usize];
        let Some(client) = self.client() else { return false };
        let shown = match client.get(&name) {
            Ok(found) => found.map(|found| String::from_utf8_lossy(&found.value).parse::<u64>()),
            Err(_) => {
                self.give_up();
                return false;
            }
        };
        self.seen.answered();
        self.seen.read.fetch_add(1, Ordering::Relaxed);
        match shown {
            None if acknowledged == 0 => {}
            Some(Ok(number)) if (acknowledged..=sent).contains(&number) => {}
            None => _ = self.seen.lost.fetch_add(1, Ordering::Relaxed),
            Some(Ok(number)) if number < acknowledged => _ = self.seen.lost.fetch_add(1, Ordering::Relaxed),
            Some(_) => _ = self.seen.wrong.fetch_add(1, Ordering::Relaxed),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_threes() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
