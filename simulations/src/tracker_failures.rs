//! Failures of trackers: they stop, restart, hang, or are slow.

use core::time::Duration;

use flotilla_common::tracker::SessionInput;

use crate::scenario::FailureKind;
use crate::service::Latency;
use crate::world::World;

impl World<'_> {
    pub(crate) fn fail_trackers(&mut self, number: usize) {
        let failure = &self.scenario.failures[number];
        for tracker in self.failing_trackers(number) {
            self.trackers[tracker as usize].has_failed = true;
            match failure.kind {
                FailureKind::StopTracker => self.stop_tracker(tracker),
                FailureKind::RestartTracker => self.restart_tracker(tracker),
                FailureKind::SlowTracker => {
                    let latency = Latency::of_failure(failure);
                    self.trackers[tracker as usize].slow = Some(latency);
                }
                FailureKind::SilentTracker => self.trackers[tracker as usize].is_silent = true,
                _ => {}
            }
        }
    }

    pub(crate) fn recover_trackers(&mut self, number: usize) {
        for tracker in self.failing_trackers(number) {
            match self.scenario.failures[number].kind {
                FailureKind::StopTracker => self.restart_tracker(tracker),
                FailureKind::SlowTracker => self.trackers[tracker as usize].slow = None,
                FailureKind::SilentTracker => self.resume_tracker(tracker),
                _ => {}
            }
        }
    }

    /// The trackers that a failure is about: its share of those of each region, at least one.
    fn failing_trackers(&self, number: usize) -> Vec<u32> {
        let failure = &self.scenario.failures[number];
        let count = self.scenario.tracker.count.get();
        let failing = (f64::from(count) * failure.share).ceil() as u32;
        let is_failing = |tracker: &u32| {
            let region = self.trackers[*tracker as usize].region;
            let is_there = failure.region.is_none_or(|it| Some(it) == region);
            is_there && tracker % count < failing
        };
        (0..self.trackers.len() as u32).filter(is_failing).collect()
    }

    /// Restarts a tracker, which breaks the connections of waiting peers.
    fn restart_tracker(&mut self, tracker: u32) {
        for broken in self.trackers[tracker as usize].restart() {
            let exchange = broken.exchange;
            self.forget_exchange(broken.peer, exchange);
            let failed = SessionInput::Failed { exchange };
            self.answer(tracker, broken.peer, Duration::ZERO, failed);
        }
    }

    /// Stops a tracker: messages to it are lost, and waiting peers get no answer.
    fn stop_tracker(&mut self, tracker: u32) {
        for lost in self.trackers[tracker as usize].stop() {
            self.forget_exchange(lost.peer, lost.exchange);
        }
    }

    /// A tracker that hung handles its deadlines, and then the requests that it has accepted.
    fn resume_tracker(&mut self, tracker: u32) {
        let resumed = &mut self.trackers[tracker as usize];
        resumed.is_silent = false;
        if !resumed.is_up {
            return;
        }
        let held = core::mem::take(&mut resumed.held);
        resumed.machine.handle_timeout(self.now);
        self.drain_tracker(tracker);
        for exchange in held {
            self.on_tracker_serves(tracker, exchange);
        }
    }
}
