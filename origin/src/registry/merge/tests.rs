//! The decision of a merge: exhaustive over states, stamps and reasons, for the properties on which
//! regions rely.

use super::*;

fn stamp(clock: u64) -> Stamp {
    Stamp {
        clock,
        region: "eu-1".parse().expect("a label"),
    }
}

fn record(state: ManifestState, clock: u64, turn: u32) -> ManifestRecord {
    ManifestRecord {
        stamp: stamp(clock),
        turn,
        state,
        content: state
            .is_served()
            .then(|| ("m".to_owned(), Bytes::from_static(b"{}"))),
        subject: None,
        nonce: 0,
    }
}

fn live(clock: u64) -> FactHead {
    FactHead::Manifest {
        stamp: stamp(clock),
        media_type: "m".to_owned(),
        len: 2,
    }
}

fn deleted(clock: u64) -> FactHead {
    FactHead::DeletedManifest {
        stamp: stamp(clock),
        subject: None,
    }
}

const STATES: [ManifestState; 4] = [
    ManifestState::Live,
    ManifestState::Condemned,
    ManifestState::Evicted,
    ManifestState::Deleted,
];

#[test]
fn older_facts_never_replace_a_live_or_deleted_manifest() {
    for state in [ManifestState::Live, ManifestState::Deleted] {
        for fact in [live(5), deleted(5), live(7), deleted(7)] {
            for reason in [MergeReason::Sweep, MergeReason::Needed] {
                let present = record(state, 7, 0);
                assert_eq!(step(Some(&present), &fact, reason), ManifestStep::Keep);
            }
        }
    }
}

#[test]
fn newer_facts_always_win() {
    for state in STATES {
        for fact in [live(9), deleted(9)] {
            let present = record(state, 7, 3);
            let step = step(Some(&present), &fact, MergeReason::Sweep);
            let taken = ManifestStep::Take {
                stamp: stamp(9),
                turn: 0,
            };
            assert_eq!(step, taken, "{state:?} {fact:?}");
        }
    }
}

/// An evicted manifest comes back for a closure, with the higher stamp and the next turn.
#[test]
fn needed_manifests_are_revived_whatever_their_stamp() {
    let present = record(ManifestState::Evicted, 105, 1);
    let revived = ManifestStep::Take {
        stamp: stamp(105),
        turn: 2,
    };
    assert_eq!(
        step(Some(&present), &live(100), MergeReason::Needed),
        revived
    );
    assert_eq!(
        step(Some(&present), &live(105), MergeReason::Needed),
        revived
    );
    assert_eq!(
        step(Some(&present), &live(105), MergeReason::Sweep),
        ManifestStep::Keep
    );
    assert_eq!(
        step(Some(&present), &deleted(100), MergeReason::Needed),
        ManifestStep::Keep
    );
}

#[test]
fn regional_states_of_the_source_change_nothing() {
    for state in STATES {
        for fact in [FactHead::Absent, FactHead::Evicted { stamp: stamp(9) }] {
            let present = record(state, 7, 0);
            assert_eq!(
                step(Some(&present), &fact, MergeReason::Needed),
                ManifestStep::Keep
            );
        }
    }
}
