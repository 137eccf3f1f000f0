//! How long a replica may keep facts that other replicas can change.

use core::time::Duration;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_common::time::Time;

/// The time-to-live of a replica that the others may not know, and how long a change waits for a
/// replica that may be such a one.
pub(crate) const CUT_OFF_TIME_TO_LIVE: Duration = Duration::from_millis(200);

/// A time in which every other replica waits for this one before it acknowledges a change.
///
/// Within it, values are kept for the whole time-to-live of their cache, otherwise for
/// [`CUT_OFF_TIME_TO_LIVE`]. A value that was read before the term began stays short-lived: a
/// change may have been acknowledged without this replica since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Term {
    since: Time,
    until: Time,
}

impl Term {
    /// The time-to-live at `now` of a value that was read at `read_at`, in a cache with the
    /// time-to-live `whole`.
    pub(crate) fn time_to_live(self, whole: Duration, read_at: Time, now: Time) -> Duration {
        if self.is_valid(now) && read_at >= self.since {
            whole
        } else {
            whole.min(CUT_OFF_TIME_TO_LIVE)
        }
    }

    /// Whether the term lasts at `now`.
    pub(crate) fn is_valid(self, now: Time) -> bool {
        now < self.until
    }

    /// Sets the end of the term. A new term begins at `now` if the last one has ended.
    pub(crate) fn set(&mut self, now: Time, until: Time) {
        if !self.is_valid(now) {
            self.since = now;
        }
        self.until = until;
    }

    /// The same with another end, also after a gap: the models show what that breaks.
    #[cfg(test)]
    pub(crate) const fn extended(self, until: Time) -> Self {
        Self { until, ..self }
    }
}

/// A [`Term`] that the caches of a replica share.
#[derive(Debug, Default)]
pub(crate) struct CacheTerm {
    since: AtomicU64,
    until: AtomicU64,
}

impl CacheTerm {
    /// The term now. It never has the end of a later term and the beginning of an earlier one.
    pub(crate) fn load(&self) -> Term {
        let until = Time::from_nanos(self.until.load(Ordering::Acquire));
        let since = Time::from_nanos(self.since.load(Ordering::Acquire));
        Term { since, until }
    }

    /// Replaces the term. Callers exclude each other.
    pub(crate) fn store(&self, term: Term) {
        self.since.store(term.since.as_nanos(), Ordering::Release);
        self.until.store(term.until.as_nanos(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_from_before_a_term_stay_short_lived() {
        let at = Time::from_nanos;
        let whole = Duration::from_secs(10);
        let term = CacheTerm::default();
        let set = |now, until| {
            let mut next = term.load();
            next.set(at(now), at(until));
            term.store(next);
        };
        let time_to_live = |read_at, now| term.load().time_to_live(whole, at(read_at), at(now));
        assert_eq!(time_to_live(5, 5), CUT_OFF_TIME_TO_LIVE);
        set(10, 20);
        assert_eq!(time_to_live(9, 15), CUT_OFF_TIME_TO_LIVE);
        assert_eq!(time_to_live(10, 15), whole);
        assert_eq!(time_to_live(10, 20), CUT_OFF_TIME_TO_LIVE);
        // Extended in time, the term goes on; after a gap, another one begins.
        set(19, 30);
        assert_eq!(time_to_live(10, 25), whole);
        set(31, 40);
        assert_eq!(time_to_live(30, 35), CUT_OFF_TIME_TO_LIVE);
        let short = Duration::from_millis(50);
        assert_eq!(term.load().time_to_live(short, at(0), at(35)), short);
    }
}
