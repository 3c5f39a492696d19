//! Which core of a node owns a vnode. The same pure function everywhere, so that a client finds the core by itself.

pub use crate::base::record::core_of;

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
