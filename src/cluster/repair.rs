//! Repair: two replicas of a vnode compare their trees and copy to each other what the other lacks (anti-entropy; Demers et al., "Epidemic
//! algorithms for replicated database maintenance", 1987). The one that began (`Exchange`) asks, the other (`serve`) answers and keeps
//! nothing between two questions, so that only the asker has to time out, resend and resume.
//!
//! | question | answer |
//! | --- | --- |
//! | `Open` | how deep the other's tree is; both go on at the smaller depth |
//! | `Level`: hashes of some nodes | those that differ; for each the 16 below it are asked for next, down to the leaves |
//! | `Page`: places and versions of a part of a leaf | what the asker lacks, as cells, and what the other lacks, as places |
//! | `Push`: the cells that the other lacked | stored, and how many were refused |
//!
//! Both sides store what is newer, part by part (`forget::admits_cell`), durable before they go on. A question is repeated under the same
//! turn until it is answered: all answers can be given twice. Nodes are visited in the order of tokens, so that a comparison that was cut
//! off can go on at the token it had reached. Nothing is sent without credit, which the caller gives by the byte, and nothing in memory
//! is larger than a page.
//!
//! Within a session of forgetting (`forget`) only what is at or below its f is compared: for each such cell either side holds it or newer.

use super::forget::{Session, is_rmw_on};
use super::merkle::{Digest, STEP_LOG2, Tree};
use crate::base::record::{Token, Version};
use crate::base::time::Mono;
use crate::limits::{LEAVES_LOG2_MAX, LEVEL_NODES_MAX};
use crate::wire::peer_repair::ENTRY_BYTES;
pub use crate::wire::peer_repair::{Answer, Ask, CellCopy, Diff, Entry, Page, Place, Question, Reply, Scope, Span};
use std::collections::BTreeSet;
use std::time::Duration;

/// A question that is not answered is asked again.
const RESEND: Duration = Duration::from_secs(2);
/// So often; then the peer is silent.
const TRIES_MAX: u32 = 5;
/// Credit that is not used does not grow beyond this.
const CREDIT_BYTES_MAX: i64 = 1 << 20;
/// What a message costs beside what it carries.
const OVERHEAD_BYTES: usize = 64;

/// What a replica holds in a span: the places for which `merkle::is_compared` holds, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub entries: Vec<Entry>,
    /// The version of what is absent (`forget::Marks::absent`).
    pub absent: Version,
    /// The last entry's place, where the list ends before the span because it reached `REPAIR_PAGE_BYTES`.
    pub stopped_at: Option<Place>,
}

/// What an exchange asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Ask(Ask),
    /// List our own cells; then `on_listed`.
    List(Span),
    /// Store what is admitted and make it durable; read the places in order until `REPAIR_PAGE_BYTES` are read, at least one; then
    /// `on_copied`.
    Copy {
        store: Vec<CellCopy>,
        read: Vec<Place>,
    },
    Over(Outcome),
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was compared; so many places differed, and so many copies were refused here or there.
    Compared {
        differing: u64,
        refused: u64,
    },
    /// No answer. To go on later: from this token.
    Silent {
        at: Token,
    },
    Refused,
    /// The peer's answers make no sense.
    Malformed,
}

/// Whether who holds `theirs` (or for an absent place nothing, at version `absent`) lacks a part of `ours` that is at or below `up_to`.
fn lacks(theirs: Option<Digest>, absent: Version, ours: Digest, up_to: Version) -> bool {
    let theirs = theirs.unwrap_or_default();
    let part = |theirs, ours| ours > theirs && ours <= up_to && (ours > absent || is_rmw_on(ours, theirs));
    let is_tie = ours.value == theirs.value && !ours.is_gone && theirs.is_gone && ours.value <= up_to && ours.value > Version::ZERO;
    part(theirs.value, ours.value) || part(theirs.expiry, ours.expiry) || is_tie
}

fn up_to(session: Option<Session>) -> Version {
    session.map_or(Version::MAX, |session| session.up_to)
}

/// What a question costs.
fn cost_of(question: &Question) -> usize {
    OVERHEAD_BYTES
        + match question {
            Question::Open => 0,
            Question::Level(level) => level.nodes.len() * 20,
            Question::Page(page) => page.entries.iter().map(|entry| entry.place.len() + ENTRY_BYTES).sum(),
            Question::Push(cells) => bytes_of(cells),
        }
}

fn bytes_of(cells: &[CellCopy]) -> usize {
    cells.iter().map(|copy| copy.place.len() + copy.cell.len() + ENTRY_BYTES).sum()
}

#[derive(Debug)]
enum Waits {
    /// For credit.
    Ready(Question),
    Answer(Question),
    Listing(Span),
    /// For cells to be stored, and read.
    Copied,
    Nothing,
}

/// The asker's side.
#[derive(Debug)]
pub struct Exchange {
    number: u64,
    scope: Scope,
    session: Option<Session>,
    /// Nothing before is compared.
    from: Token,
    turn: u32,
    /// On which level the leaves are.
    depth: u8,
    /// Nodes that differ, the next one last.
    nodes: Vec<(u8, u32)>,
    /// The leaf under way, or its rest.
    span: Option<Span>,
    /// What the peer still lacks of the page.
    wants: Vec<Place>,
    waits: Waits,
    credit: i64,
    sent: Mono,
    tries: u32,
    differing: u64,
    refused: u64,
}

impl Exchange {
    /// `number` tells this exchange's answers from those of earlier ones; `leaves_log2` is the depth of our own tree; `from`: where an
    /// earlier one was cut off.
    pub fn new(
        now: Mono,
        number: u64,
        scope: Scope,
        session: Option<Session>,
        leaves_log2: u8,
        from: Option<Token>,
        out: &mut Vec<Effect>,
    ) -> Exchange {
        let mut exchange = Exchange {
            number,
            scope,
            session,
            from: from.unwrap_or(0),
            turn: 0,
            depth: leaves_log2,
            nodes: Vec::new(),
            span: None,
            wants: Vec::new(),
            waits: Waits::Nothing,
            credit: 1,
            sent: now,
            tries: 0,
            differing: 0,
            refused: 0,
        };
        exchange.ask(now, Question::Open, out);
        exchange
    }

    /// Everything before this token was compared: where an exchange that ends now is gone on with later.
    pub fn reached(&self) -> Token {
        self.span.as_ref().map_or(self.from, |span| span.first)
    }

    fn ask(&mut self, now: Mono, question: Question, out: &mut Vec<Effect>) {
        (self.turn, self.tries) = (self.turn + 1, 0);
        self.waits = Waits::Ready(question);
        self.send(now, out);
    }

    /// Sends what waits for credit, if there is any.
    fn send(&mut self, now: Mono, out: &mut Vec<Effect>) {
        let Waits::Ready(question) = &self.waits else { return };
        if self.credit <= 0 {
            return;
        }
        let question = question.clone();
        self.credit -= cost_of(&question) as i64;
        self.sent = now;
        let (scope, session, exchange, turn) = (self.scope, self.session, self.number, self.turn);
        out.push(Effect::Ask(Ask { scope, session, exchange, turn, question: question.clone() }));
        self.waits = Waits::Answer(question);
    }

    fn over(&mut self, outcome: Outcome, out: &mut Vec<Effect>) {
        self.waits = Waits::Nothing;
        out.push(Effect::Over(outcome));
    }

    /// To be called now and then; `credit` bytes more may be sent.
    pub fn on_tick(&mut self, now: Mono, credit: usize, out: &mut Vec<Effect>) {
        self.credit = (self.credit + credit as i64).min(CREDIT_BYTES_MAX);
        if let Waits::Answer(question) = &mut self.waits
            && now.since(self.sent) >= RESEND
        {
            let question = std::mem::replace(question, Question::Open);
            self.tries += 1;
            if self.tries == TRIES_MAX {
                return self.over(Outcome::Silent { at: self.reached() }, out);
            }
            self.waits = Waits::Ready(question);
        }
        self.send(now, out);
    }

    /// An answer of the peer. Late ones, and those of another exchange, are nothing.
    pub fn on_answer(&mut self, now: Mono, tree: &Tree, answer: Answer, out: &mut Vec<Effect>) {
        if answer.exchange != self.number || answer.turn != self.turn {
            return;
        }
        // Also where a repetition still waits for credit.
        let question = match std::mem::replace(&mut self.waits, Waits::Copied) {
            Waits::Answer(question) | Waits::Ready(question) => question,
            other => return self.waits = other,
        };
        match (question, answer.reply) {
            (_, Reply::Refused) => self.over(Outcome::Refused, out),
            (Question::Open, Reply::Opened { leaves_log2 }) if leaves_log2 <= LEAVES_LOG2_MAX => {
                self.depth = self.depth.min(leaves_log2).min(tree.leaves_log2());
                self.ask(now, Question::Level(tree.level(0, [0])), out);
            }
            (Question::Level(asked), Reply::Differing(nodes)) => {
                let rises = nodes.is_sorted_by(|a, b| a < b);
                if !rises || nodes.iter().any(|node| asked.nodes.binary_search_by_key(node, |(index, _)| *index).is_err()) {
                    return self.over(Outcome::Malformed, out);
                }
                let rest = nodes.iter().rev().filter(|node| tree.range(asked.log2, **node).1 >= self.from);
                self.nodes.extend(rest.map(|node| (asked.log2, *node)));
                self.advance(now, tree, out);
            }
            (Question::Page(page), Reply::Diff(diff)) => self.on_diff(now, tree, &page, diff, out),
            (Question::Push(_), Reply::Stored { refused }) => {
                self.refused += u64::from(refused);
                self.go_on(now, tree, out);
            }
            _ => self.over(Outcome::Malformed, out),
        }
    }

    /// Goes down from the next nodes that differ, or to the next leaf.
    fn advance(&mut self, now: Mono, tree: &Tree, out: &mut Vec<Effect>) {
        let Some(&(log2, index)) = self.nodes.last() else {
            let outcome = Outcome::Compared { differing: self.differing, refused: self.refused };
            return self.over(outcome, out);
        };
        if log2 >= self.depth {
            self.nodes.pop();
            let (first, last) = tree.range(log2, index);
            return self.list(Span { first, last, after: None, until: None }, out);
        }
        let step = STEP_LOG2.min(self.depth - log2);
        let mut below = Vec::new();
        while let Some(&(_, index)) = self.nodes.last().filter(|node| node.0 == log2 && below.len() + (1 << step) <= LEVEL_NODES_MAX) {
            below.extend(index << step..(index + 1) << step);
            self.nodes.pop();
        }
        self.ask(now, Question::Level(tree.level(log2 + step, below)), out);
    }

    fn list(&mut self, span: Span, out: &mut Vec<Effect>) {
        self.waits = Waits::Listing(span.clone());
        self.span = Some(span.clone());
        out.push(Effect::List(span));
    }

    /// What we hold in the span that was asked for.
    pub fn on_listed(&mut self, now: Mono, listing: Listing, out: &mut Vec<Effect>) {
        let Waits::Listing(mut span) = std::mem::replace(&mut self.waits, Waits::Nothing) else { return };
        span.until = listing.stopped_at;
        self.ask(now, Question::Page(Page { span, absent: listing.absent, entries: listing.entries }), out);
    }

    fn on_diff(&mut self, now: Mono, tree: &Tree, page: &Page, diff: Diff, out: &mut Vec<Effect>) {
        let until = diff.until.as_ref().or(page.span.until.as_ref());
        let within = |place: &Place| Some(place) > page.span.after.as_ref() && until.is_none_or(|until| place <= until);
        let was_listed = |place: &Place| page.entries.binary_search_by(|entry| entry.place.cmp(place)).is_ok();
        let goes_on = diff.until.as_ref().is_none_or(|until| Some(until) > page.span.after.as_ref());
        let stays = diff.until.is_none() || page.span.until.is_none() || diff.until <= page.span.until;
        let cells = diff.cells.iter().all(|copy| within(&copy.place)) && diff.wants.iter().all(|place| within(place) && was_listed(place));
        if !goes_on || !stays || !cells {
            return self.over(Outcome::Malformed, out);
        }
        self.credit -= bytes_of(&diff.cells) as i64;
        self.differing += u64::from(diff.differing);
        self.span = until.map(|until| Span { after: Some(until.clone()), until: None, ..page.span.clone() });
        self.wants = diff.wants;
        if diff.cells.is_empty() {
            return self.go_on(now, tree, out);
        }
        self.waits = Waits::Copied;
        out.push(Effect::Copy { store: diff.cells, read: self.wants.clone() });
    }

    /// Reads what the peer still lacks, or goes to the next page.
    fn go_on(&mut self, now: Mono, tree: &Tree, out: &mut Vec<Effect>) {
        if !self.wants.is_empty() {
            self.waits = Waits::Copied;
            return out.push(Effect::Copy { store: Vec::new(), read: self.wants.clone() });
        }
        match self.span.take() {
            Some(span) => self.list(span, out),
            None => self.advance(now, tree, out),
        }
    }

    /// What was to be stored is durable, but for `refused` cells; of what was to be read the first `looked_at` places were, and these cells
    /// found there.
    pub fn on_copied(&mut self, now: Mono, tree: &Tree, refused: u32, looked_at: usize, cells: Vec<CellCopy>, out: &mut Vec<Effect>) {
        if !matches!(self.waits, Waits::Copied) {
            return;
        }
        self.refused += u64::from(refused);
        self.wants.drain(..looked_at.max(1).min(self.wants.len()));
        if cells.is_empty() { self.go_on(now, tree, out) } else { self.ask(now, Question::Push(cells), out) }
    }
}

/// What a question needs to be answered.
#[derive(Debug)]
pub enum Serve {
    Answer(Answer),
    /// List our own cells of the span; then `Comparing::listed`.
    List(Span, Comparing),
    /// Store what is admitted and make it durable; then `Storing::stored`.
    Store(Vec<CellCopy>, Storing),
}

/// A page, until our own list is there.
#[derive(Debug)]
pub struct Comparing {
    exchange: u64,
    turn: u32,
    up_to: Version,
    page: Page,
}

/// A page compared, until the cells that the asker lacks are read.
#[derive(Debug)]
pub struct Reading {
    exchange: u64,
    turn: u32,
    until: Option<Place>,
    /// Places that differ: whether the asker lacks something, and whether we do.
    differing: Vec<(Place, bool, bool)>,
}

/// Cells until they are stored.
#[derive(Debug)]
pub struct Storing {
    exchange: u64,
    turn: u32,
}

/// The other side. `is_served`: what `forget::Follower::serves` says of the question's scope and session.
pub fn serve(tree: &Tree, is_served: bool, ask: Ask) -> Serve {
    let (exchange, turn) = (ask.exchange, ask.turn);
    let answer = |reply| Serve::Answer(Answer { exchange, turn, reply });
    match ask.question {
        _ if !is_served => answer(Reply::Refused),
        Question::Open => answer(Reply::Opened { leaves_log2: tree.leaves_log2() }),
        Question::Level(level) => answer(Reply::Differing(tree.differing(&level))),
        Question::Page(page) if !is_sound(&page, tree) => answer(Reply::Refused),
        Question::Page(page) => Serve::List(page.span.clone(), Comparing { exchange, turn, up_to: up_to(ask.session), page }),
        Question::Push(cells) => Serve::Store(cells, Storing { exchange, turn }),
    }
}

/// A page's tokens are the vnode's, its entries rise and lie in it.
fn is_sound(page: &Page, tree: &Tree) -> bool {
    let (first, last) = tree.range(0, 0);
    let Span { after, until, .. } = &page.span;
    let places = || page.entries.iter().map(|entry| &entry.place);
    let within = |place: &Place| Some(place) > after.as_ref() && until.as_ref().is_none_or(|until| place <= until);
    let is_span = first <= page.span.first && page.span.first <= page.span.last && page.span.last <= last;
    is_span && places().is_sorted_by(|a, b| a < b) && places().all(within) && until.as_ref().is_none_or(within)
}

impl Comparing {
    /// What we hold in the span. The places that are given are to be read in order until `REPAIR_PAGE_BYTES` are read, at least one if
    /// there are any; then `Reading::read`.
    pub fn listed(self, listing: Listing) -> (Vec<Place>, Reading) {
        let Comparing { exchange, turn, up_to, page } = self;
        let stops = [&page.span.until, &listing.stopped_at];
        let until = stops.into_iter().flatten().min().cloned();
        let is_in = |place: &&Place| until.as_ref().is_none_or(|until| *place <= until);
        let both = page.entries.iter().chain(&listing.entries).map(|entry| &entry.place);
        let places: BTreeSet<&Place> = both.filter(is_in).collect();
        let find = |entries: &[Entry], place: &Place| {
            let at = entries.binary_search_by(|entry| entry.place.cmp(place)).ok()?;
            Some(entries[at].digest)
        };
        let mut differing = Vec::new();
        for place in places {
            let (theirs, ours) = (find(&page.entries, place), find(&listing.entries, place));
            let they_lack = ours.is_some_and(|ours| lacks(theirs, page.absent, ours, up_to));
            let we_lack = theirs.is_some_and(|theirs| lacks(ours, listing.absent, theirs, up_to));
            if they_lack || we_lack {
                differing.push((place.clone(), they_lack, we_lack));
            }
        }
        let read = differing.iter().filter(|(_, they_lack, _)| *they_lack).map(|(place, ..)| place.clone()).collect();
        (read, Reading { exchange, turn, until, differing })
    }
}

impl Reading {
    /// The first `looked_at` places were read, and these cells found there.
    pub fn read(mut self, looked_at: usize, cells: Vec<CellCopy>) -> Answer {
        let mut given = self.differing.iter().filter(|(_, they_lack, _)| *they_lack).map(|(place, ..)| place);
        let last = given.nth(looked_at.max(1) - 1).cloned();
        if given.next().is_some() {
            self.until = last;
        }
        let until = self.until;
        self.differing.retain(|(place, ..)| until.as_ref().is_none_or(|until| place <= until));
        let differing = self.differing.len() as u32;
        let wants = self.differing.into_iter().filter(|(.., we_lack)| *we_lack).map(|(place, ..)| place).collect();
        Answer { exchange: self.exchange, turn: self.turn, reply: Reply::Diff(Diff { until, differing, cells, wants }) }
    }
}

impl Storing {
    /// All is durable that was admitted; `refused` cells were not.
    pub fn stored(self, refused: u32) -> Answer {
        Answer { exchange: self.exchange, turn: self.turn, reply: Reply::Stored { refused } }
    }
}
