//! `journal/<region>/<clock>-<nonce>`: keys that a request is about to write, owed to one region.

use bincode::{Decode, Encode};
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::FactKey;

/// The keys of one request, each with the stamp that the request saw there.
///
/// A key is *reached* when its stamp is above the one seen: this write, or another that replaced
/// the same value, has applied. The entry's own clock says nothing about that.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct JournalRecord {
    pub(crate) keys: Vec<(FactKey, Option<Stamp>)>,
    pub(crate) nonce: u128,
}

/// `journal-trimmed/<region>`: whether entries of the region's journal were dropped unread.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct TrimMark {
    /// Identifies the sweep that the region owes; `None` after that sweep.
    pub(crate) sweep: Option<u128>,
    pub(crate) nonce: u128,
}
