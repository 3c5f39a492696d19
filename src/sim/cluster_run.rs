//! Many seeds of `cluster`: what `ringkv sim --cluster` does, and what they have to show.

use super::cluster::{COMMANDS, FAULTS_WANTED, FLOORS, FORGOTTEN, FaultSet, Setup, run};
use super::seeds::{self, Outcome, Summary};
use crate::cluster::coordinator::Planted;
use crate::config::SimRun;

impl Planted {
    pub const ALL: &[Planted] = &[
        Planted::PutRestamps,
        Planted::DupIsSuperseded,
        Planted::ClocksNotAsked,
        Planted::ReadNoWriteback,
        Planted::RetryNewStamp,
        Planted::HintCountedToW,
        Planted::AckBeforeSync,
        Planted::OldEpochObeyed,
        Planted::PendingNotInQuorum,
        Planted::RepairOff,
        Planted::FlipAfterOneSource,
        Planted::DropWithoutFence,
        Planted::FloorLocalOnly,
        Planted::RepairCopyBelowFloor,
        Planted::AbsentIsVersionZero,
        Planted::FloorNotInherited,
    ];

    /// As PROTOCOL.md calls it.
    pub fn name(self) -> &'static str {
        match self {
            Planted::PutRestamps => "put_restamps",
            Planted::DupIsSuperseded => "dup_is_superseded",
            Planted::ClocksNotAsked => "clocks_not_asked",
            Planted::ReadNoWriteback => "read_no_writeback",
            Planted::RetryNewStamp => "retry_new_stamp",
            Planted::HintCountedToW => "hint_counted_to_w",
            Planted::AckBeforeSync => "ack_before_sync",
            Planted::OldEpochObeyed => "old_epoch_served",
            Planted::PendingNotInQuorum => "pending_not_in_quorum",
            Planted::RepairOff => "repair_off",
            Planted::FlipAfterOneSource => "flip_after_one_source",
            Planted::DropWithoutFence => "drop_without_fence",
            Planted::FloorLocalOnly => "floor_local_only",
            Planted::RepairCopyBelowFloor => "repair_copy_below_floor",
            Planted::AbsentIsVersionZero => "absent_is_version_zero",
            Planted::FloorNotInherited => "floor_not_inherited",
        }
    }
}

impl seeds::Setup for Setup {
    const FLAGS: &'static str = " --cluster";
    const WHAT: &'static str = " of clusters";
    const SEEDS: u64 = 100;
    const CRASHES_MIN: u64 = 0;
    const COUNTS: &'static [(&'static str, u64)] = &[(FLOORS, 0), (FORGOTTEN, 0)];

    fn new(seed: u64, asked: &SimRun) -> Result<Setup, Vec<&'static str>> {
        let planted = seeds::planted(Planted::ALL, Planted::name, asked)?;
        Ok(Setup { seed, planted, commands: COMMANDS, faults: FaultSet::ALL })
    }

    fn with_seed(&self, seed: u64) -> Setup {
        Setup { seed, ..self.clone() }
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn run(&self) -> Outcome {
        run(self)
    }

    fn planted(&self) -> Option<&'static str> {
        self.planted.map(Planted::name)
    }

    fn commands(&mut self) -> &mut u64 {
        &mut self.commands
    }

    fn faults(&self) -> String {
        format!("{:?}", self.faults)
    }

    fn calmer(&self) -> Vec<Setup> {
        let switches: [fn(&mut FaultSet); 8] = [
            |set| set.clock = false,
            |set| set.slow = false,
            |set| set.network = false,
            |set| set.cut = false,
            |set| set.full = false,
            |set| set.errors = false,
            |set| set.crash = false,
            |set| set.moves = false,
        ];
        seeds::without(self.faults, &switches).map(|faults| Setup { faults, ..self.clone() }).collect()
    }

    fn lacks(_asked: &SimRun, all: &Summary) -> Vec<String> {
        let mut lacks = all.missing(FAULTS_WANTED);
        let count = |name| all.counts.get(name).copied().unwrap_or_default();
        let ((_, rising), (forgotten, _)) = (count(FLOORS), count(FORGOTTEN));
        if forgotten == 0 || rising * 4 < all.seeds * 3 {
            lacks.push(format!("too little was forgotten: {forgotten} cells, and floors rose in {rising} of {} seeds", all.seeds));
        }
        lacks
    }
}
