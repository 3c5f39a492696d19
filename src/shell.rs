//! The shell client: one word of the command line carried to a node by the blocking client, and its answer as text.
//!
//! What a script reads goes to `out`, one thing a line: a value as it is, a version as 32 hexadecimal digits (which `--if-version` takes
//! back), a time to live as `duration` is written. What went wrong comes back as one sentence.

use crate::base::record::Version;
use crate::client::{Client, ClientConfig, ClientError, NamespaceChanges, NamespaceInfo, NamespaceOptions, PutOptions, TimeToLive};
use crate::config::{self, Namespaces, Target, Word};
use crate::limits::RF_DEFAULT;
use crate::wire::command::{Compression, LevelsAsked};
use std::io::Write;
use std::time::Duration;

/// Keys of one page of a scan.
const PAGE_KEYS: u32 = 512;

/// Why a word failed, for standard error; the exit code is `exit::FAILED`.
pub type Failure = String;

/// Carries out one request. `credential` is the content of the target's secret file, without its last newline.
///
/// Errors: the sentence to show; also where the key is absent or a condition is not met.
pub fn run(request: &config::Client, credential: Vec<u8>, out: &mut dyn Write) -> Result<(), Failure> {
    let mut client = connect(&request.target, credential)?;
    let text = match &request.word {
        Word::Get { key } => {
            let mut value = client.get(key).map_err(say)?.ok_or_else(absent)?.value;
            value.push(b'\n');
            return write(out, &value);
        }
        Word::Scan { vnode, limit } => return scan(&mut client, *vnode, *limit, out),
        Word::Put { key, value, ttl, condition } => {
            let options = PutOptions { ttl: *ttl, condition: *condition, version: None };
            version(client.put_with(key, value, options).map_err(say)?)
        }
        Word::Del { key } => version(client.delete(key).map_err(say)?),
        Word::Ttl { key } => match client.ttl(key).map_err(say)? {
            TimeToLive::Absent => return Err(absent()),
            TimeToLive::Never => "never".to_owned(),
            TimeToLive::Remaining(left) => duration(left),
        },
        Word::Expire { key, after } => version(client.expire(key, *after).map_err(say)?.ok_or_else(absent)?),
        Word::Persist { key } => version(client.persist(key).map_err(say)?.ok_or_else(absent)?),
        Word::Info => client.info().map_err(say)?,
        Word::Namespaces(word) => namespaces(&mut client, word)?,
        Word::Snapshot { name } => client.snapshot(name).map_err(say)?,
        Word::Cluster { words } => client.cluster(words).map_err(say)?,
    };
    write(out, format!("{}\n", text.trim_end()).as_bytes())
}

fn connect(target: &Target, credential: Vec<u8>) -> Result<Client, Failure> {
    let host = if target.host.contains(':') && !target.host.starts_with('[') { format!("[{}]", target.host) } else { target.host.clone() };
    let address = format!("{host}:{}", target.port);
    let config = ClientConfig {
        addresses: vec![address.clone()],
        credential,
        client_name: "ringkv-shell".to_owned(),
        namespace: target.namespace.clone(),
        levels: target.level.unwrap_or_default(),
        announce: true,
        single_connection: true,
        ..ClientConfig::default()
    };
    Client::connect(config).map_err(|error| match error {
        ClientError::Disconnected(why) => format!("no node answers at {address} ({why}); --host and --port name another"),
        error => say(error),
    })
}

/// Keys, escaped where they are not plain text, one a line.
fn scan(client: &mut Client, vnode: Option<u32>, limit: u64, out: &mut dyn Write) -> Result<(), Failure> {
    let all = client.server().vnodes;
    let vnodes = vnode.map_or(0..all, |vnode| vnode..vnode.saturating_add(1));
    let mut left = limit;
    for vnode in vnodes {
        let mut cursor = Vec::new();
        while left > 0 {
            let page = client.scan(vnode, &cursor, PAGE_KEYS.min(u32::try_from(left).unwrap_or(PAGE_KEYS)), false).map_err(say)?;
            let mut lines = Vec::new();
            for entry in page.entries.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                lines.extend(entry.key.escape_ascii());
                lines.push(b'\n');
                left -= 1;
            }
            write(out, &lines)?;
            cursor = page.cursor;
            if cursor.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

fn namespaces(client: &mut Client, word: &Namespaces) -> Result<String, Failure> {
    let rows = match word {
        Namespaces::List => client.namespaces(),
        &Namespaces::Create { ref name, ttl, durability, compression, levels, replicas } => {
            let default_ttl = ttl.unwrap_or_default();
            let made = match (compression, levels, replicas) {
                (Compression::None, LevelsAsked { read: None, write: None }, None) => {
                    client.namespace_create(name, default_ttl, durability)
                }
                _ => client.namespace_create_with(name, NamespaceOptions { default_ttl, durability, compression, levels, replicas }),
            };
            made.map(|row| vec![row])
        }
        &Namespaces::Alter { ref name, ttl, durability, compression, levels } => {
            let default_ttl = ttl.map(Option::unwrap_or_default);
            let changed = match (compression, levels) {
                (None, LevelsAsked { read: None, write: None }) => client.namespace_alter(name, default_ttl, durability),
                _ => client.namespace_alter_with(name, NamespaceChanges { default_ttl, durability, compression, levels }),
            };
            changed.map(|row| vec![row])
        }
    };
    Ok(rows.map_err(say)?.iter().map(namespace).collect::<Vec<_>>().join("\n"))
}

fn namespace(row: &NamespaceInfo) -> String {
    let ttl = if row.default_ttl.is_zero() { "none".to_owned() } else { duration(row.default_ttl) };
    let compression = match row.compression {
        Compression::None => "",
        Compression::Lz4 => " compression=lz4",
    };
    let levels = if row.levels == LevelsAsked::default() { String::new() } else { format!(" level={}", row.levels) };
    let replicas = if usize::from(row.replicas) == RF_DEFAULT { String::new() } else { format!(" replicas={}", row.replicas) };
    format!("{} id={} ttl={ttl} durability={}{compression}{levels}{replicas}", row.name, row.id, row.durability)
}

fn write(out: &mut dyn Write, bytes: &[u8]) -> Result<(), Failure> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever read has enough (`ringkv scan | head`).
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("the answer cannot be written: {error}")),
        _ => Ok(()),
    }
}

fn version(version: Version) -> String {
    format!("{:032x}", version.0)
}

/// As `config::parse::duration` reads it: whole milliseconds below a second, else seconds.
fn duration(time: Duration) -> String {
    let ms = time.as_millis();
    match (ms / 1000, ms % 1000) {
        (0, ms) => format!("{ms}ms"),
        (seconds, 0) => format!("{seconds}s"),
        (seconds, ms) => format!("{seconds}.{ms:03}s"),
    }
}

fn absent() -> Failure {
    "no such key".to_owned()
}

fn say(error: ClientError) -> Failure {
    match error {
        ClientError::NotMet { present: Some(found) } => format!("the condition is not met: the key has version {}", version(found)),
        ClientError::Unknown { version: Some(stamped) } => {
            format!("nobody knows whether the write took effect; its version is {}", version(stamped))
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Durability;
    use crate::config::parse;

    #[test]
    fn what_is_printed_can_be_given_back() {
        assert_eq!(parse::version(&version(Version(77))), Ok(Version(77)));
        for ms in [1, 999, 1_000, 9_873, 3_600_000] {
            let time = Duration::from_millis(ms);
            assert_eq!(parse::duration(&duration(time)), Ok(time));
        }
        assert_eq!([Duration::from_millis(9_073), Duration::from_secs(10)].map(duration), ["9.073s", "10s"]);
    }

    #[test]
    fn a_namespace_is_one_line() {
        let (default_ttl, durability, compression) = (Duration::from_secs(60), Durability::Interval, Compression::None);
        let levels = LevelsAsked::default();
        let row = NamespaceInfo { id: 3, name: "cache".into(), default_ttl, durability, compression, levels, replicas: 3 };
        assert!(namespace(&NamespaceInfo { replicas: 5, ..row.clone() }).ends_with(" replicas=5"));
        assert_eq!(namespace(&row), "cache id=3 ttl=60s durability=interval");
        for levels in ["one", "quorum,all", "2", "one,3"] {
            assert!(namespace(&NamespaceInfo { levels: levels.parse().unwrap(), ..row.clone() }).ends_with(&format!(" level={levels}")));
        }
        assert!(namespace(&NamespaceInfo { compression: Compression::Lz4, ..row }).ends_with(" compression=lz4"));
    }

    #[test]
    fn a_node_that_is_not_there_is_told_with_its_address() {
        // Port 1 on loopback: nothing listens there.
        let target = Target { host: "127.0.0.1".into(), port: 1, secret_file: None, namespace: "default".into(), level: None };
        let request = config::Client { target, word: Word::Info };
        let said = run(&request, Vec::new(), &mut Vec::new()).expect_err("nobody is there");
        assert!(said.contains("127.0.0.1:1") && said.contains("--port"), "{said}");
    }
}
