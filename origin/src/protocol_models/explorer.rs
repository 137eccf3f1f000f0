//! Depth-first search over all sequences of choices; each sequence replays the scenario from its
//! start.

use core::time::Duration;

use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;

use super::storage_model::{Faults, ModelStorage, Step};

/// Scheduler turns without a storage call after which all actors are assumed to wait for storage.
const IDLE_TURNS: u32 = 8;

/// How long actors may pause when no call is pending, and how often in a row.
const WAIT: Duration = Duration::from_secs(2);
const MAX_WAITS: u32 = 2;

/// Checks the final state; the error says which property is violated.
pub(super) type Check = Box<dyn Fn(&ModelStorage) -> Result<(), String>>;

/// Brings the system to rest; the error says which property is violated before or meanwhile.
pub(super) type Settle = BoxFuture<'static, Result<(), String>>;

/// Concurrent actors on one storage, and the property that must hold after them.
pub(super) struct Scenario {
    pub(super) actors: Vec<BoxFuture<'static, ()>>,
    /// Runs after the actors and before the check. Its storage calls are performed at once.
    pub(super) settle: Option<Settle>,
    pub(super) check: Check,
}

impl Scenario {
    /// Actors and a property.
    pub(super) const fn new(actors: Vec<BoxFuture<'static, ()>>, check: Check) -> Self {
        Self {
            actors,
            settle: None,
            check,
        }
    }
}

/// The result of an exploration.
#[derive(Debug)]
pub(super) struct Explored {
    pub(super) runs: usize,
    /// The violated property, and the trace that violates it.
    pub(super) violation: Option<(String, Vec<String>)>,
}

impl Explored {
    /// Asserts that the property held in all runs.
    ///
    /// # Panics
    /// If it was violated, or if there were fewer than `min_runs`, which means that the scenario is
    /// not concurrent as intended.
    pub(super) fn assert_holds(&self, min_runs: usize) {
        eprintln!("{} runs explored", self.runs);
        assert_eq!(self.violation, None);
        assert!(self.runs >= min_runs, "only {} runs", self.runs);
    }

    /// Asserts that a trace violates the property, in the way that the missing rule prevents.
    ///
    /// # Panics
    /// If there is no violation, or its description does not contain `expected`.
    pub(super) fn assert_violated(&self, expected: &str) {
        let Some((violation, trace)) = &self.violation else {
            panic!("no violation in {} runs", self.runs)
        };
        eprintln!(
            "after {} runs: {violation}\n  {}",
            self.runs,
            trace.join("\n  ")
        );
        assert!(
            violation.contains(expected),
            "{violation}; expected {expected:?}"
        );
    }
}

/// The choices of one run: for each, the chosen option and the number of options.
#[derive(Default)]
struct Choices {
    choices: Vec<(usize, usize)>,
    depth: usize,
}

impl Choices {
    fn choose(&mut self, options: usize) -> usize {
        if self.depth == self.choices.len() {
            self.choices.push((0, options));
        }
        let (chosen, expected) = self.choices[self.depth];
        assert_eq!(expected, options, "the scenario is not deterministic");
        self.depth += 1;
        chosen
    }

    /// Moves to the next sequence; `false` after the last.
    fn advance(&mut self) -> bool {
        self.depth = 0;
        while let Some((chosen, options)) = self.choices.pop() {
            if chosen + 1 < options {
                self.choices.push((chosen + 1, options));
                return true;
            }
        }
        false
    }
}

/// Explores all runs of a scenario, up to the first violation.
pub(super) async fn explore(
    faults: Faults,
    scenario: impl AsyncFn(ModelStorage) -> Scenario,
) -> Explored {
    let mut choices = Choices::default();
    let mut runs = 0;
    loop {
        runs += 1;
        let model = ModelStorage::default();
        let scenario = scenario(model.clone()).await;
        model.start(faults);
        let (outcome, trace) = run(&mut choices, &model, scenario).await;
        if let Err(violation) = outcome {
            return Explored {
                runs,
                violation: Some((violation, trace)),
            };
        }
        if !choices.advance() {
            return Explored {
                runs,
                violation: None,
            };
        }
    }
}

async fn run(
    choices: &mut Choices,
    model: &ModelStorage,
    scenario: Scenario,
) -> (Result<(), String>, Vec<String>) {
    let actors: Vec<JoinHandle<()>> = scenario.actors.into_iter().map(tokio::spawn).collect();
    let mut trace = Vec::new();
    let mut waits = 0;
    loop {
        wait_until_idle(model).await;
        let steps = model.steps();
        if steps.is_empty() {
            if waits < MAX_WAITS && actors.iter().any(|actor| !actor.is_finished()) {
                // An actor may pause before its next call. Tokio's clock is paused, so this takes
                // no time.
                waits += 1;
                tokio::time::sleep(WAIT).await;
                continue;
            }
            break;
        }
        waits = 0;
        let chosen = if steps.len() == 1 {
            0
        } else {
            choices.choose(steps.len())
        };
        trace.push(model.describe(&steps[chosen]));
        if matches!(steps[chosen], Step::Stop) {
            break;
        }
        model.perform(&steps[chosen]);
    }
    let is_stuck = actors.iter().any(|actor| !actor.is_finished());
    actors.iter().for_each(JoinHandle::abort);
    if is_stuck {
        return (Err("an actor did not finish".to_owned()), trace);
    }
    model.stop();
    let settled = match scenario.settle {
        Some(settle) => settle.await,
        None => Ok(()),
    };
    (settled.and_then(|()| (scenario.check)(model)), trace)
}

/// Runs the actors until all of them wait for storage.
async fn wait_until_idle(model: &ModelStorage) {
    let mut seen = model.activity();
    let mut turns = 0;
    while turns < IDLE_TURNS {
        tokio::task::yield_now().await;
        turns = if model.activity() == seen {
            turns + 1
        } else {
            0
        };
        seen = model.activity();
    }
}
