//! Whatever bytes a disk gives for a part of a table: an error or a value, never a panic, never a loop. Plain functions, for any fuzzer.

use crate::engine::filter::Filter;
use crate::engine::format::block::{BlockCursor, BlockView};
use crate::engine::format::lz4;
use crate::engine::format::table::{Footer, Header, Properties, VolatileAt, next_volatile, unseal, unseal_block};
use crate::engine::format::table_index::TableIndex;
use crate::engine::format::{parse_cell, parse_place};

/// A block's content: walks it, and looks for every place it finds and for some that are not there.
pub fn block(content: &[u8]) {
    let Ok(view) = BlockView::new(content) else { return };
    let mut cursor = BlockCursor::default();
    while let Ok(Some(cell)) = cursor.advance(&view) {
        let _ = (parse_cell(&content[cell]), parse_place(&cursor.place));
        let _ = view.find(&cursor.place);
    }
    let _ = (view.find(b""), view.find(content), view.find(&[0xFF; 40]));
}

/// An index's content.
pub fn index(content: &[u8]) {
    let Ok(parsed) = TableIndex::parse(content, 64, content.len() as u64 * 1000) else { return };
    let mut blocks = Vec::new();
    let _ = (parsed.find(b""), parsed.find(content), parsed.find(&[0xFF; 40]), parsed.blocks_from(0, &mut blocks));
}

/// The contents of properties, filters and volatile pages.
pub fn sections(content: &[u8]) {
    if let Ok(properties) = Properties::parse(content, 0) {
        properties.bounds.iter().for_each(|bound| assert!(properties.bounds.get(bound.namespace, bound.vnode).is_some()));
    }
    if let Ok(filter) = Filter::parse(content) {
        let _ = (filter.may_hold(0), filter.may_hold(u64::MAX));
    }
    let mut at = VolatileAt::default();
    while let Ok(Some(_)) = next_volatile(content, &mut at) {}
}

/// Header, footer and trailer.
pub fn frame(bytes: &[u8]) {
    let _ = (Header::parse(bytes), Footer::parse(bytes, bytes.len() as u64), unseal(bytes, 1, 2), unseal_block(bytes, 1, 2));
}

/// A block as it is packed.
pub fn packed(stored: &[u8]) {
    let mut content = Vec::new();
    if lz4::unpack(stored, &mut content).is_ok() {
        assert!(content.len() <= lz4::RAW_BYTES_MAX);
        block(&content);
    }
    assert!(content.capacity() <= lz4::RAW_BYTES_MAX);
}

/// All of them.
pub fn table(bytes: &[u8]) {
    block(bytes);
    index(bytes);
    sections(bytes);
    frame(bytes);
    packed(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use crate::base::record::Version;
    use crate::engine::format::block::BlockBuilder;
    use crate::engine::format::table::{Bounds, PropertiesDraft, VolatileEntry, VolatilePage, put_volatile};
    use crate::engine::format::table_index::IndexBuilder;

    fn seeds() -> Vec<Vec<u8>> {
        let (mut block, mut index, mut draft) =
            (BlockBuilder::default(), IndexBuilder::new(64), PropertiesDraft { vnodes: 64, ..Default::default() });
        let (mut volatile, mut at) = (Vec::new(), VolatileAt::default());
        for n in 0..200u32 {
            let place = [b"place of something".as_slice(), &n.to_be_bytes()].concat();
            block.add(&place, &[6; 17]);
            index.add(if n == 0 { b"" } else { &place[..] }, 4000 + n * 13 % 700);
            let (least, greatest) = (Version::put(u64::from(n) << 30, 1), Version::put(1 << 60, 1));
            draft.bounds.push(Bounds { namespace: 1, vnode: n, least, greatest });
            put_volatile(&mut volatile, &mut at, &VolatileEntry { deadline_ms: u64::from(n), version: greatest, place: &place });
        }
        draft.pages.push(VolatilePage { first_deadline_ms: 7, bytes: 0 });
        let mut out = vec![Vec::new(), index.finish(), Vec::new(), volatile, vec![7; 300]];
        block.finish(1, 2, &mut out[0]);
        let cut = out[0].len() - 14;
        out[0].truncate(cut);
        draft.put(&mut out[2]);
        let packed = lz4::Packer::default().pack(&out[0]).expect("cells of one byte pack").to_vec();
        out.push(packed);
        let (mut frame, header) = (Vec::new(), Header::new(Default::default(), 1));
        header.put(&mut frame);
        Footer { bytes: 4096, ..Footer::default() }.put(&mut frame);
        out.push(frame);
        out
    }

    #[test]
    fn no_bytes_make_a_reader_of_tables_panic() {
        let mut prng = Prng::new(9);
        for seed in seeds() {
            table(&seed);
            for _ in 0..3000 {
                let mut bytes = seed.clone();
                for _ in 0..1 + prng.below(4) {
                    let at = prng.below(bytes.len() as u64) as usize;
                    match prng.below(4) {
                        0 => bytes.truncate(at.max(1)),
                        1 => bytes[at] = 0xFF,
                        2 => bytes.insert(at, prng.next_u64() as u8),
                        _ => bytes[at] ^= 1 << prng.below(8),
                    }
                }
                table(&bytes);
            }
        }
        for _ in 0..5000 {
            let mut bytes = vec![0; prng.below(200) as usize];
            prng.fill(&mut bytes);
            table(&bytes);
        }
    }
}
