//! Manifests by tag. A tag can change, so regions may know different values: the highest stamp
//! wins.
//!
//! | own storage | answer |
//! |---|---|
//! | answers | its value; absent and owed: the value of a region that owes something |
//! | answers, and tags are to be the freshest | the highest stamp of it and of the regions that owe; marked as maybe old if one of them, or a region that may owe something, does not answer |
//! | answers, and another region had a later value | the highest stamp of all regions that answer, and of that value |
//! | does not answer, and another region had a later value | the same, marked as maybe old |
//! | is out | the highest stamp of memory, however old, and of all regions that answer |
//! | is out for this replica alone | 503 |
//!
//! While the own storage is out, a delete in another region is no absence: a later push may be
//! here. So the answer is 503, unless the delete is a change that this region forwarded.

use core::time::Duration;
use std::sync::Arc;

use axum::body::Body;
use flotilla_common::digest::Digest;
use flotilla_common::name::{Reference, RepositoryName, Tag};
use flotilla_common::wire::region::{FactHead, FactKey};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::request::Parts;
use http::{Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use super::digest::by_digest;
use super::facts::{Authority, FactAnswer, authority, cut_off, read_fact};
use super::proxy::{ReadError, read_at, unavailable};
use super::read::{count_failure, mark_old, mark_old_unless};
use crate::http::manifests::OwnTag;
use crate::http::{Api, HandlerResult, manifests};
use crate::regions::copies::CopyJob;
use crate::regions::owed::OwingSources;
use crate::regions::regional::Regional;
use crate::regions::routes::{OWN, Routes};
use crate::regions::source::Source;
use crate::regions::source::one_fact;
use crate::registry::{KnownTag, RegistryError};

/// How long other regions may take to say what a tag names.
const FACT_TIMEOUT: Duration = Duration::from_millis(1500);
/// How much later than the first region the others may answer.
const LATER_THAN_FIRST: Duration = Duration::from_millis(500);
/// How long the own storage may take to say whether it has a later value than another region.
const OWN_TIMEOUT: Duration = Duration::from_millis(800);

/// The tag of a request.
struct TagRead<'a> {
    api: &'a Arc<Api>,
    regional: &'a Arc<Regional>,
    routes: &'a Arc<Routes>,
    repository: &'a RepositoryName,
    tag: &'a Tag,
    key: FactKey,
    request: &'a Parts,
}

/// What regions that were asked for a tag have.
struct Compared {
    /// The value with the highest stamp.
    highest: Option<KnownTag>,
    /// Whether all of them answered.
    is_complete: bool,
}

impl Compared {
    /// None was asked.
    const WITH_NONE: Self = Self {
        highest: None,
        is_complete: true,
    };
}

/// GET or HEAD of a manifest by tag.
pub(in crate::http) async fn by_tag(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    tag: &Tag,
    request: &Parts,
) -> HandlerResult {
    let routes = &regional.routes();
    let read = TagRead {
        api,
        regional,
        routes,
        repository,
        tag,
        key: FactKey::Tag(repository.clone(), tag.clone()),
        request,
    };
    match authority(api, routes).await {
        Authority::Own => {}
        Authority::OtherRegion => return read.during_outage().await,
        Authority::CutOff => return count_failure(regional, Err(cut_off())),
    }
    if let Some(beyond) = regional.ahead().beyond_own(&read.key).await {
        let elsewhere = read.compare(&routes.usable_others()).await.highest;
        let ahead = KnownTag::from(beyond.value);
        let later = elsewhere.filter(|elsewhere| elsewhere.stamp > ahead.stamp);
        let answer = read.answer(later.unwrap_or(ahead)).await;
        return mark_old_unless(beyond.is_sure, answer);
    }
    // Before the own read: an entry that is merged and dropped between the two is in the own
    // storage then.
    let owing = read.owing().await;
    read.while_own_answers(&owing).await
}

impl TagRead<'_> {
    /// Answers what the own storage has, or a later value of a region that owes something.
    async fn while_own_answers(&self, owing: &OwingSources) -> HandlerResult {
        let Self {
            api,
            regional,
            routes,
            repository,
            tag,
            request,
            ..
        } = *self;
        let reference = Reference::Tag(tag.clone());
        let own = || manifests::get(api, repository, &reference, request);
        let at_other = async |other: Arc<dyn Source>| {
            let value = self.value_at(&*other).await?;
            let digest = value.digest.ok_or(ReadError::Absent)?;
            let path = format!("/v2/{repository}/manifests/{digest}");
            let response = read_at(&*other, request, &path).await?;
            regional.show(repository, tag, &value);
            regional.copy_behind(other.region(), CopyJob::Key(self.key.clone()));
            Ok(response)
        };
        let answer = read_fact(api, regional, routes, repository, own, at_other).await;
        let (source, response) = match count_failure(regional, answer) {
            Ok(FactAnswer::Served(source, response)) => (source, response),
            // The own storage went out during the request: memory may still have the tag.
            Ok(FactAnswer::OtherRegion) => return self.during_outage().await,
            Err(error) if error.status() == StatusCode::NOT_FOUND => {
                return mark_old_unless(owing.is_complete, Err(error));
            }
            Err(error) => return Err(error),
        };
        regional.count_read(routes.other(source), "served");
        if source != OWN {
            return mark_old_unless(owing.is_complete, Ok(response));
        }
        let compared = self.compare(&owing.sources).await;
        let is_sure = owing.is_complete && compared.is_complete;
        let Some(OwnTag(own)) = response.extensions().get().cloned() else {
            return mark_old_unless(is_sure, Ok(response));
        };
        let later = compared.highest.filter(|later| later.stamp > own.stamp);
        let answer = match later {
            Some(later) => self.answer(later).await,
            None => self.refuse_deleted(own.digest, response).await,
        };
        mark_old_unless(is_sure, answer)
    }

    /// Answers the value of another region, of which the own storage is sure that it has none as
    /// new, or which this region forwarded.
    async fn answer(&self, value: KnownTag) -> HandlerResult {
        self.regional.show(self.repository, self.tag, &value);
        let digest = value.digest.ok_or(RegistryError::ManifestUnknown)?;
        by_digest(
            self.api,
            self.regional,
            self.repository,
            &digest,
            self.request,
        )
        .await
    }

    /// The response, unless a forwarded change deleted the manifest that the tag names.
    async fn refuse_deleted(&self, named: Digest, response: Response<Body>) -> HandlerResult {
        let key = FactKey::Manifest(self.repository.clone(), named);
        let deletes = self.regional.deletes(&key, true).await;
        match deletes.beyond_own {
            Some(deleted) => {
                let absent = Err(RegistryError::ManifestUnknown.into());
                mark_old_unless(deleted.is_sure, absent)
            }
            None => mark_old_unless(deletes.is_complete, Ok(response)),
        }
    }

    /// What the tag names in another region. An older value than that of the own storage, which
    /// may be a delete, does not count.
    async fn value_at(&self, source: &dyn Source) -> Result<KnownTag, ReadError> {
        let fact = one_fact(source, &self.key).await;
        let FactHead::Tag { stamp, digest } = fact.map_err(ReadError::Failed)?.head else {
            return Err(ReadError::Absent);
        };
        let own = timeout(OWN_TIMEOUT, self.api.registry.fact(&self.key)).await;
        match own {
            Ok(Ok(own)) if own.stamp() > Some(&stamp) => Err(ReadError::Absent),
            Ok(Ok(_)) => Ok(KnownTag::new(stamp, digest)),
            // It may have been deleted here.
            Ok(Err(_)) | Err(_) => Err(ReadError::NotAsked),
        }
    }

    /// The regions that may have a later value, if tags are to be the freshest.
    async fn owing(&self) -> OwingSources {
        if !self.regional.reads_freshest(self.repository) {
            return OwingSources {
                sources: Vec::new(),
                is_complete: true,
            };
        }
        let owing = self.regional.owing(self.repository).await;
        let mut sources = self.routes.usable_others();
        sources.retain(|source| owing.regions.contains(source.region()));
        OwingSources {
            sources,
            is_complete: owing.silent.is_empty(),
        }
    }

    /// The highest value among regions, unless they were asked a moment ago: then it was shown.
    async fn compare(&self, sources: &[Arc<dyn Source>]) -> Compared {
        let asked_lately = self.regional.compared();
        if sources.is_empty() || asked_lately.are_fresh(&self.key) {
            return Compared::WITH_NONE;
        }
        let asked = self.api.clock.now();
        let compared = self.highest(sources).await;
        if compared.is_complete {
            asked_lately.note(self.key.clone(), asked);
        }
        compared
    }

    /// While the own storage is out: the highest stamp that memory or another region knows.
    async fn during_outage(&self) -> HandlerResult {
        let others = self.routes.usable_others();
        let elsewhere = self.highest(&others).await.highest;
        let known = self.api.registry.known_tag(self.repository, self.tag);
        let ahead = self.regional.ahead().known(&self.key);
        let acknowledged = ahead.as_ref().filter(|ahead| ahead.is_acknowledged);
        // Stamps of this region's storage, and of what clients of this region were told.
        let own = [
            known.as_ref().map(|known| known.stamp.clone()),
            acknowledged.map(|ahead| ahead.stamp.clone()),
        ];
        let ahead = ahead.map(KnownTag::from);
        let values = [known, ahead, elsewhere.clone()].into_iter().flatten();
        let Some(best) = values.max_by(|a, b| a.stamp.cmp(&b.stamp)) else {
            return Err(unavailable(
                "the storage of this region does not answer, and no other region knows the tag; repeat the request",
            ));
        };
        if elsewhere.as_ref() == Some(&best) {
            self.regional.show(self.repository, self.tag, &best);
        }
        let Some(digest) = best.digest else {
            if own.contains(&Some(best.stamp)) {
                return mark_old(Err(RegistryError::ManifestUnknown.into()));
            }
            return Err(unavailable(
                "the storage of this region does not answer, and another region says that the tag was deleted; a later push may be here, so repeat the request",
            ));
        };
        let (api, regional) = (self.api, self.regional);
        mark_old(by_digest(api, regional, self.repository, &digest, self.request).await)
    }

    /// The highest stamp of the tag among regions: of all that answer soon after the first.
    async fn highest(&self, sources: &[Arc<dyn Source>]) -> Compared {
        let mut asked: FuturesUnordered<_> = sources
            .iter()
            .map(|source| {
                let fact = one_fact(&**source, &self.key);
                self.routes.observe(source.region(), fact)
            })
            .collect();
        let mut best: Option<KnownTag> = None;
        let mut answers = 0;
        let mut until = Instant::now() + FACT_TIMEOUT;
        while let Ok(Some(answer)) = timeout_at(until, asked.next()).await {
            let Ok(fact) = answer else { continue };
            answers += 1;
            until = until.min(Instant::now() + LATER_THAN_FIRST);
            if let FactHead::Tag { stamp, digest } = fact.head
                && best.as_ref().is_none_or(|best| best.stamp < stamp)
            {
                best = Some(KnownTag::new(stamp, digest));
            }
        }
        Compared {
            highest: best,
            is_complete: answers == sources.len(),
        }
    }
}
