//! What a replica keeps, durable, of the forgetting in a vnode: its fence and its floor (PROTOCOL.md "Forgetting the dead"). They stand in
//! the manifest, so they are there again before a shard that was started anew takes its first write. The engine holds the floor: merges
//! drop what is dead at or below it, and writes at or below it are refused. The fence is only kept here: which road may pass it decides
//! who asks (`cluster::forget`).
//!
//! **What expired values left** goes by a floor of its own (`merge`): an earlier floor of the vnode, which it had so long ago that
//! everything begun before lies below today's. So it takes more than one session to forget it. That floor is in memory only: after a
//! restart the next sessions find one again, and until then less is dropped.

use super::EngineError;
use super::format::manifest::{Edit, VnodeRecord};
use super::merge::may_forget;
use super::store::{Core, Engine};
use crate::base::record::{Body, Cell, NamespaceId, Version};
use crate::base::time::{WallMs, hlc_ms};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// fence ≥ floor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnodeMarks {
    pub fence: Version,
    pub floor: Version,
}

/// Of one vnode.
#[derive(Clone, Copy, Debug)]
struct Settled {
    remnants: Version,
    /// What comes next, and since when the vnode has it.
    next: Version,
    since_ms: WallMs,
}

/// How far what expired values left may be forgotten.
#[derive(Debug)]
pub(super) struct RemnantFloors {
    /// Floors that were there already count from here.
    opened_ms: WallMs,
    by_vnode: RefCell<BTreeMap<(NamespaceId, u32), Settled>>,
}

impl RemnantFloors {
    pub(super) fn new(opened_ms: WallMs) -> RemnantFloors {
        RemnantFloors { opened_ms, by_vnode: RefCell::default() }
    }

    fn get(&self, namespace: NamespaceId, vnode: u32) -> Version {
        self.by_vnode.borrow().get(&(namespace, vnode)).map_or(Version::ZERO, |settled| settled.remnants)
    }

    /// The vnode has this floor from now on, whatever it had before.
    fn begin_anew(&self, vnode: (NamespaceId, u32), floor: Version, now_ms: WallMs) {
        self.by_vnode.borrow_mut().insert(vnode, Settled { remnants: Version::ZERO, next: floor, since_ms: now_ms });
    }

    /// Nothing that was of these vnodes counts any more.
    pub(super) fn forget(&self, is_void: impl Fn(NamespaceId, u32) -> bool) {
        self.by_vnode.borrow_mut().retain(|(namespace, vnode), _| !is_void(*namespace, *vnode));
    }

    /// A floor rose, from `before`. `begun_is_over_ms`: as in `EngineConfig`.
    fn rose(&self, vnode: (NamespaceId, u32), (before, floor): (Version, Version), now_ms: WallMs, begun_is_over_ms: u64) {
        let mut by_vnode = self.by_vnode.borrow_mut();
        let opened = Settled { remnants: Version::ZERO, next: before, since_ms: self.opened_ms };
        let settled = by_vnode.entry(vnode).or_insert(opened);
        let is_over = hlc_ms(floor.hlc()) >= settled.since_ms.saturating_add(begun_is_over_ms);
        if is_over || settled.next == Version::ZERO {
            *settled = Settled { remnants: settled.next, next: floor, since_ms: now_ms };
        }
    }
}

impl Core {
    pub(super) fn remnant_floor(&self, namespace: NamespaceId, vnode: u32) -> Version {
        match self.config.begun_is_over_ms {
            None => Version::MAX,
            Some(_) => self.remnant_floors.get(namespace, vnode),
        }
    }
}

impl Engine {
    /// A vnode's durable marks.
    pub fn marks(&self, namespace: NamespaceId, vnode: u32) -> VnodeMarks {
        let record = self.core.tables.manifest().state().vnodes.get(namespace, vnode);
        VnodeMarks { fence: record.fence, floor: record.floor }
    }

    /// Whether a merge may drop what is held at a place, or has just decided to while the table still shows it: nothing that comes in may
    /// be judged by it, nor build on it.
    pub fn may_forget(&self, namespace: NamespaceId, vnode: u32, held: &Cell<'_>) -> bool {
        if !self.core.has_floors.get() {
            return false;
        }
        let has_deadline = held.expiry.deadline_ms != 0;
        let is_expired = has_deadline && held.is_expired(self.core.io.wall_ms());
        let is_dead = is_expired || matches!(held.body, Body::Tombstone | Body::Silent);
        is_dead && may_forget(held, self.marks(namespace, vnode).floor, self.core.remnant_floor(namespace, vnode))
    }

    /// The highest fence of any vnode: above it nothing is refused.
    pub fn highest_fence(&self) -> Version {
        let state = self.core.tables.manifest().state();
        state.vnodes.iter().map(|(.., record)| record.fence.max(record.floor)).max().unwrap_or(Version::ZERO)
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
        let (core, before) = (&self.core, self.marks(namespace, vnode).floor);
        self.raise_marks(namespace, vnode, VnodeMarks { fence: floor, floor }).await?;
        if let Some(begun_is_over_ms) = core.config.begun_is_over_ms.filter(|_| before < floor) {
            core.remnant_floors.rose((namespace, vnode), (before, floor), core.io.wall_ms(), begun_is_over_ms);
        }
        Ok(())
    }

    /// Raises the marks of a vnode to those of who had it before.
    ///
    /// # Errors
    /// As `raise_marks`.
    pub async fn inherit_marks(&self, namespace: NamespaceId, vnode: u32, marks: VnodeMarks) -> Result<(), EngineError> {
        self.raise_marks(namespace, vnode, marks).await?;
        let core = &self.core;
        core.remnant_floors.begin_anew((namespace, vnode), marks.floor, core.io.wall_ms());
        Ok(())
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
        core.checked(update.await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::HLC_COUNTER_BITS;

    #[test]
    fn what_expired_values_left_follows_the_floor_at_a_distance() {
        let floors = RemnantFloors::new(1_000);
        let at = |ms: u64| Version::put(ms << HLC_COUNTER_BITS, 0);
        let rose = |before, floor, now| {
            floors.rose((1, 2), (at(before), at(floor)), now, 500);
            floors.get(1, 2)
        };
        assert_eq!(rose(900, 1_400, 2_000), Version::ZERO, "what the vnode had before the restart it has not had long enough");
        assert_eq!(rose(1_400, 1_600, 2_200), at(900));
        assert_eq!(rose(1_600, 2_000, 2_600), at(900));
        assert_eq!(rose(2_000, 2_600, 3_200), at(900));
        assert_eq!(rose(2_600, 2_700, 3_300), at(1_600), "it had that floor at 2,200, and what was begun by then is over");
        assert_eq!(rose(2_700, 3_700, 4_300), at(1_600));
        assert_eq!(rose(3_700, 3_800, 4_400), at(2_700));
        floors.begin_anew((1, 2), at(3_800), 4_500);
        assert_eq!(rose(3_800, 4_900, 5_000), Version::ZERO, "its new owner has it only since then");
        assert_eq!(rose(4_900, 5_100, 5_200), at(3_800));
        floors.forget(|_, vnode| vnode == 2);
        assert_eq!(floors.get(1, 2), Version::ZERO);
        floors.rose((1, 4), (Version::ZERO, at(5_000)), 6_000, 500);
        floors.rose((1, 4), (at(5_000), at(6_499)), 7_000, 500);
        assert_eq!(floors.get(1, 4), Version::ZERO);
        floors.rose((1, 4), (at(6_499), at(6_500)), 7_001, 500);
        assert_eq!(floors.get(1, 4), at(5_000));
        assert_eq!(floors.get(1, 3), Version::ZERO);
    }
}
