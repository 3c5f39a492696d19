//! How the code may look, held by a plain scan of the sources: the arrows between rooms, names that only one room may know,
//! marks of unfinished work, and sizes. A finding names file, line and rule.
//!
//! The scan knows no types. It blanks comments and literals, cuts the rest into words and signs, and looks at those.

use std::path::{Path, PathBuf};

const LINE_CHARS_MAX: usize = 140;
const FILE_LINES_MAX: usize = 1000;
const FUNCTION_LINES_MAX: usize = 70;

/// Every room and the rooms it sees. What is not a room here (lib, main) sees all.
const ARROWS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("limits", &["base"]),
    ("wire", &["base", "limits"]),
    ("client", &["base", "limits", "wire"]),
    ("io", &["base", "limits"]),
    ("cluster", &["base", "limits", "wire"]),
    ("engine", &["base", "limits", "io"]),
    ("shard", &["base", "limits", "wire", "io", "cluster", "engine"]),
    // Of io: its thread, its listening socket and its addresses.
    ("control", &["base", "limits", "wire", "cluster", "io"]),
    ("config", &["base", "limits", "wire", "io"]),
    ("shell", &["base", "limits", "wire", "client", "config"]),
    ("verify", &["base", "io", "engine", "config"]),
    ("probe", &["io", "config"]),
    ("local", &["base", "io", "config", "client"]),
    ("node", &["base", "limits", "wire", "io", "cluster", "engine", "shard", "control", "config"]),
    ("sim", &["base", "limits", "wire", "io", "cluster", "engine", "shard", "control", "config", "node", "client"]),
];

/// Where unsafe may stand: the seam, the load generator's own poller, the prefetch instruction, which lookups of a pipeline earn, and a
/// host for tests that forbids system calls.
const UNSAFE_HOMES: &[&str] = &["src/io/", "src/base/prefetch.rs", "loadgen/src/poll.rs", "tests/common/seccomp.rs"];

/// The faces of the client, which link no seam: they name net, thread and the clock themselves.
const CLIENT_FACES: &[&str] = &["src/client/blocking.rs", "src/client/tokio/"];

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Sign(char),
}

struct Source<'a> {
    path: &'a str,
    text: &'a str,
    /// Words and signs outside comments and literals, each with its line (from 0).
    tokens: Vec<(usize, Token)>,
}

impl<'a> Source<'a> {
    fn new(path: &'a str, text: &'a str) -> Source<'a> {
        Source { path, text, tokens: tokens(&blank(text)) }
    }

    fn word(&self, at: usize) -> Option<&str> {
        match self.tokens.get(at) {
            Some((_, Token::Word(word))) => Some(word),
            _ => None,
        }
    }

    fn is(&self, at: usize, sign: char) -> bool {
        matches!(self.tokens.get(at), Some((_, Token::Sign(found))) if *found == sign)
    }

    fn path_sign(&self, at: usize) -> bool {
        self.is(at, ':') && self.is(at + 1, ':')
    }

    fn line(&self, at: usize) -> usize {
        self.tokens[at].0
    }

    /// The first words of the paths that begin at `at`: one, or those of a group in braces.
    fn heads(&self, at: usize) -> Vec<(usize, &str)> {
        if let Some(word) = self.word(at) {
            return vec![(self.line(at), word)];
        }
        let (mut depth, mut next, mut found) = (0, at, Vec::new());
        while next < self.tokens.len() {
            if self.is(next, '{') {
                depth += 1;
            } else if self.is(next, '}') {
                depth -= 1;
            }
            let begins = depth == 1 && (self.is(next, '{') || self.is(next, ','));
            match self.word(next + 1) {
                Some(word) if begins => found.push((self.line(next + 1), word)),
                _ if depth == 0 => break,
                _ => {}
            }
            next += 1;
        }
        found
    }
}

/// The text with comments and the insides of literals made blank; lines stay where they are.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_or_comment(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        }
        for c in &chars[at..end.max(at)] {
            out.push(if *c == '\n' { '\n' } else { ' ' });
        }
        at = at.max(end);
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` if none begins there.
fn literal_or_comment(chars: &[char], at: usize) -> usize {
    let get = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let inside_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match (get(at), get(at + 1)) {
        ('/', '/') => (at..chars.len()).find(|&index| chars[index] == '\n').unwrap_or(chars.len()),
        ('/', '*') => block_comment(chars, at),
        ('"', _) => string_end(chars, at + 1),
        ('b' | 'c', '"') if !inside_word => string_end(chars, at + 2),
        ('r', '"' | '#') if !inside_word => raw_string_end(chars, at, at + 1),
        ('b', 'r') if !inside_word => raw_string_end(chars, at, at + 2),
        ('\'', '\\') => (at + 3..chars.len()).find(|&index| chars[index] == '\'').map_or(chars.len(), |index| index + 1),
        ('\'', _) if get(at + 2) == '\'' => at + 3,
        _ => at,
    }
}

fn block_comment(chars: &[char], at: usize) -> usize {
    let (mut depth, mut next) = (0, at);
    while next + 1 < chars.len() {
        match (chars[next], chars[next + 1]) {
            ('/', '*') => (depth, next) = (depth + 1, next + 2),
            ('*', '/') if depth == 1 => return next + 2,
            ('*', '/') => (depth, next) = (depth - 1, next + 2),
            _ => next += 1,
        }
    }
    chars.len()
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn raw_string_end(chars: &[char], start: usize, at: usize) -> usize {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return start;
    }
    let closes = |index: &usize| chars[*index] == '"' && chars[index + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    (at + hashes + 1..chars.len()).find(closes).map_or(chars.len(), |index| index + 1 + hashes)
}

fn tokens(code: &str) -> Vec<(usize, Token)> {
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut word = String::new();
        for c in line.chars().chain([' ']) {
            if c.is_alphanumeric() || c == '_' {
                word.push(c);
                continue;
            }
            if !word.is_empty() {
                found.push((number, Token::Word(std::mem::take(&mut word))));
            }
            if !c.is_whitespace() {
                found.push((number, Token::Sign(c)));
            }
        }
    }
    found
}

/// All findings of one file. `path` is relative to the workspace, with slashes.
fn check(path: &str, text: &str) -> Vec<String> {
    let source = Source::new(path, text);
    let mut found: Vec<(usize, String)> = Vec::new();
    sizes(&source, &mut found);
    functions(&source, &mut found);
    marks(&source, &mut found);
    unsafety(&source, &mut found);
    if path.starts_with("src/") {
        names(&source, &mut found);
        arrows(&source, &mut found);
    }
    found.sort();
    found.dedup();
    found.into_iter().map(|(line, rule)| format!("{path}:{}: {rule}", line + 1)).collect()
}

fn sizes(source: &Source, found: &mut Vec<(usize, String)>) {
    if !source.text.starts_with("//!") {
        found.push((0, "a file opens with a //! essay of its subject".to_owned()));
    }
    for (number, line) in source.text.lines().enumerate() {
        if line.chars().count() > LINE_CHARS_MAX {
            found.push((number, format!("a line has at most {LINE_CHARS_MAX} characters")));
        }
    }
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        found.push((FILE_LINES_MAX, format!("a file has at most {FILE_LINES_MAX} lines, this one {lines}")));
    }
}

fn functions(source: &Source, found: &mut Vec<(usize, String)>) {
    for at in 0..source.tokens.len() {
        let (Some("fn"), Some(name)) = (source.word(at), source.word(at + 1)) else { continue };
        // The body opens at the first brace outside parentheses and brackets; a semicolon there means there is none.
        let (mut nested, mut braces, mut next) = (0, 0, at);
        while next < source.tokens.len() {
            match source.tokens[next].1 {
                Token::Sign('(' | '[') if braces == 0 => nested += 1,
                Token::Sign(')' | ']') if braces == 0 => nested -= 1,
                Token::Sign(';') if nested == 0 && braces == 0 => break,
                Token::Sign('{') if nested == 0 => braces += 1,
                Token::Sign('}') if nested == 0 && braces == 1 => break,
                Token::Sign('}') if nested == 0 => braces -= 1,
                _ => {}
            }
            next += 1;
        }
        let last = source.line(next.min(source.tokens.len() - 1));
        let lines = last - source.line(at) + 1;
        if lines > FUNCTION_LINES_MAX {
            found.push((source.line(at), format!("a function has at most {FUNCTION_LINES_MAX} lines, {name} has {lines}")));
        }
    }
}

fn marks(source: &Source, found: &mut Vec<(usize, String)>) {
    for mark in [concat!("FIX", "ME"), concat!("TO", "DO")] {
        for (number, _) in source.text.lines().enumerate().filter(|(_, line)| line.contains(mark)) {
            found.push((number, format!("{mark}: finish it or leave it out")));
        }
    }
    let speaks = !source.path.starts_with("src/") || source.path == "src/main.rs" || source.path.starts_with("src/bin/");
    for at in 0..source.tokens.len() {
        let (Some(name), true) = (source.word(at), source.is(at + 1, '!')) else { continue };
        let banned = match name {
            "todo" | "unimplemented" | "dbg" => true,
            "print" | "println" | "eprint" | "eprintln" => !speaks,
            _ => false,
        };
        if banned && !source.is(at + 2, '=') {
            found.push((source.line(at), format!("{name}! has no place here")));
        }
    }
}

fn unsafety(source: &Source, found: &mut Vec<(usize, String)>) {
    let lines: Vec<&str> = source.text.lines().collect();
    for at in (0..source.tokens.len()).filter(|&at| source.word(at) == Some("unsafe")) {
        let number = source.line(at);
        if !UNSAFE_HOMES.iter().any(|home| source.path.starts_with(home)) {
            found.push((number, "unsafe outside src/io".to_owned()));
        } else if !is_pointer_type(source, at) && !is_argued(&lines, number) {
            found.push((number, "unsafe without a SAFETY comment above".to_owned()));
        }
    }
}

/// `unsafe fn(…)` and `unsafe extern "C" fn(…)` are types: nothing is done there that wants a reason.
fn is_pointer_type(source: &Source, at: usize) -> bool {
    let next = if source.word(at + 1) == Some("extern") { at + 2 } else { at + 1 };
    source.word(next) == Some("fn") && source.is(next + 1, '(')
}

/// Whether the statement around line `number` has a comment with its reason: beside it, or above, over at most four lines
/// of the same statement or attributes.
fn is_argued(lines: &[&str], number: usize) -> bool {
    let reason = |line: &str| line.contains("SAFETY:") || line.contains("# Safety");
    if reason(lines[number]) {
        return true;
    }
    let (mut at, mut code) = (number, 0);
    while at > 0 {
        at -= 1;
        let line = lines[at].trim_start();
        if line.starts_with("//") {
            if reason(line) {
                return true;
            }
        } else if code == 4 || line.is_empty() {
            return false;
        } else {
            code += 1;
        }
    }
    false
}

fn names(source: &Source, found: &mut Vec<(usize, String)>) {
    if source.path.starts_with("src/io/") {
        return;
    }
    let face = CLIENT_FACES.iter().any(|home| source.path.starts_with(home));
    let control = source.path.starts_with("src/control/");
    for at in 0..source.tokens.len() {
        let Some(word) = source.word(at) else { continue };
        let rule = match word {
            "libc" | "io_uring" => "only src/io names",
            "Instant" | "SystemTime" if !face => "only src/io reads a clock, so it alone names",
            "glommio" if !control => "only src/control names",
            _ => "",
        };
        if !rule.is_empty() {
            found.push((source.line(at), format!("{rule} {word}")));
        }
        if word == "std" && source.path_sign(at + 1) {
            for (line, head) in source.heads(at + 3) {
                if head == "fs" || (matches!(head, "net" | "thread") && !face) {
                    found.push((line, format!("only src/io names std::{head}")));
                }
            }
        }
    }
}

fn arrows(source: &Source, found: &mut Vec<(usize, String)>) {
    let Some(room) = room_of(source.path) else { return };
    let Some((_, seen)) = ARROWS.iter().find(|(name, _)| *name == room) else {
        found.push((0, format!("{room} is no room that this test knows")));
        return;
    };
    let mut look = |line: usize, head: &str| {
        let is_room = ARROWS.iter().any(|(name, _)| *name == head);
        if is_room && head != room && !seen.contains(&head) {
            found.push((line, format!("{room} does not see {head}")));
        }
    };
    let depth = depth_of(source.path);
    // Braces that are open around inline modules.
    let (mut braces, mut inline): (usize, Vec<usize>) = (0, Vec::new());
    for at in 0..source.tokens.len() {
        if source.is(at, '{') {
            braces += 1;
            if at >= 2 && source.word(at - 2) == Some("mod") {
                inline.push(braces);
            }
        } else if source.is(at, '}') {
            inline.pop_if(|level| *level == braces);
            braces = braces.saturating_sub(1);
        }
        if source.word(at) == Some("crate") && source.path_sign(at + 1) {
            source.heads(at + 3).into_iter().for_each(|(line, head)| look(line, head));
        }
        if source.word(at) == Some("super") && !(at >= 3 && source.word(at - 3) == Some("super")) {
            let (mut up, mut next) = (0, at);
            while source.word(next) == Some("super") && source.path_sign(next + 1) {
                (up, next) = (up + 1, next + 3);
            }
            if up >= depth + inline.len() {
                source.heads(next).into_iter().for_each(|(line, head)| look(line, head));
            }
        }
    }
}

/// `src/wire/frame.rs` and `src/wire/mod.rs` belong to wire, `src/limits.rs` to limits; lib, main and bins to none.
fn room_of(path: &str) -> Option<&str> {
    let inner = path.strip_prefix("src/")?;
    let first = inner.split('/').next()?;
    let room = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(room, "lib" | "main" | "bin")).then_some(room)
}

/// How many `super` lead from the file's module to the crate's root.
fn depth_of(path: &str) -> usize {
    path.matches('/').count() - usize::from(path.ends_with("/mod.rs"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a folder of ours can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_code_keeps_to_its_style() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "bench/src", "bench/benches", "loadgen/src", "tests"] {
        sources(&root.join(folder), &mut files);
    }
    assert!(files.len() > 20, "the sources should lie around {}", root.display());
    files.sort();
    let mut found = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).expect("sources are text");
        let path = file.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
        found.extend(check(&path, &text));
    }
    assert!(found.is_empty(), "{} findings\n{}\n", found.len(), found.join("\n"));
}

/// What `check` says about `body` behind an essay line, without the path.
fn said(path: &str, body: &str) -> Vec<String> {
    let findings = check(path, &format!("//! Subject.\n{body}"));
    findings.into_iter().map(|finding| finding[path.len() + 1..].to_owned()).collect()
}

#[test]
fn planted_violations_are_found_where_they_are() {
    let mark = concat!("// TO", "DO later");
    let planted = [
        ("src/engine/wal.rs", "use crate::shard::x;", "2: engine does not see shard"),
        ("src/engine/wal.rs", "use crate::{base::time, wire::{frame, io}};", "2: engine does not see wire"),
        ("src/engine/wal.rs", "use super::super::cluster::ring;", "2: engine does not see cluster"),
        ("src/engine/mod.rs", "use super::control;", "2: engine does not see control"),
        ("src/limits.rs", "#[cfg(test)]\nmod tests {\n    use super::super::wire;\n}", "4: limits does not see wire"),
        ("src/base/time.rs", "fn f() { crate::limits::X; }", "2: base does not see limits"),
        ("src/shard/mod.rs", "use crate::sim::x;", "2: shard does not see sim"),
        ("src/attic/mod.rs", "", "1: attic is no room that this test knows"),
        ("src/engine/wal.rs", "fn f() { std::fs::read(x); }", "2: only src/io names std::fs"),
        ("src/main.rs", "use std::{\n    collections::BTreeMap,\n    net::TcpStream,\n};", "4: only src/io names std::net"),
        ("src/sim/mod.rs", "use std::time::{Duration, Instant};", "2: only src/io reads a clock, so it alone names Instant"),
        ("src/client/core.rs", "use std::net::TcpStream;", "2: only src/io names std::net"),
        ("src/shard/mod.rs", "use libc::c_int;", "2: only src/io names libc"),
        ("src/shard/mod.rs", "use glommio::Task;", "2: only src/control names glommio"),
        ("src/shard/mod.rs", "fn f() { println!(\"x\") }", "2: println! has no place here"),
        ("loadgen/src/main.rs", "fn f() { todo!() }", "2: todo! has no place here"),
        ("tests/cli.rs", mark, concat!("2: TO", "DO: finish it or leave it out")),
        ("src/wire/frame.rs", "fn f() { unsafe { x() } }", "2: unsafe outside src/io"),
        ("src/io/uring.rs", "fn f() {\n\n    unsafe { x() }\n}", "4: unsafe without a SAFETY comment above"),
    ];
    for (path, body, expected) in planted {
        assert_eq!(said(path, body), [expected], "{path}: {body}");
    }
    assert_eq!(check("src/lib.rs", "fn f() {}"), ["src/lib.rs:1: a file opens with a //! essay of its subject"]);
}

#[test]
fn planted_sizes_are_found() {
    let body = |lines: usize| format!("fn long(a: [u8; 4]) -> [u8; 2] {{\n{}}}\n", "    a(\"}\");\n".repeat(lines));
    assert_eq!(said("src/lib.rs", &body(68)), [""; 0]);
    assert_eq!(said("src/lib.rs", &body(69)), ["2: a function has at most 70 lines, long has 71"]);
    assert_eq!(said("src/lib.rs", &"\n".repeat(1000)), ["1001: a file has at most 1000 lines, this one 1001"]);
    assert_eq!(said("src/lib.rs", &format!("//{}", "é".repeat(138))), [""; 0]);
    assert_eq!(said("src/lib.rs", &format!("//{}", "é".repeat(139))), ["2: a line has at most 140 characters"]);
}

#[test]
fn what_only_looks_like_a_violation_is_let_be() {
    let fine = [
        ("src/engine/wal.rs", "// std::fs, libc and crate::shard, in words\nconst A: &str = \"unsafe std::net \\\" libc\";"),
        (
            "src/engine/wal.rs",
            "const A: &str = r#\"dbg!(\"libc\")\"#; const B: &[u8] = b\"libc\"; const C: char = '\"'; const D: char = '\\'';",
        ),
        ("src/engine/wal.rs", "/* libc /* unsafe */ libc */ fn f<'a>(x: &'a str) -> &'a str { x }"),
        ("src/engine/wal.rs", "use super::format;\nuse crate::{base::wire_like, io::sim::Disk};"),
        ("src/engine/format/mod.rs", "use super::super::io;\n#[cfg(test)]\nmod tests {\n    use super::super::wal;\n}"),
        ("src/client/blocking.rs", "use std::{net::TcpStream, thread};\nuse std::time::Instant;"),
        ("src/shard/mod.rs", "use std::time::Duration;\n#![deny(unsafe_op_in_unsafe_fn)]\npub(crate) fn sim() {}"),
        (
            "src/io/uring.rs",
            "fn f() {\n    // SAFETY: the ring outlives it,\n    // as the type says.\n    let a =\n        unsafe { x() };\n}",
        ),
        ("src/io/sys.rs", "type Call = unsafe extern \"C\" fn(i32) -> i32;"),
        ("src/main.rs", "fn main() { println!(\"x\") }"),
        ("src/sim/mod.rs", "use crate::{shard, client};"),
    ];
    for (path, body) in fine {
        assert_eq!(said(path, body), [""; 0], "{path}: {body}");
    }
}
