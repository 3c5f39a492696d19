//! Quiet conversations with a node at rest: making a namespace at the start, reading everything at the end.

use super::checker::Span;
use super::scenario::Run;
use super::workload::{key_name, reads_value};
use crate::base::map::{Map, Seeded};
use crate::base::prng::Prng;
use crate::base::record::{NamespaceId, Version, token_of, vnode_of};
use crate::base::time::Mono;
use crate::client::core::Core;
use crate::client::{Answer, ClientError};
use crate::io::sim::Faults;
use crate::io::wakers::Wakers;
use crate::io::{Io, SocketAddr};
use crate::limits::RF_DEFAULT;
use crate::shard::session::within;
use crate::wire::command::{
    CORE_ANY, Command, Compression, Durability, Hello, HelloWants, LevelsAsked, NamespaceChange, NamespaceSpec, PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN, Scan,
};
use std::rc::Rc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that asks one thing after the other.
pub(super) struct Quiet {
    io: Io,
    socket: crate::io::Socket,
    core: Core,
}

impl Quiet {
    pub(super) async fn open(io: Io, address: SocketAddr) -> Result<Quiet, String> {
        let socket = io.connect(address).await.map_err(|error| error.to_string())?;
        let mut quiet = Quiet { io, socket, core: Core::new(4) };
        let hello = Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            core: CORE_ANY,
            credential: b"",
            client_name: "quiet",
            wants: HelloWants::default(),
        };
        quiet.ask(0, Command::Hello(hello)).await?.map_err(|error| error.to_string())?;
        Ok(quiet)
    }

    /// Of all that is asked from now on.
    pub(super) fn set_levels(&mut self, levels: LevelsAsked) {
        self.core.set_levels(levels);
    }

    /// One command's final answer. Err: the connection ended.
    pub(super) async fn ask(&mut self, namespace: NamespaceId, command: Command<'_>) -> Result<Result<Answer, ClientError>, String> {
        let now = self.io.now();
        let id = self.core.submit(now, now.plus(PATIENCE), namespace, command).map_err(|error| error.to_string())?;
        let out = self.core.output().to_vec();
        let bytes = out.len();
        self.io.send(&self.socket, out).await.map_err(|error| error.to_string())?;
        self.core.mark_sent(bytes);
        let mut answer = None;
        while answer.is_none() {
            let until = self.io.now().plus(PATIENCE);
            let chunks = within(&self.io, until, self.io.receive(&self.socket)).await.ok_or("no answer in time")?;
            let chunks = chunks.map_err(|error| error.to_string())?;
            if chunks.is_empty() {
                return Err("the connection ended".to_owned());
            }
            for chunk in chunks {
                let take = |event: crate::client::core::Event<'_>| {
                    if event.id == id && event.last {
                        answer = Some(event.outcome.map(|reply| Answer::of(&reply).expect("a final answer")));
                    }
                };
                self.core.receive(&chunk, take).map_err(|error| error.to_string())?;
            }
        }
        Ok(answer.expect("just looked"))
    }
}

/// Runs a conversation on a machine of its own.
pub(super) fn converse<T: 'static, F>(run: &mut Run, talk: impl FnOnce(Io, SocketAddr) -> F + 'static) -> Result<T, String>
where
    F: Future<Output = Result<T, String>> + 'static,
{
    let machine = run.world.add_machine(Faults::default());
    let address = run.address();
    let done = Rc::new(std::cell::RefCell::new(None));
    let told = done.clone();
    let task = run.world.start(machine, 0, &Wakers::new(1), move |io| async move {
        let outcome = talk(io, address).await;
        *told.borrow_mut() = Some(outcome);
    });
    let seen = done.clone();
    run.world.run_until(Duration::from_secs(300), || seen.borrow().is_some());
    drop(task);
    done.take().unwrap_or_else(|| Err("a quiet conversation does not end".to_owned()))
}

/// Makes the namespace under `interval`. Which of the two namespaces have their tables packed is drawn.
pub(super) fn create_namespace(run: &mut Run, name: &'static str) -> Result<(), String> {
    // Apart from the run's own draws, which stay what they are for their seed.
    let mut prng = Prng::new(run.setup.seed);
    let mut draw = || if prng.one_in(2) { Compression::Lz4 } else { Compression::None };
    let (compression, of_default) = (draw(), draw());
    let levels = LevelsAsked::default();
    converse(run, move |io, address| async move {
        let mut quiet = Quiet::open(io, address).await?;
        let create = match compression {
            Compression::None => Command::NamespaceCreate { name, default_ttl_ms: 0, durability: Durability::Interval },
            _ => Command::NamespaceMake(NamespaceSpec {
                name,
                default_ttl_ms: 0,
                durability: Durability::Interval,
                compression,
                levels,
                replicas: RF_DEFAULT as u8,
            }),
        };
        quiet.ask(0, create).await?.map_err(|error| error.to_string())?;
        let compression = Some(of_default);
        let change = NamespaceChange { name: "default", default_ttl_ms: None, durability: None, compression, levels };
        quiet.ask(0, Command::NamespaceChange(change)).await?.map_err(|error| error.to_string())?;
        match quiet.ask(0, Command::NamespaceList).await? {
            Ok(Answer::Namespaces(rows)) if rows.iter().any(|row| row.name == name && row.id == 2) => Ok(()),
            other => Err(format!("namespaces are {other:?}")),
        }
    })
}

/// A key as it was found.
struct Found {
    key: u32,
    value: Option<(Version, Option<u64>, Vec<u8>)>,
    span: Span,
    now: Mono,
}

/// Reads every key of both namespaces by get and by scan, and gives it all to the checkers.
pub(super) fn read_everything(run: &mut Run) -> Result<(), String> {
    for index in 0..2 {
        let shared = run.shared.clone();
        let reader = shared.clone();
        let (found, scanned) = converse(run, move |io, address| async move {
            let namespace = reader.namespaces[index].get();
            let mut quiet = Quiet::open(io.clone(), address).await?;
            let mut found = Vec::new();
            for key in 0..reader.keys {
                let (asked, asked_ms) = (io.now(), (reader.wall_ms)());
                let answer = quiet.ask(namespace, Command::Get { key: &key_name(key) }).await?;
                let value = match answer {
                    Ok(Answer::Absent) => None,
                    Ok(Answer::Value(value)) => Some((value.version, value.remaining.map(|left| left.as_millis() as u64), value.value)),
                    other => return Err(format!("key {key}: the last look is answered with {other:?}")),
                };
                found.push(Found { key, value, span: Span { asked, asked_ms, answered_ms: (reader.wall_ms)() }, now: io.now() });
            }
            let scanned = scan_all(&mut quiet, namespace).await?;
            Ok((found, scanned))
        })?;
        check_scan(&found, &scanned, (shared.wall_ms)())?;
        let mut checker = shared.checkers[index].borrow_mut();
        let mut newest = Map::with_hasher(Seeded(0));
        for Found { key, value, span, now } in &found {
            reads_value(&mut checker, *key, value.as_ref().map(|(version, _, value)| (*version, value.as_slice())), *span, *now);
            newest.insert(*key, value.as_ref().map(|(version, ..)| *version));
        }
        checker.check_batches(|key| newest.get(&key).copied().flatten());
    }
    Ok(())
}

async fn scan_all(quiet: &mut Quiet, namespace: NamespaceId) -> Result<Vec<(Vec<u8>, Version)>, String> {
    let mut all = Vec::new();
    for vnode in 0..16 {
        let mut cursor = Vec::new();
        loop {
            let scan = Scan { vnode, cursor: &cursor, limit: 7, with_values: false };
            let Answer::Page(page) = quiet.ask(namespace, Command::Scan(scan)).await?.map_err(|error| error.to_string())? else {
                return Err("a scan is answered with another kind".to_owned());
            };
            for entry in page.entries {
                if vnode_of(token_of(&entry.key), 16) != vnode {
                    return Err(format!("the scan of vnode {vnode} shows a key of another"));
                }
                all.push((entry.key, entry.version));
            }
            if page.cursor.is_empty() {
                break;
            }
            cursor = page.cursor;
        }
    }
    Ok(all)
}

/// The scan, which came later, shows what the gets showed, but for what has expired since; each key once.
fn check_scan(found: &[Found], scanned: &[(Vec<u8>, Version)], now_ms: u64) -> Result<(), String> {
    let mut seen = Map::with_hasher(Seeded(0));
    for (key, version) in scanned {
        if seen.insert(key.clone(), *version).is_some() {
            return Err(format!("a scan shows {} twice", key.escape_ascii()));
        }
    }
    for Found { key, value, span, .. } in found {
        let shown = seen.remove(&key_name(*key));
        match (value, shown) {
            (None, Some(version)) => return Err(format!("key {key}: absent by get, but a scan shows {version:?}")),
            (Some((version, ..)), Some(shown)) if *version != shown => {
                return Err(format!("key {key}: {version:?} by get, but a scan shows {shown:?}"));
            }
            (Some((_, left, _)), None) if left.is_none_or(|left| span.asked_ms + left > now_ms) => {
                return Err(format!("key {key}: there by get, but no scan shows it"));
            }
            _ => {}
        }
    }
    if let Some(key) = seen.keys().next() {
        return Err(format!("a scan shows {}, which no client wrote", key.escape_ascii()));
    }
    Ok(())
}
