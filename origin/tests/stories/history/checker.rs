//! Checks the recorded history against the guarantee.

use core::time::Duration;
use std::collections::BTreeMap;
use std::time::Instant;

use flotilla_common::digest::Digest;

use super::recording_storage::AppliedChange;

/// A shorter body of a tag is a tombstone.
const TOMBSTONE_LIMIT: usize = 128;

/// A request and its outcome, with times of the client's clock.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) key: String,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) outcome: Outcome,
}

/// The outcome of a request.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// Not acknowledged: it may have taken effect.
    Unknown,
    /// A tag was moved.
    TagMoved(Digest),
    /// A tag was deleted.
    TagDeleted,
    /// A tag names this manifest, or does not exist.
    TagRead(Option<Digest>),
    /// A blob, or a manifest that refers to a subject, was pushed.
    Put,
    /// A blob or manifest was deleted.
    Deleted,
    /// Whether a blob or manifest was found.
    PresenceRead(bool),
    /// A referrer, which is never deleted, was pushed.
    ReferrerAdded(Digest),
    /// The referrers of a listing.
    ReferrersRead(Vec<Digest>),
}

/// All requests, and all changes of tags as the storage applied them.
#[derive(Debug)]
pub(super) struct History {
    pub(super) events: Vec<Event>,
    pub(super) applied: Vec<AppliedChange>,
}

impl History {
    /// Asserts that there are enough events of each kind for a meaningful check.
    ///
    /// # Panics
    /// If there are not.
    pub(super) fn assert_enough_events(&self) {
        let count = |wanted: fn(&Outcome) -> bool| {
            self.events
                .iter()
                .filter(|event| wanted(&event.outcome))
                .count()
        };
        let counts = [
            count(|outcome| matches!(outcome, Outcome::TagMoved(_))),
            count(|outcome| matches!(outcome, Outcome::TagDeleted)),
            count(|outcome| matches!(outcome, Outcome::TagRead(_))),
            count(|outcome| matches!(outcome, Outcome::Put)),
            count(|outcome| matches!(outcome, Outcome::Deleted)),
            count(|outcome| matches!(outcome, Outcome::PresenceRead(_))),
            count(|outcome| matches!(outcome, Outcome::ReferrerAdded(_))),
            count(|outcome| matches!(outcome, Outcome::ReferrersRead(_))),
        ];
        eprintln!("events by kind: {counts:?}");
        assert!(counts.into_iter().all(|count| count >= 3), "{counts:?}");
    }

    /// Reads that are older than a change acknowledged more than `grace` before they began.
    pub(super) fn violations(&self, grace: Duration) -> Vec<String> {
        let acknowledged = self.acknowledged();
        let mut by_key = BTreeMap::<&str, Vec<&Event>>::new();
        for event in &self.events {
            by_key.entry(&event.key).or_default().push(event);
        }
        let of = |key: &str| by_key.get(key).map_or(&[][..], Vec::as_slice);
        let violations = self.events.iter().flat_map(|read| match &read.outcome {
            Outcome::TagRead(seen) => self
                .tag_violation(read, *seen, &acknowledged, grace)
                .into_iter()
                .collect(),
            Outcome::PresenceRead(seen) => presence_violation(read, *seen, of(&read.key), grace)
                .into_iter()
                .collect(),
            Outcome::ReferrersRead(seen) => {
                let missing = missing_referrer(read, seen, of(&read.key), grace).into_iter();
                let prefix = format!("{} ", read.key);
                let entries = by_key
                    .range(&*prefix..)
                    .take_while(|(key, _)| key.starts_with(&prefix));
                let listed = entries.filter_map(|(key, events)| {
                    let is_listed = seen.iter().any(|digest| key.ends_with(&digest.to_string()));
                    presence_violation(read, is_listed, events, grace)
                });
                missing.chain(listed).collect::<Vec<_>>()
            }
            _ => Vec::new(),
        });
        violations.collect()
    }

    /// Each acknowledged change of a tag, with its position in the storage's order.
    fn acknowledged(&self) -> Vec<(&Event, usize)> {
        let position = |change: &Event| match change.outcome {
            Outcome::TagMoved(digest) => self
                .applied
                .iter()
                .position(|applied| wrote(applied, Some(digest))),
            // If several tombstones applied during the request, the first is the safe lower bound.
            Outcome::TagDeleted => self.applied.iter().position(|applied| {
                let within = applied.ended >= change.began && applied.began <= change.ended;
                applied.key == change.key && within && wrote(applied, None)
            }),
            _ => None,
        };
        self.events
            .iter()
            .filter_map(|change| Some((change, position(change)?)))
            .collect()
    }

    /// Checks a read of a tag: it must see a change at least as new, in the storage's order, as
    /// every change acknowledged before.
    fn tag_violation(
        &self,
        read: &Event,
        seen: Option<Digest>,
        acknowledged: &[(&Event, usize)],
        grace: Duration,
    ) -> Option<String> {
        let before = acknowledged
            .iter()
            .filter(|(change, _)| change.key == read.key && change.ended + grace < read.began);
        let newest = before.map(|(_, position)| *position).max();
        let from = newest.unwrap_or(0);
        let is_possible = self.applied[from..].iter().any(|applied| {
            applied.key == read.key && applied.began <= read.ended && wrote(applied, seen)
        });
        let never_existed = seen.is_none() && newest.is_none();
        (!is_possible && !never_existed).then(|| {
            let position = self
                .applied
                .iter()
                .rposition(|applied| applied.key == read.key && wrote(applied, seen));
            format!("{read:?} saw change {position:?} after change {newest:?} was acknowledged")
        })
    }
}

/// Checks a list of referrers: it must have each referrer that was acknowledged before and never
/// deleted.
fn missing_referrer(
    read: &Event,
    seen: &[Digest],
    changes: &[&Event],
    grace: Duration,
) -> Option<String> {
    let missing = changes.iter().find(|change| {
        let before = change.ended + grace < read.began;
        before
            && matches!(&change.outcome, Outcome::ReferrerAdded(digest) if !seen.contains(digest))
    });
    missing.map(|missing| {
        format!(
            "{missing:?} is missing among {} at {:?}",
            seen.len(),
            read.began
        )
    })
}

/// Checks a read of a key with a single writer: it must see the last acknowledged change, or one
/// that was attempted since.
fn presence_violation(
    read: &Event,
    seen: bool,
    events: &[&Event],
    grace: Duration,
) -> Option<String> {
    let by_writer = || {
        events
            .iter()
            .filter(|event| !matches!(event.outcome, Outcome::PresenceRead(_)))
    };
    let last = by_writer()
        .filter(|change| change.ended + grace < read.began)
        .filter(|change| matches!(change.outcome, Outcome::Put | Outcome::Deleted))
        .max_by_key(|change| change.ended);
    let state = last.is_some_and(|change| matches!(change.outcome, Outcome::Put));
    let since = last.map(|change| change.ended);
    // An attempt since then may or may not have taken effect.
    let is_attempted = by_writer()
        .any(|change| since.is_none_or(|since| change.ended > since) && change.began <= read.ended);
    (seen != state && !is_attempted).then(|| format!("{read:?} saw {seen} after {last:?}"))
}

/// Whether a change wrote this value; `None` stands for a tombstone.
fn wrote(applied: &AppliedChange, value: Option<Digest>) -> bool {
    match value {
        None => applied.body.len() < TOMBSTONE_LIMIT,
        Some(digest) => applied.body.windows(32).any(|bytes| bytes == digest.hash()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const SUBJECT: &str = "referrers s";

    /// Checks a history of sequential requests.
    fn violations_of(outcomes: Vec<(String, Outcome)>) -> Vec<String> {
        let start = Instant::now();
        let step = Duration::from_millis(10);
        let mut events = Vec::new();
        let mut applied = Vec::new();
        for (at, (key, outcome)) in outcomes.into_iter().enumerate() {
            let (began, ended) = (
                start + step * (2 * at as u32),
                start + step * (2 * at as u32 + 1),
            );
            let body = match &outcome {
                Outcome::TagMoved(digest) => Some([digest.hash(), &[0; TOMBSTONE_LIMIT]].concat()),
                Outcome::TagDeleted => Some(Vec::new()),
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

    fn assert_violation(outcomes: Vec<(String, Outcome)>, expected: &str) {
        let found = violations_of(outcomes);
        assert!(
            matches!(&found[..], [one] if one.contains(expected)),
            "{found:?}"
        );
    }

    #[test]
    fn valid_histories_have_no_violations() {
        let one = digest("one");
        let outcomes = vec![
            ("tag".to_owned(), Outcome::TagMoved(one)),
            ("tag".to_owned(), Outcome::TagRead(Some(one))),
            ("tag".to_owned(), Outcome::TagDeleted),
            ("tag".to_owned(), Outcome::TagRead(None)),
            (entry("a"), Outcome::Put),
            (SUBJECT.to_owned(), Outcome::ReferrerAdded(one)),
            (
                SUBJECT.to_owned(),
                Outcome::ReferrersRead(vec![one, digest("a")]),
            ),
            (entry("a"), Outcome::Deleted),
            (SUBJECT.to_owned(), Outcome::ReferrersRead(vec![one])),
            (entry("a"), Outcome::PresenceRead(false)),
            (entry("a"), Outcome::Unknown),
            (entry("a"), Outcome::PresenceRead(true)),
        ];
        assert_eq!(violations_of(outcomes), Vec::<String>::new());
    }

    #[test]
    fn detects_stale_tags() {
        let (one, two) = (digest("one"), digest("two"));
        let tag = |outcome| ("tag".to_owned(), outcome);
        let moved = || vec![tag(Outcome::TagMoved(one)), tag(Outcome::TagMoved(two))];
        assert_violation(
            [moved(), vec![tag(Outcome::TagRead(Some(one)))]].concat(),
            "after change Some(1)",
        );
        assert_violation(
            [moved(), vec![tag(Outcome::TagRead(None))]].concat(),
            "after change Some(1)",
        );
        let deleted = vec![tag(Outcome::TagDeleted), tag(Outcome::TagRead(Some(two)))];
        assert_violation([moved(), deleted].concat(), "after change Some(2)");
    }

    #[test]
    fn detects_lost_and_resurrected_blobs() {
        let blob = |outcome| ("blob".to_owned(), outcome);
        assert_violation(
            vec![blob(Outcome::Put), blob(Outcome::PresenceRead(false))],
            "saw false",
        );
        let undone = vec![
            blob(Outcome::Put),
            blob(Outcome::Deleted),
            blob(Outcome::PresenceRead(true)),
        ];
        assert_violation(undone, "saw true");
    }

    #[test]
    fn detects_missing_and_deleted_referrers() {
        let list = |digests| (SUBJECT.to_owned(), Outcome::ReferrersRead(digests));
        let one = digest("one");
        assert_violation(
            vec![
                (SUBJECT.to_owned(), Outcome::ReferrerAdded(one)),
                list(Vec::new()),
            ],
            "is missing",
        );
        assert_violation(
            vec![(entry("a"), Outcome::Put), list(vec![one])],
            "saw false",
        );
        let deleted = vec![(entry("a"), Outcome::Put), (entry("a"), Outcome::Deleted)];
        assert_violation(
            [deleted, vec![list(vec![digest("a")])]].concat(),
            "saw true",
        );
    }
}
