//! The shell client: one word, one request, one answer in text. Values go to standard output as they are.

use crate::client::{Client, ClientConfig, ClientError, DeleteOptions, PutOptions, TimeToLive};
use crate::config::{Condition, Namespaces, Target, Word, exit};
use crate::wire::command;
use std::io::Write;
use std::time::Duration;

/// Entries of a scan asked for at a time.
const PAGE: u32 = 512;

/// Runs one word against a node; the exit code. `credential` is the content of the secret file.
pub fn run(target: &Target, word: &Word, credential: Vec<u8>, out: &mut dyn Write) -> Result<i32, String> {
    let config = ClientConfig {
        addresses: vec![format!("{}:{}", target.host, target.port)],
        credential,
        client_name: "ringkv-shell".into(),
        namespace: target.namespace.clone(),
        announce: true,
        ..ClientConfig::default()
    };
    let address = config.addresses[0].clone();
    let mut client = Client::connect(config).map_err(|error| format!("{address}: {error}"))?;
    carry_out(&mut client, word, out).map_err(|error| error.to_string())
}

/// Why a word did not come to its end.
#[derive(Debug)]
enum Trouble {
    Client(ClientError),
    Output(std::io::Error),
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Trouble {
        Trouble::Client(error)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Trouble {
        Trouble::Output(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Client(error) => error.fmt(f),
            Trouble::Output(error) => write!(f, "standard output: {error}"),
        }
    }
}

fn carry_out(client: &mut Client, word: &Word, out: &mut dyn Write) -> Result<i32, Trouble> {
    match word {
        Word::Put { key, value, ttl, condition } => {
            let options = PutOptions { ttl: *ttl, condition: wire_condition(*condition), version: None };
            let version = client.put_with(key, value, options)?;
            writeln!(out, "stored, version {version:?}")?;
        }
        Word::Get { key } => match client.get(key)? {
            None => return absent(out),
            Some(found) => {
                out.write_all(&found.value)?;
                out.write_all(b"\n")?;
            }
        },
        Word::Del { key } => {
            let version = client.delete_with(key, DeleteOptions::default())?;
            writeln!(out, "deleted, version {version:?}")?;
        }
        Word::Ttl { key } => match client.ttl(key)? {
            TimeToLive::Absent => return absent(out),
            TimeToLive::Never => writeln!(out, "never expires")?,
            TimeToLive::Remaining(left) => writeln!(out, "{:.3} s", left.as_secs_f64())?,
        },
        Word::Expire { key, after } => match client.expire(key, *after)? {
            None => return absent(out),
            Some(_) => writeln!(out, "expires in {:.3} s", after.as_secs_f64())?,
        },
        Word::Persist { key } => match client.persist(key)? {
            None => return absent(out),
            Some(_) => writeln!(out, "never expires")?,
        },
        Word::Scan { vnode, limit } => scan(client, *vnode, *limit, out)?,
        Word::Info => out.write_all(client.info()?.as_bytes())?,
        Word::Namespaces(what) => namespaces(client, what, out)?,
        Word::Snapshot { name } => {
            let text = client.snapshot(name)?;
            writeln!(out, "{text}")?;
        }
    }
    Ok(exit::CLEAN)
}

fn absent(out: &mut dyn Write) -> Result<i32, Trouble> {
    writeln!(out, "(absent)")?;
    Ok(exit::FAILED)
}

fn wire_condition(condition: Condition) -> command::Condition {
    match condition {
        Condition::Always => command::Condition::Always,
        Condition::IfAbsent => command::Condition::IfAbsent,
        Condition::IfPresent => command::Condition::IfPresent,
        Condition::IfVersion(version) => command::Condition::IfVersion(version),
    }
}

fn scan(client: &mut Client, vnode: Option<u32>, limit: u64, out: &mut dyn Write) -> Result<(), Trouble> {
    let vnodes = match vnode {
        Some(vnode) => vnode..vnode + 1,
        None => 0..client.server().vnodes,
    };
    let mut left = limit;
    for vnode in vnodes {
        let mut cursor = Vec::new();
        while left > 0 {
            let page = client.scan(vnode, &cursor, PAGE.min(u32::try_from(left).unwrap_or(PAGE)), false)?;
            for entry in &page.entries {
                writeln!(out, "{}", entry.key.escape_ascii())?;
            }
            left = left.saturating_sub(page.entries.len() as u64);
            cursor = page.cursor;
            if cursor.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

fn namespaces(client: &mut Client, what: &Namespaces, out: &mut dyn Write) -> Result<(), Trouble> {
    match what {
        Namespaces::List => {}
        Namespaces::Create { name, ttl, durability } => {
            client.namespace_create(name, ttl.unwrap_or(Duration::ZERO), *durability)?;
        }
        Namespaces::Alter { name, ttl, durability } => {
            client.namespace_alter(name, ttl.map(|ttl| ttl.unwrap_or(Duration::ZERO)), *durability)?;
        }
    }
    for row in client.namespaces()? {
        let ttl = if row.default_ttl.is_zero() { "none".to_owned() } else { format!("{:.3}s", row.default_ttl.as_secs_f64()) };
        writeln!(out, "{} {} ttl={ttl} durability={:?}", row.id, row.name, row.durability)?;
    }
    Ok(())
}
