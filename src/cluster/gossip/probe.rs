//! Probes: one member at a time is asked, up to four times, and through others from the second time on.

use super::member::{Record, State, Suspecters};
use super::wire::Body;
use super::{Effect, Gossip, Now};
use crate::base::time::Mono;

/// One member that is being asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub target: u64,
    nonce: u32,
    /// Questions sent.
    asked: u32,
    /// Questions that it may have.
    questions: u32,
    /// When the next question goes out, or the probe fails.
    pub due: Mono,
}

/// Questions of one probe. With one datagram of 100 lost, and three relays, all of them get lost once in 10^19 probes.
const QUESTIONS: u32 = 4;
/// The question before which neither the member nor any relay was heard: one of them is dead, or this node does not hear well.
const DOUBTFUL: u32 = 3;

impl Gossip {
    /// Asks the next member of the round.
    pub(super) fn start_probe(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.me.state == State::Left {
            return;
        }
        if self.next >= self.order.len() {
            self.next = 0;
            for last in (1..self.order.len()).rev() {
                let other = self.prng.below(last as u64 + 1) as usize;
                self.order.swap(last, other);
            }
        }
        let Some(&target) = self.order.get(self.next) else { return };
        self.next += 1;
        if self.probes.iter().any(|probe| probe.target == target) {
            return;
        }
        self.counters.probes += 1;
        // Who doubts itself asks more often: a bad link of its own loses questions as a dead member would.
        let questions = QUESTIONS * (1 + self.doubt);
        let nonce = self.next_nonce();
        self.probes.push(Probe { target, nonce, asked: 0, questions, due: now.mono });
        self.step_probes(now, out);
    }

    /// The next questions of probes without an answer, and the end of those that had all.
    pub(super) fn step_probes(&mut self, now: Now, out: &mut Vec<Effect>) {
        let mut failed = Vec::new();
        for at in 0..self.probes.len() {
            if now.mono < self.probes[at].due {
                continue;
            }
            let probe = &mut self.probes[at];
            if probe.asked >= probe.questions {
                failed.push(probe.target);
                continue;
            }
            probe.asked += 1;
            let timing = &self.config.timing;
            probe.due = now.mono.plus(if probe.asked < probe.questions { timing.resend } else { timing.last });
            let probe = *probe;
            self.ask(now, probe, out);
        }
        self.probes.retain(|probe| !failed.contains(&probe.target));
        failed.into_iter().for_each(|target| self.fail(now, target, out));
    }

    fn ask(&mut self, now: Now, probe: Probe, out: &mut Vec<Effect>) {
        let Probe { target, nonce, asked, .. } = probe;
        if asked == DOUBTFUL {
            self.worsen();
        }
        let to = self.members[&target].profile.gossip;
        self.send(now, to, Body::Ping { nonce, target, origin: 0 }, target, out);
        if asked == 1 {
            return;
        }
        for relay in self.some_others(self.config.timing.relays, target) {
            let to = self.members[&relay].profile.gossip;
            self.send(now, to, Body::PingReq { nonce, target }, relay, out);
        }
    }

    /// Nothing reached `target`, or nothing came back.
    fn fail(&mut self, now: Now, target: u64, out: &mut Vec<Effect>) {
        self.counters.probes_failed += 1;
        let Some(member) = self.members.get(&target) else { return };
        let mut suspecters = Suspecters::default();
        suspecters.add(self.me.node);
        let (to, known) = (member.profile.gossip, member.record(target, now.mono));
        let suspect_ms = if known.state == State::Suspect { known.suspect_ms } else { 0 };
        self.hear(now, &Record { state: State::Suspect, suspecters, suspect_ms, ..known }, out);
        // It is told at once: if only answers got lost, it contradicts before others hear.
        self.send(now, to, Body::Gossip, target, out);
    }

    /// `subject` is there.
    pub(super) fn end_probe(&mut self, nonce: u32, subject: u64) {
        if let Some(at) = self.probes.iter().position(|probe| probe.nonce == nonce && probe.target == subject) {
            let probe = self.probes.swap_remove(at);
            // Answered at once.
            self.doubt -= u32::from(probe.asked == 1 && self.doubt > 0);
        }
    }
}
