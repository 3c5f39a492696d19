//! A snapshot of a shard's tables: hard links and a manifest, in a folder that a node can open. No copy, no memory, no pause: the tables of
//! the tree that is current when it begins, while writes and merges go on. The caller flushes first; the log is not part of it.

use super::EngineError;
use super::format::manifest::{Edit, TableId};
use super::manifest::{State, write_new};
use super::tables::Tables;
use std::path::Path;

impl Tables {
    /// Links every table of the current tree into `tables_dir` and writes a manifest of them into `manifest_dir`; both folders exist and
    /// are empty of this shard's names. Durable when it returns; gives the tables. From then on the linked tables are given back only as
    /// a whole.
    ///
    /// # Errors
    /// Of the operations. What was linked until then stays for the caller to remove.
    pub async fn snapshot(&self, tables_dir: &Path, manifest_dir: &Path) -> Result<Vec<TableId>, EngineError> {
        // Nothing changes the tree between the edit that protects the files and the copy of the state, which has one instant.
        let turn = self.expiry.turn().await;
        let edits: Vec<Edit> = self.manifest.state().tables.keys().copied().map(Edit::LinkTable).collect();
        self.adopt(edits, Vec::new(), 0).await?;
        let tree = self.tree();
        let mut state: State = self.manifest.state().clone();
        drop(turn);
        // A snapshot is at rest: where a merge was under way, its inputs and outputs are a tree like any other.
        state.merges.clear();
        // Its records stay marked as linked: neither side may give back the front of a file that the other reads.
        for table in tree.tables() {
            match self.io.link(&table.file.path, &tables_dir.join(table.record.id.file_name())).await {
                // Another shard that refers to the same file was first.
                Err(error) if table.record.shared && error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        self.io.sync_dir(tables_dir).await?;
        write_new(&self.io, manifest_dir, self.manifest.identity(), &state).await?;
        Ok(state.tables.keys().copied().collect())
    }
}
