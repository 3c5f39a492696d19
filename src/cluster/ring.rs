//! Which core of a node owns a vnode. The same pure function everywhere, so that a client finds the core by itself.

/// The core (index into the node's list of data cores) that owns a vnode.
///
/// Round robin: vnodes are equal arcs, so cores differ by one vnode at most, and nodes with equal core counts agree on every vnode's core.
#[inline]
pub fn core_of(vnode: u32, cores: u16) -> u16 {
    debug_assert!(cores > 0);
    (vnode % u32::from(cores)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_differ_by_one_vnode_at_most() {
        for cores in 1..=64u16 {
            let mut owned = vec![0u32; usize::from(cores)];
            (0..4096).for_each(|vnode| owned[usize::from(core_of(vnode, cores))] += 1);
            assert!(owned.iter().max().unwrap() - owned.iter().min().unwrap() <= 1);
        }
    }
}
