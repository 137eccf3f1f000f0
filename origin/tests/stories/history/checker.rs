//! Whether what clients saw is what was promised.

use core::time::Duration;
use std::collections::BTreeMap;
use std::time::Instant;

use flotilla_common::digest::Digest;

use super::recording_storage::AppliedChange;

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
    /// A blob, or a manifest that refers to a subject, was pushed.
    Put,
    /// It was deleted.
    Deleted,
    /// It was there, or not.
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
    pub(super) applied: Vec<AppliedChange>,
}

impl History {
    /// # Panics
    /// If too little happened for a check to mean anything.
    pub(super) fn assert_busy(&self) {
        let count = |wanted: fn(&Outcome) -> bool| {
            self.events
                .iter()
                .filter(|event| wanted(&event.outcome))
                .count()
        };
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
        let mut by_key = BTreeMap::<&str, Vec<&Event>>::new();
        for event in &self.events {
            by_key.entry(&event.key).or_default().push(event);
        }
        let of = |key: &str| by_key.get(key).map_or(&[][..], Vec::as_slice);
        let violations = self.events.iter().flat_map(|read| match &read.outcome {
            Outcome::Named(seen) => self
                .tag(read, *seen, &acknowledged, grace)
                .into_iter()
                .collect(),
            Outcome::Found(seen) => presence(read, *seen, of(&read.key), grace)
                .into_iter()
                .collect(),
            Outcome::Listed(seen) => {
                let missing = missing(read, seen, of(&read.key), grace).into_iter();
                let prefix = format!("{} ", read.key);
                let entries = by_key
                    .range(&*prefix..)
                    .take_while(|(key, _)| key.starts_with(&prefix));
                let listed = entries.filter_map(|(key, events)| {
                    let is_listed = seen.iter().any(|digest| key.ends_with(&digest.to_string()));
                    presence(read, is_listed, events, grace)
                });
                missing.chain(listed).collect::<Vec<_>>()
            }
            _ => Vec::new(),
        });
        violations.collect()
    }

    /// Each acknowledged change of a tag with its place in the storage's order.
    fn acknowledged(&self) -> Vec<(&Event, usize)> {
        let place = |change: &Event| match change.outcome {
            Outcome::Moved(digest) => self
                .applied
                .iter()
                .position(|applied| is_of(applied, Some(digest))),
            // Of several tombstones within the request's time the first: it is the least that it
            // can have been.
            Outcome::Buried => self.applied.iter().position(|applied| {
                let within = applied.ended >= change.began && applied.began <= change.ended;
                applied.key == change.key && within && is_of(applied, None)
            }),
            _ => None,
        };
        self.events
            .iter()
            .filter_map(|change| Some((change, place(change)?)))
            .collect()
    }

    /// The change that is seen must be as new, in the storage's order, as every change acknowledged
    /// before.
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
        let could_be_seen = self.applied[from..].iter().any(|applied| {
            applied.key == read.key && applied.began <= read.ended && is_of(applied, seen)
        });
        let never_was = seen.is_none() && newest.is_none();
        (!could_be_seen && !never_was).then(|| {
            let place = self
                .applied
                .iter()
                .rposition(|applied| applied.key == read.key && is_of(applied, seen));
            format!("{read:?} saw change {place:?} after change {newest:?} was acknowledged")
        })
    }
}

/// A referrer that was never deleted is in every list that was asked for after it was acknowledged.
fn missing(read: &Event, seen: &[Digest], changes: &[&Event], grace: Duration) -> Option<String> {
    let missing = changes.iter().find(|change| {
        let before = change.ended + grace < read.began;
        before && matches!(&change.outcome, Outcome::Referred(digest) if !seen.contains(digest))
    });
    missing.map(|missing| {
        format!(
            "{missing:?} is missing among {} at {:?}",
            seen.len(),
            read.began
        )
    })
}

/// With one writer: what is seen was the last thing acknowledged before, or tried since.
fn presence(read: &Event, seen: bool, events: &[&Event], grace: Duration) -> Option<String> {
    let by_writer = || {
        events
            .iter()
            .filter(|event| !matches!(event.outcome, Outcome::Found(_)))
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
    (seen != state && !tried).then(|| format!("{read:?} saw {seen} after {last:?}"))
}

/// Whether a change wrote this value; none is a tombstone.
fn is_of(applied: &AppliedChange, value: Option<Digest>) -> bool {
    match value {
        None => applied.body.len() < TOMBSTONE_LIMIT,
        Some(digest) => applied.body.windows(32).any(|bytes| bytes == digest.hash()),
    }
}

/// What it finds in histories that were never promised.
#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const SUBJECT: &str = "referrers s";

    /// Requests one after the other.
    fn history(outcomes: Vec<(String, Outcome)>) -> Vec<String> {
        let (start, step) = (Instant::now(), Duration::from_millis(10));
        let (mut events, mut applied) = (Vec::new(), Vec::new());
        for (at, (key, outcome)) in outcomes.into_iter().enumerate() {
            let (began, ended) = (
                start + step * (2 * at as u32),
                start + step * (2 * at as u32 + 1),
            );
            let body = match &outcome {
                Outcome::Moved(digest) => Some([digest.hash(), &[0; TOMBSTONE_LIMIT]].concat()),
                Outcome::Buried => Some(Vec::new()),
                _ => None,
            };
            applied.extend(body.map(|body| AppliedChange {
                key: key.clone(),
                body: Bytes::from(body),
                began,
                ended,
            }));
            events.push(Event {
                key,
                began,
                ended,
                outcome,
            });
        }
        History { events, applied }.violations(Duration::ZERO)
    }

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn entry(text: &str) -> String {
        format!("{SUBJECT} {}", digest(text))
    }

    fn is_found(outcomes: Vec<(String, Outcome)>, saying: &str) {
        let found = history(outcomes);
        assert!(
            matches!(&found[..], [one] if one.contains(saying)),
            "{found:?}"
        );
    }

    #[test]
    fn what_was_promised_is_no_violation() {
        let one = digest("one");
        let outcomes = vec![
            ("tag".to_owned(), Outcome::Moved(one)),
            ("tag".to_owned(), Outcome::Named(Some(one))),
            ("tag".to_owned(), Outcome::Buried),
            ("tag".to_owned(), Outcome::Named(None)),
            (entry("a"), Outcome::Put),
            (SUBJECT.to_owned(), Outcome::Referred(one)),
            (SUBJECT.to_owned(), Outcome::Listed(vec![one, digest("a")])),
            (entry("a"), Outcome::Deleted),
            (SUBJECT.to_owned(), Outcome::Listed(vec![one])),
            (entry("a"), Outcome::Found(false)),
            (entry("a"), Outcome::Unknown),
            (entry("a"), Outcome::Found(true)),
        ];
        assert_eq!(history(outcomes), Vec::<String>::new());
    }

    #[test]
    fn a_tag_of_before_is_found() {
        let (one, two) = (digest("one"), digest("two"));
        let tag = |outcome| ("tag".to_owned(), outcome);
        let moved = || vec![tag(Outcome::Moved(one)), tag(Outcome::Moved(two))];
        is_found(
            [moved(), vec![tag(Outcome::Named(Some(one)))]].concat(),
            "after change Some(1)",
        );
        is_found(
            [moved(), vec![tag(Outcome::Named(None))]].concat(),
            "after change Some(1)",
        );
        let deleted = vec![tag(Outcome::Buried), tag(Outcome::Named(Some(two)))];
        is_found([moved(), deleted].concat(), "after change Some(2)");
    }

    #[test]
    fn a_blob_that_is_lost_and_one_whose_delete_is_undone_are_found() {
        let blob = |outcome| ("blob".to_owned(), outcome);
        is_found(
            vec![blob(Outcome::Put), blob(Outcome::Found(false))],
            "saw false",
        );
        let undone = vec![
            blob(Outcome::Put),
            blob(Outcome::Deleted),
            blob(Outcome::Found(true)),
        ];
        is_found(undone, "saw true");
    }

    #[test]
    fn a_list_that_lacks_a_referrer_or_has_a_deleted_one_is_found() {
        let list = |digests| (SUBJECT.to_owned(), Outcome::Listed(digests));
        let one = digest("one");
        is_found(
            vec![
                (SUBJECT.to_owned(), Outcome::Referred(one)),
                list(Vec::new()),
            ],
            "is missing",
        );
        is_found(
            vec![(entry("a"), Outcome::Put), list(vec![one])],
            "saw false",
        );
        let deleted = vec![(entry("a"), Outcome::Put), (entry("a"), Outcome::Deleted)];
        is_found(
            [deleted, vec![list(vec![digest("a")])]].concat(),
            "saw true",
        );
    }
}
