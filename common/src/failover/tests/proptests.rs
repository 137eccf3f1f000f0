//! Random outages and requests: rules that hold whatever happens.

use core::time::Duration;

use proptest::prelude::*;

use super::support::*;
use crate::failover::{Need, SourceId, Standing};
use crate::time::Time;

/// A probe may come so long after the one before, or after its source went Out.
const LONGEST_PROBE_PAUSE: Duration = Duration::from_secs(32);
/// No request takes longer: the own source's timeout, and what the others may take after it.
const LONGEST_REQUEST: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum Event {
    Request(bool),
    Behave(u32, Behaviour),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let behaviour = prop_oneof![
        3 => Just(Behaviour::Answers),
        1 => Just(Behaviour::Slow(millis(1_200))),
        1 => Just(Behaviour::Slow(millis(3_000))),
        3 => Just(Behaviour::Hangs),
        2 => Just(Behaviour::Refuses),
        1 => Just(Behaviour::FailsCalls),
        1 => Just(Behaviour::HangsCalls),
        1 => Just(Behaviour::Lacks),
        1 => Just(Behaviour::Busy(seconds(5))),
    ];
    prop_oneof![
        4 => any::<bool>().prop_map(Event::Request),
        1 => (0_u32..4, behaviour).prop_map(|(source, it)| Event::Behave(source, it)),
        4 => (1_u64..3_000).prop_map(Event::Pass),
        1 => (10_000_u64..60_000).prop_map(Event::Pass),
    ]
}

/// Runs a schedule and lists the rules that it broke.
fn complaints(replicas: &[usize], events: &[Event], mistake: Mistake) -> Vec<String> {
    let mut bench = Bench::new(replicas, 1);
    bench.mistake = mistake;
    for event in events {
        match *event {
            Event::Request(is_fact) => {
                bench.start(if is_fact { Need::Fact } else { CONTENT });
            }
            Event::Behave(source, behaviour) => {
                let source = source as usize % bench.behaviours.len();
                bench.behaviours[source] = behaviour;
            }
            Event::Pass(time) => bench.pass(millis(time)),
        }
    }
    bench.pass(seconds(120));
    check_probes(&mut bench);
    for run in &bench.runs {
        match run.ended {
            Some(ended) if ended.took <= LONGEST_REQUEST => {}
            ended => bench
                .complaints
                .push(format!("a request took too long: {ended:?}")),
        }
    }
    bench.complaints
}

/// While a source is Out, it is probed again and again.
fn check_probes(bench: &mut Bench) {
    let sources = u32::try_from(bench.behaviours.len()).expect("few sources");
    for source in (0..sources).map(SourceId) {
        let mut changes: Vec<(Time, Standing)> = bench
            .changes
            .iter()
            .filter(|(_, it, _)| *it == source)
            .map(|(at, _, standing)| (*at, *standing))
            .collect();
        changes.push((bench.now, Standing::Fine));
        for pair in changes.windows(2) {
            let ((from, standing), (until, _)) = (pair[0], pair[1]);
            if standing != Standing::Out {
                continue;
            }
            let probes = bench.probes.iter().filter(|(_, it)| *it == source);
            let probes = probes
                .map(|(at, _)| *at)
                .filter(|at| *at >= from && *at < until);
            let mut last = from;
            for at in probes.chain([until]) {
                if at.saturating_since(last) > LONGEST_PROBE_PAUSE {
                    bench.complaints.push(format!(
                        "{source:?} is Out and was not probed from {last:?} to {at:?}"
                    ));
                }
                last = at;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_in_any_schedule(
        replicas in prop_oneof![
            Just(vec![1]), Just(vec![2]), Just(vec![1, 1]), Just(vec![2, 1]), Just(vec![1, 1, 2]),
        ],
        events in prop::collection::vec(event(), 1..60),
    ) {
        let complaints = complaints(&replicas, &events, Mistake::None);
        prop_assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

/// The own source hangs, and requests go on.
fn outage() -> Vec<Event> {
    let mut events = vec![Event::Behave(0, Behaviour::Hangs)];
    for _ in 0..10 {
        events.extend([Event::Request(false), Event::Pass(1_000)]);
    }
    events
}

#[test]
fn outage_without_mistake_breaks_no_rule() {
    assert_eq!(complaints(&[1, 1], &outage(), Mistake::None), [""; 0]);
}

#[test]
fn asking_a_source_that_is_out_breaks_a_rule() {
    let complaints = complaints(&[1, 1], &outage(), Mistake::AsksFirstSource);
    assert!(
        complaints[0].contains("is Out and was asked"),
        "{complaints:?}"
    );
}

#[test]
fn driver_without_timeouts_breaks_a_rule() {
    let complaints = complaints(&[1, 1], &outage(), Mistake::ForgetsTimeouts);
    assert!(
        complaints.iter().any(|it| it.contains("was not probed")),
        "{complaints:?}"
    );
}
