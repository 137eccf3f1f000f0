//! The trackers in groups, one for each region, and how many of the groups are used.
//!
//! ```text
//! own region ──no tracker of it answers──▶ next region ──no tracker of it answers──▶ ...
//!     ▲                                         │
//!     └──────── one of them answers again ──────┘
//! ```
//!
//! The peer's own group is always used. The group after it is used while all trackers of the groups
//! before it are unresponsive. Trackers of a group that is not used hear nothing from the peer.

use core::ops::Range;

use bincode::{Decode, Encode};

use super::health::TrackerHealth;
use crate::digest::Digest;
use crate::name::RegionName;
use crate::tracker::ranked;

/// Trackers of one group that learn about one blob.
const TRACKERS_PER_BLOB: usize = 2;

/// The URL of a tracker, and its region.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TrackerUrl {
    /// Its region; `None` for the peer's own.
    pub region: Option<RegionName>,
    /// Its URL: scheme, host and, optionally, port. All peers and trackers must know a tracker by
    /// the same URL, because rendezvous hashing is over URLs.
    pub url: String,
}

impl TrackerUrl {
    /// A tracker in the peer's own region.
    pub const fn in_own_region(url: String) -> Self {
        Self { region: None, url }
    }
}

/// The trackers of one region.
#[derive(Debug)]
struct Group {
    region: RegionName,
    /// Their places in the list of all trackers.
    trackers: Vec<usize>,
    urls: Vec<String>,
}

/// The trackers in groups, in the order in which the groups are used.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// The group of each tracker.
    of: Vec<usize>,
    /// The number of groups that are used, from the first one.
    used: usize,
}

impl Groups {
    /// The groups of `trackers`: that of the region `own` first, the others as they are named.
    pub(super) fn new(own: &RegionName, trackers: &[TrackerUrl]) -> Self {
        let region = |tracker: &TrackerUrl| tracker.region.clone().unwrap_or_else(|| own.clone());
        let mut groups: Vec<Group> = Vec::new();
        for (number, tracker) in trackers.iter().enumerate() {
            let region = region(tracker);
            let at = groups.iter().position(|group| group.region == region);
            let at = at.unwrap_or_else(|| {
                groups.push(Group {
                    region,
                    trackers: Vec::new(),
                    urls: Vec::new(),
                });
                groups.len() - 1
            });
            groups[at].trackers.push(number);
            groups[at].urls.push(tracker.url.clone());
        }
        groups.sort_by_key(|group| group.region != *own);
        let mut of = vec![0; trackers.len()];
        for (number, group) in groups.iter().enumerate() {
            for tracker in &group.trackers {
                of[*tracker] = number;
            }
        }
        Self {
            groups,
            of,
            used: 1,
        }
    }

    /// The number of groups.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The group of each tracker.
    pub(super) fn of_each(&self) -> &[usize] {
        &self.of
    }

    /// The group of a tracker.
    pub(super) fn of(&self, tracker: usize) -> Option<usize> {
        self.of.get(tracker).copied()
    }

    /// The region of a tracker.
    pub(super) fn region(&self, tracker: usize) -> Option<&RegionName> {
        Some(&self.groups[self.of(tracker)?].region)
    }

    /// Whether the tracker's group is used.
    pub(super) fn is_used(&self, tracker: usize) -> bool {
        self.of(tracker).is_some_and(|group| group < self.used)
    }

    /// Counts the groups that are used from now on. Returns those that begin to be used, and those
    /// that are not used any more; at least one of the two is empty.
    pub(super) fn update(&mut self, health: &TrackerHealth) -> (Range<usize>, Range<usize>) {
        let is_lost = |group: &Group| {
            let mut trackers = group.trackers.iter();
            trackers.all(|tracker| health.is_unresponsive(*tracker))
        };
        let lost = self.groups.iter().take_while(|group| is_lost(group));
        let used = (lost.count() + 1).min(self.groups.len());
        let before = core::mem::replace(&mut self.used, used);
        (before..used, used..before)
    }

    /// The trackers of some groups.
    pub(super) fn trackers_of(&self, groups: Range<usize>) -> Vec<usize> {
        let groups = self.groups.get(groups).unwrap_or_default();
        groups
            .iter()
            .flat_map(|group| group.trackers.iter().copied())
            .collect()
    }

    /// The trackers of a blob, best first: the best two of each group.
    pub(super) fn ranked(&self, digest: &Digest) -> Vec<usize> {
        let groups = self.groups.iter();
        groups.flat_map(|group| group.ranked(digest)).collect()
    }

    /// Whether the tracker learns about a blob.
    pub(super) fn is_responsible(&self, tracker: usize, digest: &Digest) -> bool {
        let group = self.of(tracker).map(|group| &self.groups[group]);
        group.is_some_and(|group| group.ranked(digest).any(|ranked| ranked == tracker))
    }
}

impl Group {
    fn ranked(&self, digest: &Digest) -> impl Iterator<Item = usize> + use<'_> {
        let ranked = ranked(&self.urls, digest).into_iter();
        ranked
            .take(TRACKERS_PER_BLOB)
            .map(|place| self.trackers[place])
    }
}
