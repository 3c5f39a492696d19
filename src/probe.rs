//! `ringkv probe [DIR]`: what this host gives a node, found by doing it, a line each: a name, a blank, a text.
//! `scripts/preflight.sh` reads it.

use crate::config::exit;
use crate::io::probe;
use std::path::Path;

/// Says the facts of this host, and of a data folder where one is named; the exit code says whether a node can have its rings.
pub fn run(dir: Option<&Path>, say: &dyn Fn(&str)) -> i32 {
    let mut facts = probe::host();
    facts.extend(dir.map(probe::folder).unwrap_or_default());
    facts.iter().for_each(|(name, text)| say(&format!("{name} {text}")));
    let whole = facts.iter().any(|(name, text)| *name == "io_uring" && text == "ok");
    if whole { exit::CLEAN } else { exit::FAILED }
}
