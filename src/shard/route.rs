//! Whose request is it? Decides for one frame: refuse it, carry it out here, send it to the core that owns the key, or take it apart.

use super::execute::{self, Step};
use super::gather::{Gather, Whole};
use super::perform;
use super::{Origin, Shard, Ticket};
use crate::base::record::{NAMESPACE_SYSTEM, Version, core_of, token_of};
use crate::limits::{KEY_BYTES_MAX, MULTI_KEYS_MAX, VALUE_BYTES_MAX};
use crate::wire::command::{Command, ErrorCode, MultiPut, PutItem, Request, WriteOptions};
use crate::wire::native::{decode_request, encode_request};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

impl Shard {
    /// One request frame, from a client of this core or from another core. Its answer goes to `ticket`, now or later.
    pub fn handle(self: &Rc<Shard>, ticket: Ticket, kind: u16, body: &[u8]) {
        self.stats.request(kind);
        if self.is_closing() {
            return self.fail(&ticket, ErrorCode::ShuttingDown, "this node is shutting down");
        }
        let request = match decode_request(kind, body) {
            Ok(request) => request,
            Err(error) => return self.fail(&ticket, error.code, error.what),
        };
        if let Err((code, message)) = self.check(&request) {
            return self.fail(&ticket, code, message);
        }
        let owner = match &request.command {
            Command::MultiGet { .. } | Command::MultiPut(_) => return self.take_apart(ticket, &request, kind, body),
            Command::Snapshot { .. } if !matches!(ticket.origin, Origin::Core { .. } | Origin::Part(_)) => {
                return self.ask_all(ticket, kind, body);
            }
            Command::Scan(scan) => core_of(scan.vnode, self.node.cores),
            Command::NamespaceCreate { .. } | Command::NamespaceAlter { .. } => 0,
            command => command.key().map_or(self.core(), |key| self.owner(token_of(key))),
        };
        if owner == self.core() { self.run_here(ticket, &request, kind, body) } else { self.pass_on(owner, ticket, kind, body) }
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

    fn run_here(self: &Rc<Shard>, ticket: Ticket, request: &Request<'_>, kind: u16, body: &[u8]) {
        if let Step::Wait = execute::execute(self, &ticket, request) {
            perform::spawn(self, ticket, kind, body.to_vec(), self.deadline(request.deadline_ms));
        }
    }

    fn pass_on(self: &Rc<Shard>, owner: u16, ticket: Ticket, kind: u16, body: &[u8]) {
        self.stats.forwarded();
        if let Err(ticket) = self.mailbox.forward(usize::from(owner), ticket, kind, body.to_vec()) {
            self.fail(&ticket, ErrorCode::Overloaded, "too many requests are on their way to the owning core");
        }
    }

    /// A part of a request, here or at another core.
    fn run_part(self: &Rc<Shard>, core: u16, gather: &Rc<Gather>, part: usize, request: &Request<'_>) {
        let ticket = Ticket { origin: Origin::Part(gather.clone()), id: part as u64 };
        let mut frame = Vec::new();
        encode_request(&mut frame, part as u64, request);
        let body = &frame[crate::wire::frame::HEADER_BYTES..];
        let kind = request.command.kind();
        if core == self.core() { self.run_here(ticket, request, kind, body) } else { self.pass_on(core, ticket, kind, body) }
    }

    /// Every core does its part of a request about the whole node.
    fn ask_all(self: &Rc<Shard>, ticket: Ticket, kind: u16, body: &[u8]) {
        let gather = Rc::new(Gather::new(ticket, usize::from(self.node.cores), Whole::Done { newest: Cell::new(Version::ZERO) }));
        for core in 0..self.node.cores {
            let ticket = Ticket { origin: Origin::Part(gather.clone()), id: u64::from(core) };
            if core == self.core() {
                perform::spawn(self, ticket, kind, body.to_vec(), self.deadline(0));
            } else {
                self.pass_on(core, ticket, kind, body);
            }
        }
    }

    /// A request of many keys. Where one core owns them all, it goes there whole; else each owner gets its part.
    fn take_apart(self: &Rc<Shard>, ticket: Ticket, request: &Request<'_>, kind: u16, body: &[u8]) {
        let keys: Vec<&[u8]> = match &request.command {
            Command::MultiGet { keys } => keys.to_vec(),
            Command::MultiPut(put) => put.items.iter().map(|item| item.key).collect(),
            _ => unreachable!("only requests of many keys are taken apart"),
        };
        let mut places: Vec<Vec<u32>> = vec![Vec::new(); usize::from(self.node.cores)];
        for (place, key) in keys.iter().enumerate() {
            places[usize::from(self.owner(token_of(key)))].push(place as u32);
        }
        let owners: Vec<u16> = (0..self.node.cores).filter(|&core| !places[usize::from(core)].is_empty()).collect();
        match owners[..] {
            [] => return self.run_here(ticket, request, kind, body),
            [owner] if owner == self.core() => return self.run_here(ticket, request, kind, body),
            [owner] => return self.pass_on(owner, ticket, kind, body),
            _ => {}
        }
        places.retain(|places| !places.is_empty());
        match &request.command {
            Command::MultiPut(put) => self.split_puts(ticket, request, put, &owners, &places),
            _ => self.split_gets(ticket, request, &keys, &owners, places),
        }
    }

    fn split_gets(self: &Rc<Shard>, ticket: Ticket, request: &Request<'_>, keys: &[&[u8]], owners: &[u16], places: Vec<Vec<u32>>) {
        let parts: Vec<Vec<&[u8]>> = places.iter().map(|part| part.iter().map(|&place| keys[place as usize]).collect()).collect();
        let values = RefCell::new(vec![None; keys.len()]);
        let gather =
            Rc::new(Gather::new(ticket, owners.len(), Whole::Values { taken: RefCell::new(vec![0; places.len()]), places, values }));
        for (part, (&core, keys)) in owners.iter().zip(parts).enumerate() {
            self.run_part(core, &gather, part, &Request { command: Command::MultiGet { keys: keys.into() }, ..*request });
        }
    }

    /// All parts carry one version, so that a retry of the whole is the same write everywhere.
    fn split_puts(self: &Rc<Shard>, ticket: Ticket, request: &Request<'_>, put: &MultiPut<'_>, owners: &[u16], places: &[Vec<u32>]) {
        let version = put.write.version.unwrap_or_else(|| self.engine.stamp(self.io.wall_ms()));
        let write = WriteOptions { version: Some(version), announce: false };
        let parts = places.iter().map(|part| part.iter().map(|&place| put.items[place as usize]).collect::<Vec<PutItem<'_>>>());
        let parts: Vec<_> = parts.map(|items| Command::MultiPut(MultiPut { items: items.into(), write })).collect();
        let gather = Rc::new(Gather::new(ticket, owners.len(), Whole::Done { newest: Cell::new(Version::ZERO) }));
        for (part, (&core, command)) in owners.iter().zip(parts).enumerate() {
            self.run_part(core, &gather, part, &Request { command, ..*request });
        }
    }
}
