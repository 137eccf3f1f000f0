//! Whether what clients saw is what was promised.

use core::time::Duration;
use std::time::Instant;

use flotilla_common::digest::Digest;

use super::recorder::Applied;

/// A tag's body that is shorter is a tombstone.
const TOMBSTONE_LIMIT: usize = 128;

/// One request, by the client's clock.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) key: String,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) outcome: Outcome,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// Not acknowledged: it may have happened, or not.
    Unknown,
    /// A tag was moved.
    Moved(Digest),
    /// A tag was deleted.
    Buried,
    /// A tag names this, or nothing.
    Named(Option<Digest>),
    /// A blob was pushed.
    Put,
    /// A blob was deleted.
    Deleted,
    /// A blob was there, or not.
    Found(bool),
    /// A referrer was pushed.
    Referred(Digest),
    /// The referrers that were listed.
    Listed(Vec<Digest>),
}

/// All that happened.
#[derive(Debug)]
pub(super) struct History {
    pub(super) events: Vec<Event>,
    pub(super) applied: Vec<Applied>,
}

impl History {
    /// # Panics
    /// If too little happened for a check to mean anything.
    pub(super) fn assert_busy(&self) {
        let count =
            |wanted: fn(&Outcome) -> bool| self.events.iter().filter(|event| wanted(&event.outcome)).count();
        let counts = [
            count(|outcome| matches!(outcome, Outcome::Moved(_))),
            count(|outcome| matches!(outcome, Outcome::Buried)),
            count(|outcome| matches!(outcome, Outcome::Named(_))),
            count(|outcome| matches!(outcome, Outcome::Put)),
            count(|outcome| matches!(outcome, Outcome::Deleted)),
            count(|outcome| matches!(outcome, Outcome::Found(_))),
            count(|outcome| matches!(outcome, Outcome::Referred(_))),
            count(|outcome| matches!(outcome, Outcome::Listed(_))),
        ];
        eprintln!("moved, buried, named, put, deleted, found, referred, listed: {counts:?}");
        assert!(counts.into_iter().all(|count| count >= 3), "{counts:?}");
    }

    /// Reads that were older than something acknowledged more than `grace` before they began.
    pub(super) fn violations(&self, grace: Duration) -> Vec<String> {
        let acknowledged = self.acknowledged();
        let violations = self.events.iter().filter_map(|read| {
            let before = |change: &&Event| change.key == read.key && change.ended + grace < read.began;
            match &read.outcome {
                Outcome::Named(seen) => self.tag(read, *seen, &acknowledged, grace),
                Outcome::Found(seen) => self.blob(read, *seen, grace),
                Outcome::Listed(seen) => {
                    let missing = self.events.iter().filter(before).find(|change| {
                        matches!(&change.outcome, Outcome::Referred(digest) if !seen.contains(digest))
                    });
                    missing.map(|missing| {
                        format!("{missing:?} is missing among {} at {:?}", seen.len(), read.began)
                    })
                }
                _ => None,
            }
        });
        violations.collect()
    }

    /// Each acknowledged change of a tag with its place in the storage's order.
    fn acknowledged(&self) -> Vec<(&Event, usize)> {
        let place = |change: &Event| match change.outcome {
            Outcome::Moved(digest) => self.applied.iter().position(|applied| is_of(applied, Some(digest))),
            // Of several tombstones within the request's time the first: it is the least that it can have been.
            Outcome::Buried => self.applied.iter().position(|applied| {
                let within = applied.ended >= change.began && applied.began <= change.ended;
                applied.key == change.key && within && is_of(applied, None)
            }),
            _ => None,
        };
        self.events.iter().filter_map(|change| Some((change, place(change)?))).collect()
    }

    /// The change that is seen must be as new, in the storage's order, as every change acknowledged before.
    fn tag(
        &self,
        read: &Event,
        seen: Option<Digest>,
        acknowledged: &[(&Event, usize)],
        grace: Duration,
    ) -> Option<String> {
        let before = acknowledged
            .iter()
            .filter(|(change, _)| change.key == read.key && change.ended + grace < read.began);
        let newest = before.map(|(_, place)| *place).max();
        let from = newest.unwrap_or(0);
        let could_be_seen = self.applied[from..]
            .iter()
            .any(|applied| applied.key == read.key && applied.began <= read.ended && is_of(applied, seen));
        let never_was = seen.is_none() && newest.is_none();
        (!could_be_seen && !never_was).then(|| {
            let place =
                self.applied.iter().rposition(|applied| applied.key == read.key && is_of(applied, seen));
            format!("{read:?} saw change {place:?} after change {newest:?} was acknowledged")
        })
    }

    /// With one writer: what is seen was the last thing acknowledged before, or tried since.
    fn blob(&self, read: &Event, seen: bool, grace: Duration) -> Option<String> {
        let by_writer = || {
            self.events
                .iter()
                .filter(|event| event.key == read.key && !matches!(event.outcome, Outcome::Found(_)))
        };
        let last = by_writer()
            .filter(|change| change.ended + grace < read.began)
            .filter(|change| matches!(change.outcome, Outcome::Put | Outcome::Deleted))
            .max_by_key(|change| change.ended);
        let state = last.is_some_and(|change| matches!(change.outcome, Outcome::Put));
        let since = last.map(|change| change.ended);
        // Whatever was tried since may have happened by now, or not yet.
        let tried = by_writer()
            .any(|change| since.is_none_or(|since| change.ended > since) && change.began <= read.ended);
        (seen != state && !tried).then(|| format!("{read:?} after {last:?}"))
    }
}

/// Whether a change wrote this value; none is a tombstone.
fn is_of(applied: &Applied, value: Option<Digest>) -> bool {
    match value {
        None => applied.body.len() < TOMBSTONE_LIMIT,
        Some(digest) => applied.body.windows(32).any(|bytes| bytes == digest.hash()),
    }
}
