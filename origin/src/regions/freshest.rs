//! How long tags are read from all regions that owe something, whatever the policy says: from a
//! start or an outage of the own storage on, in which other regions may have taken changes for this
//! one. At least ten minutes, and until nothing is owed that is older than their end.

use core::time::Duration;
use std::sync::{Mutex, PoisonError};

use flotilla_common::name::RegionName;
use flotilla_common::time::Time;
use flotilla_common::wire::region::{FactKey, RegionState};
use flotilla_runtime::clock::Clock;

/// How long a key that was compared with other regions is answered without asking them again.
const COMPARED_FOR: Duration = Duration::from_secs(1);
/// Keys of which that is remembered.
const MAX_COMPARED: u64 = 10_000;
/// For this long after a start or an outage at least.
const LEAST: Duration = Duration::from_mins(10);
/// How old what a region says that it owes may be, at most.
const ANSWER_AGE: Duration = Duration::from_secs(10);

/// When each key was last compared with other regions, so that clients who read one at the same
/// time do not each ask them.
#[derive(Debug)]
pub(crate) struct ComparedKeys {
    clock: Clock,
    keys: moka::sync::Cache<FactKey, Time>,
}

impl ComparedKeys {
    pub(super) fn new(clock: Clock) -> Self {
        let keys = moka::sync::Cache::builder()
            .max_capacity(MAX_COMPARED)
            .time_to_live(COMPARED_FOR * 2);
        Self {
            clock,
            keys: keys.build(),
        }
    }

    /// Other regions were asked at `asked`, and their answers are known by now.
    pub(crate) fn note(&self, key: FactKey, asked: Time) {
        self.keys.insert(key, asked);
    }

    /// Whether other regions were asked for a key a moment ago.
    pub(crate) fn are_fresh(&self, key: &FactKey) -> bool {
        let asked = self.keys.get(key);
        asked.is_some_and(|asked| self.clock.now().saturating_since(asked) < COMPARED_FOR)
    }
}

/// The present period, or the last one.
#[derive(Debug)]
struct Period {
    /// Its earliest end.
    until: Time,
    /// The same in nanoseconds since 1970.
    until_unix: u64,
    /// Whether what is owed from before `until` may be more than nothing.
    is_open: bool,
}

/// The periods of one replica.
#[derive(Debug)]
pub(super) struct Freshest(Mutex<Period>);

impl Freshest {
    /// The first period begins `now`, which is `unix` in nanoseconds since 1970.
    pub(super) fn new(now: Time, unix: u64) -> Self {
        Self(Mutex::new(Period::at(now, unix)))
    }

    /// Begins a period, or prolongs it.
    pub(super) fn begin(&self, now: Time, unix: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Period::at(now, unix);
    }

    /// Whether tags are read from all regions that owe something.
    pub(super) fn is_on(&self, now: Time) -> bool {
        let period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now < period.until || period.is_open
    }

    /// Whether the period has lasted its least time, and ends by what the other regions say.
    pub(super) fn may_end(&self, now: Time) -> bool {
        let period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        period.is_open && now >= period.until + ANSWER_AGE
    }

    /// Ends the period if no region owes `own` an entry from before its end. `states` were asked
    /// for after [`Self::may_end`]; `None` is a region that did not answer.
    pub(super) fn end_if_merged(&self, own: &RegionName, states: &[Option<RegionState>]) {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let owes_nothing_old = |state: &Option<RegionState>| {
            let state = state.as_ref()?;
            let owed = state.owed.iter().find(|owed| owed.region == *own)?;
            let is_old = owed.oldest.is_some_and(|oldest| oldest < period.until_unix);
            Some(!is_old && owed.sweep.is_none())
        };
        if states
            .iter()
            .all(|state| owes_nothing_old(state) == Some(true))
        {
            period.is_open = false;
        }
    }
}

impl Period {
    fn at(now: Time, unix: u64) -> Self {
        Self {
            until: now + LEAST,
            until_unix: unix.saturating_add(u64::try_from(LEAST.as_nanos()).unwrap_or(u64::MAX)),
            is_open: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_common::storage_id::StorageId;
    use flotilla_common::wire::region::{OwedTo, StorageStanding};

    use super::*;

    const UNIX: u64 = 1_000_000_000_000_000;

    fn own() -> RegionName {
        "eu-1".parse().expect("a name")
    }

    fn state(oldest: Option<u64>, sweep: Option<u128>) -> Option<RegionState> {
        Some(RegionState {
            region: "us-1".parse().expect("a name"),
            storage_id: StorageId::from_bytes([1; 16]),
            replaced: Vec::new(),
            clock: UNIX,
            standing: StorageStanding::Usable,
            is_whole: true,
            owed: vec![OwedTo {
                region: own(),
                entries: u32::from(oldest.is_some()),
                oldest,
                sweep,
            }],
        })
    }

    #[test]
    fn period_lasts_until_older_entries_are_merged() {
        let freshest = Freshest::new(Time::ZERO, UNIX);
        let end = Time::ZERO + LEAST;
        let end_unix = UNIX + LEAST.as_nanos() as u64;
        assert!(freshest.is_on(Time::ZERO));
        assert!(!freshest.may_end(Time::ZERO));
        assert!(!freshest.may_end(end), "answers may be older");
        assert!(freshest.may_end(end + ANSWER_AGE));
        // A forwarded push, hours old, is not copied yet; then a trimmed journal; then silence.
        for states in [
            [state(None, None), state(Some(UNIX), None)],
            [state(None, None), state(None, Some(1))],
            [state(None, None), None],
        ] {
            freshest.end_if_merged(&own(), &states);
            assert!(freshest.is_on(end + LEAST), "{states:?}");
        }
        // A region whose storage is out does not say what it owes.
        let mut unsure = state(None, None);
        if let Some(state) = &mut unsure {
            state.owed.clear();
        }
        freshest.end_if_merged(&own(), &[unsure]);
        assert!(freshest.is_on(end));
        // Younger entries are the ordinary lag.
        freshest.end_if_merged(&own(), &[state(None, None), state(Some(end_unix), None)]);
        assert!(!freshest.is_on(end));
    }

    #[test]
    fn another_outage_begins_another_period() {
        let freshest = Freshest::new(Time::ZERO, UNIX);
        freshest.end_if_merged(&own(), &[]);
        let later = Time::ZERO + LEAST * 3;
        assert!(!freshest.is_on(later));
        freshest.begin(later, UNIX);
        assert!(freshest.is_on(later + LEAST));
    }
}
