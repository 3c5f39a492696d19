//! Whose request is it? Decides for one frame: refuse it, carry it out here, send it to the core that owns the key, or take it apart.

use super::admit::Kept;
use super::conn::Promise;
use super::execute::{self, Step, engine_error};
use super::gather::{Again, Gather, Values, Whole};
use super::mailbox::Holds;
use super::pace::Later;
use super::perform::{self, ANSWER_BYTES_GUESS, NO_ROOM, multi_get_guess};
use super::session::within;
use super::{Origin, Shard, Ticket};
use crate::base::record::{NAMESPACE_SYSTEM, Token, Version, core_of, token_of};
use crate::base::time::Mono;
use crate::engine::{KeyRef, PREFETCH_MAX};
use crate::io::Class;
use crate::io::signal::Signal;
use crate::limits::{CHUNK_BYTES, KEY_BYTES_MAX, MULTI_KEYS_MAX, VALUE_BYTES_MAX};
use crate::wire::command::{
    Access, Command, ErrorCode, ErrorReply, Level, LevelsAsked, MultiPut, Put, PutItem, Reply, Request, WriteOptions,
};
use crate::wire::native::{Form, WireError, decode_request, encode_request};
use std::cell::Cell;
use std::rc::Rc;

const TOO_MANY_FORWARDS: &str = "too many requests are on their way to the owning core";
pub(super) const TOO_MANY_WAIT: &str = "too many requests wait";
pub(super) const TOO_LATE: &str = "the deadline passed before anything was done";

/// A request's frame, taken apart.
pub struct Asked<'a> {
    form: Form,
    body: &'a [u8],
    request: Result<Request<'a>, WireError>,
    /// Of its key; 0 where it has none or several.
    token: Token,
}

impl<'a> Asked<'a> {
    pub fn new(form: Form, body: &'a [u8]) -> Asked<'a> {
        let request = decode_request(form, body);
        let key = request.as_ref().ok().and_then(|request| request.command.key());
        Asked { form, body, token: key.map_or(0, token_of), request }
    }

    /// Of the frame's body.
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }

    /// The key that will be looked up in memory, for `Engine::prefetch`.
    pub fn lookup(&self) -> Option<KeyRef<'_>> {
        match &self.request {
            Ok(Request { namespace, command: Command::Get { key } | Command::Put(Put { key, .. }), .. }) => {
                Some(KeyRef { namespace: *namespace, token: self.token, key })
            }
            _ => None,
        }
    }
}

/// A request that another core sent on.
pub struct Forwarded {
    pub ticket: Ticket,
    pub form: Form,
    pub body: Vec<u8>,
}

/// Some of them, whose lookups are prefetched together, as those of a connection are.
#[derive(Default)]
pub struct ForwardedBatch {
    requests: [Option<Forwarded>; PREFETCH_MAX],
    count: usize,
}

impl ForwardedBatch {
    /// The batch is carried out when it is full.
    pub fn add(&mut self, shard: &Rc<Shard>, request: Forwarded) {
        self.requests[self.count] = Some(request);
        self.count += 1;
        if self.count == PREFETCH_MAX {
            self.carry_out(shard);
        }
    }

    pub fn carry_out(&mut self, shard: &Rc<Shard>) {
        let requests = &self.requests[..std::mem::take(&mut self.count)];
        let asked = requests.iter().flatten().map(|of| (&of.ticket, Asked::new(of.form, &of.body)));
        let mut ahead = [const { None }; PREFETCH_MAX];
        ahead.iter_mut().zip(asked).for_each(|(slot, asked)| *slot = Some(asked));
        shard.engine.prefetch(ahead.iter().flatten().filter_map(|(_, asked)| asked.lookup()));
        ahead.iter().flatten().for_each(|(ticket, asked)| shard.handle_asked((*ticket).clone(), asked));
    }
}

impl Shard {
    /// One request, from a client of this core or from another core.
    pub fn handle_asked(self: &Rc<Shard>, ticket: Ticket, asked: &Asked<'_>) {
        let &Asked { form, body, ref request, token } = asked;
        self.stats.request(form.kind);
        if self.is_closing() {
            return self.fail(&ticket, ErrorCode::ShuttingDown, "this node is shutting down");
        }
        let request = match request {
            Ok(request) => request,
            Err(error) => return self.fail(&ticket, error.code, error.what),
        };
        if let Err((code, message)) = self.check(request) {
            return self.fail(&ticket, code, message);
        }
        let owner = match &request.command {
            Command::MultiGet { .. } | Command::MultiPut(_) => return self.take_apart(ticket, request, form, body),
            Command::Scan(scan) => core_of(scan.vnode, self.node.cores),
            Command::Snapshot { .. } if self.is_part(&ticket) => self.core(),
            // What the whole node has one of.
            Command::NamespaceCreate { .. } | Command::NamespaceAlter { .. } => 0,
            Command::NamespaceMake(_) | Command::NamespaceChange(_) | Command::Snapshot { .. } | Command::Cluster { .. } => 0,
            command => command.key().map_or(self.core(), |_| self.owner(token)),
        };
        if owner == self.core() { self.run_here(ticket, request, token, form, body) } else { self.pass_on(owner, ticket, form, body) }
    }

    /// What is wrong with any request of this kind, whoever carries it out.
    fn check(&self, request: &Request<'_>) -> Result<(), (ErrorCode, &'static str)> {
        if matches!(request.command, Command::Hello(_)) {
            return Err((ErrorCode::BadRequest, "a second hello"));
        }
        if request.command.row().has_keys
            && (request.namespace == NAMESPACE_SYSTEM || self.namespaces.borrow().get(request.namespace).is_none())
        {
            return Err((ErrorCode::NoSuchNamespace, "no namespace of that number"));
        }
        let key_fits = |key: &[u8]| key.len() <= KEY_BYTES_MAX;
        let value_fits = |value: &[u8]| value.len() <= VALUE_BYTES_MAX;
        let fits = match &request.command {
            Command::Put(put) => key_fits(put.key) && value_fits(put.value),
            Command::MultiGet { keys } => keys.len() <= MULTI_KEYS_MAX && keys.iter().all(|key| key_fits(key)),
            Command::MultiPut(put) => {
                put.items.len() <= MULTI_KEYS_MAX && put.items.iter().all(|item| key_fits(item.key) && value_fits(item.value))
            }
            command => command.key().is_none_or(key_fits),
        };
        if !fits {
            return Err((ErrorCode::TooLarge, "a key, a value or the number of keys is over its limit"));
        }
        if let Command::Scan(scan) = &request.command
            && scan.vnode >= self.node.vnodes
        {
            return Err((ErrorCode::BadRequest, "no vnode of that number"));
        }
        Ok(())
    }

    fn run_here(self: &Rc<Shard>, ticket: Ticket, request: &Request<'_>, token: Token, form: Form, body: &[u8]) {
        if let Some(cluster) = &self.cluster
            && request.command.row().has_keys
        {
            return self.coordinate(cluster, ticket, request, token, (form, body));
        }
        if let Some(need) = self.too_high(request) {
            self.stats.error(ErrorCode::Unavailable);
            let error =
                ErrorReply { need, alive: 1, ..ErrorReply::new(ErrorCode::Unavailable, "this node is alone, so there is one replica") };
            return self.answer(&ticket, &Reply::Error(error));
        }
        let deadline = self.deadline(request.deadline_ms);
        match execute::execute(self, &ticket, request, token) {
            Step::Done => {}
            Step::Wait => perform::spawn(self, ticket, form, body.to_vec(), deadline),
            Step::WaitTurn { bytes } => self.wait_turn(ticket, (form, body), token, deadline, bytes),
        }
    }

    /// Puts a write into the line of those that flushes and merges have to keep up with.
    fn wait_turn(self: &Rc<Shard>, ticket: Ticket, (form, body): (Form, &[u8]), token: Token, deadline: Mono, bytes: usize) {
        let Some(guard) = self.locks.try_lock(token) else {
            return perform::spawn(self, ticket, form, body.to_vec(), deadline);
        };
        if !self.admit.begin() {
            return self.fail(&ticket, ErrorCode::Overloaded, TOO_MANY_WAIT);
        }
        let kept = self.keep(&ticket, body.len());
        self.pace.defer(Later { ticket, form, body: body.to_vec(), token, deadline, bytes, kept, guard });
    }

    /// Its turn has come, or its deadline has passed.
    pub fn write_now(&self, later: Later) {
        let Later { ticket, form, body, token, deadline, kept, guard, .. } = later;
        self.admit.end();
        if self.io.now() >= deadline {
            self.fail(&ticket, ErrorCode::DeadlinePassed, TOO_LATE);
        } else {
            let request = decode_request(form, &body).expect("decoded once before");
            execute::write_blindly(self, &ticket, &request, token, deadline);
        }
        drop((kept, guard));
    }

    /// How many replicas a level wants, where that is more than a node that is alone has.
    fn too_high(&self, request: &Request<'_>) -> Option<u16> {
        let LevelsAsked { read, write } = request.levels;
        let level = match request.command.row().access {
            Access::Read => read,
            Access::Write => write,
            _ => None,
        };
        match level {
            Some(Level::Exactly(count)) if count > 1 => Some(u16::from(count)),
            _ => None,
        }
    }

    fn pass_on(self: &Rc<Shard>, owner: u16, ticket: Ticket, form: Form, body: &[u8]) {
        self.stats.forwarded();
        let room = match &ticket.origin {
            Origin::Connection(conn) => conn.try_promise(CHUNK_BYTES),
            _ => None,
        };
        let bytes = match ticket.origin {
            Origin::Part(_) => ticket.room(),
            _ if room.is_some() => CHUNK_BYTES,
            // Small enough that as many as may be under way do no harm.
            _ => ANSWER_BYTES_GUESS,
        };
        let held = Holds { kept: self.keep(&ticket, body.len()), room, bytes };
        if let Err(ticket) = self.mailbox.forward(usize::from(owner), ticket, held, form, body.to_vec()) {
            self.fail(&ticket, ErrorCode::Overloaded, TOO_MANY_FORWARDS);
        }
    }

    /// The owner found that an answer is larger than it may be: asks again once the client's connection has room for it. Without this,
    /// clients that read nothing would have the other cores fill this one's memory.
    pub fn ask_again(self: &Rc<Shard>, owner: usize, ticket: Ticket, bytes: usize, form: Form, body: Vec<u8>) {
        if let Origin::Part(gather) = &ticket.origin {
            return gather.needs_room(self, ticket.id as usize, bytes);
        }
        if !self.admit.begin() {
            return self.fail(&ticket, ErrorCode::Overloaded, TOO_MANY_WAIT);
        }
        let shard = self.clone();
        drop(self.io.spawn(Class::Foreground, async move {
            let kept = shard.keep(&ticket, body.len());
            let deadline = shard.deadline(decode_request(form, &body).map_or(0, |request| request.deadline_ms));
            match shard.room_for(&ticket, bytes, deadline).await {
                Err((code, why)) => shard.fail(&ticket, code, why),
                Ok(room) => {
                    let held = Holds { kept, room, bytes };
                    if let Err(ticket) = shard.mailbox.forward(owner, ticket, held, form, body) {
                        shard.fail(&ticket, ErrorCode::Overloaded, TOO_MANY_FORWARDS);
                    }
                }
            }
            shard.admit.end();
            shard.settle();
        }));
    }

    /// Waits for room on the client's connection, where it is a connection of this core.
    pub(super) async fn room_for(
        &self,
        ticket: &Ticket,
        bytes: usize,
        deadline: Mono,
    ) -> Result<Option<Promise>, (ErrorCode, &'static str)> {
        let Origin::Connection(conn) = &ticket.origin else { return Ok(None) };
        match within(&self.io, deadline, conn.promise(bytes)).await {
            None => Err((ErrorCode::DeadlinePassed, NO_ROOM)),
            Some(None) => Err((ErrorCode::ShuttingDown, "the connection ended")),
            Some(promise) => Ok(promise),
        }
    }

    /// A part of a request, here or at another core.
    fn run_part(self: &Rc<Shard>, core: u16, gather: &Rc<Gather>, part: usize, request: &Request<'_>) {
        let ticket = Ticket { origin: Origin::Part(gather.clone()), id: part as u64 };
        let mut frame = Vec::new();
        encode_request(&mut frame, part as u64, request);
        let body = &frame[crate::wire::frame::HEADER_BYTES..];
        let form = Form::from(request);
        if core == self.core() { self.run_here(ticket, request, 0, form, body) } else { self.pass_on(core, ticket, form, body) }
    }

    /// A request about the whole node was taken apart by core 0, and this is one core's part of it.
    pub fn is_part(&self, ticket: &Ticket) -> bool {
        match ticket.origin {
            Origin::Part(_) => true,
            Origin::Core { core, .. } => core == 0 && self.core() != 0,
            Origin::Connection(_) | Origin::Peer(_) | Origin::Local(_) | Origin::Nobody => false,
        }
    }

    /// Every core does its part of a request about the whole node; `Gather::wait` says when all have.
    pub fn ask_all(self: &Rc<Shard>, ticket: &Ticket, request: &Request<'_>) -> Rc<Gather> {
        assert!(self.core() == 0, "what the node has one of is core 0's");
        let gather = Rc::new(Gather::new(ticket.clone(), usize::from(self.node.cores), Whole::Awaited(Signal::default()), None));
        for core in 0..self.node.cores {
            self.run_part(core, &gather, usize::from(core), request);
        }
        self.settle();
        gather
    }

    /// Which cores own the keys of a request, and the places in it of each one's keys.
    fn split(&self, keys: &[&[u8]]) -> (Vec<u16>, Vec<Vec<u32>>) {
        let mut places: Vec<Vec<u32>> = vec![Vec::new(); usize::from(self.node.cores)];
        for (place, key) in keys.iter().enumerate() {
            places[usize::from(self.owner(token_of(key)))].push(place as u32);
        }
        let owners = (0..self.node.cores).filter(|&core| !places[usize::from(core)].is_empty()).collect();
        places.retain(|places| !places.is_empty());
        (owners, places)
    }

    /// A request of many keys. Where one core owns them all, it goes there whole; else each owner gets its part.
    fn take_apart(self: &Rc<Shard>, ticket: Ticket, request: &Request<'_>, form: Form, body: &[u8]) {
        let keys: Vec<&[u8]> = match &request.command {
            Command::MultiGet { keys } => keys.to_vec(),
            Command::MultiPut(put) => put.items.iter().map(|item| item.key).collect(),
            _ => unreachable!("only requests of many keys are taken apart"),
        };
        if let Command::MultiPut(MultiPut { write: WriteOptions { version: Some(version), .. }, .. }) = request.command
            && !ticket.is_from_within()
            && !execute::may_have_given(self, version)
        {
            return self.fail(&ticket, ErrorCode::BadRequest, execute::FOREIGN_VERSION);
        }
        let (owners, places) = self.split(&keys);
        match owners[..] {
            [] => return self.run_here(ticket, request, 0, form, body),
            [owner] if owner == self.core() => return self.run_here(ticket, request, 0, form, body),
            [owner] => return self.pass_on(owner, ticket, form, body),
            _ => {}
        }
        match &request.command {
            Command::MultiPut(put) if put.write.announce => self.announce_and_split(ticket, form, body.to_vec(), owners, places),
            Command::MultiPut(put) => match (put.write.version, &self.cluster) {
                (None, Some(_)) => self.announce_and_split(ticket, form, body.to_vec(), owners, places),
                (version, _) => {
                    let version = version.unwrap_or_else(|| self.engine.stamp(self.io.wall_ms()));
                    self.split_puts(ticket, request, put, version, &owners, &places);
                }
            },
            _ => self.split_gets(ticket, &keys, request, body, &owners, places),
        }
    }

    /// At once where there is room for small values, else when there is.
    fn split_gets(
        self: &Rc<Shard>,
        ticket: Ticket,
        keys: &[&[u8]],
        request: &Request<'_>,
        body: &[u8],
        owners: &[u16],
        places: Vec<Vec<u32>>,
    ) {
        let rooms: Vec<usize> = places.iter().map(|places| multi_get_guess(places.len())).collect();
        let bytes = rooms.iter().sum();
        let asked = Again { form: Form::from(request), body: body.to_vec(), deadline: self.deadline(request.deadline_ms), round: 0, rooms };
        let kept = self.keep(&ticket, body.len());
        let room = match &ticket.origin {
            Origin::Connection(conn) => conn.try_promise(bytes),
            _ => unreachable!("what another core sends has one owner"),
        };
        match room {
            Some(room) => self.scatter(ticket, keys, request, owners, Values::new(self, asked, places, keys.len(), room), kept),
            None => self.gather_later(ticket, asked, kept),
        }
    }

    /// Carries out a multi-get over several cores once there is room for its answer.
    pub fn gather_later(self: &Rc<Shard>, ticket: Ticket, asked: Again, kept: Option<Kept>) {
        if !self.admit.begin() {
            return self.fail(&ticket, ErrorCode::Overloaded, TOO_MANY_WAIT);
        }
        let shard = self.clone();
        drop(self.io.spawn(Class::Foreground, async move {
            match shard.room_for(&ticket, asked.rooms.iter().sum(), asked.deadline).await {
                Err((code, why)) => shard.fail(&ticket, code, why),
                Ok(None) => unreachable!("only a connection's request is taken apart"),
                Ok(Some(room)) => {
                    let body = asked.body.clone();
                    let mut request = decode_request(asked.form, &body).expect("decoded once before");
                    let left_ms = asked.deadline.since(shard.io.now()).as_millis().max(1);
                    request.deadline_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
                    let Command::MultiGet { keys } = &request.command else { unreachable!("a multi-get") };
                    let keys = keys.to_vec();
                    let (owners, places) = shard.split(&keys);
                    let values = Values::new(&shard, asked, places, keys.len(), room);
                    shard.scatter(ticket, &keys, &request, &owners, values, kept);
                }
            }
            shard.admit.end();
            shard.settle();
        }));
    }

    /// Sends the parts of a multi-get out.
    fn scatter(
        self: &Rc<Shard>,
        ticket: Ticket,
        keys: &[&[u8]],
        request: &Request<'_>,
        owners: &[u16],
        values: Values,
        kept: Option<Kept>,
    ) {
        let part = |places: &Vec<u32>| places.iter().map(|&place| keys[place as usize]).collect();
        let parts: Vec<Vec<&[u8]>> = values.places.iter().map(part).collect();
        let gather = Rc::new(Gather::new(ticket, owners.len(), Whole::Values(Box::new(values)), kept));
        for (part, (&core, keys)) in owners.iter().zip(parts).enumerate() {
            self.run_part(core, &gather, part, &Request { command: Command::MultiGet { keys: keys.into() }, ..*request });
        }
    }

    /// Tells the version before any part is sent; none of the parts tells it again.
    fn announce_and_split(self: &Rc<Shard>, ticket: Ticket, form: Form, body: Vec<u8>, owners: Vec<u16>, places: Vec<Vec<u32>>) {
        if !self.admit.begin() {
            return self.fail(&ticket, ErrorCode::Overloaded, TOO_MANY_WAIT);
        }
        let (shard, kept) = (self.clone(), self.keep(&ticket, body.len()));
        drop(self.io.spawn(Class::Foreground, async move {
            let _kept = kept;
            let request = decode_request(form, &body).expect("decoded once before");
            let Command::MultiPut(put) = &request.command else { unreachable!("only these are announced here") };
            if let Some(version) = shard.version_of_all(&ticket, &request, put).await {
                if put.write.announce {
                    shard.announce(&ticket, version);
                }
                shard.split_puts(ticket, &request, put, version, &owners, &places);
            }
            shard.admit.end();
            shard.settle();
        }));
    }

    /// The version of a put of many keys; none, and answered, where it cannot have one.
    async fn version_of_all(self: &Rc<Shard>, ticket: &Ticket, request: &Request<'_>, put: &MultiPut<'_>) -> Option<Version> {
        if put.write.version.is_some() {
            return put.write.version;
        }
        if let Some(cluster) = &self.cluster {
            let stamped = self.quorum_stamp(cluster, request, &put.items, self.deadline(request.deadline_ms)).await;
            return stamped.map_err(|trouble| self.tell_trouble(ticket, trouble)).ok();
        }
        let version = self.engine.stamp(self.io.wall_ms());
        let told = self.engine.make_ceiling_durable(version).await;
        told.map_err(|error| engine_error(self, ticket, &error)).ok().map(|()| version)
    }

    /// All parts carry one version, so that a retry of the whole is the same write everywhere.
    fn split_puts(
        self: &Rc<Shard>,
        ticket: Ticket,
        request: &Request<'_>,
        put: &MultiPut<'_>,
        version: Version,
        owners: &[u16],
        places: &[Vec<u32>],
    ) {
        let write = WriteOptions { version: Some(version), announce: false };
        let parts = places.iter().map(|part| part.iter().map(|&place| put.items[place as usize]).collect::<Vec<PutItem<'_>>>());
        let parts: Vec<_> = parts.map(|items| Command::MultiPut(MultiPut { items: items.into(), write })).collect();
        let kept = self.keep(&ticket, put.items.iter().map(|item| item.key.len() + item.value.len()).sum());
        let gather = Rc::new(Gather::new(ticket, owners.len(), Whole::Put { version, stored: Cell::new(false) }, kept));
        for (part, (&core, command)) in owners.iter().zip(parts).enumerate() {
            self.run_part(core, &gather, part, &Request { command, ..*request });
        }
    }
}
