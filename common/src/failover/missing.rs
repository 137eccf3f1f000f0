//! Content that a region said it lacks, for a short time.

use std::collections::{BTreeMap, VecDeque};

use super::machine::ContentKey;
use crate::time::Time;

/// The content that regions lack, by key and region. Bounded: the oldest entry is forgotten first.
#[derive(Debug)]
pub(super) struct MissingContent {
    limit: usize,
    until: BTreeMap<(ContentKey, u32), Time>,
    /// The order in which entries were made. An entry that was renewed is here more than once.
    order: VecDeque<(Time, ContentKey, u32)>,
}

impl MissingContent {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            until: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    /// The region lacks the content until then.
    pub(super) fn insert(&mut self, now: Time, key: ContentKey, region: u32, until: Time) {
        self.until.insert((key, region), until);
        self.order.push_back((until, key, region));
        while let Some(&(until, key, region)) = self.order.front()
            && (until <= now || self.order.len() > self.limit)
        {
            self.order.pop_front();
            if self.until.get(&(key, region)) == Some(&until) {
                self.until.remove(&(key, region));
            }
        }
    }

    /// The region has the content after all.
    pub(super) fn remove(&mut self, key: ContentKey, region: u32) {
        self.until.remove(&(key, region));
    }

    pub(super) fn contains(&self, now: Time, key: ContentKey, region: u32) -> bool {
        let until = self.until.get(&(key, region));
        until.is_some_and(|until| *until > now)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}
