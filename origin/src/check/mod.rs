//! Checks whether a storage holds everything that origins acknowledged, and finds leftovers.
//!
//! ```text
//! tag ---> rm ---> rb ---> blob ---> seg          upload ---> seg, blob
//! ref ---> rm (and its subject's descriptor)      seg -------> named by the log of its upload
//! ```
//! The check follows each arrow from every object. Origins write the target of an arrow before its
//! source, so a check may run while they serve; a problem is checked once more before it is
//! reported, because the object may have been written in between. Listings are read page by page
//! and at most [`MAX_FINDINGS`] findings are kept, so memory does not grow with the storage.
//!
//! It must never write.

mod blobs;
mod manifests;
pub mod regions;
mod uploads;

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_common::name::RepositoryName;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::storage::{Entry, Key, PAGE_LEN, Page, Prefix, Storage, StorageError};
use crate::{format, layout, policy};

/// Objects that are checked concurrently.
const CONCURRENT_CHECKS: usize = 16;
/// Findings of a kind that are kept; further ones are only counted.
const MAX_FINDINGS: usize = 1000;
/// The problem of a key that no origin writes.
const FOREIGN_KEY: &str = "not a key of an origin";

/// The contents of a storage, and its problems.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Number of objects by kind.
    pub objects: BTreeMap<&'static str, u64>,
    /// Bytes of blobs that were hashed.
    pub hashed_bytes: u64,
    /// Acknowledged content that is missing or altered.
    pub damage: Findings,
    /// Harmless remains of interrupted pushes and deletes, and references to content that a client
    /// deleted.
    pub leftovers: Findings,
}

impl Report {
    /// Whether all acknowledged content is complete.
    pub const fn is_complete(&self) -> bool {
        self.damage.count == 0
    }
}

/// Findings of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// Number of findings.
    pub count: u64,
    /// The first 1000.
    pub shown: Vec<Finding>,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The object.
    pub key: String,
    /// The problem with it.
    pub problem: String,
}

impl Findings {
    fn add(&mut self, key: &Key, problem: String) {
        self.count += 1;
        if self.shown.len() < MAX_FINDINGS {
            self.shown.push(Finding {
                key: key.to_string(),
                problem,
            });
        }
    }
}

/// Checks all objects in `storage`; with `deep`, also hashes the bytes of every blob.
///
/// # Errors
/// [`StorageError`] if the storage cannot be read.
pub async fn check(storage: Arc<dyn Storage>, deep: bool) -> Result<Report, StorageError> {
    let mut report = Report::default();
    let checker = Checker { storage, deep };
    if let Some(problem) = format::describe_problem(&*checker.storage).await? {
        report.damage.add(&layout::format(), problem);
    }
    let policy = policy::read(&*checker.storage).await?;
    if let Some(Err(problem)) = policy.map(|policy| policy.parse()) {
        report.damage.add(&layout::policy(), problem.to_string());
    }
    for kind in ObjectKind::ALL {
        checker.check_all(kind, &mut report).await?;
    }
    Ok(report)
}

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ObjectKind {
    Tag,
    Referrer,
    Manifest,
    Membership,
    Blob,
    LogEntry,
    Segment,
}

impl ObjectKind {
    /// All kinds, sources of arrows before their targets.
    const ALL: [Self; 7] = [
        Self::Tag,
        Self::Referrer,
        Self::Manifest,
        Self::Membership,
        Self::Blob,
        Self::LogEntry,
        Self::Segment,
    ];

    /// The name of the kind in [`Report::objects`], which is part of the JSON output.
    const fn name(self) -> &'static str {
        match self {
            Self::Tag => "tags",
            Self::Referrer => "referrers",
            Self::Manifest => "manifests",
            Self::Membership => "claims",
            Self::Blob => "blobs",
            Self::LogEntry => "links",
            Self::Segment => "segments",
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Tag => "tag/",
            Self::Referrer => "ref/",
            Self::Manifest => "rm/",
            Self::Membership => "rb/",
            Self::Blob => "blob/",
            Self::LogEntry => "upload/",
            Self::Segment => "seg/",
        }
    }

    /// The upload of a log entry or segment: all objects of an upload are checked together, with
    /// the first of them.
    fn upload(self, key: &Key) -> Option<String> {
        match self {
            Self::LogEntry | Self::Segment => key.as_str().split('/').nth(1).map(str::to_owned),
            Self::Tag | Self::Referrer | Self::Manifest | Self::Membership | Self::Blob => None,
        }
    }
}

/// The outcome of checking an object.
#[derive(Debug, Default)]
struct Problems {
    damage: Vec<String>,
    leftovers: Vec<String>,
    hashed_bytes: u64,
}

impl Problems {
    fn damage(problem: impl core::fmt::Display) -> Self {
        Self {
            damage: vec![problem.to_string()],
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        self.damage.is_empty() && self.leftovers.is_empty()
    }
}

struct Checker {
    storage: Arc<dyn Storage>,
    deep: bool,
}

impl Checker {
    async fn check_all(&self, kind: ObjectKind, report: &mut Report) -> Result<(), StorageError> {
        let prefix = prefix(kind.prefix())?;
        let mut after = None;
        let mut last_upload = None;
        let mut objects = 0;
        loop {
            let page = self.storage.list(&prefix, after.as_ref(), PAGE_LEN).await?;
            let Page { mut entries, more } = page;
            objects += entries.len() as u64;
            after = entries.last().map(|entry| entry.key.clone());
            entries.retain(|entry| {
                let upload = kind.upload(&entry.key);
                let is_repeated = upload.is_some() && upload == last_upload;
                last_upload = upload;
                !is_repeated
            });
            let mut checks = stream::iter(&entries)
                .map(|entry| async move { (entry, self.check_confirmed(kind, entry).await) })
                .buffered(CONCURRENT_CHECKS);
            while let Some((entry, problems)) = checks.next().await {
                let problems = problems?;
                report.hashed_bytes += problems.hashed_bytes;
                for problem in problems.damage {
                    report.damage.add(&entry.key, problem);
                }
                for problem in problems.leftovers {
                    report.leftovers.add(&entry.key, problem);
                }
            }
            if !more {
                break;
            }
        }
        report.objects.insert(kind.name(), objects);
        Ok(())
    }

    /// Checks an object, and once more if it has problems: it may have been written in between.
    async fn check_confirmed(
        &self,
        kind: ObjectKind,
        entry: &Entry,
    ) -> Result<Problems, StorageError> {
        let problems = self.check(kind, entry).await?;
        if problems.is_empty() {
            Ok(problems)
        } else {
            self.check(kind, entry).await
        }
    }

    async fn check(&self, kind: ObjectKind, entry: &Entry) -> Result<Problems, StorageError> {
        match kind {
            ObjectKind::Tag => self.check_tag(entry).await,
            ObjectKind::Referrer => self.check_referrer(entry).await,
            ObjectKind::Manifest => self.check_manifest(&entry.key).await,
            ObjectKind::Membership => self.check_membership(&entry.key).await,
            ObjectKind::Blob => self.check_blob(&entry.key).await,
            ObjectKind::LogEntry => self.check_upload(&entry.key).await,
            ObjectKind::Segment => self.check_segments(&entry.key).await,
        }
    }
}

fn prefix(text: &str) -> Result<Prefix, StorageError> {
    Prefix::new(text).map_err(|error| StorageError::unavailable("list objects", text, error))
}

/// Parses `<kind>/<name>/_/<rest>` into the repository and the rest.
fn parse_repository_key<R: core::str::FromStr>(key: &Key) -> Option<(RepositoryName, R)> {
    let (_, named) = key.as_str().split_once('/')?;
    let (repository, rest) = named.split_once("/_/")?;
    Some((repository.parse().ok()?, rest.parse().ok()?))
}
