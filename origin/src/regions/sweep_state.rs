//! When a region walks all keys of another one, and when it is whole. A pure state machine.
//!
//! ```text
//! first contact ─▶ Waiting (until every writer has read the policy)
//!   ─▶ Walking, round 0 ─▶ Finishing ─▶ Waiting (the horizon: a write that was in flight may have
//!                                                landed behind the first sweep)
//!   ─▶ Walking, round 1 ─▶ Finishing ─▶ whole; Waiting (a month) ─▶ …
//! ```
//! A sweep that the source says is owed (its journal was trimmed), and another choice of
//! repositories by the policy, begin a sweep at once; the region is not whole until it has ended.

use core::time::Duration;

use flotilla_common::wire::region::{FactKey, FactKind};

use crate::record::{RegionRecord, SweepState};

/// Keys that may wait for a region that does not answer; more hold up the sweep.
pub(crate) const MAX_UNFINISHED: usize = 1_000;

/// The times of sweeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SweepTimes {
    /// From the first contact to the first sweep. By then every writer has read the policy.
    pub(crate) settle: Duration,
    /// From the first sweep to the second: H.
    pub(crate) second: Duration,
    /// From a sweep to the next one, if nothing asks for it earlier.
    pub(crate) repeat: Duration,
    /// After this long a key that waits for another region no longer holds up the end of a sweep.
    pub(crate) give_up: Duration,
}

impl Default for SweepTimes {
    fn default() -> Self {
        Self {
            settle: Duration::from_mins(5),
            second: Duration::from_hours(48),
            repeat: Duration::from_hours(30 * 24),
            give_up: Duration::from_hours(24),
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SweepStep {
    /// Nothing now.
    Idle,
    /// Store this record, then ask again.
    Store(SweepState),
    /// Merge the page of keys after `after`.
    Page {
        kind: FactKind,
        after: Option<FactKey>,
    },
    /// Try these keys again.
    Retry(Vec<FactKey>),
    /// Tell the source that the owed sweep has ended, then store this record.
    End {
        owed: Option<u128>,
        next: SweepState,
        is_whole: bool,
    },
}

fn later(from: u64, by: Duration) -> u64 {
    from.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX))
}

impl SweepState {
    /// The state at the first contact.
    pub(crate) fn first(now: u64, times: &SweepTimes) -> Self {
        Self::Waiting {
            from: later(now, times.settle),
            round: 0,
        }
    }
}

/// The next step. `owed` is the sweep that the source says is owed, `selection` the present choice
/// of repositories.
pub(crate) fn next_step(
    record: &RegionRecord,
    now: u64,
    owed: Option<u128>,
    selection: u64,
    times: &SweepTimes,
) -> SweepStep {
    let begin = |round: u64| {
        SweepStep::Store(SweepState::Walking {
            round,
            began: now,
            owed,
            kind: FactKind::Manifests,
            after: None,
            unfinished: Vec::new(),
        })
    };
    match &record.sweep {
        SweepState::Waiting { from, round } => {
            let is_asked_for = owed.is_some() || record.selection != selection;
            // Before the first sweep, every writer must have read the policy.
            if now >= *from || (is_asked_for && *round > 0) {
                begin(*round)
            } else {
                SweepStep::Idle
            }
        }
        // A sweep of other repositories may have passed by keys of those that are chosen now.
        SweepState::Walking { round, .. } if record.selection != selection => begin(*round),
        SweepState::Walking {
            kind,
            after,
            unfinished,
            ..
        } => {
            if unfinished.len() >= MAX_UNFINISHED {
                SweepStep::Retry(unfinished.clone())
            } else {
                SweepStep::Page {
                    kind: *kind,
                    after: after.clone(),
                }
            }
        }
        SweepState::Finishing {
            round,
            since,
            owed,
            unfinished,
        } => {
            if unfinished.is_empty() || now >= later(*since, times.give_up) {
                let pause = if *round == 0 {
                    times.second
                } else {
                    times.repeat
                };
                SweepStep::End {
                    owed: *owed,
                    next: SweepState::Waiting {
                        from: later(now, pause),
                        round: round + 1,
                    },
                    is_whole: *round > 0,
                }
            } else {
                SweepStep::Retry(unfinished.clone())
            }
        }
    }
}

/// The state after a page was merged, `last` being its last key and `blocked` those that wait for
/// another region.
pub(crate) fn page_merged(
    state: SweepState,
    now: u64,
    last: Option<FactKey>,
    more: bool,
    blocked: Vec<FactKey>,
) -> SweepState {
    let SweepState::Walking {
        round,
        began,
        owed,
        kind,
        after,
        mut unfinished,
    } = state
    else {
        return state;
    };
    unfinished.extend(blocked);
    match (more, kind) {
        (true, _) => SweepState::Walking {
            round,
            began,
            owed,
            kind,
            after: last.or(after),
            unfinished,
        },
        (false, FactKind::Manifests) => SweepState::Walking {
            round,
            began,
            owed,
            kind: FactKind::Tags,
            after: None,
            unfinished,
        },
        (false, FactKind::Tags) => SweepState::Finishing {
            round,
            since: now,
            owed,
            unfinished,
        },
    }
}

/// The state after keys were tried again, `blocked` being those that still wait.
pub(crate) fn retried(mut state: SweepState, blocked: Vec<FactKey>) -> SweepState {
    match &mut state {
        SweepState::Walking { unfinished, .. } | SweepState::Finishing { unfinished, .. } => {
            *unfinished = blocked;
        }
        SweepState::Waiting { .. } => {}
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const TIMES: SweepTimes = SweepTimes {
        settle: Duration::from_mins(5),
        second: Duration::from_hours(48),
        repeat: Duration::from_hours(720),
        give_up: Duration::from_hours(24),
    };

    fn record(sweep: SweepState) -> RegionRecord {
        RegionRecord {
            storage_id: flotilla_common::storage_id::StorageId::from_bytes([0; 16]),
            is_whole: false,
            selection: 7,
            sweep,
            nonce: 0,
        }
    }

    fn tag(name: &str) -> FactKey {
        FactKey::Tag("app".parse().expect("a name"), name.parse().expect("a tag"))
    }

    /// Runs a sweep of one page for each kind, and returns how it ends.
    fn run_sweep(mut state: SweepState, mut now: u64, owed: Option<u128>) -> (SweepState, bool) {
        for _ in 0..20 {
            now += 1;
            match next_step(&record(state.clone()), now, owed, 7, &TIMES) {
                SweepStep::Store(next) => state = next,
                SweepStep::Page { .. } => state = page_merged(state, now, None, false, Vec::new()),
                SweepStep::End { next, is_whole, .. } => return (next, is_whole),
                other => panic!("{other:?}"),
            }
        }
        panic!("it does not end")
    }

    #[test]
    fn region_is_whole_after_the_second_sweep() {
        let first = SweepState::first(0, &TIMES);
        let early = next_step(&record(first.clone()), 1, Some(9), 7, &TIMES);
        assert_eq!(early, SweepStep::Idle, "a writer may have an old policy");
        let start = later(0, TIMES.settle);
        let (waiting, is_whole) = run_sweep(first, start, None);
        assert!(!is_whole);
        let SweepState::Waiting { from, round: 1 } = waiting else {
            panic!("{waiting:?}")
        };
        assert!(from >= later(start, TIMES.second));
        let (_, is_whole) = run_sweep(waiting, from, None);
        assert!(is_whole);
    }

    #[test]
    fn owed_sweep_and_new_choice_of_repositories_begin_at_once() {
        let waiting = SweepState::Waiting {
            from: later(0, 100 * HOUR),
            round: 2,
        };
        assert_eq!(
            next_step(&record(waiting.clone()), 1, None, 7, &TIMES),
            SweepStep::Idle
        );
        for (owed, selection) in [(Some(3), 7), (None, 8)] {
            let step = next_step(&record(waiting.clone()), 1, owed, selection, &TIMES);
            assert!(matches!(step, SweepStep::Store(SweepState::Walking { .. })));
        }
    }

    #[test]
    fn blocked_keys_are_tried_again_until_the_bound() {
        let walking = SweepState::Walking {
            round: 1,
            began: 0,
            owed: None,
            kind: FactKind::Tags,
            after: None,
            unfinished: Vec::new(),
        };
        let state = page_merged(walking, 5, Some(tag("a")), false, vec![tag("a")]);
        let step = next_step(&record(state.clone()), 6, None, 7, &TIMES);
        assert_eq!(step, SweepStep::Retry(vec![tag("a")]));
        let late = later(5, TIMES.give_up);
        let step = next_step(&record(state.clone()), late, None, 7, &TIMES);
        assert!(matches!(step, SweepStep::End { is_whole: true, .. }));
        let state = retried(state, Vec::new());
        let step = next_step(&record(state), 7, None, 7, &TIMES);
        assert!(matches!(step, SweepStep::End { .. }));
    }
}
