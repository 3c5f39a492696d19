//! Many seeds of `cluster`: what `ringkv sim --cluster` does, and what they have to show.

use super::cluster::{FAULTS_WANTED, FLOORS, FORGOTTEN, FaultSet, Setup, run};
use super::programs;
use super::seeds::{Kind, Outcome, Summary, Switch};
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
        Planted::RestoredReplicaVotes,
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
            Planted::RestoredReplicaVotes => "restored_replica_votes",
        }
    }
}

impl Kind for FaultSet {
    type Planted = Planted;

    const FLAGS: &'static str = " --cluster";
    const WHAT: &'static str = " of clusters";
    const SEEDS: u64 = 100;
    const COMMANDS: u64 = 2_500;
    const CRASHES_MIN: u64 = 0;
    const COUNTS: &'static [(&'static str, u64)] = &[(FLOORS, 0), (FORGOTTEN, 0)];
    const PLANTED: &'static [Planted] = Planted::ALL;
    const FAULTS: FaultSet =
        FaultSet { crash: true, cut: true, network: true, slow: true, clock: true, full: true, errors: true, moves: true };
    const SWITCHES: &'static [Switch<FaultSet>] = &[
        ("clock", |set| set.clock = false),
        ("slow", |set| set.slow = false),
        ("network", |set| set.network = false),
        ("cut", |set| set.cut = false),
        ("full", |set| set.full = false),
        ("errors", |set| set.errors = false),
        ("crash", |set| set.crash = false),
        ("moves", |set| set.moves = false),
    ];

    fn name(planted: Planted) -> &'static str {
        planted.name()
    }

    fn run(setup: &Setup) -> Outcome {
        run(setup)
    }

    fn lacks(_asked: &SimRun, all: &Summary) -> Vec<String> {
        let versions = if programs::ARE_SEVERAL { programs::FAULTS_WANTED } else { &[] };
        let mut lacks = all.missing(FAULTS_WANTED.iter().chain(versions));
        let count = |name| all.counts.get(name).copied().unwrap_or_default();
        let ((_, rising), (forgotten, _)) = (count(FLOORS), count(FORGOTTEN));
        if forgotten == 0 || rising * 4 < all.seeds * 3 {
            lacks.push(format!("too little was forgotten: {forgotten} cells, and floors rose in {rising} of {} seeds", all.seeds));
        }
        lacks
    }
}
