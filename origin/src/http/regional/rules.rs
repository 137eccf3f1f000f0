//! What the policy demands of one change, and the acknowledgement by other regions.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{RegionName, RepositoryName, Tag};
use flotilla_common::time::Time;
use flotilla_common::wire::region::FactKey;
use futures_util::future::join_all;
use http::Method;
use http::request::Parts;
use tokio::time::timeout;

use super::forward::sender_clocks;
use super::proxy::unavailable;
use crate::http::error::{ApiError, Code};
use crate::http::route::Route;
use crate::http::{Api, all_regions, is_from_region};
use crate::policy::Policy;
use crate::regions::clock_floor::ClockFloor;
use crate::regions::owed::Owed;
use crate::regions::regional::Regional;
use crate::registry::{ChangeRules, RegistryError};

/// How long other regions may take to tell the stamps of a change's keys.
const STAMPS_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long a push waits for what other regions have of its manifest.
pub(super) const COPY_TIMEOUT: Duration = Duration::from_secs(20);

/// The rules of a change of a repository's tags.
///
/// # Errors
/// The policy is too old to write by, and storage does not give a newer one.
pub(in crate::http) async fn change_rules(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    tags: &[Tag],
    keys: &[FactKey],
    request: &Parts,
) -> Result<ChangeRules, ApiError> {
    let policy = regional.members().live().for_write().await;
    let policy = policy.map_err(RegistryError::from)?;
    if !policy.exists() {
        return Ok(ChangeRules::default());
    }
    if regional.clock_check().is_wrong() {
        let message = "the clock of this machine is wrong, so changes cannot be ordered with those of other regions; correct it";
        return Err(ApiError::new(Code::Unavailable, message).with_retry_after(60));
    }
    let rule = policy.rule_for(repository);
    check_home(&policy, regional.own(), repository)?;
    let is_forwarded = is_from_region(request);
    let floor = ClockFloor {
        known: regional.known_clock(repository, tags),
        elsewhere: clock_elsewhere(api, regional, repository, keys).await,
        sender: sender_clocks(&request.headers).filter(|_| is_forwarded),
    };
    Ok(ChangeRules {
        owed_to: rule.others(regional.own()).cloned().collect(),
        immutable: tags
            .iter()
            .filter(|tag| rule.is_immutable(tag))
            .cloned()
            .collect(),
        above: floor.above(api.registry.unix_nanos()),
    })
}

/// Refuses a change of a repository that is made in another region, whatever the policy of a region
/// that forwarded the request says: two regions that write may break an immutable tag.
fn check_home(
    policy: &Policy,
    own: &RegionName,
    repository: &RepositoryName,
) -> Result<(), ApiError> {
    match &policy.rule_for(repository).home {
        Some(home) if home != own => Err(unavailable(format_args!(
            "the policy of region {own} says that changes of {repository} are made in region {home}; repeat the request there, or set the same policy in all regions"
        ))),
        _ => Ok(()),
    }
}

/// Refuses the push of a blob that another region forwarded to one that is not the home of the
/// repository.
///
/// # Errors
/// 503, with the name of the home.
pub(in crate::http) fn check_forwarded(
    api: &Api,
    route: &Route,
    request: &Parts,
) -> Result<(), ApiError> {
    let Some(regional) = &api.regional else {
        return Ok(());
    };
    let is_push = is_from_region(request) && request.method == Method::POST;
    match route {
        Route::Uploads { repository } if is_push => {
            let policy = regional.members().policy();
            check_home(policy.policy(), regional.own(), repository)
        }
        _ => Ok(()),
    }
}

/// The highest clock of the keys in regions that owe something of the repository: a change here
/// comes after what a client may have read there.
async fn clock_elsewhere(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    keys: &[FactKey],
) -> Option<u64> {
    if !regional.has_others() {
        return None;
    }
    let asked = async {
        let looked_up = regional.owed(repository, api.clock.now()).await;
        let Owed::By(regions) = looked_up.owed else {
            return None;
        };
        let routes = regional.routes();
        let others = routes.usable_others();
        let owing = others
            .iter()
            .filter(|source| regions.contains(source.region()));
        let facts = join_all(owing.map(|source| source.facts(keys))).await;
        let facts = facts.into_iter().filter_map(Result::ok).flatten();
        facts.filter_map(|fact| Some(fact.stamp()?.clock)).max()
    };
    timeout(STAMPS_TIMEOUT, asked).await.ok().flatten()
}

/// Tells the other regions of a change, and waits until as many as the policy demands have it.
///
/// # Errors
/// Too few have it: the change is written here and will be copied, but is not acknowledged.
pub(in crate::http) async fn acknowledge(
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    keys: Vec<FactKey>,
    bytes: u64,
) -> Result<(), ApiError> {
    let policy = regional.members().policy();
    let rule = policy.policy().rule_for(repository);
    let sources = regional.keepers(repository);
    let needed = rule.ack_regions.saturating_sub(1);
    if needed == 0 {
        regional.hints().send(sources, keys, Vec::new());
        return Ok(());
    }
    let acknowledged = regional.hints().wait(sources, keys, needed, bytes).await;
    acknowledged.map_err(|missing| {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        unavailable(format_args!(
            "the change is written in this region, but not acknowledged: the policy demands {} regions, and {} did not copy it in time; repeat the request",
            rule.ack_regions,
            missing.join(", ")
        ))
    })
}

/// Brings what a manifest references and this region lacks from the other regions, so that the
/// push of the manifest can be repeated. A copy that takes longer goes on after the answer.
///
/// # Errors
/// `error` if no region has it; 503 if one that may have it does not answer, or the copy takes
/// longer than a client waits.
pub(in crate::http) async fn bring_references(
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    manifest: &Bytes,
    error: RegistryError,
) -> Result<(), ApiError> {
    let digest = Digest::sha256(manifest);
    let Ok(manifest) = Manifest::parse(manifest) else {
        return Err(error.into());
    };
    let undecided = |reason: &str| {
        unavailable(format_args!(
            "{error}; another region may have it: {reason}. Repeat the request"
        ))
    };
    let copy = regional.bring_references(repository, &digest, manifest);
    match timeout(COPY_TIMEOUT, copy).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(error.into()),
        Ok(Err(reason)) => Err(undecided(&reason)),
        Err(_) => Err(undecided("it is being copied")),
    }
}

/// Brings what other regions owe of keys that were absent here at `read_at`, so that a delete can
/// be repeated.
///
/// # Errors
/// `error` if no region owes any of them, now or since `read_at`; 503 if one that may does not
/// answer.
pub(in crate::http) async fn bring_owed(
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    keys: &[FactKey],
    read_at: Time,
    error: RegistryError,
) -> Result<(), ApiError> {
    let undecided = |reason: &str| {
        unavailable(format_args!(
            "{error}; another region may have it: {reason}"
        ))
    };
    let looked_up = regional.owed(repository, read_at).await;
    let regions = match looked_up.owed {
        Owed::By(regions) => regions,
        Owed::Unknown => return Err(undecided("it does not answer")),
        Owed::Nothing if looked_up.reads_again => return Ok(()),
        Owed::Nothing => return Err(error.into()),
    };
    for region in regions {
        for key in keys {
            regional
                .bring_awaited(&region, key)
                .await
                .map_err(|reason| undecided(&reason))?;
        }
    }
    Ok(())
}

/// Tells the regions that keep a repository of a blob that a manifest will name soon, so that
/// little is left to copy when the manifest comes.
pub(in crate::http) fn announce_blob(api: &Api, repository: &RepositoryName, digest: &Digest) {
    let Some(regional) = all_regions(api) else {
        return;
    };
    let blobs = vec![(repository.clone(), *digest)];
    let sources = regional.keepers(repository);
    regional.hints().send(sources, Vec::new(), blobs);
}
