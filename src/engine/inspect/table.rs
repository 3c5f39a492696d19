//! A table: its header, what its footer leads to, what its properties say, and its blocks.

use super::{Line, Telling, id_of, identity_facts, layout_near, place_text, version_text};
use crate::base::record::Version;
use crate::engine::EngineError;
use crate::engine::format::block::{BlockCursor, BlockView};
use crate::engine::format::table::{Header, Properties};
use crate::engine::pieces::{FoundBlock, Piece, TablePieces};
use crate::engine::tables::cache_id;
use crate::io::Io;
use std::path::Path;

pub(super) async fn tell(io: &Io, path: &Path, telling: &mut Telling) -> Result<(), EngineError> {
    let by_name = match id_of(path) {
        Some(id) => layout_near(io, path).await.map(|layout| Header::new(layout.identity, cache_id(id)).salt),
        None => None,
    };
    let pieces = TablePieces::read(io, path, by_name).await?;
    tell_pieces(&pieces, telling);
    let Some(salt) = pieces.salt(by_name) else {
        let why = "without header, footer or LAYOUT their checksums are not known";
        telling.say(Line::new("not read").with("piece", "blocks").with("why", why));
        return Ok(());
    };
    if let Some(pages) = pieces.volatile_pages(salt).await {
        for error in pages.iter().filter_map(|(_, page)| page.as_ref().err()) {
            telling.error("volatile page", error);
        }
    }
    tell_blocks(&pieces, salt, telling).await;
    Ok(())
}

fn tell_pieces(pieces: &TablePieces, telling: &mut Telling) {
    match &pieces.header {
        Ok(header) => {
            let line = identity_facts(Line::new("table").with("salt", format!("{:016x}", header.salt)), header.identity);
            telling.say(line.with("packed blocks", if header.has_packed { "yes" } else { "no" }));
        }
        Err(error) => telling.error("header", error),
    }
    match &pieces.footer {
        Ok(footer) => {
            let line =
                Line::new("footer").with("volatile pages", footer.volatile).with("filter", footer.filter).with("index", footer.index);
            telling.say(line.with("properties", footer.properties).with("end", footer.end));
        }
        // What it leads to is then told by nobody.
        Err(error) => return telling.error("footer", error),
    }
    match &pieces.filter {
        Ok(filter) => telling.say(Line::new("filter").with("bytes", filter.memory_bytes() as u64)),
        Err(error) => telling.error("filter", error),
    }
    match &pieces.index {
        Ok(index) => telling.say(Line::new("index").with("bytes", index.memory_bytes() as u64).with("blocks", index.blocks())),
        Err(error) => telling.error("index", error),
    }
    match &pieces.properties {
        Ok(properties) => tell_properties(properties, telling),
        Err(error) => telling.error("properties", error),
    }
}

fn tell_properties(properties: &Properties, telling: &mut Telling) {
    let counts = &properties.counts;
    let line = Line::new("counts").with("entries", counts.entries).with("keys", counts.keys).with("blocks", counts.blocks);
    let line = line.with("raw bytes", counts.raw_bytes).with("tombstones", counts.tombstones).with("will expire", counts.volatile);
    telling.say(line.with("range tombstones", counts.range_ends).with("sums", counts.sums));
    telling.say(Line::new("range").with("first", place_text(&properties.first)).with("last", place_text(&properties.last)));
    let bounds: Vec<_> = properties.bounds.iter().collect();
    let least = bounds.iter().map(|bound| bound.least).min().unwrap_or(Version::ZERO);
    let greatest = bounds.iter().map(|bound| bound.greatest).max().unwrap_or(Version::ZERO);
    let line = Line::new("versions").with("vnodes", bounds.len() as u64).with("of the ring's", properties.vnodes);
    telling.say(line.with("least", version_text(least)).with("greatest", version_text(greatest)));
    if let (Some(first), Some(last)) = (properties.pages.first(), properties.pages.last()) {
        let line = Line::new("deadlines").with("pages", properties.pages.len() as u64).with("first page from", first.first_deadline_ms);
        telling.say(line.with("last page from", last.first_deadline_ms));
    }
}

async fn tell_blocks(pieces: &TablePieces, salt: u64, telling: &mut Telling) {
    let (mut blocks, mut entries, mut packed, mut sound_to) = (0u64, 0u64, 0u64, None);
    // A front that was given back reads as zeros: many blocks, one line.
    let mut lost: Option<(u64, u64, u64, String)> = None;
    let mut walk = pieces.blocks(salt);
    loop {
        let piece = walk.next().await;
        match (&mut lost, piece) {
            (Some((_, to, count, _)), Some(Piece::Lost { end, .. })) => (*to, *count) = (end, *count + 1),
            (None, Some(Piece::Lost { offset, end, why })) => {
                sound_to = sound_to.or(Some(offset));
                lost = Some((offset, end, 1, why));
            }
            (_, piece) => {
                if let Some((offset, end, count, why)) = lost.take() {
                    telling.is_sound = false;
                    let line = Line::new("damaged").with("piece", "blocks").with("blocks", count).with("offset", offset);
                    telling.say(line.with("end", end).with("why", why));
                }
                let Some(Piece::Block(block)) = piece else { break };
                (blocks, entries, packed) = (blocks + 1, entries + block.entries, packed + u64::from(block.is_packed));
                tell_block(&block, telling);
            }
        }
    }
    let end = sound_to.unwrap_or_else(|| pieces.footer.as_ref().map_or(pieces.bytes, |footer| footer.volatile));
    let line = Line::new("holds").with("sound blocks", blocks).with("of them packed", packed).with("entries in them", entries);
    telling.say(line.with("blocks sound up to", end));
}

fn tell_block(block: &FoundBlock, telling: &mut Telling) {
    telling.one(|| {
        let line = Line::new("block").with("offset", block.offset).with("bytes", block.bytes);
        let line = if block.is_packed { line.with("unpacked", block.content.len() as u64) } else { line };
        line.with("entries", block.entries).with("first", place_text(&block.first)).with("last", place_text(&block.last))
    });
    if !telling.options.cells {
        return;
    }
    let Ok(view) = BlockView::new(&block.content) else { return };
    let mut cursor = BlockCursor::default();
    while let Ok(Some(cell)) = cursor.advance(&view) {
        telling.cell(&cursor.place, &block.content[cell], |line| line);
    }
}
