//! Which sources a request asks, and how long that takes.

use super::support::*;
use crate::failover::{ContentKey, Need, SourceId, Standing};

const THIRD: SourceId = SourceId(2);

fn out(bench: &mut Bench, source: SourceId, behaviour: Behaviour) {
    bench.set(source, behaviour);
    for other in 0..source.0 {
        assert_eq!(
            bench.standing(SourceId(other)),
            Standing::Out,
            "out one by one"
        );
    }
    bench.start(Need::Fact);
    bench.pass_until(source, Standing::Out);
}

#[test]
fn first_request_for_content_waits_for_a_hung_source_once() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Hangs);
    let ended = bench.run(CONTENT);
    assert_eq!(ended.answered_by, Some(OTHER));
    assert_eq!(ended.took, millis(1500) + ROUND_TRIP);
    for _ in 0..100 {
        let ended = bench.run(CONTENT);
        assert_eq!((ended.answered_by, ended.took), (Some(OTHER), ROUND_TRIP));
    }
}

#[test]
fn concurrent_requests_share_the_wait_for_a_hung_source() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Hangs);
    bench.start(CONTENT);
    bench.pass(millis(1_400));
    let runs: Vec<_> = (0..50).map(|_| bench.start(CONTENT)).collect();
    bench.pass(seconds(3));
    for run in runs {
        let ended = bench.runs[run].ended.expect("it ended");
        assert!(ended.took <= millis(1_100) + ROUND_TRIP, "{ended:?}");
    }
}

#[test]
fn fact_is_asked_elsewhere_only_after_the_verdict() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Hangs);
    let ended = bench.run(Need::Fact);
    assert_eq!(ended.answered_by, Some(OTHER));
    assert_eq!(ended.took, millis(2_500) + ROUND_TRIP);
    assert_eq!(bench.run(Need::Fact).took, ROUND_TRIP);
}

#[test]
fn fact_of_a_slow_source_is_not_asked_elsewhere() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Slow(millis(4_000)));
    let ended = bench.run(Need::Fact);
    assert_eq!(ended.answered_by, Some(OWN));
    assert_eq!(bench.runs[0].asked, [OWN]);
}

#[test]
fn replica_of_the_region_is_asked_for_a_fact_while_the_first_is_slow() {
    let mut bench = Bench::new(&[2, 1], 1);
    bench.set(OWN, Behaviour::Hangs);
    let ended = bench.run(Need::Fact);
    assert_eq!(
        ended.answered_by,
        Some(OTHER),
        "a replica of the own region"
    );
    assert_eq!(ended.took, millis(1500) + ROUND_TRIP);
}

#[test]
fn third_region_is_asked_300_ms_after_the_second() {
    let mut bench = Bench::new(&[1, 1, 1], 1);
    out(&mut bench, OWN, Behaviour::Hangs);
    bench.set(OTHER, Behaviour::Hangs);
    let ended = bench.run(CONTENT);
    assert_eq!(ended.answered_by, Some(THIRD));
    assert_eq!(ended.took, millis(300) + ROUND_TRIP);
}

#[test]
fn request_ends_at_four_seconds_when_the_first_choice_is_out() {
    let mut bench = Bench::new(&[1, 4], 1);
    out(&mut bench, OWN, Behaviour::Hangs);
    for source in 1..5 {
        bench.set(SourceId(source), Behaviour::Hangs);
    }
    let ended = bench.run(CONTENT);
    assert_eq!(ended.answered_by, None);
    assert!(ended.took <= seconds(4), "{ended:?}");
    assert!(!ended.is_absent);
}

#[test]
fn lone_hung_source_costs_one_wait_and_then_none() {
    let mut bench = Bench::new(&[1], 1);
    bench.set(OWN, Behaviour::Hangs);
    assert_eq!(bench.run(CONTENT).took, millis(2_500));
    for _ in 0..20 {
        let ended = bench.run(CONTENT);
        assert_eq!((ended.answered_by, ended.took), (None, millis(0)));
        bench.pass(millis(100));
    }
}

#[test]
fn lone_source_is_used_again_soon_after_its_return() {
    let mut bench = Bench::new(&[1], 1);
    out(&mut bench, OWN, Behaviour::Hangs);
    bench.pass(seconds(600));
    bench.set(OWN, Behaviour::Answers);
    let started = bench.now;
    while bench.run(CONTENT).answered_by.is_none() {
        bench.pass(millis(100));
    }
    let took = bench.now.saturating_since(started);
    assert!(
        took <= seconds(4),
        "the demand brings the probe forward: {took:?}"
    );
    assert_eq!(bench.usable_changes, 2, "no source, then one again");
}

#[test]
fn lone_source_that_fails_at_once_is_asked_nevertheless() {
    let mut bench = Bench::new(&[1], 1);
    out(&mut bench, OWN, Behaviour::Refuses);
    bench.set(OWN, Behaviour::Answers);
    let ended = bench.run(CONTENT);
    assert_eq!((ended.answered_by, ended.took), (Some(OWN), ROUND_TRIP));
}

#[test]
fn content_that_the_own_region_lacks_is_asked_elsewhere_for_ten_seconds() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Lacks);
    assert_eq!(bench.run(CONTENT).answered_by, Some(OTHER));
    assert_eq!(
        bench.standing(OWN),
        Standing::Fine,
        "a 404 is not a failure"
    );
    bench.pass(seconds(9));
    let run = bench.start(CONTENT);
    bench.pass(seconds(1));
    assert_eq!(bench.runs[run].asked, [OTHER]);
    let run = bench.start(Need::Content(ContentKey(8)));
    bench.pass(seconds(1));
    assert_eq!(bench.runs[run].asked, [OWN, OTHER], "other content");
    let run = bench.start(CONTENT);
    bench.pass(seconds(1));
    assert_eq!(bench.runs[run].asked, [OWN, OTHER], "10 s are over");
}

#[test]
fn fact_is_asked_of_the_own_region_first_even_after_a_404() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Lacks);
    bench.run(Need::Fact);
    bench.set(OWN, Behaviour::Answers);
    assert_eq!(bench.run(Need::Fact).answered_by, Some(OWN));
}

#[test]
fn absence_needs_the_word_of_every_region_and_one_replica_speaks_for_its_region() {
    let mut bench = Bench::new(&[3, 1], 1);
    bench.set(OWN, Behaviour::Refuses);
    bench.set(OTHER, Behaviour::Lacks);
    bench.set(SourceId(3), Behaviour::Lacks);
    let run = bench.start(Need::Fact);
    bench.pass(seconds(1));
    assert!(bench.runs[run].ended.expect("it ended").is_absent);
    assert_eq!(
        bench.runs[run].asked,
        [OWN, OTHER, SourceId(3)],
        "not the third replica"
    );

    bench.set(SourceId(3), Behaviour::Refuses);
    assert!(
        !bench.run(Need::Fact).is_absent,
        "the other region may have it"
    );
    bench.pass_until(SourceId(3), Standing::Out);
    assert!(!bench.run(Need::Fact).is_absent, "nor while it is Out");
}

#[test]
fn busy_source_is_asked_last_until_its_time() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Busy(seconds(10_000)));
    assert_eq!(bench.run(CONTENT).answered_by, Some(OTHER));
    bench.set(OWN, Behaviour::Answers);
    bench.pass(seconds(29));
    assert_eq!(bench.run(CONTENT).answered_by, Some(OTHER));
    bench.pass(seconds(1));
    assert_eq!(bench.run(CONTENT).answered_by, Some(OWN), "30 s at most");
    assert!(
        bench.changes.is_empty(),
        "busy is not unhealthy: {:?}",
        bench.changes
    );
}

#[test]
fn lone_busy_source_is_asked() {
    let mut bench = Bench::new(&[1], 1);
    bench.set(OWN, Behaviour::Busy(seconds(10)));
    assert_eq!(bench.run(CONTENT).answered_by, None);
    bench.set(OWN, Behaviour::Answers);
    assert_eq!(bench.run(CONTENT).answered_by, Some(OWN));
}

#[test]
fn callers_that_give_up_early_do_not_hide_a_hung_source() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Hangs);
    for _ in 0..2 {
        let mut request = bench.failover.request(bench.now, CONTENT);
        request.poll(bench.now, &mut bench.failover);
        bench.pass(millis(600));
        request.abandon(bench.now, &mut bench.failover);
    }
    bench.pass_until(OWN, Standing::Out);
}

#[test]
fn table_of_missing_content_is_bounded() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Lacks);
    for key in 0..5_000 {
        bench.run(Need::Content(ContentKey(key)));
        bench.runs.clear();
    }
    assert!(bench.failover.missing_len() <= 1024);
}
