//! What the regions demand of a change.

use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, Tag};
use flotilla_common::stamp::Stamp;

/// What the regions demand of one change.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChangeRules {
    /// The regions to which the change is owed.
    pub(crate) owed_to: Vec<RegionName>,
    /// Those of the request's tags that must not move to another digest.
    pub(crate) immutable: Vec<Tag>,
    /// The new stamp is above this clock: of a change in another region that the client may have
    /// seen. Nanoseconds since 1970.
    pub(crate) above: Option<u64>,
    /// Of a delete: the live value of its key in another region. The tombstone is written above it,
    /// also where this region has no live value, unless this region deleted the key later.
    pub(crate) unseen: Option<UnseenValue>,
}

/// A live value of another region that this one does not have.
#[derive(Clone, Debug)]
pub(crate) struct UnseenValue {
    pub(crate) stamp: Stamp,
    /// The manifest to which a manifest refers.
    pub(crate) subject: Option<Digest>,
}

impl ChangeRules {
    /// The value that a delete hides in another region, if `own`, the stamp of what this region
    /// has, is not above it.
    pub(super) fn unseen_above(&self, own: Option<&Stamp>) -> Option<&UnseenValue> {
        let unseen = self.unseen.as_ref()?;
        own.is_none_or(|own| *own < unseen.stamp).then_some(unseen)
    }
}
