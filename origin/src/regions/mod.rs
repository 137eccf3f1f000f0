//! Regions: each one follows the others and copies what their journals say it is owed.
//!
//! | file | job |
//! |---|---|
//! | `source` | another region, as the follower sees it |
//! | `remote` | the same over HTTPS |
//! | `storage_pins` | which storage each region uses; a wrong one is refused |
//! | `take` | keys that other regions asked this one to copy |
//! | `members` | the other regions of the policy |
//! | `replicate` | brings one key: its closure first, then the key |
//! | `walk` | which parts of a closure one replication has finished |
//! | `copy`, `resuming_body` | copies blobs, from whichever region delivers them |
//! | `copy_lease` | one replica copies a large blob, not all |
//! | `copy_turns` | each blob is copied once at a time; places for copies that are waited for |
//! | `push_copies` | copies that pushes wait for |
//! | `recent_merges` | which keys were merged a moment ago, and need no question |
//! | `fact_batches` | asks a region about the keys of many entries at once |
//! | `entry` | merges the keys of one journal entry |
//! | `backlog` | which entries of a journal are due, running or waiting |
//! | `follower` | lists and merges all that one region owes |
//! | `sweep`, `sweep_state` | walks all keys of a region, and knows when this one is whole |
//! | `tombstones` | when a tombstone may be removed |
//! | `trim` | drops journal entries that a region does not fetch |
//! | `lease` | one replica follows, not all |
//! | `foreign_streams` | how many bodies of one blob other regions send at once |
//! | `deletes` | deletes of manifests that other regions made for this one |
//! | `freshest` | how long after an outage tags are read from all regions |
//! | `ahead` | values of other regions that the own storage may not have yet |
//! | `forwarded` | which repositories other regions changed for this one |
//! | `owed`, `owed_page` | whether something absent here may be in another region |
//! | `absence` | what a read does when the own storage does not have what it asks for |
//! | `immutable_conflicts` | counts first pushes of immutable tags that were replaced |
//! | `hints` | asks other regions to copy a push, and waits for their acknowledgement |
//! | `clock_floor` | keeps the order of changes that one client makes in two regions |
//! | `clock_check` | compares the wall clock with the storage's |
//! | `routes` | the own storage and the other regions, as sources of the failover machine |
//! | `connect` | follows the other regions of the policy, and probes them |
//! | `copies` | copies that requests ask for |
//! | `regional` | all of these, as one replica runs them |
//! | `counts`, `metrics` | what happened, for operators |

pub(crate) mod absence;
pub(crate) mod ahead;
mod backlog;
pub(crate) mod clock_check;
pub(crate) mod clock_floor;
mod connect;
pub(crate) mod copies;
pub(crate) mod copy;
mod copy_lease;
pub(crate) mod copy_turns;
pub(crate) mod counts;
mod deletes;
pub(crate) mod entry;
mod fact_batches;
pub(crate) mod follower;
#[cfg(test)]
mod follower_tests;
pub(crate) mod foreign_streams;
mod forwarded;
mod freshest;
pub(crate) mod hints;
mod immutable_conflicts;
pub(crate) mod lease;
pub(crate) mod members;
pub(crate) mod metrics;
pub(crate) mod owed;
mod owed_page;
mod push_copies;
mod recent_merges;
pub(crate) mod regional;
pub(crate) mod remote;
pub(crate) mod replicate;
pub(crate) mod resuming_body;
pub(crate) mod routes;
pub(crate) mod source;
pub(crate) mod storage_pins;
pub(crate) mod sweep;
pub(crate) mod sweep_state;
#[cfg(test)]
mod sweep_tests;
pub(crate) mod take;
#[cfg(test)]
mod test_regions;
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "removal is switched on with the collection of manifests"
    )
)]
pub(crate) mod tombstones;
mod trim;
mod walk;
