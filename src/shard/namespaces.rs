//! Namespaces: what a name means. Kept as cells of the system's namespace by core 0, known to every core as an immutable table.

use crate::base::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::base::record::{NAMESPACE_DEFAULT, NAMESPACE_SYSTEM, NamespaceId};
use crate::limits::{NAMESPACE_NAME_BYTES_MAX, NAMESPACES_MAX};

/// When a write is acknowledged.
pub use crate::wire::command::Durability;

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub id: NamespaceId,
    pub name: String,
    /// Given to puts that name no time to live; 0: none.
    pub default_ttl_ms: u64,
    pub durability: Durability,
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
}

impl NamespaceError {
    pub fn sentence(self) -> &'static str {
        match self {
            NamespaceError::Exists => "a namespace of that name exists",
            NamespaceError::Missing => "no namespace of that name",
            NamespaceError::BadName => "a namespace's name has 1 to 64 letters, digits, '-', '_' or '.'",
            NamespaceError::TooMany => "no more namespaces fit",
        }
    }
}

const ROW_FORMAT: u64 = 1;
/// The key in the system's namespace under which the table lies.
pub const TABLE_KEY: &[u8] = b"namespaces";

impl NamespaceTable {
    /// What a fresh node has: the default namespace.
    pub fn fresh(durability: Durability) -> NamespaceTable {
        NamespaceTable { rows: vec![Namespace { id: NAMESPACE_DEFAULT, name: "default".to_owned(), default_ttl_ms: 0, durability }] }
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
    pub fn with(&self, name: &str, default_ttl_ms: u64, durability: Durability) -> Result<NamespaceTable, NamespaceError> {
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
        let id = self.rows.iter().map(|row| row.id).max().unwrap_or(NAMESPACE_SYSTEM) + 1;
        let mut table = self.clone();
        table.rows.push(Namespace { id, name: name.to_owned(), default_ttl_ms, durability });
        Ok(table)
    }

    /// The table with one namespace changed; `None` leaves as it is.
    pub fn altered(
        &self,
        name: &str,
        default_ttl_ms: Option<u64>,
        durability: Option<Durability>,
    ) -> Result<NamespaceTable, NamespaceError> {
        let mut table = self.clone();
        let row = table.rows.iter_mut().find(|row| row.name == name).ok_or(NamespaceError::Missing)?;
        row.default_ttl_ms = default_ttl_ms.unwrap_or(row.default_ttl_ms);
        row.durability = durability.unwrap_or(row.durability);
        Ok(table)
    }

    /// The bytes kept under `TABLE_KEY`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, ROW_FORMAT);
        put_varint(&mut out, self.rows.len() as u64);
        for row in &self.rows {
            put_varint(&mut out, u64::from(row.id));
            put_bytes(&mut out, row.name.as_bytes());
            put_varint(&mut out, row.default_ttl_ms);
            out.push(row.durability as u8);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<NamespaceTable, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.varint()? != ROW_FORMAT {
            return Err(Malformed("unknown format of the namespace table"));
        }
        let count = reader.varint()?;
        if count > NAMESPACES_MAX as u64 {
            return Err(Malformed("too many namespaces"));
        }
        let mut rows = Vec::new();
        for _ in 0..count {
            let id = u32::try_from(reader.varint()?).map_err(|_| Malformed("namespace id too large"))?;
            let name = std::str::from_utf8(reader.bytes()?).map_err(|_| Malformed("namespace name"))?.to_owned();
            let default_ttl_ms = reader.varint()?;
            let durability = match reader.u8()? {
                0 => Durability::Sync,
                1 => Durability::Interval,
                _ => return Err(Malformed("unknown durability")),
            };
            rows.push(Namespace { id, name, default_ttl_ms, durability });
        }
        reader.end()?;
        Ok(NamespaceTable { rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_round_trips_and_names_are_checked() {
        let table = NamespaceTable::fresh(Durability::Sync).with("cache", 60_000, Durability::Interval).unwrap();
        assert_eq!(NamespaceTable::decode(&table.encode()), Ok(table.clone()));
        assert_eq!(table.by_name("cache").map(|row| row.id), Some(NAMESPACE_DEFAULT + 1));
        assert_eq!(table.with("cache", 0, Durability::Sync), Err(NamespaceError::Exists));
        assert_eq!(table.with("a b", 0, Durability::Sync), Err(NamespaceError::BadName));
        assert_eq!(table.altered("nope", None, None), Err(NamespaceError::Missing));
        let altered = table.altered("cache", Some(5), None).unwrap();
        assert_eq!(altered.by_name("cache").map(|row| row.default_ttl_ms), Some(5));
    }
}
