//! Tests of pulls that are pulled, given up and still open.

use super::*;

fn ms(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

fn digests() -> [Digest; 2] {
    [Digest::sha256(b"config"), Digest::sha256(b"layer")]
}

fn start(is_warming: bool) -> PullStart {
    let [config, layer] = digests();
    PullStart {
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

fn nothing_fetched(_: &Digest) -> bool {
    false
}

#[test]
fn pull_with_a_running_download_is_not_finished() {
    let pulls = Pulls::new(None);
    pulls.open(start(false), StallTimes::default(), nothing_held);
    let [config, layer] = digests();
    pulls.received(ms(1100), &config, ByteSource::OriginLeased, 10);
    pulls.emitted(ms(1200), &config, 10);
    pulls.emitted(ms(1200), &layer, 1000);
    pulls.end_finished(ms(1200), StallTimes::default(), |digest| *digest == layer);
    assert!(pulls.finished().is_empty());
    pulls.received(ms(1201), &layer, ByteSource::SameZone, 1000);
    pulls.end_finished(ms(1201), StallTimes::default(), nothing_fetched);
    assert_eq!(pulls.finished()[0].sources.received(), 1010);
}

#[test]
fn pull_finishes_when_the_runtime_has_read_all() {
    let pulls = Pulls::new(Some(BitRate(8_000)));
    pulls.open(start(false), StallTimes::default(), nothing_held);
    pulls.open(start(false), StallTimes::default(), nothing_held);
    assert_eq!(
        pulls.open_now(ms(1000), |_| 0).len(),
        1,
        "the manifest was requested twice"
    );
    let [config, layer] = digests();
    pulls.received(ms(1100), &config, ByteSource::OriginLeased, 10);
    pulls.received(ms(1200), &layer, ByteSource::SameZone, 600);
    pulls.received(ms(1300), &layer, ByteSource::OriginUnleased, 400);
    pulls.completed(ms(1300), &layer);
    pulls.completed(ms(1300), &config);
    pulls.emitted(ms(1150), &config, 10);
    pulls.end_finished(ms(1400), StallTimes::default(), nothing_fetched);
    assert_eq!(pulls.open_now(ms(1400), |_| 0)[0].emitted, 10);
    pulls.emitted(ms(3020), &layer, 1000);
    pulls.end_finished(ms(3021), StallTimes::default(), nothing_fetched);
    let report = &pulls.finished()[0];
    assert_eq!(report.result, PullResult::Pulled);
    assert_eq!(
        report.bytes, 1010,
        "a layer that the manifest names twice counts once"
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
fn pull_finishes_after_idle_time_without_reads() {
    let pulls = Pulls::new(None);
    pulls.open(start(false), StallTimes::default(), |_| (505, true));
    let [_, layer] = digests();
    pulls.emitted(ms(1500), &layer, 1000);
    pulls.end_finished(ms(1600), StallTimes::default(), nothing_fetched);
    assert!(pulls.finished().is_empty());
    pulls.end_finished(ms(3500), StallTimes::default(), nothing_fetched);
    let report = &pulls.finished()[0];
    assert_eq!(report.sources.own_store, 1010);
    assert_eq!((report.seconds, report.bound_seconds), (0.5, None));
}

#[test]
fn stalled_pull_is_given_up_with_its_last_error() {
    let pulls = Pulls::new(None);
    pulls.open(start(false), StallTimes::default(), nothing_held);
    let [_, layer] = digests();
    pulls.received(ms(2000), &layer, ByteSource::OtherZones, 500);
    pulls.failed(&layer, "no neighbour and no origin delivers it");
    pulls.end_finished(ms(61_999), StallTimes::default(), nothing_fetched);
    assert!(pulls.finished().is_empty());
    pulls.end_finished(ms(62_000), StallTimes::default(), nothing_fetched);
    let report = &pulls.finished()[0];
    assert_eq!(report.result, PullResult::GivenUp);
    assert_eq!(
        report.why.as_deref(),
        Some("no neighbour and no origin delivers it")
    );
    assert_eq!((pulls.pulled.value(), pulls.given_up.value()), (0, 1));
}

#[test]
fn warming_finishes_without_reads_and_unread_images_are_not_counted() {
    let pulls = Pulls::new(None);
    pulls.open(start(true), StallTimes::default(), nothing_held);
    for digest in digests() {
        pulls.completed(ms(1200), &digest);
    }
    pulls.end_finished(ms(1200), StallTimes::default(), nothing_fetched);
    assert!(pulls.finished()[0].is_warming);
    pulls.open(start(false), StallTimes::default(), |_| (505, true));
    pulls.end_finished(ms(9000), StallTimes::default(), nothing_fetched);
    assert_eq!(pulls.pulled.value(), 1, "nothing was read the second time");
}

#[test]
fn shutdown_gives_up_incomplete_pulls() {
    let pulls = Pulls::new(None);
    pulls.open(start(false), StallTimes::default(), nothing_held);
    let [config, layer] = digests();
    pulls.emitted(ms(1100), &config, 10);
    pulls.close(StallTimes::default());
    assert_eq!(
        pulls.finished()[0].why.as_deref(),
        Some("the peer was stopped")
    );
    pulls.open(start(false), StallTimes::default(), |_| (505, true));
    pulls.emitted(ms(1100), &layer, 10);
    pulls.close(StallTimes::default());
    assert_eq!(pulls.finished()[0].result, PullResult::Pulled);
}

#[test]
fn number_of_open_pulls_is_bounded() {
    let pulls = Pulls::new(None);
    for number in 0..=MAX_OPEN as u32 {
        let manifest = Digest::sha256(&number.to_le_bytes());
        pulls.open(
            PullStart {
                manifest,
                ..start(false)
            },
            StallTimes::default(),
            nothing_held,
        );
    }
    assert_eq!(pulls.open_now(ms(1000), |_| 0).len(), MAX_OPEN);
    assert_eq!(
        pulls.finished()[0].why.as_deref(),
        Some("too many concurrent pulls")
    );
}
