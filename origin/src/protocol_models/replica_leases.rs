//! Leases between replicas: one replica changes a value, the other keeps it in a cache. Once the
//! change is acknowledged, the other must not serve the old value.
//!
//! Every order of the events below is explored, with messages that are lost, arrive late or never,
//! a reader that stops at any moment, restarts and drains, and a writer that restarts. Time moves
//! in seconds; any number of events may happen at one instant.

use core::time::Duration;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;

use flotilla_common::time::Time;

use crate::cache::Term;
use crate::replicas::{GrantedLeases, HeldLeases, ProcessId};

const TIME_TO_LIVE: Duration = Duration::from_secs(4);
const END: u64 = 4;
/// Questions for a lease in one run.
const MAX_QUESTIONS: u32 = 2;
const WRITER: ProcessId = 1;
const READER: ProcessId = 100;

fn at(seconds: u64) -> Time {
    // Times of processes begin well after zero.
    Time::ZERO + Duration::from_secs(1000 + seconds)
}

fn reader_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 5001))
}

fn writer_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 5001))
}

/// The rule that a run violates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Shipped,
    /// Values from before a gap between leases are kept for the whole time-to-live afterwards.
    KeepsValuesThroughGaps,
    /// A new term begins when the lease was asked for, not when it was granted.
    TermBeginsWithQuestion,
    /// A lease lasts from its grant, as its holder sees it, and not from the question.
    LeaseFromAnswer,
    /// A process that has just begun takes the replicas that it knows for all that hold leases.
    TrustsEmptyMemory,
    /// A change does not wait for replicas without a lease.
    IgnoresShortTimeToLive,
    /// A draining replica stops to listen for messages before it has served its last client.
    StopsListeningFirst,
    /// A draining replica goes on to use its leases.
    UsesLeasesAfterLeaving,
}

/// The processes, the messages between them, and the stored value.
#[derive(Clone, Debug, Hash)]
struct World {
    now: u64,
    // The storage: whether the change was written, and acknowledged.
    written: Option<u64>,
    acknowledged: bool,
    // The writer.
    writer_runs: bool,
    writer_restarts: u32,
    granted: GrantedLeases,
    // The reader: when it read the old value, if it keeps that.
    cached: Option<u64>,
    reader_serves: bool,
    reader_listens: bool,
    reader_restarts: u32,
    has_left: bool,
    held: HeldLeases,
    term: Term,
    // Messages.
    questions: u32,
    question: Option<u64>,
    answer: Option<u64>,
    leave: Option<ProcessId>,
}

impl World {
    fn new() -> Self {
        Self {
            now: 0,
            written: None,
            acknowledged: false,
            writer_runs: true,
            writer_restarts: 0,
            granted: GrantedLeases::new(WRITER, at(0) - Duration::from_secs(100)),
            cached: None,
            reader_serves: true,
            reader_listens: true,
            reader_restarts: 0,
            has_left: false,
            held: HeldLeases::default(),
            term: Term::default(),
            questions: 0,
            question: None,
            answer: None,
            leave: None,
        }
    }

    fn reader(&self) -> ProcessId {
        READER + u128::from(self.reader_restarts)
    }

    fn serves_cached(&self) -> bool {
        let Some(read_at) = self.cached else {
            return false;
        };
        let (read_at, now) = (at(read_at), at(self.now));
        let time_to_live = self.term.time_to_live(TIME_TO_LIVE, read_at, now);
        self.reader_serves && now.saturating_since(read_at) < time_to_live
    }

    fn is_stale(&self) -> bool {
        self.acknowledged && self.serves_cached()
    }

    /// The reader has a lease that was asked for at `asked_at`.
    fn renewed(&mut self, asked_at: u64, variant: Variant) {
        if self.has_left && variant != Variant::UsesLeasesAfterLeaving {
            return;
        }
        let from = match variant {
            Variant::LeaseFromAnswer => self.now,
            _ => asked_at,
        };
        self.held.renewed(writer_address(), at(from));
        let until = self.held.held_until(&[writer_address()]);
        let began = self.term;
        match variant {
            Variant::TermBeginsWithQuestion => self.term.set(at(asked_at), until),
            _ => self.term.set(at(self.now), until),
        }
        if variant == Variant::KeepsValuesThroughGaps && began != Term::default() {
            self.term = began.extended(until);
        }
    }

    /// Whether no event can make the reader serve the old value any more.
    fn is_over(&self) -> bool {
        self.acknowledged && !(self.cached.is_some() && self.reader_serves)
    }

    /// All states that one event leads to.
    fn next(&self, variant: Variant) -> Vec<(&'static str, Self)> {
        let mut next = Vec::new();
        let mut event = |name, is_possible: bool, change: &dyn Fn(&mut Self)| {
            if is_possible {
                let mut world = self.clone();
                change(&mut world);
                next.push((name, world));
            }
        };
        event("a second passes", self.now < END, &|world| world.now += 1);
        self.reader_events(variant, &mut event);
        self.writer_events(variant, &mut event);
        next
    }

    fn reader_events(
        &self,
        variant: Variant,
        event: &mut impl FnMut(&'static str, bool, &dyn Fn(&mut Self)),
    ) {
        // A read of the new value changes nothing.
        let reads = self.reader_serves && self.written.is_none() && !self.serves_cached();
        event("the reader reads the old value", reads, &|world| {
            world.cached = Some(world.now);
        });
        let asks = self.reader_serves
            && self.question.is_none()
            && self.answer.is_none()
            && self.questions < MAX_QUESTIONS;
        event("the reader asks for a lease", asks, &|world| {
            world.questions += 1;
            if world.writer_runs {
                world.question = Some(world.now);
            } else {
                world.renewed(world.now, variant);
            }
        });
        let answered = self.answer.is_some() && self.reader_serves;
        event("the lease arrives", answered, &|world| {
            let asked_at = world.answer.take().unwrap_or_default();
            world.renewed(asked_at, variant);
        });
        let in_flight = self.question.is_some() || self.answer.is_some();
        event("question or lease is lost", in_flight, &|world| {
            (world.question, world.answer) = (None, None);
        });
        let leaves = self.reader_serves && !self.has_left;
        event("the reader drains", leaves, &|world| {
            world.has_left = true;
            world.leave = Some(world.reader());
            if variant != Variant::UsesLeasesAfterLeaving {
                world.term.set(at(world.now), Time::ZERO);
            }
            if variant == Variant::StopsListeningFirst {
                world.reader_listens = false;
            }
        });
        event("the reader ends", self.reader_serves, &|world| {
            (world.reader_serves, world.reader_listens) = (false, false);
        });
        let restarts = !self.reader_serves && self.reader_restarts == 0;
        event("the reader begins again", restarts, &|world| {
            world.reader_restarts += 1;
            (world.reader_serves, world.reader_listens) = (true, true);
            (world.cached, world.has_left) = (None, false);
            (world.question, world.answer) = (None, None);
            world.held = HeldLeases::default();
            world.term = Term::default();
        });
    }

    fn writer_events(
        &self,
        variant: Variant,
        event: &mut impl FnMut(&'static str, bool, &dyn Fn(&mut Self)),
    ) {
        let asked = self.question.is_some() && self.writer_runs;
        event("the writer grants the lease", asked, &|world| {
            world.answer = world.question.take();
            world.granted.grant(world.reader(), at(world.now));
        });
        let hears = self.writer_runs && self.reader_listens;
        event("the reader answers the writer", hears, &|world| {
            world.granted.answered(reader_address(), world.reader());
        });
        let told = self.leave.is_some() && self.writer_runs;
        event("the writer hears that the reader drains", told, &|world| {
            if let Some(reader) = world.leave.take() {
                world.granted.left(reader);
            }
        });
        let ends = self.writer_runs && self.written.is_none() && self.writer_restarts == 0;
        event("the writer ends", ends, &|world| {
            (world.writer_runs, world.question) = (false, None);
        });
        event("the writer begins again", !self.writer_runs, &|world| {
            world.writer_runs = true;
            world.writer_restarts += 1;
            let started = match variant {
                Variant::TrustsEmptyMemory => Time::ZERO,
                _ => at(world.now),
            };
            world.granted = GrantedLeases::new(WRITER + 1, started);
            // It was told by an answer before that the reader asks for leases.
            world.granted.grant(READER + 50, Time::ZERO);
            world.granted.answered(reader_address(), READER + 50);
        });
        let writes = self.writer_runs && self.written.is_none();
        event("the writer writes", writes, &|world| {
            world.written = Some(world.now);
        });
        let Some(written) = self.written.filter(|_| !self.acknowledged) else {
            return;
        };
        event("the reader invalidates", self.reader_listens, &|world| {
            (world.cached, world.acknowledged) = (None, true);
        });
        event("the reader refuses", !self.reader_listens, &|world| {
            world.acknowledged = true;
        });
        let none = BTreeSet::new();
        let until = self
            .granted
            .waits_until(reader_address(), at(written), TIME_TO_LIVE, &none);
        let holds_none = until <= at(written) + Duration::from_millis(200);
        let waited =
            at(self.now) >= until || (variant == Variant::IgnoresShortTimeToLive && holds_none);
        event("the writer waits no longer", waited, &|world| {
            world.acknowledged = true;
        });
    }
}

/// The events that led to a state, the last one first.
struct Step {
    second: u64,
    event: &'static str,
    before: Option<Rc<Self>>,
}

fn describe(mut step: Option<Rc<Step>>) -> Vec<String> {
    let mut trace = Vec::new();
    while let Some(last) = step.take() {
        trace.push(format!("{} s: {}", last.second, last.event));
        step = last.before.clone();
    }
    trace.reverse();
    trace
}

/// Explores all orders of events. The number of states, and the trace to a stale read if there is
/// one.
fn explore(variant: Variant) -> (usize, Option<Vec<String>>) {
    let mut seen = HashSet::new();
    let mut open = vec![(World::new(), None)];
    while let Some((world, trace)) = open.pop() {
        if world.is_stale() {
            return (seen.len(), Some(describe(trace)));
        }
        if world.is_over() {
            continue;
        }
        for (event, next) in world.next(variant) {
            // Two states share a hash with a probability below one in a million runs.
            let mut hasher = DefaultHasher::new();
            next.hash(&mut hasher);
            if seen.insert(hasher.finish()) {
                let step = Step {
                    second: world.now,
                    event,
                    before: trace.clone(),
                };
                open.push((next, Some(Rc::new(step))));
            }
        }
    }
    (seen.len(), None)
}

#[test]
fn no_replica_serves_what_an_acknowledged_change_replaced() {
    let (states, trace) = explore(Variant::Shipped);
    eprintln!("{states} states");
    assert_eq!(trace, None);
    assert!(states > 10_000, "only {states} states");
}

#[test]
fn each_rule_of_the_leases_is_needed() {
    for variant in [
        Variant::KeepsValuesThroughGaps,
        Variant::TermBeginsWithQuestion,
        Variant::LeaseFromAnswer,
        Variant::TrustsEmptyMemory,
        Variant::IgnoresShortTimeToLive,
        Variant::StopsListeningFirst,
        Variant::UsesLeasesAfterLeaving,
    ] {
        let (states, trace) = explore(variant);
        let trace = trace.unwrap_or_else(|| panic!("{variant:?} holds in {states} states"));
        eprintln!("{variant:?}:\n  {}", trace.join("\n  "));
    }
}
