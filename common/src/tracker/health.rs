//! A peer's opinion of its trackers: which of them answers.
//!
//! ```text
//!            asked                    no answer for `late`, or an error
//! Answering ────────▶ Asked {since} ────────────────────────────────────▶ Silent
//!     ▲                   │ answered                                        │ answered after all
//!     └───────────────────┴─────────────────────────────────────────────────┘
//! ```
//!
//! Only what a tracker answers at once counts as a question: an announce does, a request for a
//! lease is parked. A tracker that is silent is passed over, for the next one grants leases to
//! whoever says so; it is asked again all the same, and a late answer is as good as any. What must
//! never happen: that a pull waits for a tracker's time-out while another tracker, or the origin,
//! could be asked.

use core::time::Duration;

use crate::time::Time;

/// The answer of the last tracker that answers may take so many times longer: there is no other one
/// to ask.
const LAST: u32 = 2;

/// What a peer is told when it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A tracker answers that did not.
    Reachable,
    /// None answers any more.
    Unreachable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Answering,
    Asked { since: Time },
    Silent,
}

/// The opinion. Trackers are named by their place in the configuration.
#[derive(Debug)]
pub struct Health {
    late: Duration,
    trackers: Vec<(State, Time)>,
}

impl Health {
    /// Of so many trackers, all taken to answer until they do not: an answer may take as long as
    /// `late`, that of the last one twice as long.
    pub fn new(trackers: usize, late: Duration) -> Self {
        Self {
            late,
            trackers: vec![(State::Answering, Time::ZERO); trackers],
        }
    }

    /// A tracker was asked what it answers at once.
    pub fn asked(&mut self, now: Time, tracker: usize) {
        if let Some((state @ State::Answering, _)) = self.trackers.get_mut(tracker) {
            *state = State::Asked { since: now };
        }
    }

    /// It answered, whatever it was asked.
    pub fn answered(&mut self, now: Time, tracker: usize) -> Option<News> {
        let (state, heard_at) = self.trackers.get_mut(tracker)?;
        let was_silent = *state == State::Silent;
        (*state, *heard_at) = (State::Answering, now);
        was_silent.then_some(News::Reachable)
    }

    /// It could not be asked, or did not answer to the end.
    pub fn failed(&mut self, tracker: usize) -> Option<News> {
        let was_any_answering = self.is_any_answering();
        self.trackers.get_mut(tracker)?.0 = State::Silent;
        (was_any_answering && !self.is_any_answering()).then_some(News::Unreachable)
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        (0..self.trackers.len())
            .filter_map(|tracker| self.late_at(tracker))
            .min()
    }

    /// Trackers whose answer is late count as silent from now on.
    pub fn handle_timeout(&mut self, now: Time) -> Option<News> {
        let mut news = None;
        for tracker in 0..self.trackers.len() {
            if self.late_at(tracker).is_some_and(|late_at| late_at <= now) {
                news = news.or(self.failed(tracker));
            }
        }
        news
    }

    /// Whether it is to be passed over.
    pub fn is_silent(&self, tracker: usize) -> bool {
        self.trackers
            .get(tracker)
            .is_none_or(|(state, _)| *state == State::Silent)
    }

    /// Whether nothing was heard from it for this long.
    pub fn is_quiet(&self, now: Time, tracker: usize, time: Duration) -> bool {
        self.trackers
            .get(tracker)
            .is_none_or(|(_, heard_at)| *heard_at + time <= now)
    }

    fn is_any_answering(&self) -> bool {
        self.trackers
            .iter()
            .any(|(state, _)| *state != State::Silent)
    }

    fn late_at(&self, tracker: usize) -> Option<Time> {
        let State::Asked { since } = self.trackers[tracker].0 else {
            return None;
        };
        let answering = self
            .trackers
            .iter()
            .filter(|(state, _)| *state != State::Silent)
            .count();
        Some(
            since
                + if answering > 1 {
                    self.late
                } else {
                    self.late * LAST
                },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn health(trackers: usize) -> Health {
        Health::new(trackers, Duration::from_secs(1))
    }

    #[test]
    fn an_answer_that_is_late_makes_a_tracker_silent_and_an_answer_after_all_mends_it() {
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
        assert!(!health.is_silent(0));
        assert_eq!(health.handle_timeout(ms(1100)), None, "another one answers");
        assert!(health.is_silent(0) && !health.is_silent(1));
        health.asked(ms(1200), 0);
        assert_eq!(health.poll_timeout(), None, "nobody waits for it");
        assert_eq!(health.answered(ms(4000), 0), Some(News::Reachable));
        assert!(!health.is_silent(0));
    }

    #[test]
    fn when_the_last_one_falls_silent_that_is_news_once() {
        let mut health = health(2);
        health.asked(ms(0), 1);
        assert_eq!(health.failed(0), None);
        assert_eq!(
            health.handle_timeout(ms(1000)),
            None,
            "there is no other one to ask"
        );
        assert_eq!(health.handle_timeout(ms(2000)), Some(News::Unreachable));
        assert_eq!(health.failed(1), None);
        assert_eq!(health.answered(ms(3000), 1), Some(News::Reachable));
        assert_eq!(health.answered(ms(3001), 1), None);
    }

    #[test]
    fn quiet_is_who_said_nothing_for_a_while() {
        let mut health = health(1);
        health.answered(ms(1000), 0);
        assert!(!health.is_quiet(ms(3999), 0, Duration::from_secs(3)));
        assert!(health.is_quiet(ms(4000), 0, Duration::from_secs(3)));
    }

    #[test]
    fn without_trackers_there_is_nothing_to_hear() {
        let mut health = health(0);
        assert_eq!(health.failed(0), None);
        assert_eq!(health.answered(ms(0), 0), None);
        assert!(health.is_silent(0));
    }
}
