//! Depth-first through all decisions, by replaying the scenario for each sequence of them.

use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;

use super::model::{Faults, Model, Move};

/// Turns without any activity after which all actors are taken to wait.
const QUIET_TURNS: u32 = 8;

/// Says what does not hold.
pub(super) type Check = Box<dyn Fn(&Model) -> Result<(), String>>;

/// What acts on a storage, and what must hold in the end.
pub(super) struct Scenario {
    pub(super) actors: Vec<BoxFuture<'static, ()>>,
    pub(super) check: Check,
}

/// What came of an exploration.
#[derive(Debug)]
pub(super) struct Explored {
    pub(super) runs: usize,
    /// What does not hold, and the decisions that lead there.
    pub(super) violation: Option<(String, Vec<String>)>,
}

impl Explored {
    /// # Panics
    /// If something does not hold, or so little was explored that the scenario cannot be what it
    /// should be.
    pub(super) fn assert_holds(&self, least_runs: usize) {
        eprintln!("{} sequences of decisions explored", self.runs);
        assert_eq!(self.violation, None);
        assert!(self.runs >= least_runs, "only {} runs", self.runs);
    }

    /// The trace that the missing rule would have prevented, known by what does not hold after it.
    ///
    /// # Panics
    /// If there is none, or another one.
    pub(super) fn assert_broken(&self, saying: &str) {
        let Some((what, trace)) = &self.violation else {
            panic!("{} runs, and nothing is broken", self.runs)
        };
        eprintln!("after {} runs: {what}\n  {}", self.runs, trace.join("\n  "));
        assert!(what.contains(saying), "not {saying:?}, but {what}");
    }
}

/// The decisions of one run: which of how many.
#[derive(Default)]
struct Plan {
    decisions: Vec<(usize, usize)>,
    depth: usize,
}

impl Plan {
    fn choose(&mut self, options: usize) -> usize {
        if self.depth == self.decisions.len() {
            self.decisions.push((0, options));
        }
        let (taken, known) = self.decisions[self.depth];
        assert_eq!(known, options, "the scenario does not repeat itself");
        self.depth += 1;
        taken
    }

    /// The next sequence; `false` after the last.
    fn advance(&mut self) -> bool {
        self.depth = 0;
        while let Some((taken, options)) = self.decisions.pop() {
            if taken + 1 < options {
                self.decisions.push((taken + 1, options));
                return true;
            }
        }
        false
    }
}

/// Explores until something does not hold, or all is explored.
pub(super) async fn explore(faults: Faults, scenario: impl AsyncFn(Model) -> Scenario) -> Explored {
    let mut plan = Plan::default();
    let mut runs = 0;
    loop {
        runs += 1;
        let model = Model::default();
        let scenario = scenario(model.clone()).await;
        model.begin(faults);
        let (outcome, trace) = run(&mut plan, &model, scenario).await;
        if let Err(what) = outcome {
            return Explored {
                runs,
                violation: Some((what, trace)),
            };
        }
        if !plan.advance() {
            return Explored {
                runs,
                violation: None,
            };
        }
    }
}

async fn run(
    plan: &mut Plan,
    model: &Model,
    scenario: Scenario,
) -> (Result<(), String>, Vec<String>) {
    let actors: Vec<JoinHandle<()>> = scenario.actors.into_iter().map(tokio::spawn).collect();
    let mut trace = Vec::new();
    loop {
        quiet(model).await;
        let moves = model.moves();
        if moves.is_empty() {
            break;
        }
        let chosen = if moves.len() == 1 {
            0
        } else {
            plan.choose(moves.len())
        };
        trace.push(model.describe(&moves[chosen]));
        if matches!(moves[chosen], Move::Stop) {
            break;
        }
        model.perform(&moves[chosen]);
    }
    let failed = actors.iter().any(|actor| !actor.is_finished());
    actors.iter().for_each(JoinHandle::abort);
    let outcome = if failed {
        Err("an actor never ends".to_owned())
    } else {
        (scenario.check)(model)
    };
    (outcome, trace)
}

/// Lets everybody run until all wait for storage.
async fn quiet(model: &Model) {
    let (mut seen, mut turns) = (model.activity(), 0);
    while turns < QUIET_TURNS {
        tokio::task::yield_now().await;
        turns = if model.activity() == seen {
            turns + 1
        } else {
            0
        };
        seen = model.activity();
    }
}
