//! The engine's background work: flushes, merges, expiry, forgetting; and what asks for it: `flush`, `compact_all`, `snapshot`, floors.

use super::format::manifest::{Edit, VnodeRecord};
use super::signal::race;
use super::store::{Core, Engine, add};
use super::tables::Memory;
use super::{EngineError, Seq};
use crate::base::record::{NamespaceId, Version, vnode_of};
use crate::base::time::HLC_COUNTER_BITS;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// How long until a full disk is tried again.
const DISK_FULL_RETRY: Duration = Duration::from_millis(500);
/// How often deadlines are looked at.
const EXPIRY_PERIOD: Duration = Duration::from_millis(10);
/// How often merges are looked for without a flush.
const MERGE_PERIOD: Duration = Duration::from_secs(1);

impl Memory for Core {
    fn owns(&self, vnode: u32) -> bool {
        self.store.owner(vnode) == self.config.core
    }

    fn oldest(&self, namespace: NamespaceId, vnode: u32) -> Option<Version> {
        let mems = self.mems.borrow();
        let sealed = mems.sealed.iter().filter_map(|sealed| sealed.table.version_bounds(namespace, vnode));
        let all = sealed.chain(mems.active.version_bounds(namespace, vnode));
        all.map(|(oldest, _)| oldest).min()
    }

    fn newest(&self, place: &[u8]) -> Option<Version> {
        let mems = self.mems.borrow();
        let sealed = mems.sealed.iter().filter_map(|sealed| sealed.table.get(place).map(|(cell, _)| cell.newest()));
        let active = mems.active.get(place).map(|(cell, _)| cell.newest());
        sealed.chain(active).max()
    }

    fn expired(&self, _place: &[u8]) {
        add(&self.counters.expired, 1);
    }
}

/// Writes sealed memtables as tables, oldest first.
pub(super) async fn flush_loop(core: Rc<Core>) {
    loop {
        let wait = core.flush_work.wait();
        if core.closing.get() || core.stopped.borrow().is_some() {
            break;
        }
        match flush_oldest(&core).await {
            Ok(true) => continue,
            Ok(false) => wait.await,
            Err(EngineError::DiskFull) => {
                core.disk_full.set(true);
                core.io.sleep(DISK_FULL_RETRY).await;
            }
            Err(error) => {
                core.stop(&error);
                break;
            }
        }
    }
    core.progress.notify();
}

/// Flushes one memtable. False where there is none.
async fn flush_oldest(core: &Core) -> Result<bool, EngineError> {
    let Some((table, last)) = core.mems.borrow().sealed.front().map(|sealed| (sealed.table.clone(), sealed.last)) else {
        return Ok(false);
    };
    core.tables.flush(&table, last).await?;
    core.mems.borrow_mut().sealed.pop_front();
    add(&core.counters.flushes, 1);
    add(&core.counters.flushed_bytes, table.live_bytes() as u64);
    core.wal.release(last);
    core.disk_full.set(false);
    core.progress.notify();
    core.tables.reap().await?;
    Ok(true)
}
