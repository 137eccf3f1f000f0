//! Pulls that end well, badly, and not at all.

use super::*;

fn ms(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

fn digests() -> [Digest; 2] {
    [Digest::sha256(b"config"), Digest::sha256(b"layer")]
}

fn opened(is_warming: bool) -> Opened {
    let [config, layer] = digests();
    Opened {
        image: "library/app:v1".to_owned(),
        manifest: Digest::sha256(b"manifest"),
        blobs: vec![(config, 10), (layer, 1000), (layer, 1000)],
        is_warming,
        started: ms(1000),
    }
}

fn nothing_held(_: &Digest) -> (u64, bool) {
    (0, false)
}

fn nothing_comes(_: &Digest) -> bool {
    false
}

#[test]
fn a_pull_is_not_over_while_a_chunk_that_was_read_is_not_counted_yet() {
    let pulls = Pulls::new(None);
    pulls.open(opened(false), WaitTimes::default(), nothing_held);
    let [config, layer] = digests();
    pulls.received(ms(1100), &config, From::OriginLeased, 10);
    pulls.emitted(ms(1200), &config, 10);
    pulls.emitted(ms(1200), &layer, 1000);
    pulls.settle(ms(1200), WaitTimes::default(), |digest| *digest == layer);
    assert!(pulls.finished().is_empty());
    pulls.received(ms(1201), &layer, From::SameZone, 1000);
    pulls.settle(ms(1201), WaitTimes::default(), nothing_comes);
    assert_eq!(pulls.finished()[0].sources.received(), 1010);
}

#[test]
fn a_pull_is_over_when_the_runtime_has_everything() {
    let pulls = Pulls::new(Some(BitRate(8_000)));
    pulls.open(opened(false), WaitTimes::default(), nothing_held);
    pulls.open(opened(false), WaitTimes::default(), nothing_held);
    assert_eq!(
        pulls.open_now(ms(1000), |_| 0).len(),
        1,
        "the manifest was asked for twice"
    );
    let [config, layer] = digests();
    pulls.received(ms(1100), &config, From::OriginLeased, 10);
    pulls.received(ms(1200), &layer, From::SameZone, 600);
    pulls.received(ms(1300), &layer, From::OriginUnleased, 400);
    pulls.completed(ms(1300), &layer);
    pulls.completed(ms(1300), &config);
    pulls.emitted(ms(1150), &config, 10);
    pulls.settle(ms(1400), WaitTimes::default(), nothing_comes);
    assert_eq!(pulls.open_now(ms(1400), |_| 0)[0].emitted, 10);
    pulls.emitted(ms(3020), &layer, 1000);
    pulls.settle(ms(3021), WaitTimes::default(), nothing_comes);
    let report = &pulls.finished()[0];
    assert_eq!(report.result, PullResult::Pulled);
    assert_eq!(
        report.bytes, 1010,
        "a layer that the manifest names twice comes once"
    );
    assert_eq!(report.sources.received(), 1010);
    assert_eq!(
        (report.seconds, report.first_byte_seconds),
        (2.02, Some(0.15))
    );
    assert_eq!(
        (report.bound_seconds, report.over_bound),
        (Some(1.01), Some(2.0))
    );
    assert_eq!(pulls.pulled.value(), 1);
}

#[test]
fn what_the_runtime_does_not_ask_for_is_not_waited_for_long() {
    let pulls = Pulls::new(None);
    pulls.open(opened(false), WaitTimes::default(), |_| (505, true));
    let [_, layer] = digests();
    pulls.emitted(ms(1500), &layer, 1000);
    pulls.settle(ms(1600), WaitTimes::default(), nothing_comes);
    assert!(pulls.finished().is_empty());
    pulls.settle(ms(3500), WaitTimes::default(), nothing_comes);
    let report = &pulls.finished()[0];
    assert_eq!(report.sources.own_store, 1010);
    assert_eq!((report.seconds, report.bound_seconds), (0.5, None));
}

#[test]
fn a_pull_that_stands_still_is_given_up_and_says_why() {
    let pulls = Pulls::new(None);
    pulls.open(opened(false), WaitTimes::default(), nothing_held);
    let [_, layer] = digests();
    pulls.received(ms(2000), &layer, From::OtherZones, 500);
    pulls.failed(&layer, "no neighbour and no origin delivers it");
    pulls.settle(ms(61_999), WaitTimes::default(), nothing_comes);
    assert!(pulls.finished().is_empty());
    pulls.settle(ms(62_000), WaitTimes::default(), nothing_comes);
    let report = &pulls.finished()[0];
    assert_eq!(report.result, PullResult::GivenUp);
    assert_eq!(
        report.why.as_deref(),
        Some("no neighbour and no origin delivers it")
    );
    assert_eq!((pulls.pulled.value(), pulls.given_up.value()), (0, 1));
}

#[test]
fn warming_is_over_when_all_is_in_the_store_and_looking_is_no_pull() {
    let pulls = Pulls::new(None);
    pulls.open(opened(true), WaitTimes::default(), nothing_held);
    for digest in digests() {
        pulls.completed(ms(1200), &digest);
    }
    pulls.settle(ms(1200), WaitTimes::default(), nothing_comes);
    assert!(pulls.finished()[0].is_warming);
    pulls.open(opened(false), WaitTimes::default(), |_| (505, true));
    pulls.settle(ms(9000), WaitTimes::default(), nothing_comes);
    assert_eq!(
        pulls.pulled.value(),
        1,
        "nobody read anything the second time"
    );
}

#[test]
fn a_peer_that_stops_gives_up_what_is_not_here() {
    let pulls = Pulls::new(None);
    pulls.open(opened(false), WaitTimes::default(), nothing_held);
    let [config, layer] = digests();
    pulls.emitted(ms(1100), &config, 10);
    pulls.close(WaitTimes::default());
    assert_eq!(
        pulls.finished()[0].why.as_deref(),
        Some("the peer was stopped")
    );
    pulls.open(opened(false), WaitTimes::default(), |_| (505, true));
    pulls.emitted(ms(1100), &layer, 10);
    pulls.close(WaitTimes::default());
    assert_eq!(pulls.finished()[0].result, PullResult::Pulled);
}

#[test]
fn pulls_are_bounded() {
    let pulls = Pulls::new(None);
    for number in 0..=MAX_OPEN as u32 {
        let manifest = Digest::sha256(&number.to_le_bytes());
        pulls.open(
            Opened {
                manifest,
                ..opened(false)
            },
            WaitTimes::default(),
            nothing_held,
        );
    }
    assert_eq!(pulls.open_now(ms(1000), |_| 0).len(), MAX_OPEN);
    assert_eq!(
        pulls.finished()[0].why.as_deref(),
        Some("too many pulls at once")
    );
}
