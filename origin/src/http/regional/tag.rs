//! Manifests by tag. A tag can change, so regions may know different values: the highest stamp
//! wins.
//!
//! | own storage | answer |
//! |---|---|
//! | answers | its value; absent and owed: the value of a region that owes something |
//! | answers, and tags are to be the freshest | the highest stamp of it and of the regions that owe |
//! | is out | the highest stamp of memory, however old, and of all regions that answer |
//! | is out for this replica alone | 503 |

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::name::{Reference, RepositoryName, Tag};
use flotilla_common::wire::region::{FactHead, FactKey};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::request::Parts;
use tokio::time::{Instant, timeout_at};

use super::facts::{Authority, FactAnswer, authority, cut_off, read_fact};
use super::proxy::{ReadError, read_at, unavailable};
use super::read::{by_digest, count_failure, mark_old};
use crate::http::{Api, HandlerResult, manifests};
use crate::policy::TagReads;
use crate::regions::copies::CopyJob;
use crate::regions::owed::Owed;
use crate::regions::regional::Regional;
use crate::regions::routes::{OWN, Routes};
use crate::regions::source::Source;
use crate::regions::source::one_fact;
use crate::registry::{KnownTag, RegistryError};

/// How long other regions may take to say what a tag names.
const FACT_TIMEOUT: Duration = Duration::from_millis(1500);
/// How much later than the first region the others may answer.
const LATER_THAN_FIRST: Duration = Duration::from_millis(500);

/// GET or HEAD of a manifest by tag.
pub(in crate::http) async fn by_tag(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    tag: &Tag,
    request: &Parts,
) -> HandlerResult {
    let routes = regional.routes();
    match authority(api, &routes).await {
        Authority::Own => {}
        Authority::OtherRegion => {
            return during_outage(api, regional, &routes, repository, tag, request).await;
        }
        Authority::CutOff => return count_failure(regional, Err(cut_off())),
    }
    if let Some(told) = regional.told_tag(repository, tag).await {
        let digest = told.digest.ok_or(RegistryError::ManifestUnknown)?;
        return by_digest(api, regional, repository, &digest, request).await;
    }
    let reference = Reference::Tag(tag.clone());
    let own = || manifests::get(api, repository, &reference, request);
    let at_other = async |other: Arc<dyn Source>| {
        let digest = value_at(api, regional, &*other, repository, tag).await?;
        let path = format!("/v2/{repository}/manifests/{digest}");
        let response = read_at(&*other, request, &path).await?;
        let key = FactKey::Tag(repository.clone(), tag.clone());
        regional.copy_behind(other.region(), CopyJob::Key(key));
        Ok(response)
    };
    let answer = read_fact(api, regional, &routes, repository, own, at_other).await;
    match count_failure(regional, answer)? {
        FactAnswer::Served(OWN, response) => {
            regional.count_read(None, "served");
            match newer_elsewhere(api, regional, &routes, repository, tag).await {
                Some(newer) => {
                    regional.show(repository, tag, &newer.stamp);
                    let digest = newer.digest.ok_or(RegistryError::ManifestUnknown)?;
                    by_digest(api, regional, repository, &digest, request).await
                }
                None => Ok(response),
            }
        }
        FactAnswer::Served(source, response) => {
            regional.count_read(routes.other(source), "served");
            Ok(response)
        }
        // The own storage went out during the request: memory may still have the tag.
        FactAnswer::OtherRegion => {
            during_outage(api, regional, &routes, repository, tag, request).await
        }
    }
}

/// What a tag names in another region, if that is newer than the value here: a tombstone here is
/// replaced only by a higher stamp.
async fn value_at(
    api: &Arc<Api>,
    regional: &Regional,
    source: &dyn Source,
    repository: &RepositoryName,
    tag: &Tag,
) -> Result<Digest, ReadError> {
    let key = FactKey::Tag(repository.clone(), tag.clone());
    let fact = one_fact(source, &key).await.map_err(ReadError::Failed)?;
    let FactHead::Tag {
        stamp,
        digest: Some(digest),
    } = fact.head
    else {
        return Err(ReadError::Absent);
    };
    match api.registry.known_tag(repository, tag) {
        Some(known) if known.stamp > stamp => known.digest.ok_or(ReadError::Absent),
        _ => {
            regional.show(repository, tag, &stamp);
            Ok(digest)
        }
    }
}

/// The value of a tag in a region that owes something, if tags are to be the freshest and it is
/// newer than the own one, which was just read. Without an answer in time the own value counts.
async fn newer_elsewhere(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    routes: &Routes,
    repository: &RepositoryName,
    tag: &Tag,
) -> Option<KnownTag> {
    let policy = regional.members().policy();
    let rule = policy.policy().rule_for(repository);
    if rule.tag_reads != TagReads::Freshest && !regional.is_freshest() {
        return None;
    }
    let read_at = api.clock.now();
    let Owed::By(regions) = regional.owed(repository, read_at).await.owed else {
        return None;
    };
    let mut sources = routes.usable_others();
    sources.retain(|source| regions.contains(source.region()));
    let best = highest(&sources, repository, tag).await?;
    // The own value was just read.
    let own = api.registry.known_tag(repository, tag);
    own.is_none_or(|own| best.stamp > own.stamp).then_some(best)
}

/// While the own storage is out: the highest stamp that memory or another region knows.
async fn during_outage(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    routes: &Routes,
    repository: &RepositoryName,
    tag: &Tag,
    request: &Parts,
) -> HandlerResult {
    let elsewhere = highest(&routes.usable_others(), repository, tag).await;
    let known = api.registry.known_tag(repository, tag);
    let best = match (elsewhere, known) {
        (Some(elsewhere), Some(known)) if known.stamp > elsewhere.stamp => known,
        (Some(elsewhere), _) => elsewhere,
        (None, Some(known)) => known,
        (None, None) => {
            return Err(unavailable(
                "the storage of this region does not answer, and no other region knows the tag; repeat the request",
            ));
        }
    };
    regional.show(repository, tag, &best.stamp);
    let digest = best.digest.ok_or(RegistryError::ManifestUnknown)?;
    let mut response = by_digest(api, regional, repository, &digest, request).await?;
    mark_old(&mut response);
    Ok(response)
}

/// The highest stamp of a tag among regions: of all that answer soon after the first.
async fn highest(
    sources: &[Arc<dyn Source>],
    repository: &RepositoryName,
    tag: &Tag,
) -> Option<KnownTag> {
    let key = FactKey::Tag(repository.clone(), tag.clone());
    let mut asked: FuturesUnordered<_> = sources
        .iter()
        .map(|source| one_fact(&**source, &key))
        .collect();
    let mut best: Option<KnownTag> = None;
    let mut until = Instant::now() + FACT_TIMEOUT;
    while let Ok(Some(answer)) = timeout_at(until, asked.next()).await {
        let Ok(fact) = answer else { continue };
        until = until.min(Instant::now() + LATER_THAN_FIRST);
        if let FactHead::Tag { stamp, digest } = fact.head
            && best.as_ref().is_none_or(|best| best.stamp < stamp)
        {
            best = Some(KnownTag::new(stamp, digest));
        }
    }
    best
}
