//! When a source is suspected, Out, and used again.

use super::support::*;
use crate::failover::{Input, Need, Outcome, Standing};

fn failed() -> Input {
    Input::Ended {
        source: OWN,
        need: Need::Fact,
        outcome: Outcome::Failed {
            error: "status 500".to_owned(),
        },
    }
}

#[test]
fn source_that_was_never_asked_is_usable() {
    let mut bench = Bench::new(&[1, 1], 1);
    let status = bench.failover.status().next().expect("two sources");
    assert_eq!(
        (status.standing, status.is_answering),
        (Standing::Fine, None)
    );
    assert_eq!(bench.failover.poll_timeout(), None, "no probe without need");
    assert_eq!(bench.run(CONTENT).answered_by, Some(OWN));
}

#[test]
fn hung_source_is_out_after_two_failed_probes() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Hangs);
    bench.start(Need::Fact);
    assert_eq!(bench.pass_until(OWN, Standing::Suspect), seconds(1));
    assert_eq!(bench.pass_until(OWN, Standing::Out), millis(1500));
    let starts: Vec<_> = bench.probes.iter().map(|(at, _)| *at).collect();
    assert_eq!(starts[1].saturating_since(starts[0]), millis(500));
}

#[test]
fn one_stalled_call_does_not_take_a_source_out() {
    let mut bench = Bench::new(&[1], 1);
    bench.set(OWN, Behaviour::Slow(millis(3_000)));
    let ended = bench.run(CONTENT);
    assert_eq!((ended.answered_by, ended.took), (Some(OWN), seconds(3)));
    assert!(
        !bench.changes.iter().any(|it| it.2 == Standing::Out),
        "its probes are good: {:?}",
        bench.changes
    );
    assert_eq!(bench.standing(OWN), Standing::Fine);
}

#[test]
fn five_failures_in_a_row_over_two_seconds_overrule_good_probes() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::FailsCalls);
    for call in 0..4 {
        bench.failover.handle(bench.now, failed());
        bench.pass(millis(600));
        assert_eq!(bench.standing(OWN), Standing::Fine, "failure {call}");
    }
    bench.failover.handle(bench.now, failed());
    assert_eq!(bench.standing(OWN), Standing::Out);
}

#[test]
fn burst_of_failures_or_one_answer_in_between_is_not_enough() {
    let mut bench = Bench::new(&[1, 1], 1);
    for _ in 0..50 {
        bench.failover.handle(bench.now, failed());
    }
    bench.pass(millis(100));
    assert_eq!(bench.standing(OWN), Standing::Fine, "within 2 s");
    bench.run(CONTENT);
    for _ in 0..20 {
        for _ in 0..4 {
            bench.failover.handle(bench.now, failed());
            bench.pass(millis(700));
        }
        bench.run(CONTENT);
        assert_eq!(bench.standing(OWN), Standing::Fine);
    }
}

#[test]
fn probes_of_an_out_source_back_off_to_thirty_seconds() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Refuses);
    bench.run(Need::Fact);
    bench.pass_until(OWN, Standing::Out);
    bench.probes.clear();
    let mut before = bench.now;
    bench.pass(seconds(200));
    for (probe, longest) in bench.probes.iter().zip([1, 2, 4, 8, 16, 30, 30, 30]) {
        let pause = probe.0.saturating_since(before);
        let longest = seconds(longest) + ROUND_TRIP;
        assert!(
            pause <= longest && pause >= longest.mul_f64(0.74),
            "{pause:?} of {longest:?}"
        );
        before = probe.0;
    }
    assert!(bench.probes.len() >= 8, "{:?}", bench.probes);
}

#[test]
fn source_returns_in_steps_after_three_good_probes() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Refuses);
    bench.run(Need::Fact);
    bench.pass_until(OWN, Standing::Out);
    bench.probes.clear();
    bench.set(OWN, Behaviour::Answers);
    bench.pass_until(OWN, Standing::Returning { percent: 10 });
    let starts: Vec<_> = bench.probes.iter().map(|(at, _)| *at).collect();
    assert_eq!(starts.len(), 3);
    for pair in starts.windows(2) {
        assert_eq!(pair[1].saturating_since(pair[0]), seconds(1));
    }
    for (percent, next) in [
        (10, Standing::Returning { percent: 30 }),
        (30, Standing::Returning { percent: 100 }),
        (100, Standing::Fine),
    ] {
        let started = bench.now;
        let mut own = 0;
        for _ in 0..100 {
            own += usize::from(bench.run(CONTENT).answered_by == Some(OWN));
        }
        assert!(own.abs_diff(percent) <= 1, "{own} of 100 at {percent} %");
        bench.pass_until(OWN, next);
        assert_eq!(bench.now.saturating_since(started), seconds(5));
    }
}

#[test]
fn one_failure_while_returning_ends_the_return_and_the_pauses_grow() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Refuses);
    bench.run(Need::Fact);
    bench.pass_until(OWN, Standing::Out);
    bench.set(OWN, Behaviour::FailsCalls);
    let mut pauses = Vec::new();
    for _ in 0..3 {
        bench.pass_until(OWN, Standing::Out);
        pauses.push(bench.pass_until(OWN, Standing::Returning { percent: 10 }));
        while bench.standing(OWN) != Standing::Out {
            assert_eq!(bench.run(CONTENT).answered_by, Some(OTHER));
        }
    }
    assert!(pauses[0] < pauses[1] && pauses[1] < pauses[2], "{pauses:?}");
}

#[test]
fn late_result_of_a_probe_has_no_effect() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Hangs);
    bench.start(Need::Fact);
    bench.pass_until(OWN, Standing::Out);
    let (at, _) = bench.probes[0];
    assert!(bench.now > at);
    bench.failover.handle(
        bench.now,
        Input::Probed {
            source: OWN,
            probe: crate::failover::ProbeId(0),
            result: Ok(()),
        },
    );
    assert!(
        !bench
            .failover
            .status()
            .next()
            .expect("two sources")
            .is_answering
            .expect("asked")
    );
}

#[test]
fn status_has_the_error_and_the_time_of_the_change() {
    let mut bench = Bench::new(&[1], 1);
    bench.set(OWN, Behaviour::Refuses);
    bench.run(CONTENT);
    bench.pass_until(OWN, Standing::Out);
    let went_out = bench.now;
    bench.pass(seconds(3));
    let status = bench.failover.status().next().expect("one source");
    assert_eq!(status.since, went_out);
    assert_eq!(status.error, Some("connection refused"));
    assert_eq!(status.is_answering, Some(false));
}
