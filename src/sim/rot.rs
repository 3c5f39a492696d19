//! Bits that flip on a disk at rest: the node must refuse the data, or answer with an error, or not be touched by it; never answer wrongly.

use super::final_look::{Quiet, converse};
use super::scenario::Run;
use super::workload::{key_name, write_of};
use crate::client::Answer;
use crate::engine::EngineError;
use crate::shard::start::StartFailure;
use crate::wire::command::Command;
use std::path::PathBuf;

/// Flips a bit of a random file of the node, starts it, and reads every key.
pub(super) fn flip_and_look(run: &mut Run) {
    let files: Vec<(String, u64)> =
        run.world.tree(run.node).into_iter().filter(|(name, bytes)| *bytes > 0 && !name.ends_with("lock")).collect();
    if files.is_empty() {
        return;
    }
    let (name, bytes) = files[run.prng.below(files.len() as u64) as usize].clone();
    let offset = run.prng.below(bytes);
    let path = PathBuf::from(&name);
    if run.world.rot(run.node, &path, offset).is_err() {
        return;
    }
    run.note(format!("a bit flips in {name} at {offset}"));
    match run.boot() {
        Err(Some(StartFailure::Engine(EngineError::Corrupt { file, offset: at, what }))) => {
            run.note(format!("refused: {file} at {at}: {what}"));
            if !name.contains(file.trim_start_matches('/')) && !file.contains(name.rsplit('/').next().unwrap_or(&name)) {
                run.outcome.failures.push(format!("a bit flipped in {name}, but {file} is named"));
            }
        }
        Err(Some(StartFailure::Engine(EngineError::Unsupported { file, .. }))) => run.note(format!("refused: {file}")),
        Err(why) => {
            let why = why.map_or_else(|| "the power failed".to_owned(), |why| why.to_string());
            run.outcome.failures.push(format!("after a bit flipped in {name} at {offset}, the node does not say what is damaged: {why}"));
        }
        Ok(_) => read_or_refuse(run, &name),
    }
}

fn read_or_refuse(run: &mut Run, name: &str) {
    let shared = run.shared.clone();
    let outcome = converse(run, move |io, address| async move {
        let mut quiet = Quiet::open(io, address).await?;
        let mut refused = 0;
        for key in 0..shared.keys {
            match quiet.ask(shared.namespaces[0].get(), Command::Get { key: &key_name(key) }).await? {
                Ok(Answer::Value(found)) if write_of(key, &found.value).is_none() => {
                    return Err(format!("key {key} shows bytes that nobody wrote"));
                }
                Ok(_) => {}
                Err(_) => refused += 1,
            }
        }
        Ok(refused)
    });
    match outcome {
        Ok(refused) => run.note(format!("serves; {refused} keys are refused")),
        Err(why) => run.outcome.failures.push(format!("after a bit flipped in {name}: {why}")),
    }
}
