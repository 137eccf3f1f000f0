//! The health of one source.

use core::time::Duration;

use rand::RngExt as _;
use rand_pcg::Pcg32;

use super::config::FailoverConfig;
use super::machine::ProbeId;
use crate::time::Time;

/// How far a source is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All requests that prefer it ask it. Also a source that was never asked.
    Fine,
    /// As Fine, but a call was slow or failed, and probes are about to decide.
    Suspect,
    /// It is not asked while another source is usable; probes wait for its return.
    Out,
    /// It answers probes again, and a share of requests asks it.
    Returning {
        /// The share, in percent.
        percent: u8,
    },
}

/// A probe that was started and has no result yet.
#[derive(Clone, Copy, Debug)]
struct OpenProbe {
    id: ProbeId,
    expires_at: Time,
}

/// A source about which probes are about to decide.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    started: u32,
    failed: u32,
    next_probe_at: Time,
    /// Whether requests for content prefer other sources meanwhile.
    is_avoided: bool,
}

#[derive(Clone, Copy, Debug)]
enum Level {
    Fine,
    Out {
        next_probe_at: Time,
        good_probes: u32,
    },
    Returning {
        step: usize,
        step_ends_at: Time,
        /// Requests that could have asked the source, from a random start.
        requests: u32,
    },
}

/// The health of one source.
#[derive(Debug)]
pub(super) struct Health {
    level: Level,
    suspicion: Option<Suspicion>,
    open_probes: Vec<OpenProbe>,
    last_probe_at: Option<Time>,
    /// The pause before the next probe, should the source go Out or its next probe fail.
    pause: Duration,
    /// Failed calls since the last answer, and when the first of them failed.
    failures: u32,
    first_failure_at: Time,
    /// Whether the last call or probe ended without any answer, rather than with an error.
    is_hung: bool,
    busy_until: Time,
    since: Time,
    error: Option<String>,
    is_answering: Option<bool>,
}

impl Health {
    pub(super) fn new(config: &FailoverConfig) -> Self {
        Self {
            level: Level::Fine,
            suspicion: None,
            open_probes: Vec::new(),
            last_probe_at: None,
            pause: config.first_pause,
            failures: 0,
            first_failure_at: Time::ZERO,
            is_hung: false,
            busy_until: Time::ZERO,
            since: Time::ZERO,
            error: None,
            is_answering: None,
        }
    }
}

// Queries.
impl Health {
    pub(super) fn standing(&self, config: &FailoverConfig) -> Standing {
        match self.level {
            Level::Fine if self.suspicion.is_some() => Standing::Suspect,
            Level::Fine => Standing::Fine,
            Level::Out { .. } => Standing::Out,
            Level::Returning { step, .. } => Standing::Returning {
                percent: share(config, step),
            },
        }
    }

    /// When the standing changed last.
    pub(super) fn since(&self) -> Time {
        self.since
    }

    /// The last error since the source was Fine without doubt.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether the last call or probe was answered; `None` if it was never asked.
    pub(super) fn is_answering(&self) -> Option<bool> {
        self.is_answering
    }

    pub(super) fn is_out(&self) -> bool {
        matches!(self.level, Level::Out { .. })
    }

    /// Whether a probe of a source that is Out was good, so that it is better than nothing.
    pub(super) fn has_good_probe(&self) -> bool {
        matches!(self.level, Level::Out { good_probes, .. } if good_probes > 0)
    }

    /// Whether a source that is Out is worth a call if nothing else is left: it was good at a
    /// probe, or fails without delay.
    pub(super) fn is_last_resort(&self) -> bool {
        self.is_out() && (self.has_good_probe() || !self.is_hung)
    }

    /// Whether requests for content prefer other sources while probes decide.
    pub(super) fn is_avoided(&self) -> bool {
        self.suspicion.is_some_and(|it| it.is_avoided)
    }

    pub(super) fn is_busy(&self, now: Time) -> bool {
        self.busy_until > now
    }

    /// When [`Self::start_probe`] or [`Self::advance`] has something to do.
    pub(super) fn deadline(&self, config: &FailoverConfig) -> Option<Time> {
        let expiries = self.open_probes.iter().map(|probe| probe.expires_at);
        let step_ends_at = match self.level {
            Level::Returning { step_ends_at, .. } => Some(step_ends_at),
            Level::Fine | Level::Out { .. } => None,
        };
        expiries
            .chain(step_ends_at)
            .chain(self.next_probe_at(config))
            .min()
    }

    fn next_probe_at(&self, config: &FailoverConfig) -> Option<Time> {
        match (self.level, self.suspicion) {
            (Level::Out { next_probe_at, .. }, _) => {
                self.open_probes.is_empty().then_some(next_probe_at)
            }
            (_, Some(suspicion)) => {
                (suspicion.started < config.suspect_probes).then_some(suspicion.next_probe_at)
            }
            (_, None) => None,
        }
    }
}

// Calls.
impl Health {
    /// A call was answered, with whatever status.
    pub(super) fn on_answered(&mut self, now: Time, config: &FailoverConfig) {
        self.failures = 0;
        self.is_hung = false;
        self.is_answering = Some(true);
        match &mut self.level {
            Level::Fine => {
                self.end_suspicion(now);
                self.error = None;
            }
            Level::Returning { .. } => self.end_suspicion(now),
            Level::Out { next_probe_at, .. } => {
                let earliest = self
                    .last_probe_at
                    .map_or(now, |at| at + config.good_probe_interval);
                *next_probe_at = (*next_probe_at).min(earliest.max(now));
            }
        }
    }

    /// A call takes long, but has not failed yet.
    pub(super) fn on_slow(&mut self, now: Time, config: &FailoverConfig) {
        if !self.is_out() {
            self.suspect(now, config, false);
        }
    }

    /// A call has waited so long for its answer that other sources are preferred. It may still be
    /// answered: a source that is slow with good reason is not Out.
    pub(super) fn on_hung(&mut self, now: Time, config: &FailoverConfig, rng: &mut Pcg32) {
        self.is_hung = true;
        self.error = Some(format!("no answer within {:?}", config.hung_after));
        match self.level {
            Level::Fine => self.suspect(now, config, true),
            Level::Returning { .. } => self.fall_back(now, config, rng),
            Level::Out { .. } => {}
        }
    }

    /// A call failed; `is_hung` if nothing was answered at all.
    pub(super) fn on_failed(
        &mut self,
        now: Time,
        config: &FailoverConfig,
        rng: &mut Pcg32,
        error: String,
        is_hung: bool,
    ) {
        self.error = Some(error);
        self.is_answering = Some(false);
        self.is_hung = is_hung;
        match self.level {
            Level::Fine => {
                if self.failures == 0 {
                    self.first_failure_at = now;
                }
                self.failures = self.failures.saturating_add(1);
                let is_over = now.saturating_since(self.first_failure_at) >= config.failures_over;
                if self.failures >= config.failures_in_a_row && is_over {
                    self.go_out(now, rng);
                } else {
                    self.suspect(now, config, true);
                }
            }
            Level::Returning { .. } => self.fall_back(now, config, rng),
            Level::Out { .. } => {}
        }
    }

    /// The source asked not to be asked again before then.
    pub(super) fn on_busy(&mut self, until: Time) {
        self.busy_until = self.busy_until.max(until);
        self.is_hung = false;
        self.is_answering = Some(true);
    }

    /// Whether the next request is of the share that asks a returning source.
    pub(super) fn take_share(&mut self, config: &FailoverConfig) -> bool {
        let Level::Returning { step, requests, .. } = &mut self.level else {
            return true;
        };
        let percent = u64::from(share(config, *step));
        let before = u64::from(*requests) * percent / 100;
        *requests = requests.wrapping_add(1);
        u64::from(*requests) * percent / 100 > before
    }

    /// A request found no usable source: the next probe comes sooner, though a fleet whose only
    /// origin is out must not flood it with probes.
    pub(super) fn on_demand(&mut self, now: Time, config: &FailoverConfig) {
        let pause = (self.pause / 8).max(config.first_pause);
        if let Level::Out { next_probe_at, .. } = &mut self.level {
            let earliest = self.last_probe_at.map_or(now, |at| at + pause);
            *next_probe_at = (*next_probe_at).min(earliest.max(now));
        }
    }
}

// Probes and time.
impl Health {
    /// Does what is due except for new probes: overdue probes have failed, and a step of the return
    /// ends.
    pub(super) fn advance(&mut self, now: Time, config: &FailoverConfig, rng: &mut Pcg32) {
        while let Some(at) = self.open_probes.iter().position(|it| it.expires_at <= now) {
            let probe = self.open_probes.swap_remove(at);
            let timeout = config.probe_timeout;
            let error = format!("no answer to a probe within {timeout:?}");
            self.on_probe_failed(probe.expires_at, config, rng, error, true);
        }
        while let Level::Returning {
            step, step_ends_at, ..
        } = &mut self.level
            && *step_ends_at <= now
        {
            self.since = *step_ends_at;
            *step += 1;
            *step_ends_at += config.return_step;
            if *step >= config.return_shares.len() {
                self.level = Level::Fine;
                self.pause = config.first_pause;
                self.error = None;
            }
        }
    }

    /// Starts the next probe if it is due.
    pub(super) fn start_probe(&mut self, now: Time, config: &FailoverConfig, id: ProbeId) -> bool {
        if self.next_probe_at(config).is_none_or(|at| at > now) {
            return false;
        }
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.started += 1;
            suspicion.next_probe_at = now + config.suspect_probe_interval;
        }
        self.last_probe_at = Some(now);
        let expires_at = now + config.probe_timeout;
        self.open_probes.push(OpenProbe { id, expires_at });
        true
    }

    /// A probe ended. No effect if it is not open: it came too late, or the source went Out.
    pub(super) fn on_probed(
        &mut self,
        now: Time,
        config: &FailoverConfig,
        rng: &mut Pcg32,
        id: ProbeId,
        result: Result<(), String>,
    ) {
        let Some(at) = self.open_probes.iter().position(|probe| probe.id == id) else {
            return;
        };
        let started_at = self.open_probes.swap_remove(at).expires_at - config.probe_timeout;
        match result {
            Ok(()) => self.on_good_probe(now, config, rng, started_at),
            Err(error) => self.on_probe_failed(now, config, rng, error, false),
        }
    }

    fn on_good_probe(
        &mut self,
        now: Time,
        config: &FailoverConfig,
        rng: &mut Pcg32,
        started_at: Time,
    ) {
        self.is_hung = false;
        self.is_answering = Some(true);
        self.end_suspicion(now);
        let Level::Out {
            next_probe_at,
            good_probes,
        } = &mut self.level
        else {
            return;
        };
        *good_probes += 1;
        *next_probe_at = now.max(started_at + config.good_probe_interval);
        if *good_probes >= config.good_probes {
            self.since = now;
            self.failures = 0;
            self.level = Level::Returning {
                step: 0,
                step_ends_at: now + config.return_step,
                requests: rng.random_range(0..100),
            };
        }
    }

    fn on_probe_failed(
        &mut self,
        now: Time,
        config: &FailoverConfig,
        rng: &mut Pcg32,
        error: String,
        is_hung: bool,
    ) {
        self.error = Some(error);
        self.is_answering = Some(false);
        self.is_hung = is_hung;
        match (&mut self.level, &mut self.suspicion) {
            (Level::Out { .. }, _) => {
                self.pause = (self.pause * 2).min(config.max_pause);
                let next_probe_at = now + jittered(self.pause, rng);
                self.level = Level::Out {
                    next_probe_at,
                    good_probes: 0,
                };
            }
            (Level::Returning { .. }, _) => self.fall_back(now, config, rng),
            (Level::Fine, Some(suspicion)) => {
                suspicion.failed += 1;
                if suspicion.failed >= config.suspect_probes {
                    self.go_out(now, rng);
                }
            }
            // An answered call has ended the suspicion that the probe was for.
            (Level::Fine, None) => {}
        }
    }
}

// Changes of the standing.
impl Health {
    fn suspect(&mut self, now: Time, config: &FailoverConfig, is_avoided: bool) {
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.is_avoided |= is_avoided;
            return;
        }
        let earliest = self
            .last_probe_at
            .map_or(now, |at| at + config.suspect_probe_interval);
        self.suspicion = Some(Suspicion {
            started: 0,
            failed: 0,
            next_probe_at: earliest.max(now),
            is_avoided,
        });
        if matches!(self.level, Level::Fine) {
            self.since = now;
        }
    }

    fn end_suspicion(&mut self, now: Time) {
        if self.suspicion.take().is_some() && matches!(self.level, Level::Fine) {
            self.since = now;
        }
    }

    /// Out again after a failed return: the next probe comes later than before.
    fn fall_back(&mut self, now: Time, config: &FailoverConfig, rng: &mut Pcg32) {
        self.pause = (self.pause * 2).min(config.max_pause);
        self.go_out(now, rng);
    }

    fn go_out(&mut self, now: Time, rng: &mut Pcg32) {
        self.suspicion = None;
        self.open_probes.clear();
        self.failures = 0;
        self.since = now;
        self.level = Level::Out {
            next_probe_at: now + jittered(self.pause, rng),
            good_probes: 0,
        };
    }
}

/// The share of a step, in percent.
fn share(config: &FailoverConfig, step: usize) -> u8 {
    config.return_shares.get(step).copied().unwrap_or(100)
}

/// A pause, shortened by up to a quarter at random.
fn jittered(pause: Duration, rng: &mut Pcg32) -> Duration {
    pause.mul_f64(rng.random_range(0.75..=1.0))
}
