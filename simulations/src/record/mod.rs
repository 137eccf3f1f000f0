//! What a run reports besides its outcome: its progress, curves over time, and the last events
//! before a violation.
//!
//! Nothing here has an influence on the run: the trace is the same with and without it. A run that
//! asks for nothing pays one comparison per event.

mod describe;
mod event_log;
mod timeline;

use core::fmt;
use core::time::Duration;

use flotilla_common::time::Time;

use self::event_log::EventLog;
use self::timeline::TimelineRecorder;
pub use self::timeline::{ByteSeries, ByteSource, StallSeries, Timeline};
use crate::event::Event;
use crate::network::FlowEvent;
use crate::scenario::Scenario;
use crate::slab::Key;
use crate::world::World;

/// Simulated time between two calls of [`RunOptions::progress`].
const PROGRESS_EVERY: Duration = Duration::from_millis(10);

/// What a run reports besides its outcome; by default nothing.
#[derive(Clone, Copy, Default)]
pub struct RunOptions<'a> {
    /// Called every 10 ms of simulated time.
    pub progress: Option<&'a dyn Fn(Progress)>,
    /// Whether to record curves over time ([`crate::Details::timeline`]).
    pub has_timeline: bool,
    /// How many of the last events before the first violation to describe
    /// ([`crate::Details::last_events`]).
    pub last_events: usize,
}

impl fmt::Debug for RunOptions<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RunOptions")
            .field("progress", &self.progress.is_some())
            .field("has_timeline", &self.has_timeline)
            .field("last_events", &self.last_events)
            .finish()
    }
}

/// The state of a run that goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Simulated seconds so far.
    pub simulated_s: f64,
    /// Events so far.
    pub events: u64,
    /// Share of the bytes of all pulls that have arrived, from 0 to 1. It stays below 1 if peers
    /// leave before they are complete.
    pub share: f64,
}

/// Records what [`RunOptions`] ask for.
pub(crate) struct Recorder<'a> {
    progress: Option<&'a dyn Fn(Progress)>,
    timeline: Option<Box<TimelineRecorder>>,
    event_log: Option<EventLog>,
    /// Bytes that have arrived.
    bytes: u64,
    /// Bytes of all pulls.
    all_bytes: u64,
    /// When to call `progress` and to sample stalls; [`Time::MAX`] for never.
    due: Time,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(options: &RunOptions<'a>, scenario: &Scenario) -> Self {
        let peers = &scenario.peers;
        let zones = peers.regions.get() * peers.zones.get();
        let is_sampling = options.progress.is_some() || options.has_timeline;
        Self {
            progress: options.progress,
            timeline: options
                .has_timeline
                .then(|| Box::new(TimelineRecorder::new(zones))),
            event_log: (options.last_events > 0).then(|| EventLog::new(options.last_events)),
            bytes: 0,
            all_bytes: 0,
            due: if is_sampling { Time::ZERO } else { Time::MAX },
        }
    }
}

impl Recorder<'_> {
    /// A peer will pull so many bytes.
    pub(crate) fn expect_bytes(&mut self, bytes: u64) {
        self.all_bytes += bytes;
    }
}

impl World<'_> {
    /// To be called before each event, with the time set.
    pub(crate) fn record_time(&mut self) {
        if self.now >= self.recorder.due {
            self.sample();
        }
    }

    fn sample(&mut self) {
        if let Some(progress) = self.recorder.progress {
            progress(Progress {
                simulated_s: self.now.as_secs_f64(),
                events: self.events(),
                share: (self.recorder.bytes as f64 / self.recorder.all_bytes as f64).min(1.0),
            });
        }
        self.recorder.due = self.now + PROGRESS_EVERY;
        if let Some(timeline) = &mut self.recorder.timeline {
            timeline.sample_stalls(self.now, &self.peers);
            self.recorder.due = self.now + timeline.bucket();
        }
    }

    /// To be called before an event is handled.
    pub(crate) fn record_event(&mut self, event: &Event) {
        if self.is_logging() {
            let text = self.describe(event);
            self.log(text);
        }
    }

    /// As [`Self::record_event`].
    pub(crate) fn record_flow_event(&mut self, event: &FlowEvent) {
        if self.is_logging() {
            let text = self.describe_flow(event);
            self.log(text);
        }
    }

    /// The log ends with the event that led to the first violation.
    fn is_logging(&self) -> bool {
        self.recorder.event_log.is_some() && !self.oracle.has_complaints()
    }

    fn log(&mut self, text: String) {
        if let Some(log) = &mut self.recorder.event_log {
            log.push(self.now, text);
        }
    }

    /// The bytes of a fetch begin to flow.
    pub(crate) fn record_flow_start(&mut self, fetch: Key) {
        if let Some(timeline) = &mut self.recorder.timeline {
            timeline.start_flow(self.now, fetch);
        }
    }

    /// Bytes of a fetch have flowed since [`Self::record_flow_start`].
    pub(crate) fn record_bytes(&mut self, key: Key, source: ByteSource, bytes: u64) {
        self.recorder.bytes += bytes;
        let Some(timeline) = &mut self.recorder.timeline else {
            return;
        };
        if let Some(fetch) = self.fetches.get(key) {
            let zone = self.locations[fetch.peer as usize].zone;
            timeline.add_bytes(self.now, key, source, zone, bytes);
        }
    }

    /// The recorded curves and events, at the end of the run.
    pub(crate) fn take_record(&mut self) -> (Option<Timeline>, Vec<String>) {
        let now = self.now;
        let timeline = self.recorder.timeline.take().map(|mut timeline| {
            timeline.sample_stalls(now, &self.peers);
            timeline.finish(now)
        });
        let log = self.recorder.event_log.take();
        let is_violated = self.oracle.has_complaints();
        let events = log.filter(|_| is_violated).map(EventLog::into_lines);
        (timeline, events.unwrap_or_default())
    }
}
