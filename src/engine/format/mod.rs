//! Every byte on disk. Nothing else in the engine builds or takes apart a structure that outlives the process.
//! `docs/format.md` is this folder in prose.

pub mod block;
pub mod hints;
pub mod layout;
pub mod lz4;
pub mod manifest;
pub mod table;
pub mod table_index;
pub mod wal;

use crate::base::codec::{Malformed, Reader};
use crate::base::record::{Body, Cell, CollectionType, Expiry, Kind, NamespaceId, Token, Version};

/// Whose a file is: in every header, and mixed into the checksums of what follows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub cluster: u64,
    pub node: u64,
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Places. Encoded so that bytes compare as places do: (namespace, token, key, kind, element).
//
//   namespace u32 BE | token u64 BE | key with 00 → 00 FF | 00 01 | kind u8 | element
//
// The prefix up to and with `00 01` names the key: filters hash it, and all cells of a key follow each other.

/// Bytes before the key in an encoded place.
pub const PLACE_HEADER_BYTES: usize = 12;
/// Before the body of a cell that has every field: flags, version, expiry (deadline and version), request id.
const CELL_HEADER_BYTES_MAX: usize = 1 + 16 + 8 + 16 + 16;

/// A place, taken apart. The key is still escaped where it holds zeros (`unescape`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    pub namespace: NamespaceId,
    pub token: Token,
    pub escaped_key: &'a [u8],
    pub kind: Kind,
    pub element: &'a [u8],
}

/// Appends the part of a place that names the key.
pub fn put_key_prefix(out: &mut Vec<u8>, namespace: NamespaceId, token: Token, key: &[u8]) {
    out.reserve(PLACE_HEADER_BYTES + key.len() + 3);
    out.extend_from_slice(&namespace.to_be_bytes());
    out.extend_from_slice(&token.to_be_bytes());
    let mut rest = key;
    while let Some(zero) = rest.iter().position(|&b| b == 0) {
        out.extend_from_slice(&rest[..zero]);
        out.extend_from_slice(&[0, 0xFF]);
        rest = &rest[zero + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[0, 1]);
}

/// Appends an encoded place.
pub fn put_place(out: &mut Vec<u8>, namespace: NamespaceId, token: Token, key: &[u8], kind: Kind, element: &[u8]) {
    put_key_prefix(out, namespace, token, key);
    out.push(kind as u8);
    out.extend_from_slice(element);
}

/// The length of the prefix that names the key.
pub fn key_prefix_len(place: &[u8]) -> Result<usize, Malformed> {
    let mut at = PLACE_HEADER_BYTES;
    loop {
        let zero = place.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0)).ok_or(Malformed("place without end of key"))?;
        at += zero + 2;
        match place.get(at - 1) {
            Some(1) => return Ok(at),
            Some(0xFF) => {}
            _ => return Err(Malformed("bad escape in a key")),
        }
    }
}

/// Takes an encoded place apart.
pub fn parse_place(place: &[u8]) -> Result<Place<'_>, Malformed> {
    let prefix = key_prefix_len(place)?;
    let mut reader = Reader::new(place);
    let namespace = NamespaceId::from_be_bytes(reader.array()?);
    let token = Token::from_be_bytes(reader.array()?);
    let kind = place.get(prefix).and_then(|&b| Kind::from_u8(b)).ok_or(Malformed("unknown kind of cell"))?;
    Ok(Place { namespace, token, escaped_key: &place[PLACE_HEADER_BYTES..prefix - 2], kind, element: &place[prefix + 1..] })
}

/// The namespace and token of an encoded place; cheap, for a place that was checked before.
pub fn place_namespace_token(place: &[u8]) -> (NamespaceId, Token) {
    let namespace = NamespaceId::from_be_bytes(place[..4].try_into().expect("4 bytes"));
    let token = Token::from_be_bytes(place[4..12].try_into().expect("8 bytes"));
    (namespace, token)
}

/// The key itself.
pub fn unescape(escaped: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(escaped.len());
    let mut zero = false;
    for &byte in escaped {
        if !(zero && byte == 0xFF) {
            key.push(byte);
        }
        zero = byte == 0 && !zero;
    }
    key
}

// ---------------------------------------------------------------------------------------------------------------------------------
// Cells. The container gives the length.
//
//   flags u8: bits 0-2 body, bits 4-5 expiry, bit 6 request id; bits 3 and 7 are zero
//   version 16 BE (not for a silent body) | deadline u64 LE (expiry 2, 3) | expiry version 16 BE (expiry 3) | request id 16 | body
//   expiry: 0 says nothing, 1 none under the cell's version, 2 deadline under the cell's version, 3 deadline under a version of its own

const BODY_SILENT: u8 = 0;
const BODY_BYTES: u8 = 1;
const BODY_CHUNKED: u8 = 2;
const BODY_COLLECTION: u8 = 3;
const BODY_SUM: u8 = 4;
const BODY_RANGE_END: u8 = 5;
const BODY_TOMBSTONE: u8 = 6;
const FLAG_REQUEST_ID: u8 = 1 << 6;

/// The most bytes that a cell takes beside its payload.
pub const CELL_OVERHEAD_BYTES_MAX: usize = 1 + 16 + 8 + 16 + 16 + 17 + 16;

/// Appends an encoded cell.
pub fn put_cell(out: &mut Vec<u8>, cell: &Cell<'_>) {
    let body = match cell.body {
        Body::Silent => BODY_SILENT,
        Body::Bytes(_) => BODY_BYTES,
        Body::Chunked { .. } => BODY_CHUNKED,
        Body::Collection { .. } => BODY_COLLECTION,
        Body::Sum { .. } => BODY_SUM,
        Body::RangeEnd(_) => BODY_RANGE_END,
        Body::Tombstone => BODY_TOMBSTONE,
    };
    let expiry = match cell.expiry {
        Expiry { version: Version::ZERO, .. } => 0,
        Expiry { version, deadline_ms: 0 } if version == cell.version => 1,
        Expiry { version, .. } if version == cell.version => 2,
        _ => 3,
    };
    let request = if cell.request_id.is_some() { FLAG_REQUEST_ID } else { 0 };
    let content = if let Body::Bytes(bytes) | Body::RangeEnd(bytes) = cell.body { bytes.len() } else { 0 };
    out.reserve(CELL_HEADER_BYTES_MAX + content);
    out.push(body | expiry << 4 | request);
    if body != BODY_SILENT {
        out.extend_from_slice(&cell.version.to_bytes());
    }
    if expiry >= 2 {
        out.extend_from_slice(&cell.expiry.deadline_ms.to_le_bytes());
    }
    if expiry == 3 {
        out.extend_from_slice(&cell.expiry.version.to_bytes());
    }
    if let Some(id) = cell.request_id {
        out.extend_from_slice(&id);
    }
    match cell.body {
        Body::Silent | Body::Tombstone => {}
        Body::Bytes(bytes) | Body::RangeEnd(bytes) => out.extend_from_slice(bytes),
        Body::Chunked { len } => out.extend_from_slice(&len.to_le_bytes()),
        Body::Collection { of, floor, context } => {
            out.push(of as u8);
            out.extend_from_slice(&floor.to_bytes());
            out.extend_from_slice(context);
        }
        Body::Sum { floor, delta } => {
            out.extend_from_slice(&floor.to_bytes());
            out.extend_from_slice(&delta.to_le_bytes());
        }
    }
}

/// Takes an encoded cell apart, without a copy.
pub fn parse_cell(bytes: &[u8]) -> Result<Cell<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let flags = reader.u8()?;
    if flags & 0b1000_1000 != 0 {
        return Err(Malformed("unknown flag of a cell"));
    }
    let body = flags & 7;
    let version = if body == BODY_SILENT { Version::ZERO } else { Version::from_bytes(reader.array()?) };
    let expiry = match flags >> 4 & 3 {
        0 => Expiry::default(),
        1 => Expiry { version, deadline_ms: 0 },
        2 => Expiry { version, deadline_ms: reader.u64()? },
        _ => {
            let deadline_ms = reader.u64()?;
            Expiry { version: Version::from_bytes(reader.array()?), deadline_ms }
        }
    };
    let request_id = if flags & FLAG_REQUEST_ID != 0 { Some(reader.array()?) } else { None };
    let body = match body {
        BODY_SILENT | BODY_TOMBSTONE => {
            reader.end()?;
            if body == BODY_SILENT { Body::Silent } else { Body::Tombstone }
        }
        BODY_BYTES => Body::Bytes(reader.rest()),
        BODY_RANGE_END => Body::RangeEnd(reader.rest()),
        BODY_CHUNKED => {
            let len = reader.u32()?;
            reader.end()?;
            Body::Chunked { len }
        }
        BODY_COLLECTION => {
            let of = match reader.u8()? {
                1 => CollectionType::Hash,
                2 => CollectionType::Set,
                3 => CollectionType::SortedSet,
                4 => CollectionType::List,
                5 => CollectionType::Counter,
                6 => CollectionType::Siblings,
                _ => return Err(Malformed("unknown type of collection")),
            };
            Body::Collection { of, floor: Version::from_bytes(reader.array()?), context: reader.rest() }
        }
        BODY_SUM => {
            let floor = Version::from_bytes(reader.array()?);
            let delta = i64::from_le_bytes(reader.array()?);
            reader.end()?;
            Body::Sum { floor, delta }
        }
        _ => return Err(Malformed("unknown body of a cell")),
    };
    Ok(Cell { version, body, expiry, request_id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use crate::base::record::token_of;

    #[test]
    fn encoded_places_compare_as_places_do() {
        let mut prng = Prng::new(3);
        let mut places = Vec::new();
        for _ in 0..500 {
            let key: Vec<u8> = (0..prng.below(4)).map(|_| [0, 1, 0xFF, b'a'][prng.below(4) as usize]).collect();
            let element: Vec<u8> = (0..prng.below(3)).map(|_| prng.below(3) as u8).collect();
            let kind = [Kind::Head, Kind::Field][prng.below(2) as usize];
            places.push((prng.below(3) as u32, prng.below(3), key, kind, element));
        }
        let encode = |p: &(u32, u64, Vec<u8>, Kind, Vec<u8>)| {
            let mut out = Vec::new();
            put_place(&mut out, p.0, p.1, &p.2, p.3, &p.4);
            out
        };
        for pair in places.windows(2) {
            assert_eq!(pair[0].cmp(&pair[1]), encode(&pair[0]).cmp(&encode(&pair[1])), "{pair:?}");
            let bytes = encode(&pair[0]);
            let parsed = parse_place(&bytes).unwrap();
            assert_eq!((parsed.namespace, parsed.token, unescape(parsed.escaped_key)), (pair[0].0, pair[0].1, pair[0].2.clone()));
            assert_eq!((parsed.kind, parsed.element), (pair[0].3, &pair[0].4[..]));
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_places_cells_and_tokens_are_frozen() {
        let mut place = Vec::new();
        put_place(&mut place, 0x0102_0304, 0x1112_1314_1516_1718, b"a\0b", Kind::Scored, b"\0e");
        assert_eq!(hex(&place), "0102030411121314151617186100ff620001040065");
        let kinds = [0u8, 1, 2, 3, 4, 5, 6, 7, 32, 64, 65, 66];
        assert!(kinds.iter().all(|&byte| Kind::from_u8(byte).is_some_and(|kind| kind as u8 == byte)));
        assert_eq!((0..=255).filter(|&byte| Kind::from_u8(byte).is_some()).count(), kinds.len());
        let v = Version::rmw(Version::put(0x0102_0304_0506_0708, 0x090A), 0xB_CDEF, 0x123_4567);
        let own = Expiry { version: Version::put(0x21, 0x22), deadline_ms: 0x3132 };
        let (none, late) = (Expiry { version: v, deadline_ms: 0 }, Expiry { version: v, deadline_ms: 0x3132 });
        let cell = |body, expiry| Cell { version: v, body, expiry, request_id: None };
        let of = CollectionType::List;
        let frozen = [
            (cell(Body::Bytes(b"hi"), Expiry::default()), "01 V 6869"),
            (cell(Body::Chunked { len: 0x1234_5678 }, none), "12 V 78563412"),
            (cell(Body::Collection { of, floor: v, context: b"c" }, late), "23 V 3231000000000000 04 V 63"),
            (cell(Body::Sum { floor: v, delta: -2 }, own), "34 V 3231000000000000 E V feffffffffffffff"),
            (cell(Body::RangeEnd(b"z"), none), "15 V 7a"),
            (Cell { request_id: Some([0xAB; 16]), ..cell(Body::Tombstone, none) }, "56 V abababababababababababababababab"),
            (Cell::expire(own.version, 5), "30 0500000000000000 E"),
        ];
        for (cell, expected) in frozen {
            let mut out = Vec::new();
            put_cell(&mut out, &cell);
            let expected = expected.replace('V', "0102030405060708090abcdef1234567").replace('E', "00000000000000210022000000000000");
            assert_eq!(hex(&out), expected.replace(' ', ""), "{cell:?}");
        }
        let tokens = [b"123456789".as_slice(), b"{user}.a", b"{user}.b", b"{}x", b""].map(token_of);
        assert_eq!(tokens.map(|token| token >> 50), [0x31C3, 5474, 5474, 10_595, 0], "slots of Redis Cluster");
        assert_eq!(tokens[4], 0x2D06_8005_38D3_94C2 >> 14, "xxh3 of nothing, by its specification");
    }

    #[test]
    fn cells_round_trip() {
        let v = Version::put(77, 1);
        let e = Expiry { version: Version::put(99, 1), deadline_ms: 5 };
        let of = CollectionType::List;
        for body in [
            Body::Bytes(b"hello"),
            Body::Bytes(b""),
            Body::Chunked { len: 70_000 },
            Body::Collection { of, floor: v, context: b"ctx" },
            Body::Sum { floor: v, delta: -4 },
            Body::RangeEnd(b"z"),
            Body::Tombstone,
        ] {
            for expiry in [Expiry::default(), Expiry { version: v, deadline_ms: 0 }, Expiry { version: v, deadline_ms: 8 }, e] {
                for request_id in [None, Some([7; 16])] {
                    let cell = Cell { version: v, body, expiry, request_id };
                    let mut out = Vec::new();
                    put_cell(&mut out, &cell);
                    assert_eq!(parse_cell(&out), Ok(cell));
                }
            }
        }
        let mut out = Vec::new();
        put_cell(&mut out, &Cell::expire(v, 3));
        assert_eq!(parse_cell(&out), Ok(Cell::expire(v, 3)));
        assert!(parse_cell(&[0xFF]).is_err() && parse_cell(&[]).is_err());
    }
}
