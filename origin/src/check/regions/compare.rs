//! Walks the keys of two regions side by side, and the blobs of their manifests.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::wire::region::{
    Fact, FactHead, FactKey, FactKind, MAX_FACTS, MAX_KEYS, RegionState,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::StatusCode;
use tokio::time::sleep;

use super::difference::{Difference, difference};
use super::journal::{OwedKeys, keys_owed_by};
use super::{PAUSE, RegionCheck, RegionReport, RegionsReport, ask, error_of, retried};
use crate::check::Checker;
use crate::check::manifests::Target;
use crate::layout;
use crate::regions::source::{Source, SourceError};
use crate::registry::{list_fact_keys, read_fact};
use crate::storage::StorageError;

/// Values and blobs read concurrently.
const READS_AT_ONCE: usize = 16;
/// Differences that are looked at again at the end; further ones are damage without a second look.
const MAX_UNEXPLAINED: usize = 10_000;
/// How often a key that keeps changing is looked at.
const MAX_LOOKS: u32 = 3;
/// Digests of a repository's blobs that are remembered as checked.
const MAX_CHECKED: usize = 100_000;

/// Another region's failure ends the walk with a problem, the own storage's with an error.
type Walked<T> = Result<Result<T, SourceError>, StorageError>;

/// Unwraps the other region's answer, or ends the walk with its failure.
macro_rules! asked {
    ($answer:expr) => {
        match $answer {
            Ok(value) => value,
            Err(error) => return Ok(Err(error)),
        }
    };
}

/// A key with its value in the checking region and in the other one.
struct Pair {
    key: FactKey,
    own: Fact,
    other: Fact,
}

/// A difference that nothing explains yet. The bytes of manifests are left out.
struct Unexplained {
    key: FactKey,
    own: FactHead,
    other: FactHead,
}

impl From<Pair> for Unexplained {
    fn from(pair: Pair) -> Self {
        Self {
            key: pair.key,
            own: pair.own.head,
            other: pair.other.head,
        }
    }
}

/// The walk over the keys of the checking region and one other.
struct Walk<'a> {
    check: &'a RegionCheck,
    source: &'a dyn Source,
    /// Whether a sweep is yet to bring what the checking region lacks.
    own_is_swept: bool,
    /// Whether a sweep is yet to bring what the other region lacks.
    other_is_swept: bool,
    clock_of_other: u64,
}

impl RegionCheck {
    /// Compares every key that both regions keep.
    pub(super) async fn compare_keys(
        &self,
        source: &dyn Source,
        state: &RegionState,
        about: &RegionReport,
        report: &mut RegionsReport,
    ) -> Walked<()> {
        let walk = Walk {
            check: self,
            source,
            own_is_swept: !about.whole_from_it,
            other_is_swept: !state.is_whole,
            clock_of_other: state.clock,
        };
        let mut journals = asked!(walk.journals().await?);
        let mut unexplained: Vec<Unexplained> = Vec::new();
        let mut blobs = CheckedBlobs::default();
        for kind in [FactKind::Manifests, FactKind::Tags] {
            let mut keys = SideBySide::new(kind);
            loop {
                let batch = asked!(keys.next_batch(&walk).await?);
                if batch.is_empty() {
                    break;
                }
                for pair in asked!(walk.pairs(batch).await?) {
                    report.compared = report.compared.map(|compared| compared + 1);
                    let Some(found) = difference(&pair.own, &pair.other) else {
                        asked!(walk.compare_blobs(&pair, &mut blobs, report).await?);
                        continue;
                    };
                    match walk.reason(&journals, &pair.key, &found) {
                        Some(reason) => walk.add_pending(report, &pair.key, &found, &reason),
                        None if unexplained.len() < MAX_UNEXPLAINED => {
                            unexplained.push(pair.into())
                        }
                        None => walk.add_damage(report, &pair.key, &found),
                    }
                }
            }
        }
        for look in 1..=MAX_LOOKS {
            if unexplained.is_empty() {
                break;
            }
            // A region answers with a journal that is at most a second old.
            sleep(2 * PAUSE).await;
            journals = asked!(walk.journals().await?);
            let mut changing = Vec::new();
            for before in core::mem::take(&mut unexplained) {
                let now = asked!(walk.pairs(vec![before.key.clone()]).await?);
                let Some(now) = now.into_iter().next() else {
                    continue;
                };
                let Some(found) = difference(&now.own, &now.other) else {
                    continue;
                };
                let is_same = now.own.head == before.own && now.other.head == before.other;
                match walk.reason(&journals, &now.key, &found) {
                    Some(reason) => walk.add_pending(report, &now.key, &found, &reason),
                    // It differed before and after the journal was read, which does not have it.
                    None if is_same => walk.add_damage(report, &now.key, &found),
                    None if look == MAX_LOOKS => {
                        walk.add_pending(report, &now.key, &found, "it keeps changing");
                    }
                    None => changing.push(now.into()),
                }
            }
            unexplained = changing;
        }
        Ok(Ok(()))
    }
}

/// What the checking region owes the other, and the reverse.
struct Journals {
    to_other: OwedKeys,
    from_other: OwedKeys,
}

impl Walk<'_> {
    fn own(&self) -> &RegionName {
        &self.check.own
    }

    async fn journals(&self) -> Walked<Journals> {
        let to_other = self.check.keys_owed_to(self.source.region()).await?;
        let from_other = asked!(keys_owed_by(self.source).await);
        Ok(Ok(Journals {
            to_other,
            from_other,
        }))
    }

    /// Whether both regions keep the repository of a key.
    fn both_keep(&self, key: &FactKey) -> bool {
        let rule = self.check.policy.rule_for(key.repository());
        rule.includes(self.own()) && rule.includes(self.source.region())
    }

    /// The values of keys on both sides, in their order.
    async fn pairs(&self, keys: Vec<FactKey>) -> Walked<Vec<Pair>> {
        let own = stream::iter(&keys).map(|key| read_fact(&*self.check.storage, key));
        let own: Vec<_> = own.buffered(READS_AT_ONCE).try_collect().await?;
        let mut others = Vec::with_capacity(keys.len());
        while others.len() < keys.len() {
            let left = keys.get(others.len()..).unwrap_or_default();
            let facts = asked!(retried(|| self.source.facts(left)).await);
            if facts.is_empty() {
                let reason = "it answered no value of a key".to_owned();
                return Ok(Err(error_of(self.source, reason)));
            }
            others.extend(facts);
        }
        let pairs = keys.into_iter().zip(own).zip(others);
        Ok(Ok(pairs
            .map(|((key, own), other)| Pair { key, own, other })
            .collect()))
    }

    /// Why replication will bring a key; `None` if nothing will.
    fn reason(&self, journals: &Journals, key: &FactKey, found: &Difference) -> Option<String> {
        let (journal, is_swept, now) = match found {
            Difference::OwnBehind(_) => {
                (&journals.from_other, self.own_is_swept, self.clock_of_other)
            }
            Difference::OtherBehind(_) => {
                let now = self.check.clock.unix_nanos();
                (&journals.to_other, self.other_is_swept, now)
            }
            Difference::Conflict => return None,
        };
        let reason = journal.reason(key, now);
        reason.or_else(|| is_swept.then(|| "the region is not whole yet".to_owned()))
    }

    fn text(&self, found: &Difference) -> String {
        match found {
            Difference::OwnBehind(what) => format!("{what} in region {}", self.own()),
            Difference::OtherBehind(what) => format!("{what} in region {}", self.source.region()),
            Difference::Conflict => format!(
                "has one stamp and two values in regions {} and {}",
                self.own(),
                self.source.region()
            ),
        }
    }

    fn add_pending(
        &self,
        report: &mut RegionsReport,
        key: &FactKey,
        found: &Difference,
        why: &str,
    ) {
        let text = format!("{}, not yet replicated: {why}", self.text(found));
        report.pending.add(&layout::fact(key), text);
    }

    fn add_damage(&self, report: &mut RegionsReport, key: &FactKey, found: &Difference) {
        let text = format!("{}, and not owed", self.text(found));
        report.damage.add(&layout::fact(key), text);
    }

    /// Compares which blobs of a manifest the regions have, if both have the manifest.
    async fn compare_blobs(
        &self,
        pair: &Pair,
        checked: &mut CheckedBlobs,
        report: &mut RegionsReport,
    ) -> Walked<()> {
        let FactKey::Manifest(repository, _) = &pair.key else {
            return Ok(Ok(()));
        };
        let is_live = |fact: &Fact| matches!(fact.head, FactHead::Manifest { .. });
        if !is_live(&pair.own) || !is_live(&pair.other) {
            return Ok(Ok(()));
        }
        let Ok(manifest) = Manifest::parse(&pair.own.bytes) else {
            report
                .damage
                .add(&layout::fact(&pair.key), "is not a manifest".to_owned());
            return Ok(Ok(()));
        };
        let blobs = manifest.blobs().into_iter().map(|blob| blob.digest);
        let blobs: Vec<_> = blobs
            .filter(|blob| checked.insert(repository, *blob))
            .collect();
        let mut looks = stream::iter(blobs)
            .map(|blob| async move {
                let own = self.own_has(repository, blob).await?;
                let other = retried(|| self.other_has(repository, blob)).await;
                Ok::<_, StorageError>((blob, own, other))
            })
            .buffered(READS_AT_ONCE);
        while let Some((blob, own, other)) = looks.try_next().await? {
            let other = asked!(other);
            if own != other {
                let (has, lacks) = if own {
                    (self.own(), self.source.region())
                } else {
                    (self.source.region(), self.own())
                };
                report.damage.add(
                    &layout::fact(&pair.key),
                    format!(
                        "its blob {blob} is in region {has}, but lost or deleted in region {lacks}; push the image there again"
                    ),
                );
            }
        }
        Ok(Ok(()))
    }

    async fn own_has(
        &self,
        repository: &RepositoryName,
        blob: Digest,
    ) -> Result<bool, StorageError> {
        let checker = Checker {
            storage: Arc::clone(&self.check.storage),
            deep: false,
        };
        let target = checker.blob_target(repository, &blob).await?;
        Ok(matches!(target, Target::Present))
    }

    async fn other_has(
        &self,
        repository: &RepositoryName,
        blob: Digest,
    ) -> Result<bool, SourceError> {
        let path = format!("/v2/{repository}/blobs/{blob}");
        match ask(self.source, "HEAD", &path).await? {
            (status, _) if status.is_success() => Ok(true),
            (StatusCode::NOT_FOUND, _) => Ok(false),
            (status, _) => Err(error_of(
                self.source,
                format!("it answered {status} to HEAD {path}"),
            )),
        }
    }
}

/// Blobs of one repository that were checked; keys are walked repository by repository.
#[derive(Default)]
struct CheckedBlobs {
    repository: Option<RepositoryName>,
    digests: HashSet<Digest>,
}

impl CheckedBlobs {
    /// Whether the blob was not checked yet, as far as is remembered.
    fn insert(&mut self, repository: &RepositoryName, blob: Digest) -> bool {
        if self.repository.as_ref() != Some(repository) || self.digests.len() >= MAX_CHECKED {
            self.repository = Some(repository.clone());
            self.digests.clear();
        }
        self.digests.insert(blob)
    }
}

/// The keys of one kind on both sides, merged in the order of storage.
struct SideBySide {
    kind: FactKind,
    own: Listing,
    other: Listing,
}

/// One side's keys, page by page.
struct Listing {
    page: VecDeque<FactKey>,
    after: Option<FactKey>,
    more: bool,
}

impl Listing {
    const fn new() -> Self {
        Self {
            page: VecDeque::new(),
            after: None,
            more: true,
        }
    }

    fn needs_page(&self) -> bool {
        self.page.is_empty() && self.more
    }

    fn fill(&mut self, page: flotilla_common::wire::region::KeysPage) {
        // Without a last key there is no place to go on from.
        self.more = page.more && !page.keys.is_empty();
        self.after = page.keys.last().cloned().or_else(|| self.after.take());
        self.page.extend(page.keys);
    }
}

impl SideBySide {
    const fn new(kind: FactKind) -> Self {
        Self {
            kind,
            own: Listing::new(),
            other: Listing::new(),
        }
    }

    /// The next keys that both regions keep; none at the end.
    async fn next_batch(&mut self, walk: &Walk<'_>) -> Walked<Vec<FactKey>> {
        let mut batch = Vec::new();
        while batch.len() < MAX_FACTS {
            if self.own.needs_page() {
                let after = self.own.after.as_ref();
                let storage = &*walk.check.storage;
                let page = list_fact_keys(storage, self.kind, after, MAX_KEYS).await?;
                self.own.fill(page);
            }
            if self.other.needs_page() {
                let after = self.other.after.as_ref();
                let page = retried(|| walk.source.keys(self.kind, after, MAX_KEYS)).await;
                self.other.fill(asked!(page));
            }
            let Some(key) = self.next_key() else {
                break;
            };
            if walk.both_keep(&key) {
                batch.push(key);
            }
        }
        Ok(Ok(batch))
    }

    /// The first key of both pages, taken from each page that has it.
    fn next_key(&mut self) -> Option<FactKey> {
        let name = |key: &FactKey| layout::fact(key);
        let key = match (self.own.page.front(), self.other.page.front()) {
            (Some(own), Some(other)) if name(own).as_str() <= name(other).as_str() => own.clone(),
            (Some(own), None) => own.clone(),
            (_, Some(other)) => other.clone(),
            (None, None) => return None,
        };
        for side in [&mut self.own, &mut self.other] {
            if side.page.front() == Some(&key) {
                side.page.pop_front();
            }
        }
        Some(key)
    }
}
