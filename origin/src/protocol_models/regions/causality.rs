//! Changes of one tag that one client makes one after the other, each through whichever region
//! takes it, while the clocks of the regions differ (trace F5). All sequences of a few steps, with
//! the shipped stamps and floors.

use core::time::Duration;

use flotilla_common::stamp::Stamp;
use flotilla_runtime::clock::Clock;
use tokio::time::advance;

use super::world::Region;
use crate::regions::clock_floor::{ClockFloor, SenderClocks};
use crate::registry::HybridClock;

/// What a replica does to keep the order.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// Remembers the stamp of a change that it forwarded.
    remembers_forwarded: bool,
    /// Remembers what it showed a client from another region.
    remembers_shown: bool,
    /// Asks the regions that owe something.
    asks_elsewhere: bool,
    /// Sends what it knows with a change that it forwards.
    sends_known: bool,
    /// Sends its wall clock with it.
    sends_wall: bool,
}

const SHIPPED: Rules = Rules {
    remembers_forwarded: true,
    remembers_shown: true,
    asks_elsewhere: true,
    sends_known: true,
    sends_wall: true,
};

/// Regions by number: 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The client changes the tag in a region, through the replica that all other steps use.
    Change(usize),
    /// The same in region 0, through another replica.
    ChangeAtSibling,
    /// The storage of the region is out, and its replica forwards the change to the other region.
    Forward(usize),
    /// The client reads the freshest value in a region.
    Show(usize),
    /// The region merges what the other one has.
    Merge(usize),
}

/// Two regions with one replica each, and a sibling of the first replica.
struct World<'a> {
    rules: Rules,
    /// Whether regions answer when they are asked for stamps.
    answers: bool,
    /// Of the two replicas, and of the sibling.
    clocks: [&'a HybridClock; 3],
    stored: [Option<Stamp>; 2],
    memory: [Option<u64>; 2],
    /// Whether the replica knows of the last change.
    is_informed: [bool; 2],
    last: Option<Stamp>,
}

impl World<'_> {
    /// Takes a step. An error if a change is stamped below an earlier one of the same client.
    fn take(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Change(at) => {
                let known = self.memory[at];
                let is_informed = self.is_informed[at];
                let Some(stamp) = self.change(at, at, known, None, is_informed)? else {
                    return Ok(());
                };
                self.memory[at] = self.memory[at].max(Some(stamp.clock));
                self.is_informed[at] = true;
            }
            Step::ChangeAtSibling => {
                let is_informed = self.stored[0] >= self.last;
                self.change(0, 2, None, None, is_informed)?;
            }
            Step::Forward(from) => {
                let to = 1 - from;
                let wall = self.clocks[from].unix_nanos();
                let sender = SenderClocks {
                    known: self.memory[from].filter(|_| self.rules.sends_known),
                    wall: if self.rules.sends_wall { wall } else { 0 },
                };
                let is_before = self.last.as_ref().is_none_or(|last| last.clock <= wall);
                let is_informed = self.is_informed[from] || self.is_informed[to] || is_before;
                let known = self.memory[to];
                let Some(stamp) = self.change(to, to, known, Some(sender), is_informed)? else {
                    return Ok(());
                };
                self.memory[to] = self.memory[to].max(Some(stamp.clock));
                if self.rules.remembers_forwarded {
                    self.memory[from] = self.memory[from].max(Some(stamp.clock));
                }
                self.is_informed = [true, true];
            }
            Step::Show(at) => {
                let other = self.stored[1 - at].as_ref();
                let other = other.filter(|_| self.rules.remembers_shown);
                let shown = self.stored[at].as_ref().max(other);
                self.memory[at] = self.memory[at].max(shown.map(|stamp| stamp.clock));
                self.is_informed[at] = true;
            }
            Step::Merge(at) => {
                if self.stored[1 - at] > self.stored[at] {
                    self.stored[at] = self.stored[1 - at].clone();
                    let merged = self.stored[at].as_ref();
                    self.memory[at] = self.memory[at].max(merged.map(|stamp| stamp.clock));
                    self.is_informed[at] = self.stored[at] >= self.last;
                }
            }
        }
        Ok(())
    }

    /// A change that is written in region `at` by a clock; `None` if it is refused. `is_informed`
    /// says whether its replicas know of the last one, other than by asking another region.
    fn change(
        &mut self,
        at: usize,
        clock: usize,
        known: Option<u64>,
        sender: Option<SenderClocks>,
        is_informed: bool,
    ) -> Result<Option<Stamp>, String> {
        // The sender of a forwarded change is out.
        let is_asked = self.answers && sender.is_none();
        let owed = self.stored[1 - at].as_ref();
        let owed = owed.filter(|stamp| Some(*stamp) > self.stored[at].as_ref());
        let floor = ClockFloor {
            known,
            elsewhere: owed
                .filter(|_| is_asked && self.rules.asks_elsewhere)
                .map(|stamp| stamp.clock),
            sender,
        };
        let clock = self.clocks[clock];
        let seen = self.stored[at].as_ref().map(|stamp| stamp.clock);
        let above = floor.above(clock.unix_nanos());
        let Ok(stamp) = clock.stamp(seen.into_iter().chain(above)) else {
            return Ok(None);
        };
        if (is_informed || is_asked) && Some(&stamp) <= self.last.as_ref() {
            return Err(format!("{stamp:?} is not above {:?}", self.last));
        }
        self.stored[at] = Some(stamp.clone());
        self.last = Some(stamp.clone());
        self.is_informed = [false, false];
        Ok(Some(stamp))
    }
}

const STEPS: [Step; 9] = [
    Step::Change(0),
    Step::Change(1),
    Step::ChangeAtSibling,
    Step::Forward(0),
    Step::Forward(1),
    Step::Show(0),
    Step::Show(1),
    Step::Merge(0),
    Step::Merge(1),
];
const LEN: u32 = 3;
/// How far clocks are ahead of the last one. Each may be wrong by a minute.
const AHEAD: [Duration; 3] = [
    Duration::from_secs(119),
    Duration::from_mins(1),
    Duration::ZERO,
];

/// The first sequence in which a later change loses.
async fn find_reordered(rules: Rules) -> Option<String> {
    let mut clocks = Vec::new();
    let mut behind = AHEAD[0];
    for ahead in AHEAD {
        advance(behind - ahead).await;
        behind = ahead;
        clocks.push(HybridClock::new(Clock::tokio(), Region::A.name()));
    }
    for assigned in 0..27 {
        let clocks = [1, 3, 9].map(|place| &clocks[assigned / place % 3]);
        for answers in [true, false] {
            for code in 0..STEPS.len().pow(LEN) {
                let mut world = World {
                    rules,
                    answers,
                    clocks,
                    stored: [None, None],
                    memory: [None, None],
                    is_informed: [true, true],
                    last: None,
                };
                let steps = (0..LEN).map(|at| STEPS[code / STEPS.len().pow(at) % STEPS.len()]);
                for step in steps.clone() {
                    advance(Duration::from_secs(1)).await;
                    if let Err(error) = world.take(step) {
                        let steps: Vec<_> = steps.collect();
                        return Some(format!("{steps:?}: {error}"));
                    }
                }
            }
        }
    }
    None
}

#[tokio::test(start_paused = true)]
async fn changes_of_one_client_keep_their_order_through_failover() {
    assert_eq!(find_reordered(SHIPPED).await, None);
}

#[tokio::test(start_paused = true)]
async fn each_rule_is_needed_to_keep_the_order() {
    let broken = [
        Rules {
            remembers_forwarded: false,
            ..SHIPPED
        },
        Rules {
            remembers_shown: false,
            ..SHIPPED
        },
        Rules {
            asks_elsewhere: false,
            ..SHIPPED
        },
        Rules {
            sends_known: false,
            ..SHIPPED
        },
        Rules {
            sends_wall: false,
            ..SHIPPED
        },
    ];
    for rules in broken {
        let found = find_reordered(rules).await;
        assert!(found.is_some(), "{rules:?} keeps the order");
    }
}
