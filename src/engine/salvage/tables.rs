//! The tables: whole, in part, or gone.

use super::*;
use crate::engine::format::block::{BlockCursor, BlockView};
use crate::engine::pieces::{FoundBlock, Piece, TablePieces};
use crate::engine::table_writer::{TableInfo, TableOptions, TableWriter};
use crate::engine::verify::verify_table_from;

impl Salvage<'_> {
    /// Copies every table that a state names and makes the states follow.
    pub(super) async fn tables(&mut self, states: &mut [State]) -> Result<(), EngineError> {
        // Each file once, whoever refers to it: from the lowest place that counts for anybody.
        let mut named: BTreeMap<TableId, TableRecord> = BTreeMap::new();
        for record in states.iter().flat_map(|state| state.tables.values()) {
            let one = named.entry(record.id).or_insert_with(|| record.clone());
            if record.from < one.from {
                one.from.clone_from(&record.from);
            }
            // A record that was made up knows no more than the name.
            if one.bytes == 0 {
                *one = TableRecord { from: one.from.clone(), ..record.clone() };
            }
        }
        for (id, record) in named {
            let kept = self.table(&record).await?;
            for state in states.iter_mut() {
                if kept.is_none() {
                    state.tables.remove(&id);
                }
                let (Some(own), Some(info)) = (state.tables.get_mut(&id), &kept) else { continue };
                (own.bytes, own.entries, own.vnodes) = (info.bytes, info.counts.entries, info.vnodes);
                (own.first, own.last) = (info.first.clone(), info.last.clone());
                own.seqs = if own.seqs == (0, 0) { record.seqs } else { own.seqs };
            }
        }
        self.io.sync_dir(&self.to.join(TABLES)).await?;
        Ok(())
    }

    /// What the table is in the new folder; None where nothing of it is sound.
    async fn table(&mut self, record: &TableRecord) -> Result<Option<TableInfo>, EngineError> {
        let name = format!("{TABLES}/{}", record.id.file_name());
        let (source, target) = (self.from.join(&name), self.to.join(&name));
        let salt = Header::new(self.layout.identity, cache_id(record.id)).salt;
        if let Ok(report) = verify_table_from(self.io, &source, &record.from).await
            && (report.identity, report.salt) == (self.layout.identity, salt)
        {
            let info = report.info;
            let is_known =
                (info.bytes, info.counts.entries, &info.first, &info.last) == (record.bytes, record.entries, &record.first, &record.last);
            if is_known || record.bytes == 0 {
                copy_file(self.io, &source, &target).await?;
                self.say(format!("{name}: sound, {} entries", report.entries));
                return Ok(Some(info));
            }
        }
        let (from, to) = ((&record.first[..]).max(&record.from[..]).to_vec(), record.last.clone());
        let pieces = match TablePieces::read(self.io, &source, Some(salt)).await {
            Ok(pieces) => pieces,
            Err(error) => {
                self.lose(&name, (0, 0), &error.to_string(), (from, to));
                return Ok(None);
            }
        };
        self.parts_of(&name, &target, &pieces, salt, record).await
    }

    fn lose(&mut self, file: &str, (offset, bytes): (u64, u64), why: &str, range: (Vec<u8>, Vec<u8>)) {
        let vnodes = self.vnodes_between(&range.0, &range.1);
        let (file, why) = (file.to_owned(), why.to_owned());
        self.report.lost.push(Lost { file, offset, bytes, why, range: Some(range), vnodes, ..Lost::default() });
    }

    /// Writes the sound blocks of a damaged table under its name.
    async fn parts_of(
        &mut self,
        name: &str,
        target: &Path,
        pieces: &TablePieces,
        salt: u64,
        record: &TableRecord,
    ) -> Result<Option<TableInfo>, EngineError> {
        let packed = match (&pieces.header, &pieces.properties) {
            (Ok(header), Ok(properties)) if header.has_packed => properties.bounds.iter().map(|bound| bound.namespace).collect(),
            _ => Vec::new(),
        };
        let options = TableOptions {
            identity: self.layout.identity,
            table_id: cache_id(record.id),
            vnodes: self.layout.vnodes,
            packed: packed.into(),
            ..TableOptions::default()
        };
        let mut writer: Option<TableWriter> = None;
        let (mut last, mut pending) = (Vec::new(), None::<(u64, u64, String)>);
        let (mut walk, mut read) = (pieces.blocks(salt), 0);
        // Blocks before this one hold nothing that counts, and may have been given back.
        let void_to = pieces.index.as_ref().ok().and_then(|index| index.find(&record.from).ok()?).map_or(0, |block| block.offset);
        while let Some(piece) = walk.next().await {
            let block = match piece {
                Piece::Block(block) if last.is_empty() || block.first > last => block,
                Piece::Block(block) => {
                    let why = "a block whose places are not above those before it".to_owned();
                    pending.get_or_insert((block.offset, block.offset, why)).1 = block.offset + block.bytes;
                    continue;
                }
                Piece::Lost { end, .. } if end <= void_to => continue,
                Piece::Lost { offset, end, why } => {
                    pending.get_or_insert((offset, end, why)).1 = end;
                    continue;
                }
            };
            read += block.entries;
            if let Some(lost) = pending.take() {
                self.lose_blocks(name, lost, &last, &block.first, record);
            }
            last.clone_from(&block.last);
            if block.last < record.from {
                continue;
            }
            if writer.is_none() {
                writer = Some(TableWriter::create(self.io, target, options.clone()).await?);
            }
            add_block(writer.as_mut().expect("made above"), &block, &record.from).await?;
        }
        // Without the index what follows the blocks is not told from lost ones, but the manifest knows how many entries there were.
        let is_all = record.from.is_empty() && read == record.entries;
        if let Some(lost) = pending.filter(|_| !is_all) {
            self.lose_blocks(name, lost, &last, &record.last, record);
        }
        let Some(writer) = writer else {
            self.say(format!("{name}: nothing of it is sound"));
            return Ok(None);
        };
        let info = writer.finish().await?;
        self.say(format!("{name}: damaged, {} entries of its sound blocks copied", info.counts.entries));
        Ok(Some(info))
    }

    /// Blocks between two places; not those of a front that was given back.
    fn lose_blocks(&mut self, name: &str, (offset, end, why): (u64, u64, String), last: &[u8], next: &[u8], record: &TableRecord) {
        if !next.is_empty() && next <= &record.from[..] {
            return;
        }
        let from = if last.is_empty() { &record.first[..] } else { last };
        self.lose(name, (offset, end - offset), &why, (from.max(&record.from[..]).to_vec(), next.to_vec()));
    }
}

async fn add_block(writer: &mut TableWriter, block: &FoundBlock, from: &[u8]) -> Result<(), EngineError> {
    let corrupt = |what| EngineError::corrupt("a block that was checked", block.offset, what);
    let (view, mut cursor) = (BlockView::new(&block.content).map_err(corrupt)?, BlockCursor::default());
    while let Some(cell) = cursor.advance(&view).map_err(corrupt)? {
        if cursor.place[..] >= *from {
            writer.add(&cursor.place, &block.content[cell]).await?;
        }
    }
    Ok(())
}
