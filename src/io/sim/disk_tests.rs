//! The disk against a model: after any operations and a crash, every block holds a value that it may hold.

use super::disk::{Disk, Ino, SECTOR_BYTES};
use super::faults::Stats;
use crate::base::prng::Prng;
use crate::io::op::OpenHow;
use crate::limits::BLOCK_BYTES;
use std::collections::BTreeSet;
use std::path::Path;

const BLOCKS: usize = 8;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// What one file may hold after a crash.
struct Model {
    now: [u8; BLOCKS],
    blocks: usize,
    may: [BTreeSet<u8>; BLOCKS],
    blocks_min: usize,
    blocks_max: usize,
}

impl Model {
    fn new() -> Model {
        let may = std::array::from_fn(|_| BTreeSet::from([0]));
        Model { now: [0; BLOCKS], blocks: 0, may, blocks_min: 0, blocks_max: 0 }
    }

    fn write(&mut self, first: usize, count: usize, fill: u8, sync: bool) {
        for at in first..first + count {
            self.now[at] = fill;
            if sync {
                self.may[at].clear();
            }
            self.may[at].insert(fill);
        }
        self.blocks = self.blocks.max(first + count);
        self.blocks_max = self.blocks_max.max(self.blocks);
        if sync {
            self.blocks_min = self.blocks_min.max(first + count);
        }
    }

    fn zero(&mut self, from: usize, to: usize) {
        for at in from..to {
            self.now[at] = 0;
            self.may[at].insert(0);
        }
    }

    fn resize(&mut self, blocks: usize) {
        self.zero(blocks, BLOCKS);
        self.blocks = blocks;
        self.blocks_min = self.blocks_min.min(blocks);
        self.blocks_max = self.blocks_max.max(blocks);
    }

    fn sync(&mut self) {
        self.may = self.now.map(|fill| BTreeSet::from([fill]));
        (self.blocks_min, self.blocks_max) = (self.blocks, self.blocks);
    }

    fn check_now(&self, disk: &Disk, ino: Ino) {
        let mut buf = [0xEE; BLOCKS * BLOCK_BYTES];
        let bytes = disk.read(ino, 0, &mut buf);
        assert_eq!(bytes, self.blocks * BLOCK_BYTES);
        for (at, block) in buf[..bytes].chunks(BLOCK_BYTES).enumerate() {
            assert!(block.iter().all(|byte| *byte == self.now[at]), "block {at}");
        }
    }

    /// Takes what a crash left for the present.
    fn crashed(&mut self, disk: &Disk, ino: Ino) {
        let mut buf = [0xEE; BLOCKS * BLOCK_BYTES];
        let bytes = disk.read(ino, 0, &mut buf);
        assert_eq!(bytes as u64, disk.size(ino));
        let blocks = bytes / BLOCK_BYTES;
        assert!(blocks >= self.blocks_min && blocks <= self.blocks_max, "{} <= {blocks} <= {}", self.blocks_min, self.blocks_max);
        for (at, sector) in buf[..bytes].chunks(SECTOR_BYTES).enumerate() {
            let may = &self.may[at * SECTOR_BYTES / BLOCK_BYTES];
            assert!(may.contains(&sector[0]), "sector {at} holds {}, may hold {may:?}", sector[0]);
            assert!(sector.iter().all(|byte| *byte == sector[0]), "sector {at} is torn");
        }
    }
}

#[test]
fn after_a_crash_every_block_holds_what_it_may_and_what_was_synced() {
    let mut stats = Stats::default();
    for seed in 0..1_000 {
        let mut rng = Prng::new(seed);
        let mut disk = Disk::new();
        let path = Path::new("/f");
        let ino = disk.open(path, OpenHow::Create).unwrap();
        disk.sync_dir(Path::new("/"), u64::MAX).unwrap();
        let mut model = Model::new();
        for step in 0..rng.below(40) {
            let first = rng.below(BLOCKS as u64) as usize;
            let count = 1 + rng.below((BLOCKS - first) as u64) as usize;
            let (offset, fill) = (first as u64 * BLOCK, 1 + step as u8);
            match rng.below(10) {
                0 => {
                    disk.sync(ino, disk.mark());
                    model.sync();
                }
                1 => {
                    disk.resize(ino, offset);
                    model.resize(first);
                }
                2 => {
                    disk.punch(ino, offset, count as u64 * BLOCK);
                    model.zero(first, first + count);
                }
                kind => {
                    let sync = kind < 5;
                    disk.write(ino, offset, &vec![fill; count * BLOCK_BYTES], sync, false, false).unwrap();
                    model.write(first, count, fill, sync);
                }
            }
            model.check_now(&disk, ino);
        }
        disk.crash(&mut rng, &mut stats);
        model.crashed(&disk, disk.find(path).unwrap());
        assert_eq!(disk.tree().len(), 2);
    }
    for name in
        ["lost unsynced write", "kept unsynced write", "torn write", "lost resize", "kept punch", "lost punch", "length without data"]
    {
        assert!(stats.counts.contains_key(name), "{name}");
    }
}

#[test]
fn space_is_counted_through_names_handles_and_crashes() {
    for seed in 0..300 {
        let mut rng = Prng::new(seed);
        let mut disk = Disk::new();
        for _ in 0..rng.below(60) {
            let (a, b) = (format!("/{}", rng.below(4)), format!("/{}", rng.below(4)));
            let (a, b) = (Path::new(&a), Path::new(&b));
            // Most of these fail where a name is or is not there.
            let _ = match rng.below(7) {
                0 | 1 => disk.open(a, OpenHow::Create).and_then(|ino| {
                    let written = disk.write(ino, 0, &[1; 3 * BLOCK_BYTES], rng.one_in(2), false, false);
                    disk.close(ino);
                    written
                }),
                2 => disk.rename(a, b),
                3 => disk.link(a, b),
                4 => disk.unlink(a),
                5 => disk.sync_dir(Path::new("/"), disk.mark()),
                _ => disk.open(a, OpenHow::Read).map(|ino| disk.close(ino)),
            };
        }
        let crashed = rng.one_in(2);
        if crashed {
            disk.crash(&mut rng, &mut Stats::default());
        }
        let names: Vec<String> = disk.tree().into_keys().filter(|name| name != "/").collect();
        let inodes: BTreeSet<Ino> = names.iter().map(|name| disk.find(Path::new(name)).unwrap()).collect();
        let used: u64 = inodes.iter().map(|ino| disk.allocated_blocks(*ino) * BLOCK).sum();
        assert_eq!(disk.used_bytes(), used, "seed {seed}, crashed {crashed}");
        for name in names {
            disk.unlink(Path::new(&name)).unwrap();
        }
        disk.sync_dir(Path::new("/"), disk.mark()).unwrap();
        assert_eq!((disk.used_bytes(), disk.inodes()), (0, 1), "seed {seed}, crashed {crashed}");
    }
}
