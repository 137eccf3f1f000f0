//! When a reader falls back to an origin.

use core::time::Duration;

use super::support::ms;
use crate::chunk::Geometry;
use crate::opening::{
    BlobRead, BlobReadInput, BlobReadOutput, FallbackReason, FallbackTimeouts, KnownBlob,
};
use crate::time::Time;

const RECENT: Duration = Duration::from_millis(10);
const LONG_AGO: Duration = Duration::from_secs(1000);

fn reading(geometry: Geometry) -> BlobRead {
    let mut read = BlobRead::new(
        ms(0),
        FallbackTimeouts::default(),
        KnownBlob::Stored(&geometry),
    );
    read.handle(ms(0), BlobReadInput::NextByte);
    assert_eq!(read.poll_output(), None);
    read
}

/// Runs the checks from 250 ms on until the reader falls back.
fn falls_back(
    read: &mut BlobRead,
    has_source: impl Fn(Time) -> bool,
    last_received: Duration,
) -> (Time, FallbackReason) {
    loop {
        let now = read.poll_timeout().expect("the reader waits");
        assert!(now <= ms(130_000), "the reader waits for ever");
        read.handle_timeout(now);
        assert_eq!(read.poll_output(), Some(BlobReadOutput::CheckSources));
        assert_eq!(read.poll_timeout(), None, "one check at a time");
        let has_source = has_source(now);
        read.handle(
            now,
            BlobReadInput::Sources {
                has_source,
                last_received,
            },
        );
        if let Some(BlobReadOutput::PassThrough(reason)) = read.poll_output() {
            assert_eq!(read.poll_timeout(), None);
            return (now, reason);
        }
    }
}

#[test]
fn blob_outside_the_store_is_passed_through_at_once() {
    let mut read = BlobRead::new(ms(0), FallbackTimeouts::default(), KnownBlob::Unknown);
    let reason = FallbackReason::NotStored;
    assert_eq!(
        read.poll_output(),
        Some(BlobReadOutput::PassThrough(reason))
    );
    read.handle(ms(0), BlobReadInput::NextByte);
    assert_eq!(read.poll_timeout(), None, "it never waits");
}

#[test]
fn no_source_for_three_seconds() {
    let mut read = reading(Geometry::for_size(64 << 20));
    let end = falls_back(&mut read, |_| false, RECENT);
    assert_eq!(end, (ms(3250), FallbackReason::NoSource));

    let mut read = reading(Geometry::for_size(64 << 20));
    let end = falls_back(&mut read, |now| now == ms(3000), RECENT);
    let reason = FallbackReason::NoSource;
    assert_eq!(end, (ms(6250), reason), "a source restarts the time");
}

#[test]
fn no_byte_of_any_blob_for_twenty_seconds() {
    let mut read = reading(Geometry::for_size(64 << 20));
    let end = falls_back(&mut read, |_| true, LONG_AGO);
    assert_eq!(end, (ms(20_000), FallbackReason::NoProgress));
}

#[test]
fn other_blobs_that_make_progress_extend_the_wait_to_its_maximum() {
    let mut read = reading(Geometry::for_size(64 << 20));
    let end = falls_back(&mut read, |_| true, RECENT);
    assert_eq!(end, (ms(120_000), FallbackReason::TooLate));

    let mut read = reading(Geometry::whole(64 << 20));
    let end = falls_back(&mut read, |_| true, RECENT);
    let reason = FallbackReason::TooLate;
    assert_eq!(end, (ms(20_000), reason), "a blob without chunk proofs");
}

#[test]
fn delivered_bytes_end_the_wait() {
    let mut read = reading(Geometry::for_size(64 << 20));
    read.handle(ms(200), BlobReadInput::Delivered);
    assert_eq!(read.poll_timeout(), None, "the runtime does not ask yet");
    read.handle(ms(60_000), BlobReadInput::NextByte);
    let end = falls_back(&mut read, |_| true, LONG_AGO);
    assert_eq!(end, (ms(80_000), FallbackReason::NoProgress));
}

#[test]
fn store_that_cannot_take_the_blob() {
    let mut read = reading(Geometry::for_size(64 << 20));
    read.handle(ms(100), BlobReadInput::Bypassed);
    let reason = FallbackReason::Bypassed;
    assert_eq!(
        read.poll_output(),
        Some(BlobReadOutput::PassThrough(reason))
    );
    read.handle(ms(100), BlobReadInput::Bypassed);
    assert_eq!(read.poll_output(), None, "it falls back once");
}

fn expecting() -> BlobRead {
    let read = BlobRead::new(ms(0), FallbackTimeouts::default(), KnownBlob::Expected);
    assert!(read.is_expecting());
    read
}

#[test]
fn expected_blob_is_read_from_the_store_when_it_is_proved() {
    let mut read = expecting();
    read.handle_timeout(ms(14_999));
    read.handle(ms(14_999), BlobReadInput::Proved { is_whole: true });
    assert!(!read.is_expecting());
    assert_eq!(read.poll_output(), None);
    read.handle(ms(20_000), BlobReadInput::NextByte);
    let end = falls_back(&mut read, |_| true, RECENT);
    let reason = FallbackReason::TooLate;
    assert_eq!(end, (ms(40_000), reason), "as a whole blob");
}

#[test]
fn expected_blob_that_is_not_proved_is_passed_through() {
    let pass_through = |reason| Some(BlobReadOutput::PassThrough(reason));
    let mut read = expecting();
    read.handle(ms(100), BlobReadInput::NotExpected);
    let output = read.poll_output();
    assert_eq!(output, pass_through(FallbackReason::NotStored));

    let mut read = expecting();
    assert_eq!(read.poll_timeout(), Some(ms(15_000)));
    read.handle_timeout(ms(15_000));
    let output = read.poll_output();
    assert_eq!(output, pass_through(FallbackReason::NotProved));
    read.handle(ms(15_001), BlobReadInput::Proved { is_whole: true });
    assert_eq!(read.poll_timeout(), None);
}
