//! Looks at everything in a storage: whether what was acknowledged is whole, and what was left
//! over.
//!
//! ```text
//! tag ---> rm ---> rb ---> blob ---> seg          upload ---> seg, blob
//! ref ---> rm (and its subject's descriptor)      seg -------> named by the links of its upload
//! ```
//! Each arrow is followed from every object. Origins write what an arrow points to before what it
//! starts from, so a check may run beside them; whatever is found wrong is looked at once more
//! before it is told, since it may have been changed in between. Listings are read page by page and
//! at most [`FINDINGS`] findings are kept, so memory does not grow with the storage.
//!
//! It must never write.

mod blobs;
mod manifests;
mod uploads;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::storage::{Entry, Key, Page, Prefix, Storage, StorageError};
use crate::{format, layout};

/// Keys of a page.
const PAGE: usize = 1000;
/// Objects that are looked at at once.
const LOOKS_AT_ONCE: usize = 16;
/// Findings of a kind that are kept; more are counted.
const FINDINGS: usize = 1000;

/// What a storage holds, and what is wrong with it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Objects of each kind.
    pub objects: BTreeMap<&'static str, u64>,
    /// Bytes of blobs that were hashed.
    pub hashed_bytes: u64,
    /// What was acknowledged and is not whole.
    pub damage: Findings,
    /// What a push or a delete that was cut short left behind, or what a client took away from
    /// under others. Harms nobody.
    pub leftovers: Findings,
}

impl Report {
    /// Whether everything that was acknowledged is whole.
    pub const fn is_sound(&self) -> bool {
        self.damage.count == 0
    }
}

/// Findings of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// How many there are.
    pub count: u64,
    /// The first 1000.
    pub shown: Vec<Finding>,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The object.
    pub key: String,
    /// What about it.
    pub problem: String,
}

impl Findings {
    fn add(&mut self, key: &Key, problem: String) {
        self.count += 1;
        if self.shown.len() < FINDINGS {
            self.shown.push(Finding {
                key: key.to_string(),
                problem,
            });
        }
    }
}

/// Looks at everything in `storage`; with `deep` also at the bytes of every blob.
///
/// # Errors
/// [`StorageError`] when the storage cannot be read: then nothing is known.
pub async fn check(storage: Arc<dyn Storage>, deep: bool) -> Result<Report, StorageError> {
    let mut report = Report::default();
    let checker = Checker { storage, deep };
    if let Some(problem) = format::problem(&*checker.storage).await? {
        report.damage.add(&layout::format(), problem);
    }
    for kind in KINDS {
        checker.walk(kind, &mut report).await?;
    }
    Ok(report)
}

/// What a key is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tag,
    Referrer,
    Manifest,
    Claim,
    Blob,
    Upload,
    Segment,
}

/// From what points to what is pointed to.
const KINDS: [Kind; 7] = [
    Kind::Tag,
    Kind::Referrer,
    Kind::Manifest,
    Kind::Claim,
    Kind::Blob,
    Kind::Upload,
    Kind::Segment,
];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Tag => "tags",
            Self::Referrer => "referrers",
            Self::Manifest => "manifests",
            Self::Claim => "claims",
            Self::Blob => "blobs",
            Self::Upload => "links",
            Self::Segment => "segments",
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Tag => "tag/",
            Self::Referrer => "ref/",
            Self::Manifest => "rm/",
            Self::Claim => "rb/",
            Self::Blob => "blob/",
            Self::Upload => "upload/",
            Self::Segment => "seg/",
        }
    }

    /// Links and segments are looked at together with all others of their upload.
    fn group(self, key: &Key) -> Option<String> {
        match self {
            Self::Upload | Self::Segment => key.as_str().split('/').nth(1).map(str::to_owned),
            Self::Tag | Self::Referrer | Self::Manifest | Self::Claim | Self::Blob => None,
        }
    }
}

/// What a look at an object found.
#[derive(Debug, Default)]
struct Look {
    damage: Vec<String>,
    leftovers: Vec<String>,
    hashed_bytes: u64,
}

impl Look {
    fn damage(problem: impl core::fmt::Display) -> Self {
        Self {
            damage: vec![problem.to_string()],
            ..Self::default()
        }
    }

    fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.leftovers.is_empty()
    }
}

struct Checker {
    storage: Arc<dyn Storage>,
    deep: bool,
}

impl Checker {
    async fn walk(&self, kind: Kind, report: &mut Report) -> Result<(), StorageError> {
        let prefix = prefix(kind.prefix())?;
        let (mut after, mut group) = (None, None);
        let mut objects = 0;
        loop {
            let Page { entries, more } = self.storage.list(&prefix, after.as_ref(), PAGE).await?;
            objects += entries.len() as u64;
            after = entries.last().map(|entry| entry.key.clone());
            let mut wanted = entries;
            wanted.retain(|entry| {
                let own = kind.group(&entry.key);
                let known = own.is_some() && own == group;
                group = own;
                !known
            });
            let mut looks = stream::iter(&wanted)
                .map(|entry| async move { (entry, self.look_twice(kind, entry).await) })
                .buffered(LOOKS_AT_ONCE);
            while let Some((entry, look)) = looks.next().await {
                let look = look?;
                report.hashed_bytes += look.hashed_bytes;
                look.damage
                    .into_iter()
                    .for_each(|problem| report.damage.add(&entry.key, problem));
                look.leftovers
                    .into_iter()
                    .for_each(|problem| report.leftovers.add(&entry.key, problem));
            }
            if !more {
                break;
            }
        }
        report.objects.insert(kind.name(), objects);
        Ok(())
    }

    /// What is wrong is looked at again: it may have been written in between.
    async fn look_twice(&self, kind: Kind, entry: &Entry) -> Result<Look, StorageError> {
        let look = self.look(kind, entry).await?;
        if look.is_clean() {
            Ok(look)
        } else {
            self.look(kind, entry).await
        }
    }

    async fn look(&self, kind: Kind, entry: &Entry) -> Result<Look, StorageError> {
        match kind {
            Kind::Tag => self.look_at_tag(entry).await,
            Kind::Referrer => self.look_at_referrer(entry).await,
            Kind::Manifest => self.look_at_manifest(&entry.key).await,
            Kind::Claim => self.look_at_claim(&entry.key).await,
            Kind::Blob => self.look_at_blob(&entry.key).await,
            Kind::Upload => self.look_at_upload(&entry.key).await,
            Kind::Segment => self.look_at_segments(&entry.key).await,
        }
    }
}

fn prefix(text: &str) -> Result<Prefix, StorageError> {
    Prefix::new(text).map_err(|error| StorageError::unavailable("list objects", text, error))
}

/// The repository and the rest of `kind/<name>/_/<rest>`, each as what it should be.
fn in_repository<R: core::str::FromStr>(
    key: &Key,
) -> Option<(flotilla_common::name::RepositoryName, R)> {
    let (_, named) = key.as_str().split_once('/')?;
    let (repository, rest) = named.split_once("/_/")?;
    Some((repository.parse().ok()?, rest.parse().ok()?))
}

/// What is said of a key that no origin writes.
const NO_KEY: &str = "the key is none that an origin writes";
