//! Manifests by digest. Their content cannot be old, but one may have been deleted, or pushed
//! again: an answer that may not know of that is marked as maybe old.
//!
//! | own storage | there | absent, or deleted |
//! |---|---|---|
//! | answers | as it is | as it is; owed: what the other region has |
//! | answers, but a region may owe something and does not answer | marked | marked |
//! | does not answer, or is out | from memory or another region, marked | 503; a forwarded delete: 404, marked |
//! | is out for this replica alone | the same | 503 |

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::failover::SourceId;
use flotilla_common::name::{Reference, RepositoryName};
use flotilla_common::wire::region::FactKey;
use futures_util::future::join;
use http::StatusCode;
use http::request::Parts;
use tokio::time::timeout;

use super::facts::{Authority, authority, cut_off};
use super::proxy::{ReadError, read_at};
use super::read::{ask, content, count_failure, mark_old, mark_old_unless, own_answer};
use crate::http::{Api, HandlerResult, manifests};
use crate::regions::absence::deleted_at;
use crate::regions::copies::CopyJob;
use crate::regions::regional::Regional;
use crate::regions::routes::OWN;
use crate::regions::source::Source;
use crate::registry::RegistryError;

/// How long the own storage may take to say whether a manifest was deleted here, while another
/// region sends it.
const DELETE_TIMEOUT: Duration = Duration::from_millis(300);

/// GET or HEAD of a manifest by digest.
pub(in crate::http) async fn by_digest(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    digest: &Digest,
    request: &Parts,
) -> HandlerResult {
    let routes = regional.routes();
    let key = FactKey::Manifest(repository.clone(), *digest);
    let authority = authority(api, &routes).await;
    let own_decides = authority == Authority::Own;
    let deletes = regional.deletes(&key, own_decides).await;
    if let Some(deleted) = deletes.beyond_own {
        if authority == Authority::CutOff {
            return count_failure(regional, Err(cut_off()));
        }
        let absent = Err(RegistryError::ManifestUnknown.into());
        return mark_old_unless(deleted.is_sure, absent);
    }
    if !own_decides && let Some(manifest) = api.registry.known_manifest(repository, digest) {
        return mark_old(Ok(manifests::response_of(&manifest, request)));
    }
    let is_delete_known = AtomicBool::new(false);
    let reference = Reference::Digest(*digest);
    let path = format!("/v2/{repository}/manifests/{digest}");
    let own = || manifests::get(api, repository, &reference, request);
    let own = || own_answer(regional, repository, Some(&key), own);
    let call = |source: SourceId| {
        let (routes, path, own, key) = (&routes, &path, &own, &key);
        let is_delete_known = &is_delete_known;
        async move {
            let Some(other) = routes.other(source) else {
                return own().await;
            };
            let read = read_at(&**other, request, path);
            if !own_decides {
                return read.await;
            }
            let (is_known, read) = join(refuse_deleted(regional, &**other, key), read).await;
            is_delete_known.store(is_known?, Ordering::Relaxed);
            read
        }
    };
    let answer = ask(regional, &routes, content(digest), call).await;
    let is_sure = match &answer {
        Ok((OWN, _)) => deletes.is_complete,
        Ok(_) => is_delete_known.into_inner(),
        Err(error) => deletes.is_complete || error.status() != StatusCode::NOT_FOUND,
    };
    if let Ok((from, _)) = &answer
        && let Some(other) = routes.other(*from)
        && !routes.is_own_out()
    {
        regional.copy_behind(other.region(), CopyJob::Key(key));
    }
    mark_old_unless(is_sure, answer.map(|(_, response)| response))
}

/// Refuses the manifest of another region if this region has deleted it later. The own storage may
/// not have been asked: it lacked the content a moment ago, so the other region is asked first.
/// Returns whether the own storage answered; otherwise nothing is known of a delete.
async fn refuse_deleted(
    regional: &Regional,
    source: &dyn Source,
    key: &FactKey,
) -> Result<bool, ReadError> {
    let absence = regional.absence(key.repository());
    let Ok(Ok(own)) = timeout(DELETE_TIMEOUT, absence.registry.fact(key)).await else {
        return Ok(false);
    };
    let Some(deleted) = deleted_at(&own.head) else {
        return Ok(true);
    };
    let regions = [source.region().clone()];
    match absence.is_later_elsewhere(key, deleted, &regions).await {
        Some(true) => Ok(true),
        // The own storage decides.
        _ => Err(ReadError::Absent),
    }
}
