//! Sources that behave in a given way, and requests that ask them, on a virtual clock.

use core::time::Duration;

use crate::failover::{
    ContentKey, Failover, FailoverConfig, Input, Need, Outcome, Output, ProbeId, Request, SourceId,
    Standing, Step,
};
use crate::time::Time;

pub(super) const KEY: ContentKey = ContentKey(7);
pub(super) const CONTENT: Need = Need::Content(KEY);
pub(super) const OWN: SourceId = SourceId(0);
pub(super) const OTHER: SourceId = SourceId(1);

/// How long a round trip to a source takes.
pub(super) const ROUND_TRIP: Duration = Duration::from_millis(20);

pub(super) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a source does with calls and probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// Both are answered after a round trip.
    Answers,
    /// Calls are answered after this time, probes after a round trip.
    Slow(Duration),
    /// Neither is answered.
    Hangs,
    /// Both fail after a round trip.
    Refuses,
    /// Probes are answered; calls fail after a round trip.
    FailsCalls,
    /// Probes are answered; calls are not.
    HangsCalls,
    /// Calls are answered: it does not have the content.
    Lacks,
    /// Calls are answered: not now, but after this time.
    Busy(Duration),
}

/// A call or probe on its way, with its outcome.
#[derive(Debug)]
enum Pending {
    Call(usize, SourceId, Outcome),
    Probe(SourceId, ProbeId, Result<(), String>),
}

/// A running or finished request.
#[derive(Debug)]
pub(super) struct Run {
    request: Request,
    pub(super) started: Time,
    poll_at: Time,
    pub(super) asked: Vec<SourceId>,
    /// Whether a source was usable when the request began.
    had_usable: bool,
    pub(super) ended: Option<Ended>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) answered_by: Option<SourceId>,
    pub(super) is_absent: bool,
    pub(super) took: Duration,
}

/// Deliberate mistakes, for tests of the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mistake {
    #[default]
    None,
    /// Requests ask the first source, whatever its standing.
    AsksFirstSource,
    /// The driver never tells the machine the time.
    ForgetsTimeouts,
}

/// The machine, its sources and the requests.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) now: Time,
    pub(super) failover: Failover,
    pub(super) behaviours: Vec<Behaviour>,
    pub(super) mistake: Mistake,
    pending: Vec<(Time, Pending)>,
    pub(super) runs: Vec<Run>,
    /// When each source was probed.
    pub(super) probes: Vec<(Time, SourceId)>,
    pub(super) changes: Vec<(Time, SourceId, Standing)>,
    /// How often a source became usable, or the last usable one ceased to be.
    pub(super) usable_changes: u32,
    /// Rules that were broken.
    pub(super) complaints: Vec<String>,
}

impl Bench {
    /// All sources answer. Each region has the given number of replicas.
    pub(super) fn new(replicas: &[usize], rng_seed: u64) -> Self {
        let regions = (0..).zip(replicas);
        let regions: Vec<u32> = regions
            .flat_map(|(region, replicas)| core::iter::repeat_n(region, *replicas))
            .collect();
        Self {
            now: Time::ZERO + seconds(100),
            failover: Failover::new(FailoverConfig::default(), &regions, rng_seed),
            behaviours: vec![Behaviour::Answers; regions.len()],
            mistake: Mistake::None,
            pending: Vec::new(),
            runs: Vec::new(),
            probes: Vec::new(),
            changes: Vec::new(),
            usable_changes: 0,
            complaints: Vec::new(),
        }
    }

    pub(super) fn standing(&self, source: SourceId) -> Standing {
        self.failover.standing(source)
    }

    pub(super) fn set(&mut self, source: SourceId, behaviour: Behaviour) {
        self.behaviours[source.0 as usize] = behaviour;
    }

    /// Begins a request, and returns its number.
    pub(super) fn start(&mut self, need: Need) -> usize {
        let mut statuses = self.failover.status();
        let had_usable = statuses.any(|status| status.standing != Standing::Out);
        drop(statuses);
        let request = self.failover.request(self.now, need);
        self.runs.push(Run {
            request,
            started: self.now,
            poll_at: self.now,
            asked: Vec::new(),
            had_usable,
            ended: None,
        });
        self.poll(self.runs.len() - 1);
        self.runs.len() - 1
    }

    /// Runs one request to its end.
    pub(super) fn run(&mut self, need: Need) -> Ended {
        let run = self.start(need);
        loop {
            if let Some(ended) = self.runs[run].ended {
                return ended;
            }
            let until = self.now + seconds(60);
            assert!(
                self.step(until),
                "the request never ends: {:?}",
                self.runs[run]
            );
        }
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Lets time pass until the source has the standing.
    pub(super) fn pass_until(&mut self, source: SourceId, standing: Standing) -> Duration {
        let started = self.now;
        while self.standing(source) != standing {
            let until = self.now + seconds(60);
            assert!(self.step(until), "{source:?} never is {standing:?}");
        }
        self.now.saturating_since(started)
    }

    /// Does the next thing, if it happens by `until`.
    fn step(&mut self, until: Time) -> bool {
        self.carry_out();
        let pending = self.pending.iter().map(|(at, _)| *at);
        let polls = self.runs.iter().filter(|run| run.ended.is_none());
        let timeout = match self.mistake {
            Mistake::ForgetsTimeouts => None,
            _ => self.failover.poll_timeout(),
        };
        let next = pending
            .chain(polls.map(|run| run.poll_at))
            .chain(timeout)
            .min();
        let Some(next) = next.filter(|next| *next <= until) else {
            return false;
        };
        self.now = next.max(self.now);
        if let Some(at) = self.pending.iter().position(|(at, _)| *at <= self.now) {
            let (_, pending) = self.pending.swap_remove(at);
            self.deliver(pending);
        } else if timeout.is_some_and(|at| at <= self.now) {
            self.failover.handle_timeout(self.now);
        }
        self.carry_out();
        true
    }

    fn deliver(&mut self, pending: Pending) {
        match pending {
            Pending::Probe(source, probe, result) => {
                let input = Input::Probed {
                    source,
                    probe,
                    result,
                };
                self.failover.handle(self.now, input);
            }
            Pending::Call(at, source, outcome) => {
                let run = &mut self.runs[at];
                if run.ended.is_some() {
                    return;
                }
                let is_answer = matches!(outcome, Outcome::Answered | Outcome::Refused);
                let is_current = run
                    .request
                    .ended(self.now, &mut self.failover, source, outcome);
                if is_answer && is_current {
                    run.request.abandon(self.now, &mut self.failover);
                    self.end(at, Some(source));
                }
            }
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.failover.poll_output() {
            match output {
                Output::Probe { source, probe } => {
                    self.probes.push((self.now, source));
                    let result = match self.behaviours[source.0 as usize] {
                        Behaviour::Hangs => continue,
                        Behaviour::Refuses => Err("connection refused".to_owned()),
                        _ => Ok(()),
                    };
                    let at = self.now + ROUND_TRIP;
                    self.pending
                        .push((at, Pending::Probe(source, probe, result)));
                }
                Output::Changed { source, standing } => {
                    self.changes.push((self.now, source, standing));
                }
                Output::UsableChanged { is_usable } => {
                    assert_eq!(is_usable, self.failover.is_usable());
                    self.usable_changes += 1;
                }
            }
        }
        for at in 0..self.runs.len() {
            self.poll(at);
        }
    }

    fn poll(&mut self, at: usize) {
        while self.runs[at].ended.is_none() {
            match self.runs[at].request.poll(self.now, &mut self.failover) {
                Step::Ask(planned) => {
                    let source = match self.mistake {
                        Mistake::AsksFirstSource => OWN,
                        _ => planned,
                    };
                    self.ask(at, source);
                }
                Step::Wait(until) => {
                    self.runs[at].poll_at = until;
                    return;
                }
                Step::Exhausted => self.end(at, None),
            }
        }
    }

    fn ask(&mut self, at: usize, source: SourceId) {
        let run = &mut self.runs[at];
        run.asked.push(source);
        if run.had_usable && self.failover.standing(source) == Standing::Out {
            self.complaints
                .push(format!("{source:?} is Out and was asked at {:?}", self.now));
        }
        let failed = || Outcome::Failed {
            error: "connection refused".to_owned(),
        };
        let (after, outcome) = match self.behaviours[source.0 as usize] {
            Behaviour::Answers => (ROUND_TRIP, Outcome::Answered),
            Behaviour::Slow(after) => (after, Outcome::Answered),
            Behaviour::Hangs | Behaviour::HangsCalls => return,
            Behaviour::Refuses | Behaviour::FailsCalls => (ROUND_TRIP, failed()),
            Behaviour::Lacks => (ROUND_TRIP, Outcome::Missing),
            Behaviour::Busy(retry_after) => (ROUND_TRIP, Outcome::Busy { retry_after }),
        };
        self.pending
            .push((self.now + after, Pending::Call(at, source, outcome)));
    }

    fn end(&mut self, at: usize, answered_by: Option<SourceId>) {
        let run = &mut self.runs[at];
        run.ended = Some(Ended {
            answered_by,
            is_absent: run.request.is_absent(),
            took: self.now.saturating_since(run.started),
        });
    }
}
