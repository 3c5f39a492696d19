//! What every face of the client shares: how patient it is, how a command is made and where it goes, how its answer is read, and when
//! it may be tried again. No I/O, no clock.

use super::answer::{Answer, ClientError, NamespaceInfo, OwnedPage, OwnedValue, ServerInfo, TimeToLive, VersionedBytes};
use crate::base::record::{NAMESPACE_DEFAULT, NamespaceId, Version};
use crate::limits::RF_DEFAULT;
use crate::wire::command::*;
use std::time::Duration;

/// Requests of one connection in flight.
pub(super) const IN_FLIGHT_MAX: usize = 1024;
/// What one read from a socket takes at most.
pub(super) const READ_BYTES: usize = 256 * 1024;

pub(super) const UNEXPECTED: ClientError = ClientError::Protocol("an answer of another kind than asked");

pub(super) type Outcome = Result<Answer, ClientError>;

/// How to reach a server and how patient to be.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port`, tried in turn. One of them leads to all of a cluster.
    pub addresses: Vec<String>,
    pub credential: Vec<u8>,
    pub client_name: String,
    /// By name.
    pub namespace: String,
    /// How many replicas must answer; what is not said is the namespace's.
    pub levels: LevelsAsked,
    pub connect_timeout: Duration,
    /// Of one try.
    pub request_timeout: Duration,
    /// Further tries of what may safely be tried again.
    pub retries: u32,
    /// Asks to be told the version of each write before it is stored, so that an unanswered one can be retried. Costs a frame a write.
    pub announce: bool,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// Everything over one connection, whatever core the server hands it to.
    pub single_connection: bool,
    /// Asks a cluster's nodes themselves for the keys that they own. Where clients cannot reach the addresses that the nodes know each
    /// other by, they are asked through the nodes that can be reached in any case.
    pub follow_ring: bool,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            addresses: vec!["127.0.0.1:7400".into()],
            credential: Vec::new(),
            client_name: "ringkv-rust".into(),
            namespace: "default".into(),
            levels: LevelsAsked::default(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            retries: 2,
            announce: false,
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(2),
            single_connection: false,
            follow_ring: true,
        }
    }
}

impl ClientConfig {
    /// The first command of a connection to `core`. One of a node's connections is enough to hear of changes.
    pub(super) fn hello(&self, core: u16) -> Command<'_> {
        Command::Hello(Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            core,
            credential: &self.credential,
            client_name: &self.client_name,
            wants: HelloWants { namespaces: !self.is_default_namespace(), news: self.follow_ring && matches!(core, 0 | CORE_ANY) },
        })
    }

    /// A command as it is sent.
    pub(super) fn prepared<'a>(&self, mut command: Command<'a>) -> Command<'a> {
        if let Some(write) = write_of(&mut command) {
            write.announce |= self.announce;
        }
        command
    }

    /// The namespace in use, among all; not asked where it is the default one.
    pub(super) fn find_namespace(&self, rows: &[NamespaceInfo]) -> Result<NamespaceId, ClientError> {
        let found = rows.iter().find(|row| row.name == self.namespace).map(|row| row.id);
        let message = || format!("no namespace is called '{}'", self.namespace);
        found.ok_or_else(|| ClientError::Failed { code: ErrorCode::NoSuchNamespace, message: message() })
    }

    pub(super) fn is_default_namespace(&self) -> bool {
        self.namespace == "default"
    }
}

/// The namespace that a client has until it has asked for another by name.
pub(super) const NAMESPACE_AT_FIRST: NamespaceId = NAMESPACE_DEFAULT;

/// As a put's time to live: it never expires, whatever the namespace's default is. (The longest there is.)
pub const NEVER: Duration = Duration::MAX;

/// What a put may carry beside key and value.
#[derive(Clone, Copy, Debug, Default)]
pub struct PutOptions {
    /// `None` takes the namespace's default; `NEVER` takes none.
    pub ttl: Option<Duration>,
    pub condition: Condition,
    /// From an earlier try.
    pub version: Option<Version>,
}

/// What a delete may carry beside its key.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeleteOptions {
    pub condition: Condition,
    /// From an earlier try.
    pub version: Option<Version>,
}

/// What a namespace is made with.
#[derive(Clone, Copy, Debug, Default)]
pub struct NamespaceOptions {
    /// Zero: none.
    pub default_ttl: Duration,
    pub durability: Durability,
    pub compression: Compression,
    /// Of requests that name none, in a cluster.
    pub levels: LevelsAsked,
    /// How many replicas each key has, in a cluster: 1, 3 or 5; 3 where this says nothing. It cannot be changed later.
    pub replicas: Option<u8>,
}

impl NamespaceOptions {
    pub(super) fn spec(self, name: &str) -> NamespaceSpec<'_> {
        let NamespaceOptions { default_ttl, durability, compression, levels, replicas } = self;
        let replicas = replicas.unwrap_or(RF_DEFAULT as u8);
        NamespaceSpec { name, default_ttl_ms: ms(default_ttl), durability, compression, levels, replicas }
    }
}

/// What is to change of a namespace; `None` leaves as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct NamespaceChanges {
    /// Zero: none from now on.
    pub default_ttl: Option<Duration>,
    pub durability: Option<Durability>,
    pub compression: Option<Compression>,
    pub levels: LevelsAsked,
}

impl NamespaceChanges {
    pub(super) fn change(self, name: &str) -> NamespaceChange<'_> {
        let NamespaceChanges { default_ttl, durability, compression, levels } = self;
        NamespaceChange { name, default_ttl_ms: default_ttl.map(ms), durability, compression, levels }
    }
}

/// What asks for all namespaces, with as much as the server tells of each.
pub(super) fn namespace_list(server: &ServerInfo) -> Command<'static> {
    match server.features {
        features if features & FEATURE_NAMESPACE_LEVELS != 0 => Command::NamespaceTerms,
        features if features & FEATURE_NAMESPACE_DETAILS != 0 => Command::NamespaceDetails,
        _ => Command::NamespaceList,
    }
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A time to live in whole milliseconds; one that is there is at least 1.
fn ttl_ms(ttl: Option<Duration>) -> u64 {
    ttl.map_or(0, |ttl| if ttl == NEVER { TTL_NEVER } else { ms(ttl).clamp(1, TTL_NEVER - 1) })
}

pub(super) fn gone(error: impl std::fmt::Display) -> ClientError {
    ClientError::Disconnected(error.to_string())
}

/// Whether a server refused a hello to this core because it has fewer cores now: one to any core tells how many.
pub(super) fn has_no_such_core(core: u16, refused: &ClientError) -> bool {
    core != CORE_ANY && matches!(refused, ClientError::Failed { code: ErrorCode::BadRequest, .. })
}

// Commands of the typed methods.

pub(super) fn put<'a>(key: &'a [u8], value: &'a [u8], options: PutOptions) -> Command<'a> {
    let write = WriteOptions { version: options.version, announce: false };
    Command::Put(Put { key, value, ttl_ms: ttl_ms(options.ttl), condition: options.condition, write })
}

pub(super) fn delete(key: &[u8], options: DeleteOptions) -> Command<'_> {
    let write = WriteOptions { version: options.version, announce: false };
    Command::Delete(Delete { key, condition: options.condition, write })
}

pub(super) fn expire(key: &[u8], ttl: Duration) -> Command<'_> {
    Command::Expire { key, ttl_ms: ttl_ms(Some(ttl)), write: WriteOptions::default() }
}

pub(super) fn persist(key: &[u8]) -> Command<'_> {
    Command::Persist { key, write: WriteOptions::default() }
}

pub(super) fn multi_put<'a>(items: &'a [PutItem<'a>]) -> Command<'a> {
    Command::MultiPut(MultiPut { items: List::Borrowed(items), write: WriteOptions::default() })
}

impl ServerInfo {
    /// A hello's answer that a client can work with.
    pub(super) fn of_hello(answer: Answer) -> Result<ServerInfo, ClientError> {
        match answer {
            Answer::Hello(info) if info.cores > 0 && info.vnodes.is_power_of_two() && info.vnodes > 1 => Ok(*info),
            _ => Err(UNEXPECTED),
        }
    }
}

/// The values of a multi-get's parts, in the order of its keys.
pub(super) fn join_values(keys: usize, parts: &[Vec<usize>], outcomes: Vec<Outcome>) -> Result<Vec<Option<VersionedBytes>>, ClientError> {
    let mut values = vec![None; keys];
    for (part, outcome) in parts.iter().zip(outcomes) {
        let found = expect(outcome?, |answer| match answer {
            Answer::Values(values) if values.len() == part.len() => Some(values),
            _ => None,
        })?;
        part.iter().zip(found).for_each(|(&index, value)| values[index] = value);
    }
    Ok(values)
}

/// The versions of a multi-put's parts, in the order of its items.
pub(super) fn join_versions(items: usize, parts: &[Vec<usize>], outcomes: Vec<Outcome>) -> Result<Vec<Version>, ClientError> {
    let mut versions = vec![Version::ZERO; items];
    for (part, outcome) in parts.iter().zip(outcomes) {
        let version = done(outcome?)?;
        part.iter().for_each(|&index| versions[index] = version);
    }
    Ok(versions)
}

// When it is tried again.

fn write_of<'c>(command: &'c mut Command<'_>) -> Option<&'c mut WriteOptions> {
    match command {
        Command::Put(put) => Some(&mut put.write),
        Command::Delete(delete) => Some(&mut delete.write),
        Command::MultiPut(multi) => Some(&mut multi.write),
        Command::Expire { write, .. } | Command::Persist { write, .. } => Some(write),
        _ => None,
    }
}

/// Whether a command with this outcome may be tried again, as it is then: a read, what certainly did nothing, or a write under the
/// version that it is known to have.
pub(super) fn may_try_again(command: &mut Command<'_>, outcome: &Outcome) -> bool {
    match outcome {
        Err(ClientError::Unknown { version: Some(version) }) => write_of(command).map(|write| write.version = Some(*version)).is_some(),
        Err(error) => error.is_harmless(),
        Ok(_) => false,
    }
}

/// What is known after a further try. Only a success tells more than what the first left unknown: a refusal now says nothing about it.
pub(super) fn after_another(outcome: Outcome, next: Outcome) -> Outcome {
    match (outcome, next) {
        (Err(ClientError::Unknown { .. }), Err(ClientError::Unknown { version: Some(version) })) => {
            Err(ClientError::Unknown { version: Some(version) })
        }
        (Err(unknown @ ClientError::Unknown { .. }), Err(_)) => Err(unknown),
        (_, next) => next,
    }
}

// How an answer is read.

fn expect<T>(answer: Answer, f: impl FnOnce(Answer) -> Option<T>) -> Result<T, ClientError> {
    f(answer).ok_or(UNEXPECTED)
}

pub(super) fn pong(answer: Answer) -> Result<(), ClientError> {
    expect(answer, |answer| matches!(answer, Answer::Pong).then_some(()))
}

pub(super) fn text(answer: Answer) -> Result<String, ClientError> {
    expect(answer, |answer| if let Answer::Text(text) = answer { Some(text) } else { None })
}

pub(super) fn value(answer: Answer) -> Result<Option<OwnedValue>, ClientError> {
    expect(answer, |answer| match answer {
        Answer::Value(value) => Some(Some(value)),
        Answer::Absent => Some(None),
        _ => None,
    })
}

pub(super) fn done(answer: Answer) -> Result<Version, ClientError> {
    expect(answer, |answer| if let Answer::Done(version) = answer { Some(version) } else { None })
}

pub(super) fn done_or_absent(answer: Answer) -> Result<Option<Version>, ClientError> {
    if answer == Answer::Absent { Ok(None) } else { done(answer).map(Some) }
}

pub(super) fn time_to_live(answer: Answer) -> Result<TimeToLive, ClientError> {
    expect(answer, |answer| match answer {
        Answer::Ttl(None) => Some(TimeToLive::Never),
        Answer::Ttl(Some(remaining)) => Some(TimeToLive::Remaining(remaining)),
        Answer::Absent => Some(TimeToLive::Absent),
        _ => None,
    })
}

pub(super) fn page(answer: Answer) -> Result<OwnedPage, ClientError> {
    expect(answer, |answer| if let Answer::Page(page) = answer { Some(page) } else { None })
}

pub(super) fn namespaces(answer: Answer) -> Result<Vec<NamespaceInfo>, ClientError> {
    expect(answer, |answer| if let Answer::Namespaces(rows) = answer { Some(rows) } else { None })
}

/// The namespace that was made or changed, with these levels and this number of replicas among what was said.
pub(super) fn namespace_with(answer: Answer, levels: LevelsAsked, replicas: Option<u8>) -> Result<NamespaceInfo, ClientError> {
    let row = namespace(answer)?;
    let missed = match () {
        () if replicas.is_some_and(|replicas| replicas != row.replicas) => "its number of replicas: the node knows one alone",
        () if levels.or(row.levels) != row.levels => "its levels: the node knows none of a namespace",
        () => return Ok(row),
    };
    let message = format!("'{}' is as it was asked for, but for {missed}", row.name);
    Err(ClientError::Failed { code: ErrorCode::UnknownKind, message })
}

pub(super) fn namespace(answer: Answer) -> Result<NamespaceInfo, ClientError> {
    namespaces(answer)?.pop().ok_or(UNEXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_does_not_know_of_a_namespace_is_told() {
        let row = |levels| {
            let (durability, compression) = (Durability::Sync, Compression::None);
            Answer::Namespaces(vec![NamespaceInfo {
                id: 2,
                name: "fast".into(),
                default_ttl: Duration::ZERO,
                durability,
                compression,
                levels,
                replicas: 3,
            }])
        };
        let (none, reads) = (LevelsAsked::default(), LevelsAsked { read: Some(Level::One), write: None });
        assert!(namespace_with(row(none), none, None).is_ok() && namespace_with(row(reads), none, Some(3)).is_ok());
        assert!(namespace_with(row(LevelsAsked::both(Level::One)), reads, None).is_ok(), "what was not named stays what it was");
        for (has, replicas) in [(none, None), (LevelsAsked::both(Level::All), None), (reads, Some(5))] {
            let told = namespace_with(row(has), reads, replicas);
            assert!(matches!(told, Err(ClientError::Failed { code: ErrorCode::UnknownKind, .. })), "{told:?}");
        }
    }

    #[test]
    fn only_what_cannot_act_twice_is_tried_again() {
        let (v, w) = (Version(7), Version(8));
        let unknown = |version| Err(ClientError::Unknown { version });
        let mut write = put(b"k", b"v", PutOptions::default());
        assert!(!may_try_again(&mut write, &unknown(None)));
        assert!(may_try_again(&mut write, &Err(ClientError::TimedOut)), "a write that timed out before it left");
        assert!(may_try_again(&mut write, &unknown(Some(v))));
        assert!(matches!(&write, Command::Put(put) if put.write.version == Some(v)), "the same write");
        let refused = ClientError::Failed { code: ErrorCode::Overloaded, message: String::new() };
        for outcome in [Ok(Answer::Pong), Err(refused.clone()), Err(ClientError::NotMet { present: None }), Err(ClientError::Full)] {
            assert!(!may_try_again(&mut write, &outcome), "{outcome:?}");
        }
        assert!(!may_try_again(&mut Command::Ping, &unknown(Some(v))));
        assert_eq!(after_another(unknown(Some(v)), Err(refused.clone())), unknown(Some(v)), "a refusal tells nothing of the first try");
        assert_eq!(after_another(unknown(None), unknown(Some(w))), unknown(Some(w)));
        assert_eq!(after_another(unknown(Some(v)), Ok(Answer::Done(v))), Ok(Answer::Done(v)));
        assert_eq!(after_another(Err(ClientError::TimedOut), Err(refused.clone())), Err(refused));
    }
}
