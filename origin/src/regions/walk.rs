//! One walk over a closure: where its parts come from, and which of its manifests are finished.
//!
//! An index of 4 MiB has room for 40,000 children, and may name one child as often. Without a
//! memory of what is finished, two such indexes above one another are more than 10⁹ visits.

use std::collections::HashMap;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;

use super::source::Source;

/// How deep indexes may be nested.
pub(super) const MAX_DEPTH: u32 = 8;
/// Manifests that one walk visits; a closure with more is merged without the rest.
const MAX_VISITS: u32 = 100_000;

/// What a walk does when something is in no region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnBroken {
    /// Brings the rest: the name is merged as broken as it is elsewhere.
    Continue,
    /// Ends: what names it is refused.
    Stop,
}

/// A finished manifest.
#[derive(Clone, Copy, Debug)]
struct Finished {
    is_broken: bool,
    /// How many levels below it could be walked.
    depth: u32,
}

/// A walk over a closure in one repository.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) sources: &'a [Arc<dyn Source>],
    pub(super) repository: &'a RepositoryName,
    pub(super) on_broken: OnBroken,
    finished: HashMap<Digest, Finished>,
    visits: u32,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        sources: &'a [Arc<dyn Source>],
        repository: &'a RepositoryName,
        on_broken: OnBroken,
    ) -> Self {
        Self {
            sources,
            repository,
            on_broken,
            finished: HashMap::new(),
            visits: 0,
        }
    }

    /// Whether a manifest that this walk has finished is broken; `None` if it must be visited. One
    /// that was broken with fewer levels below it may be whole with more.
    pub(super) fn is_broken(&self, digest: &Digest, depth: u32) -> Option<bool> {
        let finished = self.finished.get(digest)?;
        (!finished.is_broken || depth <= finished.depth).then_some(finished.is_broken)
    }

    /// Takes note that a manifest and everything below it is finished.
    pub(super) fn finish(&mut self, digest: &Digest, depth: u32, is_broken: bool) {
        self.finished.insert(*digest, Finished { is_broken, depth });
    }

    /// Counts a visit; false if there were too many.
    pub(super) fn may_visit(&mut self) -> bool {
        self.visits = self.visits.saturating_add(1);
        self.visits <= MAX_VISITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_manifests_are_not_visited_again_and_visits_are_bounded() {
        let repository = "app".parse().expect("a name");
        let mut walk = Walk::new(&[], &repository, OnBroken::Continue);
        let [whole, broken, new] = [b"whole", b"brokn", b"added"].map(|it| Digest::sha256(it));
        walk.finish(&whole, 0, false);
        walk.finish(&broken, 3, true);
        assert_eq!(walk.is_broken(&whole, MAX_DEPTH), Some(false));
        assert_eq!(walk.is_broken(&broken, 3), Some(true));
        assert_eq!(
            walk.is_broken(&broken, 4),
            None,
            "deeper parts may be missing"
        );
        assert_eq!(walk.is_broken(&new, 0), None);
        assert!((0..MAX_VISITS).all(|_| walk.may_visit()));
        assert!(!walk.may_visit());
    }
}
