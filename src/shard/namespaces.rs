//! Namespaces: what a name means. Kept as cells of the system's namespace by core 0, known to every core as an immutable table.

use crate::base::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::base::record::{NAMESPACE_DEFAULT, NAMESPACE_SYSTEM, NamespaceId};
use crate::limits::{NAMESPACE_NAME_BYTES_MAX, NAMESPACES_MAX, RF_DEFAULT, RFS};
use crate::wire::native::{level_flags, levels_of};

/// How its tables are kept.
pub use crate::wire::command::Compression;
/// When a write is acknowledged.
pub use crate::wire::command::Durability;
use crate::wire::command::{LevelsAsked, NamespaceChange, NamespaceSpec};

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub id: NamespaceId,
    pub name: String,
    /// Given to puts that name no time to live; 0: none.
    pub default_ttl_ms: u64,
    pub durability: Durability,
    pub compression: Compression,
    /// Of requests that name none; a quorum where this names none either.
    pub levels: LevelsAsked,
    /// How many replicas each of its keys has, where there are so many nodes; never changes.
    pub replicas: u8,
}

/// All namespaces of a node, in order of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceTable {
    rows: Vec<Namespace>,
}

/// Why a namespace was not made or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceError {
    Exists,
    Missing,
    BadName,
    TooMany,
    BadReplicas,
}

impl NamespaceError {
    pub fn sentence(self) -> &'static str {
        match self {
            NamespaceError::Exists => "a namespace of that name exists",
            NamespaceError::Missing => "no namespace of that name",
            NamespaceError::BadName => "a namespace's name has 1 to 64 letters, digits, '-', '_' or '.'",
            NamespaceError::TooMany => "no more namespaces fit",
            NamespaceError::BadReplicas => "a namespace has 1, 3 or 5 replicas",
        }
    }
}

const ROW_FORMAT: u64 = 1;
/// Rows end with their compression. Written only where one has some, so that builds that do not know it read the others.
const ROW_FORMAT_COMPRESSED: u64 = 2;
/// Rows end with their compression and their levels, two bytes. Written only where one has levels.
const ROW_FORMAT_LEVELS: u64 = 3;
/// Rows end with their compression, their levels, two bytes, and their number of replicas. Written only where one has another than usual.
const ROW_FORMAT_REPLICAS: u64 = 4;
/// The key in the system's namespace under which the table lies.
pub const TABLE_KEY: &[u8] = b"namespaces";

impl NamespaceTable {
    /// What a fresh node has: the default namespace.
    pub fn fresh(durability: Durability) -> NamespaceTable {
        let (id, name, compression, levels) = (NAMESPACE_DEFAULT, "default".to_owned(), Compression::None, LevelsAsked::default());
        NamespaceTable {
            rows: vec![Namespace { id, name, default_ttl_ms: 0, durability, compression, levels, replicas: RF_DEFAULT as u8 }],
        }
    }

    pub fn rows(&self) -> &[Namespace] {
        &self.rows
    }

    pub fn get(&self, id: NamespaceId) -> Option<&Namespace> {
        // The default namespace is nearly always asked for, and it is the first.
        self.rows.first().filter(|row| row.id == id).or_else(|| self.rows.iter().find(|row| row.id == id))
    }

    pub fn by_name(&self, name: &str) -> Option<&Namespace> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The table with one more namespace.
    pub fn with(&self, spec: &NamespaceSpec<'_>) -> Result<NamespaceTable, NamespaceError> {
        let NamespaceSpec { name, default_ttl_ms, durability, compression, levels, replicas } = *spec;
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.len() > NAMESPACE_NAME_BYTES_MAX || !name.bytes().all(good) {
            return Err(NamespaceError::BadName);
        }
        if self.by_name(name).is_some() {
            return Err(NamespaceError::Exists);
        }
        if self.rows.len() >= NAMESPACES_MAX {
            return Err(NamespaceError::TooMany);
        }
        if !RFS.contains(&usize::from(replicas)) {
            return Err(NamespaceError::BadReplicas);
        }
        let id = self.rows.iter().map(|row| row.id).max().unwrap_or(NAMESPACE_SYSTEM) + 1;
        let mut table = self.clone();
        table.rows.push(Namespace { id, name: name.to_owned(), default_ttl_ms, durability, compression, levels, replicas });
        Ok(table)
    }

    /// The table with one namespace changed; `None` leaves as it is.
    pub fn altered(&self, change: &NamespaceChange<'_>) -> Result<NamespaceTable, NamespaceError> {
        let mut table = self.clone();
        let row = table.rows.iter_mut().find(|row| row.name == change.name).ok_or(NamespaceError::Missing)?;
        row.default_ttl_ms = change.default_ttl_ms.unwrap_or(row.default_ttl_ms);
        row.durability = change.durability.unwrap_or(row.durability);
        row.compression = change.compression.unwrap_or(row.compression);
        row.levels = change.levels.or(row.levels);
        Ok(table)
    }

    /// The namespaces whose tables are packed.
    pub fn packed(&self) -> Vec<NamespaceId> {
        self.rows.iter().filter(|row| row.compression != Compression::None).map(|row| row.id).collect()
    }

    /// The bytes kept under `TABLE_KEY`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let format = match self {
            _ if self.rows.iter().any(|row| usize::from(row.replicas) != RF_DEFAULT) => ROW_FORMAT_REPLICAS,
            _ if self.rows.iter().any(|row| row.levels != LevelsAsked::default()) => ROW_FORMAT_LEVELS,
            _ if !self.packed().is_empty() => ROW_FORMAT_COMPRESSED,
            _ => ROW_FORMAT,
        };
        put_varint(&mut out, format);
        put_varint(&mut out, self.rows.len() as u64);
        for row in &self.rows {
            put_varint(&mut out, u64::from(row.id));
            put_bytes(&mut out, row.name.as_bytes());
            put_varint(&mut out, row.default_ttl_ms);
            out.push(row.durability as u8);
            if format >= ROW_FORMAT_COMPRESSED {
                out.push(row.compression as u8);
            }
            if format >= ROW_FORMAT_LEVELS {
                out.extend(level_flags(row.levels).to_le_bytes());
            }
            if format >= ROW_FORMAT_REPLICAS {
                out.push(row.replicas);
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<NamespaceTable, Malformed> {
        let mut reader = Reader::new(bytes);
        let format = reader.varint()?;
        if !(ROW_FORMAT..=ROW_FORMAT_REPLICAS).contains(&format) {
            return Err(Malformed("unknown format of the namespace table"));
        }
        let count = reader.varint()?;
        if count > NAMESPACES_MAX as u64 {
            return Err(Malformed("too many namespaces"));
        }
        let mut rows = Vec::new();
        for _ in 0..count {
            // None is ever taken away, so ids are as many as namespaces; what is known of each is kept by its id.
            let id = u32::try_from(reader.varint()?).map_err(|_| Malformed("namespace id too large"))?;
            if id == NAMESPACE_SYSTEM || id as usize > NAMESPACES_MAX {
                return Err(Malformed("a namespace id that none can have"));
            }
            let name = std::str::from_utf8(reader.bytes()?).map_err(|_| Malformed("namespace name"))?.to_owned();
            let default_ttl_ms = reader.varint()?;
            let durability = match reader.u8()? {
                0 => Durability::Sync,
                1 => Durability::Interval,
                _ => return Err(Malformed("unknown durability")),
            };
            let compression = match if format >= ROW_FORMAT_COMPRESSED { reader.u8()? } else { 0 } {
                0 => Compression::None,
                1 => Compression::Lz4,
                _ => return Err(Malformed("unknown compression")),
            };
            let flags = if format >= ROW_FORMAT_LEVELS { u16::from_le_bytes([reader.u8()?, reader.u8()?]) } else { 0 };
            let levels = levels_of(flags).map_err(|_| Malformed("unknown level"))?;
            let replicas = if format >= ROW_FORMAT_REPLICAS { reader.u8()? } else { RF_DEFAULT as u8 };
            if !RFS.contains(&usize::from(replicas)) {
                return Err(Malformed("no number of replicas"));
            }
            rows.push(Namespace { id, name, default_ttl_ms, durability, compression, levels, replicas });
        }
        reader.end()?;
        Ok(NamespaceTable { rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::command::Level;

    #[test]
    fn the_table_round_trips_and_names_are_checked() {
        let spec = |name| {
            let (durability, compression) = (Durability::Interval, Compression::None);
            NamespaceSpec { name, default_ttl_ms: 60_000, durability, compression, levels: LevelsAsked::default(), replicas: 3 }
        };
        let levels = LevelsAsked::default();
        let nothing = |name| NamespaceChange { name, default_ttl_ms: None, durability: None, compression: None, levels };
        let table = NamespaceTable::fresh(Durability::Sync).with(&spec("cache")).unwrap();
        assert_eq!(NamespaceTable::decode(&table.encode()), Ok(table.clone()));
        assert_eq!(table.by_name("cache").map(|row| row.id), Some(NAMESPACE_DEFAULT + 1));
        assert_eq!(table.with(&spec("cache")), Err(NamespaceError::Exists));
        assert_eq!(table.with(&spec("a b")), Err(NamespaceError::BadName));
        assert_eq!(table.altered(&nothing("nope")), Err(NamespaceError::Missing));
        let altered = table.altered(&NamespaceChange { default_ttl_ms: Some(5), ..nothing("cache") }).unwrap();
        assert_eq!(altered.by_name("cache").map(|row| row.default_ttl_ms), Some(5));
        // A build that knows no compression reads the table until there is some.
        assert_eq!((altered.encode()[0], altered.packed()), (1, vec![]));
        let packed = altered.altered(&NamespaceChange { compression: Some(Compression::Lz4), ..nothing("cache") }).unwrap();
        assert_eq!((packed.encode()[0], packed.packed()), (2, vec![NAMESPACE_DEFAULT + 1]));
        assert_eq!(NamespaceTable::decode(&packed.encode()), Ok(packed.clone()));
        // Nor one that knows no levels, until one has some; what is not named stays.
        let reads = LevelsAsked { read: Some(Level::One), write: None };
        let fast = packed.altered(&NamespaceChange { levels: reads, ..nothing("default") }).unwrap();
        let all = LevelsAsked { read: None, write: Some(Level::All) };
        let fast = fast.altered(&NamespaceChange { levels: all, ..nothing("default") }).unwrap();
        assert_eq!((fast.encode()[0], fast.rows()[0].levels), (3, LevelsAsked { read: Some(Level::One), write: Some(Level::All) }));
        assert_eq!(NamespaceTable::decode(&fast.encode()), Ok(fast.clone()));
        // Nor one that knows no other number of replicas.
        assert_eq!(fast.with(&NamespaceSpec { replicas: 2, ..spec("two") }), Err(NamespaceError::BadReplicas));
        let five = fast.with(&NamespaceSpec { replicas: 5, ..spec("five") }).unwrap();
        assert_eq!((five.encode()[0], five.rows().iter().map(|row| row.replicas).collect()), (4, vec![3, 3, 5]));
        assert_eq!(NamespaceTable::decode(&five.encode()), Ok(five.clone()));
        for id in [NAMESPACE_SYSTEM, NAMESPACES_MAX as u32 + 1, u32::MAX] {
            let mut foreign = five.clone();
            foreign.rows[0].id = id;
            assert!(NamespaceTable::decode(&foreign.encode()).is_err(), "{id}");
        }
    }
}
