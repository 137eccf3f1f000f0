//! The machine: all sources, what is known of them, and the order in which a request asks them.

use core::time::Duration;
use std::collections::VecDeque;

use rand::SeedableRng as _;
use rand_pcg::Pcg32;

use super::config::FailoverConfig;
use super::health::{Health, Standing};
use super::missing::MissingContent;
use super::request::{Attempt, Request};
use crate::time::Time;

/// A source, by its index in the configured order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

/// A probe, numbered by the machine and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(pub u64);

/// A piece of content that never changes, by a number of the caller's: bytes of its digest. Two
/// pieces with one number cost at most a request in another region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentKey(pub u64);

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Content that never changes: a blob, or a manifest by digest. Every source that has it is as
    /// good as another, so the next one is asked as soon as one is late.
    Content(ContentKey),
    /// As [`Need::Content`], but the sources of one region are asked first, whatever their health: a
    /// tracker that knows more has chosen it.
    ContentOf {
        /// The content.
        key: ContentKey,
        /// The number of the region.
        region: u32,
    },
    /// A fact that can change: a tag, or a list. A source in another region may know an older
    /// value, so it is asked only when the source before it has failed or is Out.
    Fact,
}

impl Need {
    /// The content that is needed; `None` for a fact.
    pub fn content(self) -> Option<ContentKey> {
        match self {
            Self::Content(key) | Self::ContentOf { key, .. } => Some(key),
            Self::Fact => None,
        }
    }
}

/// How a call to a source ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The head of an answer came that serves the request.
    Answered,
    /// The source is sure that its region does not have it (404). No word on its health.
    Missing,
    /// The source answered that the caller may not have it (401, 403), or that the request is
    /// invalid. No word on its health.
    Refused,
    /// The source answers, but asks for a pause (429, or 503 with `Retry-After`).
    Busy {
        /// The pause that it asks for.
        retry_after: Duration,
    },
    /// The source answered with an error of its own, could not be reached, or broke off its
    /// answer.
    Failed {
        /// What happened, for people.
        error: String,
    },
    /// The source did not answer in time.
    TimedOut,
}

/// Something that happened to a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A call has waited for the head of its answer for [`FailoverConfig::slow_after`], and waits
    /// on; or the body of an answer made no progress for as long.
    Slow {
        /// The source.
        source: SourceId,
    },
    /// As [`Input::Slow`], for [`FailoverConfig::hung_after`]: further requests prefer the next
    /// source until probes have decided. The call itself may still be answered.
    Hung {
        /// The source.
        source: SourceId,
    },
    /// A call ended.
    Ended {
        /// The source.
        source: SourceId,
        /// What the call was for.
        need: Need,
        /// How it ended.
        outcome: Outcome,
    },
    /// A probe ended: good, or failed with an error.
    Probed {
        /// The source.
        source: SourceId,
        /// The probe of an [`Output::Probe`].
        probe: ProbeId,
        /// The error, if the source did not answer or is not able to serve.
        result: Result<(), String>,
    },
    /// Something is wanted that no usable source can serve at present: the next probes come
    /// sooner.
    Demand,
}

/// The actions that the machine asks of its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask a source whether it can serve. Answered by [`Input::Probed`]; a result that does not
    /// come within [`FailoverConfig::probe_timeout`] counts as failed, and is not waited for.
    Probe {
        /// The source.
        source: SourceId,
        /// The probe.
        probe: ProbeId,
    },
    /// The standing of a source changed: requests that wait are to be polled.
    Changed {
        /// The source.
        source: SourceId,
        /// The standing from now on.
        standing: Standing,
    },
    /// [`Failover::is_usable`] changed.
    UsableChanged {
        /// Its value from now on.
        is_usable: bool,
    },
}

/// The health of a source, for status, metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceStatus<'a> {
    /// How far it is used.
    pub standing: Standing,
    /// When the standing changed last; [`Time::ZERO`] if it never did.
    pub since: Time,
    /// The last error, while the source is not known to be fine.
    pub error: Option<&'a str>,
    /// Whether the last call or probe was answered; `None` if it was never asked.
    pub is_answering: Option<bool>,
}

#[derive(Debug)]
struct Source {
    /// The index of its region in the order of preference; 0 is the own one.
    region: u32,
    health: Health,
    /// The standing of the last [`Output::Changed`].
    reported: Standing,
}

/// The health of all sources, and the decision which of them to ask. See the module's
/// documentation.
#[derive(Debug)]
pub struct Failover {
    config: FailoverConfig,
    sources: Vec<Source>,
    regions: u32,
    missing: MissingContent,
    rng: Pcg32,
    /// The value of the last [`Output::UsableChanged`].
    reported_usable: bool,
    outputs: VecDeque<Output>,
    next_probe: u64,
}

impl Failover {
    /// A machine for sources in the order of preference. `regions` has the region of each source:
    /// 0 is the own one, and the others are numbered in the order of preference. None of the
    /// sources was asked before.
    pub fn new(config: FailoverConfig, regions: &[u32], rng_seed: u64) -> Self {
        let source = |region: &u32| Source {
            region: *region,
            health: Health::new(&config),
            reported: Standing::Fine,
        };
        Self {
            sources: regions.iter().map(source).collect(),
            regions: regions.iter().max().map_or(0, |last| last + 1),
            missing: MissingContent::new(config.missing_limit),
            rng: Pcg32::seed_from_u64(rng_seed),
            reported_usable: !regions.is_empty(),
            outputs: VecDeque::new(),
            next_probe: 0,
            config,
        }
    }

    /// Handles something that happened at `now`. Time must not go backwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.advance(now);
        match input {
            Input::Slow { source } => {
                if let Some(source) = self.sources.get_mut(source.0 as usize) {
                    source.health.on_slow(now, &self.config);
                }
            }
            Input::Hung { source } => {
                if let Some(source) = self.sources.get_mut(source.0 as usize) {
                    source.health.on_hung(now, &self.config, &mut self.rng);
                }
            }
            Input::Ended {
                source,
                need,
                outcome,
            } => self.on_ended(now, source, need, outcome),
            Input::Probed {
                source,
                probe,
                result,
            } => {
                if let Some(source) = self.sources.get_mut(source.0 as usize) {
                    source
                        .health
                        .on_probed(now, &self.config, &mut self.rng, probe, result);
                }
            }
            Input::Demand => {
                for source in &mut self.sources {
                    source.health.on_demand(now, &self.config);
                }
            }
        }
        self.finish(now);
    }

    /// The next thing to do, in order; `None` when there is nothing more.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called; changes with every input and request.
    pub fn poll_timeout(&self) -> Option<Time> {
        let deadlines = self.sources.iter();
        deadlines
            .filter_map(|source| source.health.deadline(&self.config))
            .min()
    }

    /// Handles the deadline of [`Self::poll_timeout`]. A call too early or too often does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        self.advance(now);
        self.finish(now);
    }

    /// Begins a request: decides which sources it asks, in which order and how long.
    pub fn request(&mut self, now: Time, need: Need) -> Request {
        self.advance(now);
        let attempts = self.attempts(now, need);
        if !attempts.iter().any(|attempt| attempt.is_usable) {
            self.handle(now, Input::Demand);
        }
        self.finish(now);
        Request::new(now, need, attempts, self.regions, &self.config)
    }
}

// Queries.
impl Failover {
    /// Whether a source is worth asking: one that is not Out, or that was good at a probe.
    pub fn is_usable(&self) -> bool {
        let mut sources = self.sources.iter();
        sources.any(|source| !source.health.is_out() || source.health.has_good_probe())
    }

    /// How far a source is used; Out for an unknown one.
    pub fn standing(&self, source: SourceId) -> Standing {
        let source = self.sources.get(source.0 as usize);
        source.map_or(Standing::Out, |it| it.health.standing(&self.config))
    }

    /// The health of each source, in the configured order.
    pub fn status(&self) -> impl Iterator<Item = SourceStatus<'_>> {
        self.sources.iter().map(|source| SourceStatus {
            standing: source.health.standing(&self.config),
            since: source.health.since(),
            error: source.health.error(),
            is_answering: source.health.is_answering(),
        })
    }

    /// The settings it was made with.
    pub fn config(&self) -> &FailoverConfig {
        &self.config
    }

    #[cfg(test)]
    pub(super) fn missing_len(&self) -> usize {
        self.missing.len()
    }
}

// The order of a request's attempts.
impl Failover {
    fn attempts(&mut self, now: Time, need: Need) -> Vec<Attempt> {
        let mut ranked = Vec::new();
        let chosen_region = match need {
            Need::ContentOf { region, .. } => Some(region),
            Need::Content(_) | Need::Fact => None,
        };
        for (id, source) in (0..).map(SourceId).zip(&mut self.sources) {
            let is_chosen = chosen_region == Some(source.region);
            if is_chosen || !source.health.is_out() {
                let lacks_it = need
                    .content()
                    .is_some_and(|key| self.missing.contains(now, key, source.region));
                // Each source takes part in its share once per request, whatever its rank.
                let is_in_share = source.health.take_share(&self.config);
                let rank = if lacks_it {
                    4
                } else if source.health.is_busy(now) {
                    3
                } else if is_chosen {
                    0
                } else if !is_in_share || chosen_region.is_some() {
                    2
                } else {
                    u8::from(source.health.is_avoided() && need != Need::Fact)
                };
                ranked.push((rank, source.region, id));
            }
        }
        let is_usable = !ranked.is_empty();
        if !is_usable {
            let sources = (0..).map(SourceId).zip(&self.sources);
            let last_resorts = sources.filter(|(_, source)| source.health.is_last_resort());
            ranked.extend(last_resorts.map(|(id, source)| (0, source.region, id)));
        }
        ranked.sort_unstable();
        let order: Vec<_> = ranked
            .into_iter()
            .map(|(_, region, id)| (region, id))
            .collect();
        let attempt = |at: usize, &(region, source): &(u32, SourceId)| {
            let health = &self.sources[source.0 as usize].health;
            let is_chosen = chosen_region == Some(region);
            let is_avoided = health.is_avoided() && !is_chosen;
            let is_own_choice = at == 0 && (is_chosen || region == 0 && is_usable);
            let may_hedge =
                need != Need::Fact || order.get(at + 1).is_some_and(|(next, _)| *next == region);
            let config = &self.config;
            let hedge_delay = if is_own_choice && !is_avoided {
                config.hung_after
            } else {
                config.hedge_delay
            };
            Attempt {
                source,
                region,
                is_usable: is_usable && !health.is_out(),
                is_preferred: is_own_choice && !is_avoided,
                timeout: if is_own_choice {
                    config.own_timeout
                } else {
                    config.other_timeout
                },
                hedge_delay: may_hedge.then_some(hedge_delay),
            }
        };
        order
            .iter()
            .enumerate()
            .map(|(at, it)| attempt(at, it))
            .collect()
    }
}

// Inputs.
impl Failover {
    fn on_ended(&mut self, now: Time, id: SourceId, need: Need, outcome: Outcome) {
        let Some(source) = self.sources.get_mut(id.0 as usize) else {
            return;
        };
        let region = source.region;
        match outcome {
            Outcome::Answered => {
                source.health.on_answered(now, &self.config);
                if let Some(key) = need.content() {
                    self.missing.remove(key, region);
                }
            }
            Outcome::Missing => {
                source.health.on_answered(now, &self.config);
                if let Some(key) = need.content() {
                    let until = now + self.config.missing_ttl;
                    self.missing.insert(now, key, region, until);
                }
            }
            Outcome::Refused => source.health.on_answered(now, &self.config),
            Outcome::Busy { retry_after } => {
                let pause = retry_after.min(self.config.max_retry_after);
                source.health.on_busy(now + pause);
            }
            Outcome::Failed { error } => {
                let (config, rng) = (&self.config, &mut self.rng);
                source.health.on_failed(now, config, rng, error, false);
            }
            Outcome::TimedOut => {
                let (config, rng) = (&self.config, &mut self.rng);
                let error = "no answer in time".to_owned();
                source.health.on_failed(now, config, rng, error, true);
            }
        }
    }

    fn advance(&mut self, now: Time) {
        for source in &mut self.sources {
            source.health.advance(now, &self.config, &mut self.rng);
        }
    }

    /// Starts the probes that are due, and reports changes.
    fn finish(&mut self, now: Time) {
        for (id, source) in (0..).map(SourceId).zip(&mut self.sources) {
            let probe = ProbeId(self.next_probe);
            if source.health.start_probe(now, &self.config, probe) {
                self.next_probe += 1;
                self.outputs.push_back(Output::Probe { source: id, probe });
            }
            let standing = source.health.standing(&self.config);
            if standing != source.reported {
                source.reported = standing;
                let changed = Output::Changed {
                    source: id,
                    standing,
                };
                self.outputs.push_back(changed);
            }
        }
        let is_usable = self.is_usable();
        if is_usable != self.reported_usable {
            self.reported_usable = is_usable;
            self.outputs.push_back(Output::UsableChanged { is_usable });
        }
    }
}
