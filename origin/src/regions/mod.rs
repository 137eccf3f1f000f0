//! Regions: each one follows the others and copies what their journals say it is owed.
//!
//! | file | job |
//! |---|---|
//! | `source` | another region, as the follower sees it |
//! | `remote` | the same over HTTPS |
//! | `take` | keys that other regions asked this one to copy |
//! | `replicate` | brings one key: its closure first, then the key |
//! | `copy`, `resuming_body` | copies blobs, from whichever region delivers them |
//! | `entry` | merges the keys of one journal entry |
//! | `counts` | what happened, for metrics |

pub(crate) mod copy;
pub(crate) mod counts;
pub(crate) mod entry;
pub(crate) mod remote;
pub(crate) mod replicate;
mod resuming_body;
pub(crate) mod source;
pub(crate) mod take;
