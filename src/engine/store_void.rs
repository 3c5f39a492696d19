//! Making vnodes void: what this shard holds of a vnode from before counts for nothing any more (a vnode that left the node, or comes to it
//! anew; PROTOCOL.md "Moves"). Nothing is written over: memory is flushed, and a drop sequence above all tables that there are then says
//! that what they hold of the vnode is void; merges leave it out, and tables of which nothing else counts go.

use super::EngineError;
use super::format::manifest::{Edit, VnodeRecord};
use super::manifest::State;
use super::store::Engine;
use crate::base::record::{NAMESPACE_SYSTEM, NamespaceId};
use std::collections::BTreeSet;

impl Engine {
    /// At which epoch of the topology this node began to hold a vnode, as `void_vnodes` was told last; 0: it never was.
    pub fn incarnation(&self, vnode: u32) -> u64 {
        self.core.tables.manifest().state().vnodes.get(NAMESPACE_SYSTEM, vnode).incarnation
    }

    /// Makes void what the shard holds of these vnodes in the namespaces that are told, the system's never among them, and their marks.
    /// Durable when it returns. From the call until then nothing may be written to them.
    ///
    /// # Errors
    /// As `flush`, and `Manifest::commit`; what holds of each vnode is then what held before.
    pub async fn void_vnodes(
        &self,
        vnodes: &[u32],
        is_told: impl Fn(NamespaceId, u32) -> bool,
        incarnation: u64,
    ) -> Result<(), EngineError> {
        let core = &self.core;
        self.flush().await?;
        let had_data = self.vnodes_with_data();
        let ours =
            |namespace: NamespaceId, vnode: u32| namespace != NAMESPACE_SYSTEM && vnodes.contains(&vnode) && is_told(namespace, vnode);
        let edits = |state: &State| {
            // Above everything that any table holds, those that a merge is writing among them: they hold what its inputs held.
            let drop_seq = state.tables.values().map(|table| table.seqs.1 + 1).max().unwrap_or(0);
            let marked = state.vnodes.iter().flat_map(|(namespace, first, last, _)| (first..=last).map(move |vnode| (namespace, vnode)));
            let both = had_data.iter().copied().chain(marked);
            let places: BTreeSet<(NamespaceId, u32)> = both.filter(|(namespace, vnode)| ours(*namespace, *vnode)).collect();
            let edit = |namespace, vnode, record| Edit::Vnodes { namespace, first: vnode, last: vnode, record };
            let mut edits: Vec<Edit> = vnodes
                .iter()
                .map(|&vnode| edit(NAMESPACE_SYSTEM, vnode, VnodeRecord { incarnation, ..state.vnodes.get(NAMESPACE_SYSTEM, vnode) }))
                .collect();
            edits.extend(
                places.iter().map(|&(namespace, vnode)| edit(namespace, vnode, VnodeRecord { drop_seq, ..VnodeRecord::default() })),
            );
            edits
        };
        core.checked(core.tables.manifest().update(edits).await)?;
        core.remnant_floors.forget(ours);
        if had_data.iter().any(|(namespace, vnode)| ours(*namespace, *vnode)) {
            core.cells.clear();
        }
        core.tables.drop_void().await?;
        Ok(())
    }

    /// Tells of which namespaces and vnodes this shard holds anything, as things are now.
    pub fn held_vnodes(&self) -> impl Fn(NamespaceId, u32) -> bool + '_ {
        let in_tables = self.vnodes_with_data();
        move |namespace, vnode| {
            let mems = self.core.mems.borrow();
            let mut memtables = mems.sealed.iter().map(|sealed| &*sealed.table).chain([&mems.active]);
            memtables.any(|memtable| memtable.version_bounds(namespace, vnode).is_some()) || in_tables.contains(&(namespace, vnode))
        }
    }

    /// The namespaces and vnodes of which tables of this shard may hold something that counts.
    pub fn vnodes_with_data(&self) -> BTreeSet<(NamespaceId, u32)> {
        let tables = &self.core.tables;
        let manifest = tables.manifest();
        let state = manifest.state();
        let tree = tables.tree();
        let bounds = tree.tables().flat_map(|table| table.table.properties().bounds.iter().map(move |bound| (table, bound)));
        let counts = bounds.filter(|(table, bound)| {
            let is_ours = self.core.store.owner(bound.vnode) == self.core.config.core;
            is_ours
                && table.record.start_of(bound.vnode).is_some()
                && !table.is_void(state.vnodes.get(bound.namespace, bound.vnode).drop_seq)
        });
        counts.map(|(_, bound)| (bound.namespace, bound.vnode)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::{Batch, KeyRef};
    use super::super::recover::{NodeConfig, NodeStore};
    use super::super::store::EngineConfig;
    use super::super::test_core::on;
    use super::*;
    use crate::base::record::{token_of, vnode_of};
    use crate::io::Io;
    use crate::io::sim::{Faults, World};
    use std::path::Path;

    async fn open(io: &Io) -> Engine {
        let node = NodeConfig { cores: 1, vnodes: 16, identity: None, core_of: |_, _| 0 };
        let store = NodeStore::open(io, Path::new("/data"), node).await.unwrap();
        let (engine, _) = Engine::open(io, &store, EngineConfig::new(0, 1 << 20, 7)).await.unwrap();
        store.commit(io).await.unwrap();
        engine
    }

    /// Runs a test on a machine of its own.
    fn run<F: Future<Output = ()> + 'static>(seed: u64, test: impl FnOnce(Io) -> F + 'static) {
        let world = World::new(seed);
        let machine = world.add_machine(Faults::default());
        assert_eq!(on(&world, machine, test), Some(()));
    }

    fn key(number: u32) -> (Vec<u8>, u32) {
        let name = format!("key {number}").into_bytes();
        let vnode = vnode_of(token_of(&name), 16);
        (name, vnode)
    }

    async fn put(engine: &Engine, number: u32, value: &[u8]) {
        let (name, _) = key(number);
        let mut batch = Batch::new(true);
        batch.put_value(KeyRef { namespace: 1, token: token_of(&name), key: &name }, value, engine.stamp(1), 0);
        engine.wait_durable(engine.write(&batch).unwrap()).await.unwrap();
    }

    async fn get(engine: &Engine, number: u32) -> Option<Vec<u8>> {
        let (name, _) = key(number);
        let found = engine.read_value(KeyRef { namespace: 1, token: token_of(&name), key: &name }, 1).await.unwrap();
        found.map(|value| value.bytes)
    }

    #[test]
    fn what_other_namespaces_hold_of_a_vnode_stays() {
        run(2, |io| async move {
            let engine = open(&io).await;
            let (name, vnode) = key(0);
            for namespace in [1, 2] {
                let mut batch = Batch::new(true);
                batch.put_value(KeyRef { namespace, token: token_of(&name), key: &name }, b"value", engine.stamp(1), 0);
                engine.wait_durable(engine.write(&batch).unwrap()).await.unwrap();
            }
            let held = |engine: &Engine| [1, 2, 3].map(|namespace| engine.held_vnodes()(namespace, vnode));
            assert_eq!(held(&engine), [true, true, false], "in memory");
            engine.void_vnodes(&[vnode], |namespace, _| namespace == 2, 7).await.unwrap();
            assert_eq!(held(&engine), [true, false, false], "in a table");
            for (namespace, is_there) in [(1, true), (2, false)] {
                let found = engine.read_value(KeyRef { namespace, token: token_of(&name), key: &name }, 1).await.unwrap();
                assert_eq!(found.is_some(), is_there, "namespace {namespace}");
            }
            assert_eq!(engine.vnodes_with_data(), BTreeSet::from([(1, vnode)]));
            engine.close().await.unwrap();
        });
    }

    #[test]
    fn what_a_vnode_held_is_void_and_what_comes_later_is_not_after_a_restart_too() {
        run(1, |io| async move {
            let engine = open(&io).await;
            let gone = key(0).1;
            for number in 0..200 {
                put(&engine, number, b"old").await;
                assert!(get(&engine, number).await.is_some(), "in the cache too, where it comes from a table");
                if number == 100 {
                    engine.flush().await.unwrap();
                }
            }
            engine.void_vnodes(&[gone], |_, _| true, 7).await.unwrap();
            assert_eq!((engine.incarnation(gone), engine.incarnation(gone ^ 1)), (7, 0));
            assert!(engine.vnodes_with_data().iter().all(|(_, vnode)| *vnode != gone));
            for number in 0..200 {
                assert_eq!(get(&engine, number).await.is_none(), key(number).1 == gone, "key {number}");
            }
            put(&engine, 0, b"new").await;
            engine.close().await.unwrap();
            let engine = open(&io).await;
            assert_eq!(engine.incarnation(gone), 7);
            engine.compact_all().await.unwrap();
            for number in 0..200 {
                let wanted = if number == 0 { Some(&b"new"[..]) } else { Some(&b"old"[..]).filter(|_| key(number).1 != gone) };
                assert_eq!(get(&engine, number).await.as_deref(), wanted, "key {number}");
            }
            engine.void_vnodes(&(0..16).collect::<Vec<_>>(), |_, _| true, 9).await.unwrap();
            assert_eq!((engine.stats().tables, get(&engine, 0).await), (0, None));
            engine.close().await.unwrap();
        });
    }
}
