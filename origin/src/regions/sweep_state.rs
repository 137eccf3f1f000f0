//! When a region walks all keys of another one, and when it is whole. A pure state machine.
//!
//! ```text
//! first contact ─▶ Waiting (until every writer has read the policy)
//!   ─▶ Walking, round 0 ─▶ Finishing ─▶ Waiting (the horizon: a write that was in flight may have
//!                                                landed behind the first sweep)
//!   ─▶ Walking, round 1 ─▶ Finishing ─▶ whole; Waiting (a month) ─▶ …
//! ```
//! A sweep that the source says is owed (its journal was trimmed) begins at once, once the first
//! two have ended; the region is not whole until it has ended. A policy by which this region keeps
//! other repositories, or without a region that was there, begins all over: a writer that has not
//! read it yet writes no entries for what this region keeps now. A region that is added changes
//! nothing between the others.

use core::time::Duration;

use flotilla_common::wire::region::{FactKey, FactKind, MAX_KEYS};

use crate::record::{RegionRecord, Selection, SweepState, Unfinished};

/// Keys that wait for a region that does not answer. More hold up the walk.
pub(crate) const MAX_UNFINISHED: usize = 1_000;
/// From one attempt to finish keys to the next, while they hold up the sweep and afterwards.
const RETRY_HELD: Duration = Duration::from_secs(5);
const RETRY_LEFT: Duration = Duration::from_mins(10);

/// The times of sweeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SweepTimes {
    /// From the first contact, or a change of the policy, to the first sweep. By then every writer
    /// has read the policy.
    pub(crate) settle: Duration,
    /// From the first sweep to the second: H.
    pub(crate) second: Duration,
    /// From a sweep to the next one, if nothing asks for it earlier.
    pub(crate) repeat: Duration,
    /// After this long keys that wait for another region no longer hold up the sweep. They are
    /// tried again later.
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
    /// Store this state, then ask again.
    Store {
        sweep: SweepState,
        /// Whether a region that is whole stays so.
        stays_whole: bool,
    },
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
            unfinished: Unfinished::default(),
        }
    }

    /// The state from which all keys are walked again as soon as that is of use. Without any time
    /// of `self`, which a wrong clock may have made.
    pub(crate) fn again(self, now: u64, times: &SweepTimes) -> Self {
        let (round, mut unfinished) = match self {
            Self::Waiting {
                round, unfinished, ..
            }
            | Self::Walking {
                round, unfinished, ..
            }
            | Self::Finishing {
                round, unfinished, ..
            } => (round, unfinished),
        };
        unfinished.retry_at = 0;
        unfinished.full_since = None;
        let pause = match round {
            0 => times.settle,
            1 => times.second,
            _ => Duration::ZERO,
        };
        Self::Waiting {
            from: later(now, pause),
            round,
            unfinished,
        }
    }
}

impl Unfinished {
    /// Whether there are so many that the walk waits for them.
    fn hold_up(&self, now: u64, times: &SweepTimes) -> bool {
        self.full_since
            .is_some_and(|since| now < later(since, times.give_up))
    }

    /// The step of a state that waits for these keys.
    fn step(&self, now: u64) -> SweepStep {
        if self.keys.is_empty() || now < self.retry_at {
            SweepStep::Idle
        } else {
            SweepStep::Retry(self.keys.clone())
        }
    }

    fn add(&mut self, keys: Vec<FactKey>, now: u64) {
        self.keys.extend(keys);
        if self.keys.len() > MAX_UNFINISHED + MAX_KEYS {
            self.keys.truncate(MAX_UNFINISHED + MAX_KEYS);
            self.is_cut = true;
        }
        self.note_full(now);
    }

    fn replace(&mut self, keys: Vec<FactKey>, now: u64, pause: Duration) {
        self.keys = keys;
        self.retry_at = later(now, pause);
        self.note_full(now);
    }

    fn note_full(&mut self, now: u64) {
        self.full_since = match self.full_since {
            _ if self.keys.len() < MAX_UNFINISHED => None,
            None => Some(now),
            since => since,
        };
    }
}

/// The next step. `owed` is the sweep that the source says is owed, `selection` what the present
/// policy selects.
pub(crate) fn next_step(
    record: &RegionRecord,
    now: u64,
    owed: Option<u128>,
    selection: &Selection,
    times: &SweepTimes,
) -> SweepStep {
    if selection.may_lack_after(&record.selection) {
        return SweepStep::Store {
            sweep: SweepState::first(now, times),
            stays_whole: false,
        };
    }
    if *selection != record.selection {
        return SweepStep::Store {
            sweep: record.sweep.clone(),
            stays_whole: true,
        };
    }
    match &record.sweep {
        SweepState::Waiting {
            from,
            round,
            unfinished,
        } => {
            // Before the first sweep every writer must have read the policy, and before the second
            // no write from before the first may be in flight.
            if now >= *from || (owed.is_some() && *round > 1) {
                SweepStep::Store {
                    sweep: SweepState::Walking {
                        round: *round,
                        began: now,
                        owed,
                        kind: FactKind::Manifests,
                        after: None,
                        unfinished: Unfinished::default(),
                    },
                    stays_whole: owed.is_none(),
                }
            } else {
                unfinished.step(now)
            }
        }
        SweepState::Walking {
            kind,
            after,
            unfinished,
            ..
        } => {
            if unfinished.hold_up(now, times) {
                unfinished.step(now)
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
            if !unfinished.keys.is_empty() && now < later(*since, times.give_up) {
                return unfinished.step(now);
            }
            let pause = match *round {
                0 => times.second,
                // The keys that were cut are found by the next sweep.
                _ if unfinished.is_cut => times.give_up.min(times.repeat),
                _ => times.repeat,
            };
            let mut left = Unfinished::default();
            left.replace(unfinished.keys.clone(), now, RETRY_LEFT);
            SweepStep::End {
                owed: *owed,
                next: SweepState::Waiting {
                    from: later(now, pause),
                    round: round.saturating_add(1),
                    unfinished: left,
                },
                is_whole: *round > 0,
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
    unfinished.add(blocked, now);
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
pub(crate) fn retried(mut state: SweepState, now: u64, blocked: Vec<FactKey>) -> SweepState {
    match &mut state {
        SweepState::Walking { unfinished, .. } | SweepState::Finishing { unfinished, .. } => {
            unfinished.replace(blocked, now, RETRY_HELD);
        }
        SweepState::Waiting { unfinished, .. } => unfinished.replace(blocked, now, RETRY_LEFT),
    }
    state
}

#[cfg(test)]
mod tests {
    use flotilla_common::name::RegionName;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const TIMES: SweepTimes = SweepTimes {
        settle: Duration::from_mins(5),
        second: Duration::from_hours(48),
        repeat: Duration::from_hours(720),
        give_up: Duration::from_hours(24),
    };

    fn region(name: &str) -> RegionName {
        name.parse().expect("a name")
    }

    fn selection(repositories: u64, regions: &[&str]) -> Selection {
        Selection {
            repositories,
            regions: regions.iter().map(|name| region(name)).collect(),
        }
    }

    /// What the policy selects in all tests, unless they change it.
    fn both() -> Selection {
        selection(7, &["eu-1", "us-1"])
    }

    fn record(sweep: SweepState) -> RegionRecord {
        RegionRecord {
            storage_id: flotilla_common::storage_id::StorageId::from_bytes([0; 16]),
            retired: Vec::new(),
            is_whole: false,
            selection: both(),
            sweep,
            nonce: 0,
        }
    }

    fn waiting(from: u64, round: u64) -> SweepState {
        SweepState::Waiting {
            from,
            round,
            unfinished: Unfinished::default(),
        }
    }

    fn walking(round: u64) -> SweepState {
        SweepState::Walking {
            round,
            began: 0,
            owed: None,
            kind: FactKind::Tags,
            after: None,
            unfinished: Unfinished::default(),
        }
    }

    fn tag(name: &str) -> FactKey {
        FactKey::Tag("app".parse().expect("a name"), name.parse().expect("a tag"))
    }

    /// Runs a sweep of one page for each kind, and returns how it ends.
    fn run_sweep(mut state: SweepState, mut now: u64, owed: Option<u128>) -> (SweepState, bool) {
        for _ in 0..20 {
            now += 1;
            match next_step(&record(state.clone()), now, owed, &both(), &TIMES) {
                SweepStep::Store { sweep, .. } => state = sweep,
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
        let early = next_step(&record(first.clone()), 1, Some(9), &both(), &TIMES);
        assert_eq!(early, SweepStep::Idle, "a writer may have an old policy");
        let start = later(0, TIMES.settle);
        let (after_first, is_whole) = run_sweep(first, start, None);
        assert!(!is_whole);
        let SweepState::Waiting { from, round: 1, .. } = after_first else {
            panic!("{after_first:?}")
        };
        assert!(from >= later(start, TIMES.second));
        let early = next_step(
            &record(after_first.clone()),
            from - 1,
            Some(9),
            &both(),
            &TIMES,
        );
        assert_eq!(early, SweepStep::Idle, "a write may be in flight");
        let (_, is_whole) = run_sweep(after_first, from, None);
        assert!(is_whole);
    }

    #[test]
    fn owed_sweeps_begin_at_once() {
        let waiting = waiting(later(0, 100 * HOUR), 2);
        let step = |owed| next_step(&record(waiting.clone()), 1, owed, &both(), &TIMES);
        assert_eq!(step(None), SweepStep::Idle);
        let SweepStep::Store { sweep, stays_whole } = step(Some(3)) else {
            panic!("it begins")
        };
        assert!(matches!(sweep, SweepState::Walking { owed: Some(3), .. }));
        assert!(!stays_whole);
    }

    /// A writer may write by the old policy for two minutes more, without entries for what is
    /// selected now, and behind a sweep that began at once.
    #[test]
    fn other_selections_settle_and_are_whole_after_two_sweeps() {
        let others = [selection(8, &["eu-1", "us-1"]), selection(7, &["us-1"])];
        let finishing = SweepState::Finishing {
            round: 1,
            since: 0,
            owed: None,
            unfinished: Unfinished::default(),
        };
        let states = [waiting(later(0, 100 * HOUR), 2), walking(1), finishing];
        for (state, selection) in states
            .iter()
            .flat_map(|state| others.iter().map(move |selection| (state, selection)))
        {
            let now = later(0, HOUR);
            let step = next_step(&record(state.clone()), now, Some(3), selection, &TIMES);
            let again = SweepStep::Store {
                sweep: SweepState::first(now, &TIMES),
                stays_whole: false,
            };
            assert_eq!(step, again, "{state:?} {selection:?}");
        }
    }

    /// A clock that was a year ahead would put off the next sweep for a year.
    #[test]
    fn sweeps_again_forget_all_times_and_keep_the_order_of_rounds() {
        let year = later(0, 8_760 * HOUR);
        let finishing = SweepState::Finishing {
            round: 4,
            since: year,
            owed: Some(3),
            unfinished: Unfinished {
                keys: vec![tag("a")],
                is_cut: false,
                retry_at: year,
                full_since: Some(year),
            },
        };
        let again = finishing.again(7, &TIMES);
        let SweepState::Waiting {
            from: 7,
            round: 4,
            unfinished,
        } = again
        else {
            panic!("{again:?}")
        };
        assert_eq!((unfinished.retry_at, unfinished.full_since), (0, None));
        let pauses = [(0, TIMES.settle), (1, TIMES.second), (2, Duration::ZERO)];
        for (round, pause) in pauses {
            let again = waiting(year, round).again(7, &TIMES);
            assert_eq!(again, waiting(later(7, pause), round));
        }
    }

    #[test]
    fn added_regions_do_not_change_the_others() {
        let more = selection(7, &["ap-1", "eu-1", "us-1"]);
        for state in [waiting(later(0, 100 * HOUR), 2), walking(1)] {
            let step = next_step(&record(state.clone()), 1, None, &more, &TIMES);
            let kept = SweepStep::Store {
                sweep: state,
                stays_whole: true,
            };
            assert_eq!(step, kept);
        }
    }

    #[test]
    fn blocked_keys_hold_up_the_end_until_the_bound_and_are_tried_again_later() {
        let blocked = vec![tag("a")];
        let state = page_merged(walking(1), 5, Some(tag("a")), false, blocked.clone());
        let step =
            |state: &SweepState, now| next_step(&record(state.clone()), now, None, &both(), &TIMES);
        assert_eq!(step(&state, 6), SweepStep::Retry(blocked.clone()));
        let state = retried(state, 6, blocked.clone());
        assert_eq!(step(&state, 7), SweepStep::Idle);
        assert_eq!(
            step(&state, later(6, RETRY_HELD)),
            SweepStep::Retry(blocked.clone())
        );
        let done = retried(state.clone(), 7, Vec::new());
        assert!(matches!(step(&done, 8), SweepStep::End { .. }));

        let late = later(5, TIMES.give_up);
        let SweepStep::End { next, is_whole, .. } = step(&state, late) else {
            panic!("it holds up the sweep")
        };
        assert!(is_whole);
        assert_eq!(step(&next, late), SweepStep::Idle);
        let again = later(late, RETRY_LEFT);
        assert_eq!(step(&next, again), SweepStep::Retry(blocked));
        let next = retried(next, again, Vec::new());
        assert_eq!(step(&next, later(again, RETRY_LEFT)), SweepStep::Idle);
    }

    #[test]
    fn many_blocked_keys_hold_up_the_walk_for_a_day() {
        let step =
            |state: &SweepState, now| next_step(&record(state.clone()), now, None, &both(), &TIMES);
        let page = |number: usize| -> Vec<FactKey> {
            let keys = 0..MAX_KEYS;
            keys.map(|key| tag(&format!("v{number}-{key}"))).collect()
        };
        let mut state = walking(1);
        for number in 0..2 {
            assert!(matches!(step(&state, 5), SweepStep::Page { .. }));
            state = page_merged(state, 5, Some(tag("v")), true, page(number));
        }
        assert!(matches!(step(&state, 6), SweepStep::Retry(_)));
        let late = later(5, TIMES.give_up);
        assert!(matches!(step(&state, late), SweepStep::Page { .. }));
        state = page_merged(state, late, Some(tag("v")), false, page(2));
        let end = later(late, TIMES.give_up);
        let SweepStep::End { next, .. } = step(&state, end) else {
            panic!("it does not end")
        };
        let SweepState::Waiting {
            from, unfinished, ..
        } = next
        else {
            panic!("{next:?}")
        };
        assert_eq!(unfinished.keys.len(), MAX_UNFINISHED + MAX_KEYS);
        assert_eq!(from, later(end, TIMES.give_up), "some keys were cut");
    }
}
