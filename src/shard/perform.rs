//! What has to wait: for a disk, a key's lock, the clock's ceiling. One task a request, over its own copy of the frame's body.

use super::conn::Promise;
use super::coordinate::Told;
use super::execute::{self, Write, engine_error, shown_after, ttl_reply, value_reply};
use super::mailbox::Mail;
use super::namespaces::{NamespaceError, NamespaceTable, TABLE_KEY};
use super::pace::{self, Turn};
use super::route::{TOO_LATE, TOO_MANY_WAIT};
use super::session::within;
use super::{Origin, Shard, Ticket};
use crate::base::record::{Body, Cell, NAMESPACE_SYSTEM, Version, token_of, vnode_of};
use crate::base::time::Mono;
use crate::cluster::coordinator::{Levels, Outcome};
use crate::engine::{Batch, EngineError, KeyRef, Seq, Value as Found};
use crate::io::Class;
use crate::limits::{CHUNK_BYTES, MULTI_BYTES_MAX, RF_DEFAULT, SCAN_ENTRIES_MAX};
use crate::wire::command::{
    Access, Command, Compression, Condition, Durability, ErrorCode, LevelsAsked, MultiPut, NamespaceChange, NamespaceSpec, Page, Reply,
    Request, Scan, ScanEntry, Value, VersionedValue, WriteOptions, command_row,
};
use crate::wire::native::{Form, decode_request, encode_values};
use crate::wire::peer::OwnedCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How often a message to the other cores that found no room is tried again.
pub(super) const ROOM_EVERY: Duration = Duration::from_millis(1);
/// Keys of one multi-get that are read from disk at a time.
const READS_AT_ONCE: usize = 32;

/// What a lookup reserves on its connection before it knows: most values are below it, and none that is read in one piece is over
/// `CHUNK_BYTES`.
pub const ANSWER_BYTES_GUESS: usize = 4096;
/// The same for each key of a multi-get.
const MULTI_VALUE_BYTES_GUESS: usize = 2048;
/// How often a multi-get is tried anew because its values have grown meanwhile.
pub const MULTI_GET_ROUNDS: usize = 4;

/// Why a read was not carried out in time.
pub const NO_ROOM: &str = "answers wait to be read, and there was no room for another in time";
/// Held by the snapshot that is being taken.
const SNAPSHOT_LOCK: u64 = 1;

/// Why a multi-get has no answer.
pub const MULTI_TOO_LARGE: &str = "the values do not fit into one answer: ask for fewer keys";
pub const MULTI_GROWS: &str = "the values grow faster than they can be read";

/// Bytes of an answer to a multi-get for one value of `len` bytes, or none.
pub fn multi_value_bytes(len: usize) -> usize {
    64 + len
}

/// What the answer to a multi-get of so many keys may have before anybody has looked.
pub fn multi_get_guess(keys: usize) -> usize {
    (keys * MULTI_VALUE_BYTES_GUESS).min(MULTI_BYTES_MAX)
}

/// Why a task ends without its own answer.
pub(super) enum Trouble {
    Engine(EngineError),
    /// A key's replicas did not do it.
    Outcome(Outcome),
}

impl From<EngineError> for Trouble {
    fn from(error: EngineError) -> Trouble {
        Trouble::Engine(error)
    }
}

impl From<Outcome> for Trouble {
    fn from(outcome: Outcome) -> Trouble {
        Trouble::Outcome(outcome)
    }
}

/// Carries a request out in a task of its own, or refuses it where too many wait already.
pub fn spawn(shard: &Rc<Shard>, ticket: Ticket, form: Form, body: Vec<u8>, deadline: Mono) {
    if !shard.admit.begin() {
        return shard.fail(&ticket, ErrorCode::Overloaded, TOO_MANY_WAIT);
    }
    let shard = shard.clone();
    let io = shard.io.clone();
    let kept = shard.keep(&ticket, body.len());
    // Taken now, in the order in which requests came.
    let turn = is_paced(form.kind).then(|| shard.pace.join(pace::cost(body.len(), 1), io.now(), &shard.engine));
    drop(io.spawn(Class::Foreground, async move {
        let _kept = kept;
        let request = decode_request(form, &body).expect("decoded once before");
        let task = Task { shard: &shard, ticket: &ticket, request: &request, form, body: &body, deadline, turn };
        task.run().await;
        shard.admit.end();
        shard.settle();
    }));
}

impl Shard {
    pub(super) fn tell_trouble(&self, ticket: &Ticket, trouble: Trouble) {
        match trouble {
            Trouble::Engine(error) => engine_error(self, ticket, &error),
            Trouble::Outcome(outcome) => self.answer_outcome(ticket, outcome),
        }
    }
}

struct Task<'a> {
    shard: &'a Rc<Shard>,
    ticket: &'a Ticket,
    request: &'a Request<'a>,
    form: Form,
    body: &'a [u8],
    deadline: Mono,
    /// Its place among the writes that wait.
    turn: Option<Turn>,
}

/// A request of this kind stores what flushes and merges have to carry on.
fn is_paced(kind: u16) -> bool {
    command_row(kind).is_some_and(|row| row.access == Access::Write)
}

impl Task<'_> {
    async fn run(&self) {
        let outcome = match &self.request.command {
            Command::Get { key } => self.get(key).await,
            Command::Ttl { key } => self.ttl(key).await,
            Command::MultiGet { keys } => self.multi_get(keys).await,
            Command::Put(put) => self.write(put.key, put.condition, put.write, |write, key| write.put(key, put)).await,
            Command::Delete(delete) => self.write(delete.key, delete.condition, delete.write, |write, key| write.delete(key)).await,
            Command::MultiPut(put) => self.multi_put(put).await,
            Command::Expire { key, ttl_ms, write } => self.expire(key, *ttl_ms, *write).await,
            Command::Persist { key, write } => self.expire(key, 0, *write).await,
            Command::Scan(scan) => self.scan(scan).await,
            &Command::NamespaceCreate { name, default_ttl_ms, durability } => {
                self.make_namespace(&NamespaceSpec {
                    name,
                    default_ttl_ms,
                    durability,
                    compression: Compression::None,
                    levels: LevelsAsked::default(),
                    replicas: RF_DEFAULT as u8,
                })
                .await
            }
            Command::NamespaceMake(spec) => self.make_namespace(spec).await,
            &Command::NamespaceAlter { name, default_ttl_ms, durability } => {
                self.change_namespace(&NamespaceChange {
                    name,
                    default_ttl_ms,
                    durability,
                    compression: None,
                    levels: LevelsAsked::default(),
                })
                .await
            }
            Command::NamespaceChange(change) => self.change_namespace(change).await,
            Command::Snapshot { name } => self.snapshot(name).await,
            Command::Cluster { words } => {
                self.shard.answer_words(self.ticket, words, self.deadline).await;
                Ok(())
            }
            Command::Hello(_)
            | Command::Ping
            | Command::Info
            | Command::NamespaceList
            | Command::NamespaceDetails
            | Command::NamespaceTerms => {
                unreachable!("answered in the connection's turn")
            }
        };
        if let Err(trouble) = outcome {
            self.shard.tell_trouble(self.ticket, trouble);
        }
    }

    fn levels(&self) -> Levels {
        self.shard.levels(self.request)
    }

    fn key<'k>(&self, key: &'k [u8]) -> KeyRef<'k> {
        self.shard.key(self.request.namespace, key)
    }

    fn durability(&self) -> Durability {
        self.shard.namespace_durability(self.request.namespace).unwrap_or(Durability::Sync)
    }

    /// Room on the client's connection for an answer of about `bytes`; where the client is another core's, or the answer a part of a
    /// whole's, the room was given beforehand, and who gave it asks again for a larger answer. `None`, and answered: the client is gone,
    /// waits no more, or is asked for room.
    async fn room(&self, bytes: usize) -> Option<Option<Promise>> {
        let conn = match &self.ticket.origin {
            Origin::Connection(conn) => conn,
            Origin::Part(gather) if bytes > self.ticket.room() => {
                gather.needs_room(self.shard, self.ticket.id as usize, bytes);
                return None;
            }
            Origin::Core { core, ticket, room } if bytes > *room => {
                let (ticket, body) = (*ticket, self.body.to_vec());
                self.shard.mailbox.send(usize::from(*core), Mail::NeedsRoom { ticket, bytes, form: self.form, body });
                return None;
            }
            _ => return Some(None),
        };
        match within(&self.shard.io, self.deadline, conn.promise(bytes)).await {
            Some(None) => {
                self.shard.fail(self.ticket, ErrorCode::ShuttingDown, "the connection ended");
                None
            }
            None => {
                self.shard.fail(self.ticket, ErrorCode::DeadlinePassed, NO_ROOM);
                None
            }
            Some(promise) => (!self.too_late()).then_some(promise),
        }
    }

    /// Answers a read once what it saw may be shown.
    fn show(&self, settled: Seq, reply: &Reply<'_>) {
        self.shard.answer_when(self.ticket, shown_after(self.durability(), settled), self.deadline, reply, None);
    }

    /// Waits until flushes and merges keep up with another write. The key stays locked meanwhile.
    async fn turn_comes(&self) {
        if let Some(turn) = &self.turn {
            let _ = within(&self.shard.io, self.deadline, turn.come()).await;
        }
    }

    /// True, and answered, where the client does not wait any more.
    fn too_late(&self) -> bool {
        let late = self.shard.io.now() >= self.deadline;
        if late {
            self.shard.fail(self.ticket, ErrorCode::DeadlinePassed, TOO_LATE);
        }
        late
    }

    async fn get(&self, key: &[u8]) -> Result<(), Trouble> {
        let shard = self.shard;
        let key = self.key(key);
        let Some(room) = self.room(ANSWER_BYTES_GUESS).await else { return Ok(()) };
        if let Some(cluster) = &shard.cluster
            && !shard.reads_here(cluster, self.request, key.token)
        {
            shard.quorum_get(cluster, self.ticket.clone(), self.request, (key.key, Told::Value), room, self.deadline);
            return Ok(());
        }
        let permit = shard.admit.read(CHUNK_BYTES).await;
        if self.too_late() {
            return Ok(());
        }
        let found = shard.engine.read(key).await?;
        let now_ms = shard.io.wall_ms();
        let cell = found.cell();
        if let Some(reply) = value_reply(cell.as_ref(), now_ms) {
            let bytes = execute::value_bytes(&reply);
            if bytes > self.ticket.room() {
                self.room(bytes).await;
                return Ok(());
            }
            self.show(found.settled, &reply);
            return Ok(());
        }
        let Some(Cell { body: Body::Chunked { len }, .. }) = cell else {
            shard.fail(self.ticket, ErrorCode::BadRequest, "that key holds no string");
            return Ok(());
        };
        drop((permit, room));
        let Some(_room) = self.room(len as usize).await else { return Ok(()) };
        let _permit = shard.admit.read(len as usize).await;
        match shard.engine.read_value(key, shard.io.wall_ms()).await? {
            None => self.show(found.settled, &Reply::Absent),
            Some(value) => {
                let remaining_ms = execute::remaining(value.deadline_ms, shard.io.wall_ms());
                self.show(value.settled, &Reply::Value(Value { version: value.version, remaining_ms, value: &value.bytes }));
            }
        }
        Ok(())
    }

    async fn ttl(&self, key: &[u8]) -> Result<(), Trouble> {
        let _permit = self.shard.admit.read(CHUNK_BYTES).await;
        if !self.too_late() {
            let found = self.shard.engine.read(self.key(key)).await?;
            self.show(found.settled, &ttl_reply(found.cell().as_ref(), self.shard.io.wall_ms()));
        }
        Ok(())
    }

    /// First with room for small values; where they are larger, once more with room for what they have.
    async fn multi_get(&self, keys: &[&[u8]]) -> Result<(), Trouble> {
        // A part, and what another core sends, has its room already.
        let mut bytes = self.ticket.room().min(MULTI_BYTES_MAX);
        if let Origin::Connection(_) = self.ticket.origin {
            bytes = multi_get_guess(keys.len());
        }
        for _ in 0..MULTI_GET_ROUNDS {
            if self.multi_get_within(keys, bytes).await? {
                return Ok(());
            }
            bytes = self.answer_bytes(keys).await?;
            if bytes > MULTI_BYTES_MAX {
                self.shard.fail(self.ticket, ErrorCode::TooLarge, MULTI_TOO_LARGE);
                return Ok(());
            }
            if self.too_late() {
                return Ok(());
            }
        }
        self.shard.fail(self.ticket, ErrorCode::Overloaded, MULTI_GROWS);
        Ok(())
    }

    /// Bytes of the answer to a multi-get as things stand.
    async fn answer_bytes(&self, keys: &[&[u8]]) -> Result<usize, Trouble> {
        let mut bytes = 0;
        if let Some(cluster) = &self.shard.cluster {
            for some in keys.chunks(READS_AT_ONCE) {
                for cell in self.shard.quorum_cells(cluster, self.request.namespace, some, self.levels(), self.deadline).await {
                    let len = |cell: OwnedCell| if let Body::Bytes(value) = cell.as_cell().body { value.len() } else { 0 };
                    bytes += multi_value_bytes(cell?.map_or(0, len));
                }
            }
            return Ok(bytes);
        }
        for key in keys {
            let _permit = self.shard.admit.read(CHUNK_BYTES).await;
            let found = self.shard.engine.read(self.key(key)).await?;
            bytes += multi_value_bytes(match found.cell().map(|cell| cell.body) {
                Some(Body::Bytes(value)) => value.len(),
                Some(Body::Chunked { len }) => len as usize,
                _ => 0,
            });
        }
        Ok(bytes)
    }

    /// The values of some keys, each as its own disk or its own replicas give it.
    async fn values_of(&self, keys: &[&[u8]]) -> Result<Vec<Option<Found>>, Trouble> {
        let shard = self.shard;
        if let Some(cluster) = &shard.cluster {
            let cells = shard.quorum_cells(cluster, self.request.namespace, keys, self.levels(), self.deadline).await;
            let now_ms = shard.io.wall_ms();
            return cells.into_iter().map(|cell| Ok(cell?.and_then(|cell| value_of(&cell.as_cell(), now_ms)))).collect();
        }
        let read = async |key: &&[u8]| {
            let _permit = shard.admit.read(CHUNK_BYTES).await;
            shard.engine.read_value(self.key(key), shard.io.wall_ms()).await
        };
        all(keys.iter().map(read)).await.into_iter().map(|value| Ok(value?)).collect()
    }

    /// False, and not answered: the values have more than `bytes_max` bytes.
    async fn multi_get_within(&self, keys: &[&[u8]], bytes_max: usize) -> Result<bool, Trouble> {
        let shard = self.shard;
        let Some(_room) = self.room(bytes_max).await else { return Ok(true) };
        let mut values = Vec::with_capacity(keys.len());
        let mut settled = 0;
        let mut bytes = 0;
        for some in keys.chunks(READS_AT_ONCE) {
            for value in self.values_of(some).await? {
                settled = settled.max(value.as_ref().map_or(0, |value| value.settled));
                bytes += multi_value_bytes(value.as_ref().map_or(0, |value| value.bytes.len()));
                values.push(value);
            }
            if self.too_late() {
                return Ok(true);
            }
            if bytes > bytes_max {
                return Ok(false);
            }
        }
        let found = values.iter().map(|value| value.as_ref().map(|value| VersionedValue { version: value.version, value: &value.bytes }));
        let mut frames = Vec::new();
        encode_values(&mut frames, self.ticket.id, &found.collect::<Vec<_>>());
        shard.answer_frames_when(self.ticket, shown_after(self.durability(), settled), self.deadline, frames);
        Ok(true)
    }

    /// A write that has to look first, or to tell its version first. The key is locked from the look to the write, so nothing comes
    /// between.
    async fn write(
        &self,
        key: &[u8],
        condition: Condition,
        options: WriteOptions,
        store: impl FnOnce(&Write<'_>, KeyRef<'_>),
    ) -> Result<(), Trouble> {
        let shard = self.shard;
        let key = self.key(key);
        let _guard = shard.locks.lock(key.token).await;
        self.turn_comes().await;
        if self.too_late() {
            return Ok(());
        }
        if condition != Condition::Always {
            let _permit = shard.admit.read(CHUNK_BYTES).await;
            let found = shard.engine.read(key).await?;
            let cell = found.cell();
            let live = cell.filter(|cell| cell.is_live(shard.io.wall_ms())).map(|cell| cell.version);
            if let Some(version) = options.version.filter(|version| cell.is_some_and(|cell| cell.version == *version)) {
                shard.answer_when(self.ticket, found.settled, self.deadline, &Reply::Done { version }, Some(version));
                return Ok(());
            }
            // Below what is there, a deleted value included, a retry stores nothing: nobody can say that its first try won.
            let is_late = cell.is_some_and(|cell| options.version.is_some_and(|version| version < cell.version));
            if is_late || !is_met(condition, live) {
                self.show(found.settled, &Reply::NotMet { present: live });
                return Ok(());
            }
        }
        let Some(write) = Write::begin(shard, self.ticket, self.request, options.version, self.deadline) else { return Ok(()) };
        self.tell_version(&write, options).await?;
        store(&write, key);
        Ok(())
    }

    async fn tell_version(&self, write: &Write<'_>, options: WriteOptions) -> Result<(), Trouble> {
        if options.announce {
            // A version that was told must never be given again, not even when the power fails before the write.
            self.shard.engine.make_ceiling_durable(write.version).await?;
            self.shard.announce(self.ticket, write.version);
            self.shard.settle();
        }
        Ok(())
    }

    async fn multi_put(&self, put: &MultiPut<'_>) -> Result<(), Trouble> {
        let shard = self.shard;
        if let Some(cluster) = &shard.cluster {
            self.turn_comes().await;
            let version = match put.write.version {
                Some(version) => version,
                None => shard.quorum_stamp(cluster, self.request, &put.items, self.deadline).await?,
            };
            if put.write.announce {
                shard.announce(self.ticket, version);
                shard.settle();
            }
            let outcome = shard.quorum_puts(cluster, self.request, &put.items, version, self.deadline).await;
            shard.answer_outcome(self.ticket, outcome);
            return Ok(());
        }
        let mut tokens: Vec<_> = put.items.iter().map(|item| token_of(item.key)).collect();
        // In one order everywhere, so that two of them cannot wait for each other.
        tokens.sort_unstable();
        tokens.dedup();
        let mut guards = Vec::with_capacity(tokens.len());
        for token in tokens {
            guards.push(shard.locks.lock(token).await);
        }
        self.turn_comes().await;
        if self.too_late() {
            return Ok(());
        }
        if let Some(write) = Write::begin(shard, self.ticket, self.request, put.write.version, self.deadline) {
            self.tell_version(&write, put.write).await?;
            write.multi_put(put);
        }
        Ok(())
    }

    /// A new deadline `ttl_ms` from now; 0 takes it away.
    async fn expire(&self, key: &[u8], ttl_ms: u64, options: WriteOptions) -> Result<(), Trouble> {
        let shard = self.shard;
        if let Some(cluster) = &shard.cluster {
            self.turn_comes().await;
            shard.stamps_are_safe().await?;
            let cells = shard.quorum_cells(cluster, self.request.namespace, &[key], self.levels(), self.deadline).await;
            let cell = cells.into_iter().next().expect("one key, one cell")?;
            match cell.filter(|cell| cell.as_cell().is_live(shard.io.wall_ms())) {
                None => shard.answer(self.ticket, &Reply::Absent),
                Some(cell) => shard.quorum_expire(cluster, self.ticket, self.request, (key, ttl_ms), &cell.as_cell(), self.deadline),
            }
            return Ok(());
        }
        let key = self.key(key);
        let _guard = shard.locks.lock(key.token).await;
        self.turn_comes().await;
        if self.too_late() {
            return Ok(());
        }
        let _permit = shard.admit.read(CHUNK_BYTES).await;
        let found = shard.engine.read(key).await?;
        if !found.cell().is_some_and(|cell| cell.is_live(shard.io.wall_ms())) {
            self.show(found.settled, &Reply::Absent);
            return Ok(());
        }
        let Some(write) = Write::begin(shard, self.ticket, self.request, options.version, self.deadline) else { return Ok(()) };
        self.tell_version(&write, options).await?;
        let deadline_ms = if ttl_ms == 0 { 0 } else { write.deadline_ms(ttl_ms) };
        write.expire(key, deadline_ms);
        Ok(())
    }

    async fn scan(&self, scan: &Scan<'_>) -> Result<(), Trouble> {
        let shard = self.shard;
        if shard.cluster.as_ref().is_some_and(|cluster| !cluster.is_owner(self.request.namespace, scan.vnode)) {
            shard.fail(self.ticket, ErrorCode::Failed, "this node holds no copy of that vnode: scan it at one that does");
            return Ok(());
        }
        let limit = if scan.limit == 0 { SCAN_ENTRIES_MAX } else { (scan.limit as usize).min(SCAN_ENTRIES_MAX) };
        let Some(_room) = self.room(CHUNK_BYTES * 8).await else { return Ok(()) };
        let _permit = shard.admit.read(CHUNK_BYTES * 16).await;
        if self.too_late() {
            return Ok(());
        }
        let now_ms = shard.io.wall_ms();
        let from = (!scan.cursor.is_empty()).then_some(scan.cursor);
        if from.is_some_and(|key| vnode_of(token_of(key), shard.node.vnodes) != scan.vnode) {
            shard.fail(self.ticket, ErrorCode::BadRequest, "that cursor is of another vnode");
            return Ok(());
        }
        let page = shard.engine.scan(self.request.namespace, scan.vnode, from, limit, now_ms).await?;
        let entries = page.entries.iter().map(|entry| ScanEntry {
            key: &entry.key,
            version: entry.version,
            remaining_ms: execute::remaining(entry.deadline_ms, now_ms),
            value: scan.with_values.then_some(&entry.value[..]),
        });
        let entries: Vec<_> = entries.collect();
        self.show(page.settled, &Reply::Page(Page { cursor: page.next.as_deref().unwrap_or(b""), entries: entries.into() }));
        Ok(())
    }

    async fn make_namespace(&self, spec: &NamespaceSpec<'_>) -> Result<(), Trouble> {
        // Whoever moves vnodes has to know before there is a key of it how many replicas that may have.
        let is_sound = self.shard.changes_namespaces().is_ok() && self.shard.namespaces().with(spec).is_ok();
        if let Some(cluster) = self.shard.cluster.as_ref().filter(|_| is_sound)
            && let Err(why) = self.shard.decide_factor(cluster, spec.replicas.into(), self.deadline).await
        {
            self.shard.fail(self.ticket, ErrorCode::Failed, &why);
            return Ok(());
        }
        self.change_namespaces(spec.name, |table| table.with(spec)).await
    }

    async fn change_namespace(&self, change: &NamespaceChange<'_>) -> Result<(), Trouble> {
        self.change_namespaces(change.name, |table| table.altered(change)).await
    }

    /// Core 0 alone changes the table: stored first, then known to all.
    async fn change_namespaces(
        &self,
        name: &str,
        change: impl FnOnce(&NamespaceTable) -> Result<NamespaceTable, NamespaceError>,
    ) -> Result<(), Trouble> {
        let shard = self.shard;
        if let Err(why) = shard.changes_namespaces() {
            shard.fail(self.ticket, ErrorCode::Failed, &why);
            return Ok(());
        }
        let guard = shard.locks.lock(0).await;
        let table = match change(&shard.namespaces()) {
            Ok(table) => table,
            Err(error) => {
                shard.fail(self.ticket, ErrorCode::Failed, error.sentence());
                return Ok(());
            }
        };
        shard.namespaces_version.set(store_namespaces(shard, &table).await?);
        shard.publish_namespaces(Arc::new(table));
        // Mail is read in order: who answers a ping knows the table.
        let ping = Request { command: Command::Ping, ..self.request.clone() };
        while let Err((ErrorCode::Overloaded, _)) = shard.ask_all(self.ticket, &ping).wait().await {
            shard.io.sleep(ROOM_EVERY).await;
        }
        drop(guard);
        shard.spread_namespaces().await;
        let table = shard.namespaces();
        let row = table.by_name(name).expect("just stored");
        let rows = vec![execute::wire_namespace(row)].into();
        shard.answer(self.ticket, &execute::namespaces_reply(&self.request.command, rows));
        Ok(())
    }

    async fn snapshot(&self, name: &str) -> Result<(), Trouble> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(good) {
            self.shard.fail(self.ticket, ErrorCode::BadRequest, "a snapshot's name has 1 to 64 letters, digits, '-' or '_'");
            return Ok(());
        }
        let shard = self.shard;
        let to = shard.node.snapshots_dir().join(name);
        if shard.is_part(self.ticket) {
            shard.engine.snapshot(&to).await?;
            shard.answer(self.ticket, &Reply::Done { version: Version::ZERO });
            return Ok(());
        }
        let _guard = shard.locks.lock(SNAPSHOT_LOCK).await;
        if !self.make_snapshot_dir(name).await? {
            shard.fail(self.ticket, ErrorCode::Failed, "there is a snapshot of that name, or the rest of one");
            return Ok(());
        }
        match shard.ask_all(self.ticket, self.request).wait().await {
            Err((code, why)) => shard.fail(self.ticket, code, &why),
            Ok(()) => {
                // Until the layout is there the folder is no data folder.
                shard.node.store.snapshot_layout(&shard.io, &to).await?;
                let text = format!("snapshot:{name}\nfolder:{}\ncores:{}\n", to.display(), shard.node.cores);
                shard.answer(self.ticket, &Reply::Text(&text));
            }
        }
        Ok(())
    }

    /// False: a folder of that name is there.
    async fn make_snapshot_dir(&self, name: &str) -> Result<bool, EngineError> {
        let (io, all) = (&self.shard.io, self.shard.node.snapshots_dir());
        io.make_dir(&all).await?;
        io.sync_dir(self.shard.node.data()).await?;
        if io.list(&all).await?.iter().any(|entry| entry.name == name) {
            return Ok(false);
        }
        io.make_dir(&all.join(name)).await?;
        io.sync_dir(&all).await?;
        Ok(true)
    }
}

/// Makes the table of namespaces durable, under a new version.
pub async fn store_namespaces(shard: &Shard, table: &NamespaceTable) -> Result<Version, EngineError> {
    let version = shard.engine.stamp(shard.io.wall_ms());
    store_namespaces_as(shard, table, version).await?;
    Ok(version)
}

/// Makes a table that has its version durable.
pub async fn store_namespaces_as(shard: &Shard, table: &NamespaceTable, version: Version) -> Result<(), EngineError> {
    let mut batch = Batch::new(true);
    batch.put_value(table_key(), &table.encode(), version, 0);
    let seq = shard.engine.write(&batch)?;
    shard.engine.wait_durable(seq).await
}

/// All of the futures' results, in their order. For a few: each wake looks at all that are not done.
async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| Some(Box::pin(future))).collect();
    let mut results: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (slot, result) in running.iter_mut().zip(&mut results) {
            if let Some(future) = slot
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
                *slot = None;
            }
        }
        if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().map(|result| result.expect("all have ended")).collect()
}

/// Where the table of namespaces lies: token 0 belongs to core 0 whatever the number of cores.
pub fn table_key() -> KeyRef<'static> {
    KeyRef { namespace: NAMESPACE_SYSTEM, token: 0, key: TABLE_KEY }
}

fn is_met(condition: Condition, live: Option<Version>) -> bool {
    match condition {
        Condition::Always => true,
        Condition::IfAbsent => live.is_none(),
        Condition::IfPresent => live.is_some(),
        Condition::IfVersion(version) => live == Some(version),
    }
}

/// A live string as it came from its replicas.
fn value_of(cell: &Cell<'_>, now_ms: u64) -> Option<Found> {
    match cell.body {
        Body::Bytes(bytes) if cell.is_live(now_ms) => {
            Some(Found { version: cell.version, bytes: bytes.to_vec(), deadline_ms: cell.expiry.deadline_ms, settled: 0 })
        }
        _ => None,
    }
}
