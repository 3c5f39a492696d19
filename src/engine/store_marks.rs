//! What a replica keeps, durable, of the forgetting in a vnode: its fence and its floor (PROTOCOL.md "Forgetting the dead"). They stand in
//! the manifest, so they are there again before a shard that was started anew takes its first write. The engine holds the floor: merges
//! drop what is dead at or below it, and writes at or below it are refused. The fence is only kept here: which road may pass it decides
//! who asks (`cluster::forget`).

use super::EngineError;
use super::format::manifest::{Edit, VnodeRecord};
use super::store::Engine;
use crate::base::record::{NamespaceId, Version};

/// fence ≥ floor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnodeMarks {
    pub fence: Version,
    pub floor: Version,
}

impl Engine {
    /// A vnode's durable marks.
    pub fn marks(&self, namespace: NamespaceId, vnode: u32) -> VnodeMarks {
        let record = self.core.tables.manifest().state().vnodes.get(namespace, vnode);
        VnodeMarks { fence: record.fence, floor: record.floor }
    }

    /// Raises a vnode's fence. When this returns it is durable, and so is every write that was taken before the call.
    ///
    /// # Errors
    /// As `raise_marks`; `Stopped` where a write before it never will be durable.
    pub async fn set_fence(&self, namespace: NamespaceId, vnode: u32, fence: Version) -> Result<(), EngineError> {
        self.wait_durable(self.core.wal.last()).await?;
        self.raise_marks(namespace, vnode, VnodeMarks { fence, floor: Version::ZERO }).await
    }

    /// Raises a vnode's floor, and with it the fence: below it the dead may be forgotten from now on; writes at or below it are refused.
    ///
    /// # Errors
    /// As `raise_marks`.
    pub async fn set_floor(&self, namespace: NamespaceId, vnode: u32, floor: Version) -> Result<(), EngineError> {
        self.raise_marks(namespace, vnode, VnodeMarks { fence: floor, floor }).await
    }

    /// Raises both marks of a vnode, those that are below: durable when it returns. Nothing lowers them.
    ///
    /// # Errors
    /// As `Manifest::commit`: `DiskFull` (nothing has changed), `Stopped`.
    pub async fn raise_marks(&self, namespace: NamespaceId, vnode: u32, marks: VnodeMarks) -> Result<(), EngineError> {
        let core = &self.core;
        core.has_floors.set(true);
        core.clock.borrow_mut().observe(marks.fence.max(marks.floor).hlc());
        let raise = |old: VnodeRecord| {
            let floor = old.floor.max(marks.floor);
            VnodeRecord { floor, fence: old.fence.max(marks.fence).max(floor), ..old }
        };
        let update = core.tables.manifest().update(|state| {
            let old = state.vnodes.get(namespace, vnode);
            let record = raise(old);
            let edit = Edit::Vnodes { namespace, first: vnode, last: vnode, record };
            if record == old { Vec::new() } else { vec![edit] }
        });
        update.await
    }
}
