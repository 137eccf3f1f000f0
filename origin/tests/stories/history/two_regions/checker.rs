//! Checks the recorded history of two regions against what they promise.

use std::collections::BTreeMap;
use std::time::Instant;

use flotilla_common::digest::Digest;
use flotilla_common::stamp::Stamp;

use super::stored::{Stored, decode};
use crate::history::recording_storage::AppliedChange;
use crate::regions::network::NAMES;

/// A request and its outcome, with times of the client's clock.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// The region that was asked.
    pub(super) region: usize,
    /// The key of its storage.
    pub(super) key: String,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) outcome: Outcome,
}

/// The outcome of a request. The value of a tag is what it names, that of a manifest or a referrer
/// is its own digest; `None` stands for a deleted one, or one that never existed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Not acknowledged, or the answer said that it may be old.
    Unknown,
    /// A change was acknowledged.
    Changed(Option<Digest>),
    /// A read returned a value.
    Read(Option<Digest>),
}

/// A change as one of the storages applied it.
#[derive(Clone, Debug)]
struct Applied {
    region: usize,
    stored: Stored,
    began: Instant,
    ended: Instant,
}

/// All requests, and all changes as the storages applied them.
#[derive(Debug)]
pub(super) struct History {
    events: Vec<Event>,
    applied: BTreeMap<String, Vec<Applied>>,
}

impl History {
    /// A history of `events`, and of the changes of each region.
    pub(super) fn new(events: Vec<Event>, changes: Vec<Vec<AppliedChange>>) -> Self {
        let mut applied = BTreeMap::<String, Vec<Applied>>::new();
        for (region, changes) in changes.into_iter().enumerate() {
            for change in changes {
                let stored = decode(&change.key, &change.body);
                applied.entry(change.key).or_default().push(Applied {
                    region,
                    stored,
                    began: change.began,
                    ended: change.ended,
                });
            }
        }
        Self { events, applied }
    }

    /// Asserts that there are enough events of each kind, in each region, for a meaningful check.
    pub(super) fn assert_enough_events(&self) {
        for region in [0, 1] {
            for prefix in ["tag/", "rm/", "ref/"] {
                let count = |is_meant: fn(&Outcome) -> bool| {
                    let of_kind = |event: &&Event| {
                        event.region == region
                            && event.key.starts_with(prefix)
                            && is_meant(&event.outcome)
                    };
                    self.events.iter().filter(of_kind).count()
                };
                let counts = [
                    count(|outcome| matches!(outcome, Outcome::Changed(Some(_)))),
                    count(|outcome| matches!(outcome, Outcome::Changed(None))),
                    count(|outcome| matches!(outcome, Outcome::Read(Some(_)))),
                    count(|outcome| matches!(outcome, Outcome::Read(None))),
                    count(|outcome| matches!(outcome, Outcome::Unknown)),
                ];
                eprintln!(
                    "region {region}, {prefix}: pushed, deleted, seen, absent, unknown: {counts:?}"
                );
                // Referrers change with their manifests.
                let needed = if prefix == "ref/" { 2..4 } else { 0..4 };
                assert!(counts[needed].iter().all(|count| *count >= 3), "{counts:?}");
            }
        }
    }

    /// The highest value of each key that any region's storage has ever had.
    pub(super) fn highest(&self) -> BTreeMap<String, Stored> {
        let highest = |applied: &Vec<Applied>| {
            let last = applied.iter().max_by_key(|applied| &applied.stored.stamp);
            last.unwrap().stored.clone()
        };
        let keys = self.applied.iter();
        keys.map(|(key, applied)| (key.clone(), highest(applied)))
            .collect()
    }

    /// Changes that were acknowledged and never applied, and reads that are older than a change
    /// that the same region acknowledged before they began.
    pub(super) fn violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        let mut acknowledged = BTreeMap::<(usize, &str), Vec<(&Event, &Stamp)>>::new();
        for event in &self.events {
            let Outcome::Changed(value) = &event.outcome else {
                continue;
            };
            match self.stamp_of_change(event, *value) {
                Some(stamp) => acknowledged
                    .entry((event.region, &*event.key))
                    .or_default()
                    .push((event, stamp)),
                None => violations.push(format!("{event:?} was acknowledged and never applied")),
            }
        }
        for read in &self.events {
            let Outcome::Read(seen) = &read.outcome else {
                continue;
            };
            // The entry of a referrer follows its manifest.
            let changed_key = manifest_key(&read.key).unwrap_or_else(|| read.key.clone());
            let before = acknowledged
                .get(&(read.region, &*changed_key))
                .into_iter()
                .flatten()
                .filter(|(change, stamp)| change.ended < read.began && self.must_show(read, stamp));
            let newest = before.max_by_key(|(_, stamp)| *stamp);
            violations.extend(self.violation(read, *seen, newest.copied()));
        }
        violations
    }

    /// Whether a read must show an acknowledged change with this stamp. A list shows a change that
    /// was forwarded to another region only once it is merged here.
    fn must_show(&self, read: &Event, stamp: &Stamp) -> bool {
        let is_list = read.key.starts_with("ref/");
        let is_from_here = stamp.region.as_str() == NAMES[read.region];
        let is_merged = || {
            self.changes_of(&read.key).iter().any(|applied| {
                applied.region == read.region
                    && applied.ended < read.began
                    && applied.stored.stamp >= *stamp
            })
        };
        !is_list || is_from_here || is_merged()
    }

    /// The lowest stamp that an acknowledged change can have had, in whichever region it was made.
    fn stamp_of_change(&self, change: &Event, value: Option<Digest>) -> Option<&Stamp> {
        let during = self.changes_of(&change.key).iter().filter(|applied| {
            let overlaps = applied.ended >= change.began && applied.began <= change.ended;
            overlaps && applied.stored.value == value
        });
        during.map(|applied| &applied.stored.stamp).min()
    }

    fn violation(
        &self,
        read: &Event,
        seen: Option<Digest>,
        newest: Option<(&Event, &Stamp)>,
    ) -> Option<String> {
        let possible = self.changes_of(&read.key).iter().any(|applied| {
            applied.stored.value == seen
                && applied.began <= read.ended
                && newest.is_none_or(|(_, stamp)| applied.stored.stamp >= *stamp)
        });
        let never_existed = seen.is_none() && newest.is_none();
        (!possible && !never_existed).then(|| self.describe(read, newest))
    }

    fn changes_of(&self, key: &str) -> &[Applied] {
        self.applied.get(key).map_or(&[][..], Vec::as_slice)
    }

    /// A violation with all changes of its key, in the order of time.
    fn describe(&self, read: &Event, newest: Option<(&Event, &Stamp)>) -> String {
        let start = self.events.iter().map(|event| event.began).min();
        let at = |time: Instant| {
            let since = start.map(|start| time.saturating_duration_since(start));
            since.unwrap_or_default().as_millis()
        };
        let mut lines = vec![format!(
            "region {} {} at {}..{} ms saw {:?} after {:?}",
            read.region,
            read.key,
            at(read.began),
            at(read.ended),
            read.outcome,
            newest.map(|(change, stamp)| (at(change.began), at(change.ended), stamp)),
        )];
        for applied in self.changes_of(&read.key) {
            let near = at(applied.began).abs_diff(at(read.began)) < 2_000;
            if near {
                lines.push(format!(
                    "  region {} applied {:?} {:?} at {}..{}",
                    applied.region,
                    applied.stored.stamp,
                    applied.stored.value,
                    at(applied.began),
                    at(applied.ended)
                ));
            }
        }
        lines.join("\n")
    }
}

/// The key of a referrer's manifest.
fn manifest_key(key: &str) -> Option<String> {
    let (repository, entry) = key.strip_prefix("ref/")?.split_once("/_/")?;
    let (_, digest) = entry.split_once('/')?;
    Some(format!("rm/{repository}/_/{digest}"))
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    const KEY: &str = "tag/app/_/v1";

    /// A history of sequential steps, 10 ms each.
    struct Steps {
        /// The key of the next steps.
        key: String,
        now: Instant,
        history: History,
    }

    impl Steps {
        fn new() -> Self {
            Self {
                key: KEY.to_owned(),
                now: Instant::now(),
                history: History::new(Vec::new(), Vec::new()),
            }
        }

        fn step(&mut self) -> (Instant, Instant) {
            let began = self.now;
            self.now += Duration::from_millis(10);
            (began, began + Duration::from_millis(5))
        }

        fn event(&mut self, region: usize, outcome: Outcome, (began, ended): (Instant, Instant)) {
            self.history.events.push(Event {
                region,
                key: self.key.clone(),
                began,
                ended,
                outcome,
            });
        }

        /// The storage of a region applies a value.
        fn apply(&mut self, region: usize, clock: u64, value: Option<Digest>) {
            let times = self.step();
            self.apply_at(region, clock, value, times);
        }

        fn apply_at(
            &mut self,
            region: usize,
            clock: u64,
            value: Option<Digest>,
            (began, ended): (Instant, Instant),
        ) {
            let applied = self.history.applied.entry(self.key.clone()).or_default();
            applied.push(Applied {
                region,
                stored: stored(clock, value),
                began,
                ended,
            });
        }

        /// A client of a region changes the key there.
        fn change(&mut self, region: usize, clock: u64, value: Option<Digest>) {
            let times = self.step();
            self.apply_at(region, clock, value, times);
            self.event(region, Outcome::Changed(value), times);
        }

        fn read(&mut self, region: usize, seen: Option<Digest>) {
            let times = self.step();
            self.event(region, Outcome::Read(seen), times);
        }

        fn assert_violations(&self, expected: usize) {
            let found = self.history.violations();
            assert_eq!(found.len(), expected, "{found:#?}");
        }
    }

    fn stored(clock: u64, value: Option<Digest>) -> Stored {
        Stored {
            stamp: Stamp {
                clock,
                region: "eu-1".parse().unwrap(),
            },
            value,
        }
    }

    fn image(number: u8) -> Option<Digest> {
        Some(Digest::sha256(&[number]))
    }

    #[test]
    fn reads_may_see_what_another_region_changed_later() {
        let mut steps = Steps::new();
        steps.read(0, None);
        steps.change(0, 10, image(1));
        steps.change(1, 20, image(2));
        // Read through, before it is merged.
        steps.read(0, image(2));
        // The other region has not merged the first change.
        steps.read(1, image(2));
        steps.apply(0, 20, image(2));
        steps.change(0, 30, None);
        steps.read(0, None);
        steps.read(1, image(2));
        steps.assert_violations(0);
    }

    #[test]
    fn reads_of_replaced_values_are_violations() {
        let mut steps = Steps::new();
        steps.change(1, 5, image(1));
        steps.change(0, 10, image(2));
        // Its stamp is below that of the acknowledged change.
        steps.read(0, image(1));
        steps.assert_violations(1);
        steps.change(0, 20, None);
        steps.read(0, image(2));
        steps.read(0, None);
        steps.assert_violations(2);
    }

    #[test]
    fn lost_changes_are_violations() {
        let mut steps = Steps::new();
        let times = steps.step();
        steps.event(0, Outcome::Changed(image(1)), times);
        steps.assert_violations(1);
        steps.change(0, 10, image(2));
        steps.read(0, None);
        steps.assert_violations(2);
        // A value that was never written.
        steps.read(1, image(3));
        steps.assert_violations(3);
    }

    #[test]
    fn lists_may_lack_a_forwarded_change_until_it_is_merged() {
        let digest = image(1).unwrap();
        let manifest = format!("rm/app/_/{digest}");
        let list = format!("ref/app/_/{}/{digest}", image(2).unwrap());
        for (region, violations) in [(0, 1), (1, 0)] {
            let mut steps = Steps::new();
            steps.key = list.clone();
            steps.apply(0, 10, Some(digest));
            // The stamp is one of region 0.
            steps.key = manifest.clone();
            steps.change(region, 10, Some(digest));
            steps.key = list.clone();
            steps.read(region, None);
            steps.assert_violations(violations);
            steps.apply(1, 10, Some(digest));
            steps.read(region, None);
            steps.assert_violations(violations + 1);
        }
    }

    #[test]
    fn regions_must_come_to_the_highest_stamp() {
        let mut steps = Steps::new();
        steps.change(0, 10, image(1));
        steps.change(1, 20, image(2));
        steps.change(0, 15, None);
        let highest = steps.history.highest();
        let has = |clock, value| BTreeMap::from([(KEY.to_owned(), stored(clock, value))]);
        let differences =
            |now| crate::history::two_regions::pair::differences_from(&highest, &now, 0);
        assert_eq!(differences(has(20, image(2))), Vec::<String>::new());
        for wrong in [
            has(10, image(1)),
            has(15, None),
            has(20, None),
            BTreeMap::new(),
        ] {
            assert_eq!(differences(wrong).len(), 1);
        }
    }
}
