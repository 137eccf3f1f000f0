//! Replication between regions: several buckets in one model, written by clients and followed by
//! the shipped code.
//!
//! | file | job |
//! |---|---|
//! | `world` | regions, contents, requests, a region as a follower sees it |
//! | `follower` | the shipped merge of entries, and its broken variants |
//! | `properties` | what must hold of the buckets |
//! | `journal_traces` | entries: when they are written, reached and dropped |
//! | `merge_traces` | tags: which value stays |
//! | `revival_traces` | manifests that are evicted and come back |
//! | `closure_traces` | manifests and their blobs: what comes before a name, and what is taken back |
//! | `child_traces` | the children of an index |
//! | `sweep_traces` | trimmed journals, and sweeps |
//! | `backfill_traces` | a region that joins, by the shipped sweeps |
//! | `restamp_traces` | stamps in the future, by the shipped repair |
//! | `renewal_traces` | a storage that was restored from an old copy |
//! | `tombstone_traces` | when tombstones are removed |
//! | `causality` | changes of one client through two regions |
//! | `absence_traces` | reads of what the own storage does not have |
//!
//! `docs/protocols.md`, "Regions", lists which test covers which trace.

mod absence_traces;
mod backfill_traces;
mod causality;
mod child_traces;
mod closure_traces;
mod follower;
mod journal_traces;
mod merge_traces;
mod properties;
mod renewal_traces;
mod restamp_traces;
mod revival_traces;
mod sweep_traces;
mod tombstone_traces;
mod world;
