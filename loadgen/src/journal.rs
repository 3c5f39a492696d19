//! The ledger in a file, so that a later process can judge what a killed server came back with.
//!
//! Little endian: magic, version, the shape of the run (what a reader must agree with or adopt), a record for every key that was ever
//! written, the writes of unknown outcome, and a checksum over all before it. Written beside the file and renamed over it.

use crate::ledger::{KeyState, Ledger, Unknown};
use crate::sizes::Sizes;
use ringkv::base::checksum::checksum;
use ringkv::base::codec::{Malformed, Reader, put_bytes, put_varint};
use std::path::Path;

const MAGIC: &[u8; 8] = b"RKVLOAD2";

/// What every process that works on one journal must agree on.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub keys: u64,
    pub key_sizes: Sizes,
    pub value_sizes: Sizes,
    pub namespace: u32,
    pub ttl_ms: u32,
}

/// The ledger as bytes. Nothing may be in flight.
pub fn encode(ledger: &Ledger, shape: &Shape) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    for number in [u64::from(ledger.run), ledger.tracked, ledger.base_wall_ms, shape.keys] {
        put_varint(&mut out, number);
    }
    put_bytes(&mut out, shape.key_sizes.to_string().as_bytes());
    put_bytes(&mut out, shape.value_sizes.to_string().as_bytes());
    put_varint(&mut out, u64::from(shape.namespace));
    put_varint(&mut out, u64::from(shape.ttl_ms));
    let (mut records, mut record_count, mut unknowns, mut unknown_count) = (Vec::new(), 0u64, Vec::new(), 0u64);
    for (number, stripe) in ledger.stripes.iter().enumerate() {
        let stripe = stripe.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (index, state) in stripe.states.iter().enumerate().filter(|(_, state)| state.issued > 0) {
            assert_eq!(state.inflight, 0, "a write is still in flight");
            put_varint(&mut records, index as u64 * ledger.stripes.len() as u64 + number as u64);
            let fields =
                [state.issued, state.floor, state.quiet, state.quiet_ms, state.last_del, state.floor_ms, u32::from(state.unchecked)];
            fields.iter().for_each(|&field| put_varint(&mut records, u64::from(field)));
            record_count += 1;
        }
        for (key, write) in stripe.unknown.iter().flat_map(|(key, writes)| writes.iter().map(move |write| (*key, *write))) {
            put_varint(&mut unknowns, key);
            put_varint(&mut unknowns, u64::from(write.seq) << 1 | u64::from(write.delete));
            unknown_count += 1;
        }
    }
    put_varint(&mut out, record_count);
    put_bytes(&mut out, &records);
    put_varint(&mut out, unknown_count);
    put_bytes(&mut out, &unknowns);
    let sum = checksum(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// The ledger and shape that `encode` took.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode(bytes: &[u8]) -> Result<(Ledger, Shape), Malformed> {
    let (body, sum) = bytes.split_last_chunk::<8>().ok_or(Malformed("too short"))?;
    if checksum(body) != u64::from_le_bytes(*sum) {
        return Err(Malformed("checksum does not match"));
    }
    let mut reader = Reader::new(body);
    if &reader.array::<8>()? != MAGIC {
        return Err(Malformed("not a journal of this generator"));
    }
    let run = small(&mut reader)?;
    let (tracked, base_wall_ms, keys) = (reader.varint()?, reader.varint()?, reader.varint()?);
    let (key_sizes, value_sizes) = (sizes(&mut reader)?, sizes(&mut reader)?);
    let (namespace, ttl_ms) = (small(&mut reader)?, small(&mut reader)?);
    if tracked > keys || tracked > 1 << 32 {
        return Err(Malformed("impossible shape"));
    }
    let mut ledger = Ledger::new(run, tracked, ttl_ms);
    ledger.rebase(base_wall_ms);
    let record_count = reader.varint()?;
    let mut records = Reader::new(reader.bytes()?);
    for _ in 0..record_count {
        let key = records.varint()?;
        let mut state = KeyState { issued: small(&mut records)?, floor: small(&mut records)?, ..KeyState::default() };
        (state.quiet, state.quiet_ms) = (small(&mut records)?, small(&mut records)?);
        (state.last_del, state.floor_ms) = (small(&mut records)?, small(&mut records)?);
        state.unchecked = small(&mut records)? as u16;
        if !ledger.is_tracked(key) || state.quiet != state.issued || state.floor > state.issued {
            return Err(Malformed("impossible record"));
        }
        ledger.restore_state(key, state);
    }
    let unknown_count = reader.varint()?;
    let mut unknowns = Reader::new(reader.bytes()?);
    for _ in 0..unknown_count {
        let (key, write) = (unknowns.varint()?, unknowns.varint()?);
        let seq = u32::try_from(write >> 1).map_err(|_| Malformed("number too large"))?;
        if !ledger.is_tracked(key) {
            return Err(Malformed("impossible key"));
        }
        ledger.restore_unknown(key, Unknown { seq, delete: write & 1 != 0 });
    }
    records.end()?;
    unknowns.end()?;
    reader.end()?;
    Ok((ledger, Shape { keys, key_sizes, value_sizes, namespace, ttl_ms }))
}

fn sizes(reader: &mut Reader<'_>) -> Result<Sizes, Malformed> {
    let text = str::from_utf8(reader.bytes()?).map_err(|_| Malformed("sizes are no text"))?;
    Sizes::parse(text).map_err(|_| Malformed("impossible sizes"))
}

fn small(reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    u32::try_from(reader.varint()?).map_err(|_| Malformed("number too large"))
}

/// Writes the journal; a crash leaves the old one or the new one.
///
/// # Errors
/// The system's, with the file's name.
pub fn save(path: &Path, ledger: &Ledger, shape: &Shape) -> Result<(), String> {
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        use std::io::Write;
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(&encode(ledger, shape))?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| format!("journal {}: {error}", path.display()))
}

/// Reads a journal; None if there is none.
///
/// # Errors
/// The system's or what is wrong with the bytes, with the file's name.
pub fn load(path: &Path) -> Result<Option<(Ledger, Shape)>, String> {
    match std::fs::read(path) {
        Ok(bytes) => decode(&bytes).map(Some).map_err(|error| format!("journal {}: {error}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("journal {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Verdict, WriteEnd};
    use crate::value::Stamp;

    #[test]
    fn a_journal_brings_back_what_was_acknowledged_and_what_is_unknown() {
        let (key_sizes, value_sizes) = (Sizes::uniform(16, 16), Sizes::parse("lognormal:300,0.8,40..900").unwrap());
        let shape = Shape { keys: 3000, key_sizes, value_sizes, namespace: 1, ttl_ms: 0 };
        let ledger = Ledger::new(77, 3000, 0);
        for key in [0, 5, 1024, 2999] {
            for end in [WriteEnd::Acknowledged, WriteEnd::Acknowledged, WriteEnd::Unknown] {
                let ticket = ledger.begin_write(key, false, 1).unwrap();
                ledger.end_write(key, ticket, end, 2);
            }
        }
        let bytes = encode(&ledger, &shape);
        let (back, shape_back) = decode(&bytes).unwrap();
        assert_eq!(shape_back, shape);
        for key in [0, 5, 1024, 2999] {
            let answer = |seq| Some(Ok(Stamp { run: 77, key, seq, writer: 0 }));
            let judge = |answer| back.judge(key, back.begin_read(key, 5), answer, 5);
            assert!(matches!(judge(answer(1)), Verdict::Lost(_)));
            assert_eq!((judge(answer(2)), judge(answer(3))), (Verdict::Right, Verdict::Right));
            assert!(matches!(judge(answer(4)), Verdict::Wrong(_)));
            assert!(matches!(judge(None), Verdict::Lost(_)));
            assert!(back.was_written(key));
        }
        assert!(!back.was_written(1));
        for at in (0..bytes.len()).step_by(7) {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err() && decode(&bytes[..at]).is_err(), "byte {at}");
        }
    }
}
