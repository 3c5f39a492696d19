//! The first round of all puts in flight in one small message a peer a turn.
//!
//! Whoever asks waits for the peer's next question, sent at the end of the turn. Its answer was given after the question was sent, so it
//! also answers all earlier ones.

use crate::base::map::{Map, Seeded};
use crate::limits::CORE_REQUESTS_MAX;
use std::collections::VecDeque;

/// Too many wait for the clock of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

#[derive(Debug)]
struct Peer<T> {
    /// Of the last question sent; they never start anew, so that no late answer is taken for another's.
    turn: u64,
    asked: bool,
    /// Who waits, each with the number of its question, in order.
    waiting: VecDeque<(u64, T)>,
}

/// Of one core. `T` names a put and its attempt.
#[derive(Debug)]
pub struct Clocks<T> {
    peers: Map<u64, Peer<T>>,
    waiting_max: usize,
}

impl<T> Clocks<T> {
    /// `seed` of the table, see `base::map`.
    pub fn new(seed: u64) -> Clocks<T> {
        Clocks::bounded(seed, CORE_REQUESTS_MAX)
    }

    fn bounded(seed: u64, waiting_max: usize) -> Clocks<T> {
        Clocks { peers: Map::with_hasher(Seeded(seed)), waiting_max }
    }

    /// `put` wants the clock of `peer`, a node of the topology.
    pub fn ask(&mut self, peer: u64, put: T) -> Result<(), TooMany> {
        let peer = self.peers.entry(peer).or_insert_with(|| Peer { turn: 0, asked: false, waiting: VecDeque::new() });
        if peer.waiting.len() >= self.waiting_max {
            return Err(TooMany);
        }
        peer.waiting.push_back((peer.turn + 1, put));
        peer.asked = true;
        Ok(())
    }

    /// The turn ends: each peer whose clock somebody asked for since the last one, with the request id of the question to send.
    pub fn flush(&mut self, mut send: impl FnMut(u64, u64)) {
        for (id, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.asked) {
            (peer.turn, peer.asked) = (peer.turn + 1, false);
            send(*id, peer.turn);
        }
    }

    /// `peer` answered question `turn`: who waited for it or an earlier one.
    pub fn answered(&mut self, peer: u64, turn: u64, mut tell: impl FnMut(T)) {
        let Some(peer) = self.peers.get_mut(&peer).filter(|peer| turn <= peer.turn) else { return };
        let due = peer.waiting.partition_point(|(asked, _)| *asked <= turn);
        peer.waiting.drain(..due).for_each(|(_, put)| tell(put));
    }

    /// The link broke: nobody waits for `peer` any more (the puts hear of it by `on_gone`).
    pub fn gone(&mut self, peer: u64) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            (peer.asked, peer.waiting) = (false, VecDeque::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_a_peer_a_turn_and_an_answer_serves_all_that_were_asked_before_it() {
        let mut clocks = Clocks::bounded(1, 4);
        let sent = |clocks: &mut Clocks<u32>| {
            let mut sent = Vec::new();
            clocks.flush(|peer, turn| sent.push((peer, turn)));
            sent.sort_unstable();
            sent
        };
        let told = |clocks: &mut Clocks<u32>, peer, turn| {
            let mut told = Vec::new();
            clocks.answered(peer, turn, |put| told.push(put));
            told
        };
        assert_eq!((clocks.ask(7, 1), clocks.ask(7, 2), clocks.ask(8, 1)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(sent(&mut clocks), [(7, 1), (8, 1)]);
        assert_eq!(sent(&mut clocks), []);
        assert_eq!((clocks.ask(7, 3), told(&mut clocks, 7, 2)), (Ok(()), vec![]), "never asked");
        assert_eq!(told(&mut clocks, 7, 1), [1, 2], "3 asked later than this was sent");
        assert_eq!((sent(&mut clocks), clocks.ask(7, 4), sent(&mut clocks)), (vec![(7, 2)], Ok(()), vec![(7, 3)]));
        assert_eq!((told(&mut clocks, 7, 3), told(&mut clocks, 7, 2)), (vec![3, 4], vec![]));
        assert!((0..4).all(|put| clocks.ask(7, put).is_ok()) && clocks.ask(7, 9) == Err(TooMany));
        clocks.gone(7);
        assert_eq!((told(&mut clocks, 7, 3), told(&mut clocks, 8, 1)), (vec![], vec![1]));
        assert_eq!((clocks.ask(7, 5), sent(&mut clocks)), (Ok(()), vec![(7, 4)]));
    }
}
