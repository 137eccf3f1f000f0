//! Requests that more than one region can serve.
//!
//! | file | job |
//! |---|---|
//! | `read` | reads: from the own storage, or from another region |
//! | `facts` | who serves what can change: the own storage, another region, or none |
//! | `tag` | tags, which can change: the value with the highest stamp |
//! | `digest` | manifests by digest, which can be deleted |
//! | `elsewhere` | reads of repositories that this region does not keep |
//! | `proxy` | one request to another region |
//! | `relay` | the body of its answer |
//! | `rules` | what the policy demands of a change, and its acknowledgement by other regions |
//! | `forward` | writes, while the own storage is out or the repository's home is elsewhere |
//! | `own_change` | changes in the own storage, and the questions of a push |
//! | `forward_call` | one such request: its time limits, and what it tells the failover machine |
//!
//! A request under the certificate of a region is answered from the own storage only, so nothing
//! goes through more than two regions.

mod digest;
mod elsewhere;
mod facts;
mod forward;
mod forward_call;
mod own_change;
mod proxy;
mod read;
mod relay;
mod rules;
mod tag;

pub(super) use digest::by_digest;
pub(super) use elsewhere::read_elsewhere;
pub(super) use forward::{STAMP, forward, may_be_forwarded, stamp_text};
pub(super) use own_change::{change_own, has_blob, note_failure};
pub(super) use read::{blob, closure, list};
pub(super) use rules::{
    ChangeKind, OwedValue, acknowledge, announce_blob, bring_references, change_rules,
    check_forwarded, owed_value,
};
pub(super) use tag::by_tag;
