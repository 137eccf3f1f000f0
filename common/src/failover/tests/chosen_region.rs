//! Requests that ask the sources of a chosen region first.

use super::support::*;
use crate::failover::{ContentKey, Need, SourceId, Standing};

const FROM_OTHER: Need = Need::ContentOf {
    key: ContentKey(1),
    region: 1,
};
const FROM_OWN: Need = Need::ContentOf {
    key: ContentKey(1),
    region: 0,
};

#[test]
fn chosen_region_is_asked_first_and_alone() {
    let mut bench = Bench::new(&[1, 1], 1);
    let run = bench.start(FROM_OTHER);
    bench.pass(seconds(1));
    assert_eq!(bench.runs[run].asked, [OTHER]);
    let ended = bench.runs[run].ended.expect("it ended");
    assert_eq!(ended.answered_by, Some(OTHER));
}

#[test]
fn chosen_region_has_as_long_as_the_own_one_would() {
    let mut bench = Bench::new(&[1, 1, 1], 1);
    bench.set(OTHER, Behaviour::Hangs);
    let ended = bench.run(FROM_OTHER);
    assert_eq!(ended.answered_by, Some(OWN));
    assert_eq!(ended.took, millis(1_500) + ROUND_TRIP);
}

#[test]
fn chosen_region_is_asked_although_it_is_out() {
    let mut bench = Bench::new(&[1, 1], 1);
    bench.set(OWN, Behaviour::Hangs);
    bench.start(Need::Fact);
    bench.pass_until(OWN, Standing::Out);
    bench.set(OWN, Behaviour::Answers);
    let ended = bench.run(FROM_OWN);
    assert_eq!((ended.answered_by, ended.took), (Some(OWN), ROUND_TRIP));
}

#[test]
fn unknown_region_changes_nothing() {
    let mut bench = Bench::new(&[1, 1], 1);
    let ended = bench.run(Need::ContentOf {
        key: ContentKey(1),
        region: 9,
    });
    assert!(matches!(ended.answered_by, Some(SourceId(_))));
}
