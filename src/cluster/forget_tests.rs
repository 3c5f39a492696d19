//! The rules of forgetting one by one; whole sessions are in `repair_tests`.

use super::forget::{
    Admit, Body, Follower, FollowerEffect, Marks, Message, Refusal, Road, Session, SessionId, admits, admits_cell, leads, up_to,
};
use super::merkle::Digest;
use super::repair::Scope;
use crate::base::record::Version;
use crate::base::time::HLC_COUNTER_BITS;

const LAG_MS: u64 = 1000;
const OURS: SessionId = SessionId { number: 5, leader: 1 };
const OTHER: SessionId = SessionId { number: 4, leader: 2 };
const ROADS: [Road; 5] = [Road::Put, Road::Hint, Road::WriteBack, Road::Copy, Road::Stream];
const SCOPE: Scope = Scope { namespace: 1, vnode: 3, epoch: 7 };

fn put(hlc: u64) -> Version {
    Version::put(hlc, 9)
}

fn asked(version: Version, road: Road, held: Version) -> Admit {
    admits(version, road, Marks { fence: Version::put(20, 0), floor: Version::put(10, 0) }, Some(OURS), held, None)
}

#[test]
fn every_road_is_fenced_but_the_sessions_own_and_the_floor_refuses_that_too() {
    for road in ROADS {
        assert_eq!(asked(put(15), road, Version::ZERO), Admit::RefuseFenced);
        assert_eq!(asked(Version::put(20, 0), road, Version::ZERO), Admit::RefuseFenced, "at the fence");
        assert_eq!(asked(put(20), road, Version::ZERO), Admit::Store, "above it");
        assert_eq!(asked(put(15), road, put(15)), Admit::AckHeld);
        assert_eq!(asked(put(5), road, put(15)), Admit::AckHeld);
    }
    assert_eq!(asked(put(15), Road::Repair(OURS), put(12)), Admit::Store);
    assert_eq!(asked(put(15), Road::Repair(OTHER), put(12)), Admit::RefuseFenced);
    assert_eq!(asked(put(9), Road::Repair(OURS), Version::ZERO), Admit::RefuseFenced);
    let no_session = admits(put(15), Road::Repair(OURS), Marks { fence: put(20), floor: put(10) }, None, Version::ZERO, None);
    assert_eq!(no_session, Admit::RefuseFenced);
}

#[test]
fn an_rmw_follows_what_is_held_however_old_and_nothing_else() {
    for (hlc, road) in [(15, Road::Put), (5, Road::Put), (5, Road::Copy), (15, Road::Repair(OTHER))] {
        let (base, next) = (Version::rmw(put(hlc), 2, 3), Version::rmw(put(hlc), 2, 4));
        assert_eq!(asked(base, road, put(hlc)), Admit::Store);
        assert_eq!(asked(next, road, base), Admit::Store);
        assert_eq!(asked(base, road, next), Admit::AckHeld);
        assert_eq!(asked(next, road, Version::ZERO), Admit::RefuseFenced);
        assert_eq!(asked(next, road, put(hlc - 1)), Admit::RefuseFenced);
        assert_eq!(asked(next, road, Version::put(hlc, 8)), Admit::RefuseFenced);
    }
    assert_eq!(asked(Version::rmw(Version::ZERO, 2, 3), Road::Put, Version::ZERO), Admit::RefuseFenced);
}

#[test]
fn an_old_value_does_not_come_in_with_a_new_deadline() {
    let marks = Marks { fence: Version::put(20, 0), floor: Version::put(10, 0) };
    let cell = Digest { value: put(5), is_gone: false, expiry: put(30) };
    let asked = |held| admits_cell(cell, Road::Copy, marks, None, held, None);
    assert_eq!(asked(Digest::default()), (Admit::RefuseFenced, Admit::Store));
    assert_eq!(asked(Digest { value: put(5), is_gone: false, expiry: put(5) }), (Admit::AckHeld, Admit::Store));
    let gone = Digest { is_gone: true, ..cell };
    assert_eq!(
        admits_cell(gone, Road::Copy, marks, None, cell, None),
        (Admit::AckHeld, Admit::AckHeld),
        "the value is more than what is left of it"
    );
    assert_eq!(admits_cell(cell, Road::Copy, marks, None, gone, None), (Admit::Store, Admit::AckHeld));
    // Only the deadline is new, and the tombstone below the floor was forgotten here; but above the floor it was not.
    assert_eq!(admits_cell(gone, Road::WriteBack, marks, None, Digest::default(), None), (Admit::AckHeld, Admit::Store));
    let deadline = Digest { expiry: gone.expiry, ..Digest::default() };
    assert_eq!(admits_cell(gone, Road::WriteBack, marks, None, deadline, None), (Admit::AckHeld, Admit::AckHeld), "and once more");
    let above = Digest { value: put(15), ..gone };
    assert_eq!(admits_cell(above, Road::WriteBack, marks, None, Digest::default(), None), (Admit::RefuseFenced, Admit::Store));
    let old = Digest { expiry: put(5), ..gone };
    assert_eq!(admits_cell(old, Road::WriteBack, marks, None, Digest::default(), None), (Admit::RefuseFenced, Admit::RefuseFenced));
}

#[test]
fn one_replica_leads_and_all_agree_who() {
    let mut led = [0; 3];
    for vnode in 0..300 {
        let leaders: Vec<usize> = (0..3).filter(|node| leads(1, vnode, &[1, 2, 3], *node as u64 + 1)).collect();
        assert_eq!((leaders.len(), leads(1, vnode, &[3, 1, 2], leaders[0] as u64 + 1)), (1, true));
        led[leaders[0]] += 1;
    }
    assert!(led.iter().all(|count| *count > 60), "{led:?}");
}

fn version(ms: u64) -> Version {
    Version::put(ms << HLC_COUNTER_BITS, 0)
}

fn message(id: SessionId, up_to: Version, body: Body) -> Message {
    Message { scope: SCOPE, session: Session { id, up_to }, body }
}

fn answer(effect: Option<FollowerEffect>) -> Option<Body> {
    match effect? {
        FollowerEffect::Answer(message) => Some(message.body),
        effect => panic!("{effect:?}"),
    }
}

#[test]
fn a_follower_answers_only_for_what_is_durable() {
    let mut follower = Follower::new(SCOPE, Marks::default(), LAG_MS, None);
    let f = up_to(10_000, LAG_MS);
    assert_eq!(f, version(9000));
    let (fence, floor) = (message(OURS, f, Body::Fence), message(OURS, f, Body::Floor));
    assert_eq!(answer(follower.on_message(10_000, &floor)), Some(Body::Refused(Refusal::NoSession)));
    assert_eq!(follower.on_message(10_000, &fence), Some(FollowerEffect::PersistFence(f)));
    // In force at once, and asked again while it is not durable it is not answered.
    assert_eq!((follower.marks().fence, follower.serves(&SCOPE, Some(fence.session))), (f, false));
    assert_eq!(follower.on_message(10_000, &fence), Some(FollowerEffect::PersistFence(f)));
    assert_eq!(answer(follower.on_message(10_000, &floor)), Some(Body::Refused(Refusal::NoSession)));
    assert_eq!(answer(follower.on_fence_durable(f)), Some(Body::Fenced));
    assert_eq!(answer(follower.on_message(10_000, &fence)), Some(Body::Fenced));
    assert!(follower.serves(&SCOPE, Some(fence.session)) && follower.serves(&SCOPE, None));
    assert!(!follower.serves(&Scope { epoch: 8, ..SCOPE }, None));
    assert!(!follower.serves(&SCOPE, Some(Session { id: OTHER, up_to: f })));
    assert_eq!(follower.on_message(10_000, &floor), Some(FollowerEffect::PersistFloor(f)));
    assert_eq!(follower.marks().floor, Version::ZERO);
    assert_eq!(answer(follower.on_floor_durable(f)), Some(Body::Floored));
    assert_eq!((follower.marks(), follower.session()), (Marks { fence: f, floor: f }, None));
    assert_eq!(answer(follower.on_message(10_000, &floor)), Some(Body::Floored), "again");
    assert_eq!(answer(follower.on_message(10_000, &fence)), Some(Body::Refused(Refusal::Behind)));
}

#[test]
fn a_follower_refuses_what_is_too_new_too_old_or_of_another_epoch() {
    let mut follower = Follower::new(SCOPE, Marks { fence: version(5000), floor: version(2000) }, LAG_MS, None);
    let mut refused = |ms, id, body, epoch| {
        let message = Message { scope: Scope { epoch, ..SCOPE }, ..message(id, version(ms), body) };
        follower.on_message(10_000, &message)
    };
    let why = |effect| answer(effect).expect("an answer");
    assert_eq!(why(refused(6000, OURS, Body::Fence, 6)), Body::Refused(Refusal::Epoch { ours: 7 }));
    assert_eq!(why(refused(6000, OURS, Body::Floor, 8)), Body::Refused(Refusal::Epoch { ours: 7 }));
    assert_eq!(why(refused(4999, OURS, Body::Fence, 7)), Body::Refused(Refusal::Behind));
    assert_eq!(why(refused(9501, OURS, Body::Fence, 7)), Body::Refused(Refusal::TooNew));
    assert_eq!(refused(9500, OURS, Body::Fence, 7), Some(FollowerEffect::PersistFence(version(9500))));
    assert_eq!(why(refused(9500, OTHER, Body::Fence, 7)), Body::Refused(Refusal::Behind), "an older session of the same f");
    // A restart and a change of the vnode end a session.
    follower.on_fence_durable(version(9500));
    follower.on_epoch(8);
    assert_eq!((follower.session(), follower.on_fence_durable(version(9500))), (None, None));
    assert_eq!(follower.marks().fence, version(9500));
}
