//! Entry points for fuzzing: bytes of strangers, and bytes of those who hold the key, which reach further. Neither may make a node panic,
//! grow, or send too much.

use super::member::{Address, Profile, Rack, Versions};
use super::refusal::Reason;
use super::wire::{Body, Key, seal_raw};
use super::{Config, Effect, Gossip, Me, Now, Timing};
use crate::base::time::Mono;
use crate::limits::{GOSSIP_DATAGRAM_BYTES_MAX, GOSSIP_SYNC_BYTES_MAX, MEMBERS_MAX};

const NOW: Now = Now { mono: Mono(5_000_000_000), wall_ms: 1_000_000 };

fn address(node: u64) -> Address {
    Address::v4([10, 0, 0, node as u8], 7490)
}

fn key() -> Key {
    Key::new(b"fuzz")
}

fn node(node: u64, seeds: &[Address]) -> Gossip {
    let versions = Versions { min: 1, max: 2 };
    let rack = Rack::new("rack").unwrap_or_default();
    let profile =
        Profile { native: address(node), gossip: address(node), cores: 4, weight: 100, rack, protocol: versions, format: versions };
    let config = Config { cluster: 0xC1, vnodes: 4096, key: key(), timing: Timing::default() };
    Gossip::new(config, Me { node, profile }, seeds, NOW, node)
}

/// Nodes 1 and 2, which know each other and have said something; and all that went between them, without MACs.
fn pair() -> (Gossip, Vec<Vec<u8>>) {
    let (mut one, mut two) = (node(1, &[]), node(2, &[address(1)]));
    let mut said = Vec::new();
    let mut out = Vec::new();
    two.on_tick(NOW, &mut out);
    two.learn_topology(NOW, 3, 0xAB);
    for _ in 0..20 {
        for effect in std::mem::take(&mut out) {
            let Effect::Send { to, datagram } = effect else { continue };
            let (receiver, from) = if to == address(1) { (&mut one, address(2)) } else { (&mut two, address(1)) };
            receiver.on_datagram(NOW, from, &datagram, &mut out);
            said.push(datagram);
        }
        one.start_probe(NOW, &mut out);
        for body in [Body::Gossip, Body::PingReq { nonce: 1, target: 3 }, Body::Refused(Reason::ClockOff { ahead_ms: 1 })] {
            two.send(NOW, address(1), body, 1, &mut out);
        }
    }
    let request = two.sync_request(NOW);
    said.extend(one.on_stream(NOW, address(2), &request, &mut out));
    said.push(request);
    said.iter_mut().for_each(|bytes| bytes.truncate(bytes.len() - 32));
    said.sort();
    said.dedup_by(|a, b| a[3] == b[3]);
    (one, said)
}

/// A message of each kind, without its MAC, to begin from.
pub fn examples() -> Vec<Vec<u8>> {
    pair().1
}

/// Bytes as a datagram and as a stream, as they are and under a right MAC.
pub fn message(bytes: &[u8]) {
    let (mut one, _) = pair();
    let mut sealed = bytes.to_vec();
    seal_raw(&mut sealed, &key());
    let mut out = Vec::new();
    let mut answers = Vec::new();
    for bytes in [bytes, &sealed] {
        for from in [address(2), address(9)] {
            one.on_datagram(NOW, from, bytes, &mut out);
            answers.extend(one.on_stream(NOW, from, bytes, &mut out));
        }
    }
    for step in 0..40 {
        let mono = Mono(NOW.mono.0 + step * 200_000_000);
        one.on_tick(Now { mono, ..NOW }, &mut out);
        assert!(one.wakes_at() > mono, "what is due was done");
    }
    for effect in &out {
        if let Effect::Send { datagram, .. } = effect {
            assert!(datagram.len() <= GOSSIP_DATAGRAM_BYTES_MAX);
        }
    }
    assert!(answers.iter().all(|answer| answer.len() <= GOSSIP_SYNC_BYTES_MAX));
    assert!(out.len() < 4000 && one.members(NOW.mono).count() < MEMBERS_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;

    #[test]
    fn random_and_damaged_messages_never_panic() {
        let (mut prng, examples) = (Prng::new(6), examples());
        assert!(examples.len() == 7, "a kind each: {}", examples.len());
        examples.iter().for_each(|bytes| message(bytes));
        for _ in 0..1500 {
            let mut bytes = examples[prng.below(examples.len() as u64) as usize].clone();
            for _ in 0..1 + prng.below(3) {
                let at = prng.below(bytes.len() as u64) as usize;
                match prng.below(4) {
                    0 => bytes.truncate(at + 1),
                    1 => bytes.insert(at, prng.next_u64() as u8),
                    _ => bytes[at] = [prng.next_u64() as u8, 0, 0xFF, bytes[at] ^ 1][prng.below(4) as usize],
                }
            }
            message(&bytes);
        }
    }
}
