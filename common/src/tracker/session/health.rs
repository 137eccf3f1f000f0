//! Which trackers answer, in the opinion of one peer.
//!
//! ```text
//!            asked                    no answer for `late`, or an error
//! Answering ────────▶ Asked {since} ────────────────────────────────────▶ Unresponsive
//!     ▲                   │ answered                                        │ answered late
//!     └───────────────────┴─────────────────────────────────────────────────┘
//! ```
//!
//! Only announces count as questions, because a tracker answers them at once; lease requests may be
//! parked. An unresponsive tracker is skipped: the next one grants leases to peers that report the
//! first one as unreachable. Announces to the unresponsive tracker go on, and a late answer makes
//! it an answering one again. A pull must never wait for the timeout of one tracker while another
//! tracker or the origin could be asked.

use core::time::Duration;

use crate::time::Time;

/// The last tracker of its group that answers may take so many times longer, because no other one
/// in its region can be asked.
const LAST_FACTOR: u32 = 2;

/// A change that the peer must know about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HealthChange {
    /// A tracker answers although it did not before.
    Reachable,
    /// No tracker answers any more.
    Unreachable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Answering,
    Asked { since: Time },
    Unresponsive,
}

#[derive(Clone, Copy, Debug)]
struct HealthEntry {
    group: usize,
    state: State,
    answered_at: Time,
}

/// The state of each tracker. Trackers are named by their place in the configuration.
#[derive(Debug)]
pub(super) struct TrackerHealth {
    late: Duration,
    trackers: Vec<HealthEntry>,
}

impl TrackerHealth {
    /// `groups` has the group of each tracker. All trackers count as answering at first. An answer
    /// may take as long as `late`; that of the last answering tracker of a group twice as long.
    pub(super) fn new(groups: &[usize], late: Duration) -> Self {
        let entry = |group: &usize| HealthEntry {
            group: *group,
            state: State::Answering,
            answered_at: Time::ZERO,
        };
        Self {
            late,
            trackers: groups.iter().map(entry).collect(),
        }
    }

    /// The tracker is not used any more. It counts as answering when it is used again.
    pub(super) fn forget(&mut self, tracker: usize) {
        if let Some(entry) = self.trackers.get_mut(tracker) {
            entry.state = State::Answering;
        }
    }

    /// A tracker was sent a question that it answers at once.
    pub(super) fn asked(&mut self, now: Time, tracker: usize) {
        if let Some(entry) = self.trackers.get_mut(tracker)
            && entry.state == State::Answering
        {
            entry.state = State::Asked { since: now };
        }
    }

    /// A tracker answered any question.
    pub(super) fn answered(&mut self, now: Time, tracker: usize) -> Option<HealthChange> {
        let entry = self.trackers.get_mut(tracker)?;
        let was_unresponsive = entry.state == State::Unresponsive;
        entry.state = State::Answering;
        entry.answered_at = now;
        was_unresponsive.then_some(HealthChange::Reachable)
    }

    /// A question to a tracker failed.
    pub(super) fn failed(&mut self, tracker: usize) -> Option<HealthChange> {
        let was_any_answering = self.answering() > 0;
        self.trackers.get_mut(tracker)?.state = State::Unresponsive;
        (was_any_answering && self.answering() == 0).then_some(HealthChange::Unreachable)
    }

    /// When [`Self::handle_timeout`] must be called.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.trackers
            .iter()
            .filter_map(|entry| self.late_at(entry))
            .min()
    }

    /// Marks trackers whose answer is late as unresponsive.
    pub(super) fn handle_timeout(&mut self, now: Time) -> Option<HealthChange> {
        let mut change = None;
        for tracker in 0..self.trackers.len() {
            let late_at = self.late_at(&self.trackers[tracker]);
            if late_at.is_some_and(|late_at| late_at <= now) {
                change = change.or(self.failed(tracker));
            }
        }
        change
    }

    /// Whether the tracker is to be skipped.
    pub(super) fn is_unresponsive(&self, tracker: usize) -> bool {
        self.trackers
            .get(tracker)
            .is_none_or(|entry| entry.state == State::Unresponsive)
    }

    /// Whether the last answer is at least `time` ago.
    pub(super) fn last_answer_older_than(&self, now: Time, tracker: usize, time: Duration) -> bool {
        self.trackers
            .get(tracker)
            .is_none_or(|entry| entry.answered_at + time <= now)
    }

    /// Number of trackers that are not unresponsive.
    fn answering(&self) -> usize {
        self.answering_entries().count()
    }

    fn answering_entries(&self) -> impl Iterator<Item = &HealthEntry> {
        let entries = self.trackers.iter();
        entries.filter(|entry| entry.state != State::Unresponsive)
    }

    fn late_at(&self, entry: &HealthEntry) -> Option<Time> {
        let State::Asked { since } = entry.state else {
            return None;
        };
        let answering = self.answering_entries();
        let late = if answering.filter(|it| it.group == entry.group).count() > 1 {
            self.late
        } else {
            self.late * LAST_FACTOR
        };
        Some(since + late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn health(trackers: usize) -> TrackerHealth {
        TrackerHealth::new(&vec![0; trackers], Duration::from_secs(1))
    }

    #[test]
    fn late_answer_makes_tracker_unresponsive_until_it_answers() {
        let mut health = health(2);
        assert_eq!(health.poll_timeout(), None);
        health.asked(ms(100), 0);
        health.asked(ms(500), 0);
        assert_eq!(
            health.poll_timeout(),
            Some(ms(1100)),
            "the oldest question counts"
        );
        assert_eq!(health.handle_timeout(ms(1099)), None);
        assert!(!health.is_unresponsive(0));
        assert_eq!(
            health.handle_timeout(ms(1100)),
            None,
            "another tracker answers"
        );
        assert!(health.is_unresponsive(0) && !health.is_unresponsive(1));
        health.asked(ms(1200), 0);
        assert_eq!(
            health.poll_timeout(),
            None,
            "no deadline for an unresponsive tracker"
        );
        assert_eq!(health.answered(ms(4000), 0), Some(HealthChange::Reachable));
        assert!(!health.is_unresponsive(0));
    }

    #[test]
    fn last_unresponsive_tracker_is_reported_once() {
        let mut health = health(2);
        health.asked(ms(0), 1);
        assert_eq!(health.failed(0), None);
        assert_eq!(
            health.handle_timeout(ms(1000)),
            None,
            "the last tracker gets twice as long"
        );
        assert_eq!(
            health.handle_timeout(ms(2000)),
            Some(HealthChange::Unreachable)
        );
        assert_eq!(health.failed(1), None);
        assert_eq!(health.answered(ms(3000), 1), Some(HealthChange::Reachable));
        assert_eq!(health.answered(ms(3001), 1), None);
    }

    #[test]
    fn last_tracker_of_a_group_gets_twice_the_time() {
        let mut health = TrackerHealth::new(&[0, 0, 1], Duration::from_secs(1));
        health.failed(0);
        health.asked(ms(0), 1);
        assert_eq!(health.poll_timeout(), Some(ms(2000)));
        assert_eq!(
            health.handle_timeout(ms(2000)),
            None,
            "another group is left"
        );
        assert!(health.is_unresponsive(1) && !health.is_unresponsive(2));
        assert_eq!(health.failed(2), Some(HealthChange::Unreachable));
        health.forget(2);
        assert!(!health.is_unresponsive(2));
    }

    #[test]
    fn time_since_last_answer() {
        let mut health = health(1);
        health.answered(ms(1000), 0);
        assert!(!health.last_answer_older_than(ms(3999), 0, Duration::from_secs(3)));
        assert!(health.last_answer_older_than(ms(4000), 0, Duration::from_secs(3)));
    }

    #[test]
    fn no_trackers_report_no_change() {
        let mut health = health(0);
        assert_eq!(health.failed(0), None);
        assert_eq!(health.answered(ms(0), 0), None);
        assert!(health.is_unresponsive(0));
    }
}
