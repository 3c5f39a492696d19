//! Where a thread's requests come from: an open plan, a closed loop, every key once (fill), every key back (verify).
//!
//! With routing on, keys are always drawn from the whole distribution and then sent over a connection to the core that owns them. In the
//! open loop the arrival picks the connection. In a closed loop it is the other way round, a connection has room and wants a key of its
//! core; keys drawn on the way wait, in order, for a connection of theirs, so that hardly a draw is in vain. Each connection keeps its
//! pipeline full, so in a closed loop cores see load by their connections, not by the weight of their keys.

use crate::connection::Planned;
use crate::draw::KeyDraw;
use crate::keys::KeyNames;
use crate::ledger::Ledger;
use crate::permute::Permutation;
use crate::plan::{Arrivals, Mix, OpKind};
use crate::protocol::Topology;

use ringkv::base::prng::Prng;
use std::collections::VecDeque;

/// Keys that wait for a connection of their core, a core.
const WAITING_MAX: usize = 4096;
/// After so many draws for other cores a connection takes any key: this many, and some more a core.
const DRAWS_MAX: usize = 64;
const DRAWS_A_CORE_MAX: usize = 16;

/// What is still to be asked.
pub enum Work {
    Open(Arrivals),
    Closed,
    /// Puts to permuted indexes from `next` on, every `step`-th.
    Fill {
        permutation: Permutation,
        next: u64,
        step: u64,
    },
    /// Gets of tracked keys from `next` on, every `step`-th.
    Verify {
        next: u64,
        step: u64,
        end: u64,
    },
}

/// A thread's source of requests.
pub struct Source {
    pub work: Work,
    pub mix: Mix,
    pub draw: KeyDraw,
    pub random: Prng,
    pub keys: u64,
    /// Drawn for a core whose connections were busy, a queue a core.
    waiting: Vec<VecDeque<(u64, OpKind)>>,
    /// Requests to be tried again, each from an instant on.
    retries: VecDeque<Planned>,
    retries_left: u64,
}

impl Source {
    pub fn new(work: Work, mix: Mix, draw: KeyDraw, random: Prng, keys: u64) -> Source {
        let retries_left = keys.saturating_mul(10).saturating_add(1000);
        Source { work, mix, draw, random, keys, waiting: Vec::new(), retries: VecDeque::new(), retries_left }
    }

    /// Every request must be answered before the phase ends, and refused ones are tried again.
    pub fn is_exhaustive(&self) -> bool {
        matches!(self.work, Work::Fill { .. } | Work::Verify { .. })
    }

    /// When the next arrival is due; None where requests follow answers.
    pub fn next_arrival_ns(&self) -> Option<u64> {
        match &self.work {
            Work::Open(arrivals) => Some(arrivals.next_ns()),
            _ => self.retries.front().map(|retry| retry.at_ns),
        }
    }

    /// An arrival that is due by `now_ns`, in an open loop.
    #[inline]
    pub fn arrival(&mut self, now_ns: u64) -> Option<Planned> {
        let Work::Open(arrivals) = &mut self.work else { return None };
        let at_ns = arrivals.next_ns();
        if at_ns > now_ns {
            return None;
        }
        arrivals.advance();
        let kind = self.mix.draw(&mut self.random);
        Some(Planned { at_ns, key: self.draw.draw(kind, &mut self.random), kind })
    }

    /// To be tried again at `at_ns`. False: it has been tried too often.
    pub fn retry(&mut self, planned: Planned) -> bool {
        self.retries_left = self.retries_left.saturating_sub(1);
        if self.retries_left > 0 {
            self.retries.push_back(planned);
        }
        self.retries_left > 0
    }

    /// Nothing is left that was not handed out.
    pub fn is_empty(&self) -> bool {
        let done = match &self.work {
            Work::Open(_) | Work::Closed => false,
            Work::Fill { next, .. } => *next >= self.keys,
            Work::Verify { next, end, .. } => next >= end,
        };
        done && self.retries.is_empty() && self.waiting.iter().all(VecDeque::is_empty)
    }

    /// The next request for a connection that has room, out of an open loop. `core` None: of any core.
    pub fn next(&mut self, core: Option<u16>, router: &mut Router<'_>, now_ns: u64) -> Option<Planned> {
        if self.retries.front().is_some_and(|retry| retry.at_ns <= now_ns) {
            return self.retries.pop_front().map(|retry| Planned { at_ns: now_ns, ..retry });
        }
        let (key, kind) = match core {
            None => self.waiting.iter_mut().find_map(VecDeque::pop_front).or_else(|| self.draw_next(router.ledger))?,
            Some(core) => self.draw_for(core, router)?,
        };
        Some(Planned { at_ns: now_ns, key, kind })
    }

    fn draw_for(&mut self, core: u16, router: &mut Router<'_>) -> Option<(u64, OpKind)> {
        if self.waiting.len() < router.served.len() {
            self.waiting.resize_with(router.served.len(), VecDeque::new);
        }
        if let Some(drawn) = self.waiting[usize::from(core)].pop_front() {
            return Some(drawn);
        }
        for _ in 0..DRAWS_MAX + DRAWS_A_CORE_MAX * router.served.len() {
            // A full queue would lose keys that must all be asked; its core's connections empty it.
            if self.is_exhaustive() && self.waiting.iter().any(|queue| queue.len() >= WAITING_MAX) {
                return None;
            }
            let (key, kind) = self.draw_next(router.ledger)?;
            let owner = usize::from(router.topology.core_of(router.names.name(key)));
            if owner == usize::from(core) || !router.served[owner] {
                return Some((key, kind));
            }
            if self.waiting[owner].len() < WAITING_MAX {
                self.waiting[owner].push_back((key, kind));
            }
        }
        self.draw_next(router.ledger)
    }

    fn draw_next(&mut self, ledger: Option<&Ledger>) -> Option<(u64, OpKind)> {
        match &mut self.work {
            Work::Open(_) => None,
            Work::Closed => {
                let kind = self.mix.draw(&mut self.random);
                Some((self.draw.draw(kind, &mut self.random), kind))
            }
            Work::Fill { permutation, next, step } => {
                let index = *next;
                (index < self.keys).then(|| {
                    *next += *step;
                    (permutation.apply(index), OpKind::Put)
                })
            }
            Work::Verify { next, step, end } => {
                while *next < *end {
                    let key = *next;
                    *next += *step;
                    if ledger.is_none_or(|ledger| ledger.was_written(key)) {
                        return Some((key, OpKind::Get));
                    }
                }
                None
            }
        }
    }
}

/// How a source finds the core of a key.
pub struct Router<'a> {
    pub names: &'a mut KeyNames,
    pub topology: Topology,
    /// Which cores this thread has connections to.
    pub served: &'a [bool],
    pub ledger: Option<&'a Ledger>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Shape;
    use crate::sizes::Sizes;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    fn source(work: Work, keys: u64) -> Source {
        let draw = KeyDraw::new(Shape::Uniform, keys, 1, &Arc::new(AtomicU64::new(keys)));
        Source::new(work, Mix { weights: [1, 1, 0] }, draw, Prng::new(1), keys)
    }

    fn names(keys: u64) -> KeyNames {
        KeyNames::new(&Sizes::uniform(16, 16), keys).unwrap()
    }

    #[test]
    fn a_fill_over_threads_and_cores_hands_out_every_key_once() {
        let keys = 10_000;
        let topology = Topology { cores: 3, vnodes: 4096 };
        let mut names = names(keys);
        let mut seen = vec![0u32; keys as usize];
        for thread in 0..2 {
            let mut source = source(Work::Fill { permutation: Permutation::new(keys, 5), next: thread, step: 2 }, keys);
            while !source.is_empty() {
                for core in 0..3 {
                    let served = &[true; 3];
                    let mut router = Router { names: &mut names, topology, served, ledger: None };
                    let Some(planned) = source.next(Some(core), &mut router, 0) else { continue };
                    assert_eq!((topology.core_of(names.name(planned.key)), planned.kind), (core, OpKind::Put));
                    seen[planned.key as usize] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&count| count == 1));
    }

    #[test]
    fn a_verify_asks_for_written_keys_only() {
        let ledger = Ledger::new(1, 100, 0);
        [3u64, 50, 99].iter().for_each(|&key| _ = ledger.begin_write(key, false, 0));
        let mut names = names(100);
        let mut source = source(Work::Verify { next: 0, step: 1, end: 100 }, 100);
        let topology = Topology { cores: 1, vnodes: 4096 };
        let mut router = Router { names: &mut names, topology, served: &[true], ledger: Some(&ledger) };
        let asked: Vec<u64> = std::iter::from_fn(|| source.next(None, &mut router, 0)).map(|planned| planned.key).collect();
        assert_eq!(asked, [3, 50, 99]);
    }

    #[test]
    fn arrivals_carry_their_planned_times() {
        let mut source = source(Work::Open(Arrivals::new(1e6, Prng::new(1))), 100);
        let planned: Vec<Planned> = std::iter::from_fn(|| source.arrival(1_000_000)).collect();
        assert!((900..1100).contains(&planned.len()), "{}", planned.len());
        assert!(planned.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
        assert!(source.next_arrival_ns().unwrap() > 1_000_000);
    }
}
