//! What the policy demands of one change, and the acknowledgement by other regions.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::time::Time;
use flotilla_common::wire::region::{Fact, FactHead, FactKey};
use futures_util::future::join_all;
use http::Method;
use http::request::Parts;
use tokio::time::timeout;

use super::forward::sender_clocks;
use super::proxy::unavailable;
use crate::http::error::{ApiError, Code};
use crate::http::route::Route;
use crate::http::{Api, FromRegion, all_regions, is_from_region};
use crate::policy::{Policy, RepositoryRule};
use crate::region_certificate::MissingRegion;
use crate::regions::clock_floor::ClockFloor;
use crate::regions::owed::Owed;
use crate::regions::regional::Regional;
use crate::regions::source::{Source, one_fact};
use crate::registry::{ChangeRules, RegistryError, UnseenValue};

/// How long other regions may take to tell the stamps of a change's keys.
const STAMPS_TIMEOUT: Duration = Duration::from_millis(1500);

/// The size in bytes from which on other regions are told of each blob that is pushed.
const ANNOUNCED_SIZE: u64 = 1 << 20;

/// How long a push waits for what other regions have of its manifest.
pub(super) const COPY_TIMEOUT: Duration = Duration::from_secs(20);

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum ChangeKind {
    Push,
    Delete,
}

/// The rules of a change of keys of a repository.
///
/// # Errors
/// The policy is too old to write by, and storage does not give a newer one; or this process cannot
/// write by it.
pub(in crate::http) async fn change_rules(
    api: &Arc<Api>,
    kind: ChangeKind,
    repository: &RepositoryName,
    keys: &[FactKey],
    request: &Parts,
) -> Result<ChangeRules, ApiError> {
    let own = api.regions.own();
    let policy = api.regions.policy().for_write().await;
    let policy = policy.map_err(RegistryError::from)?;
    if !policy.exists() {
        return Ok(ChangeRules::default());
    }
    check_home(&policy, own, repository)?;
    let rule = policy.rule_for(repository);
    let tags = keys.iter().filter_map(|key| match key {
        FactKey::Tag(_, tag) => Some(tag),
        FactKey::Manifest(..) => None,
    });
    let immutable = tags.filter(|tag| rule.is_immutable(tag)).cloned().collect();
    let Some(regional) = &api.regional else {
        return match policy.others(own).next() {
            // No follower would hear of the change.
            Some(_) => Err(unavailable(MissingRegion::of(own))),
            None => Ok(ChangeRules {
                immutable,
                ..ChangeRules::default()
            }),
        };
    };
    let clock_check = regional.clock_check();
    if clock_check.refuses_changes(&api.registry).await {
        let message = "the clock of this machine is wrong, so changes cannot be ordered with those of other regions; correct it";
        return Err(ApiError::new(Code::Unavailable, message).with_retry_after(60));
    }
    // A region that no longer keeps the repository may have its keys, and may keep it again after
    // the tombstone was removed.
    let owed_to = match kind {
        ChangeKind::Push => rule.others(own).cloned().collect(),
        ChangeKind::Delete => policy.others(own).map(|it| it.name.clone()).collect(),
    };
    let is_forwarded = is_from_region(request);
    let floor = ClockFloor {
        known: regional.known_clock(keys),
        elsewhere: clock_elsewhere(regional, repository, keys).await,
        sender: sender_clocks(&request.headers).filter(|_| is_forwarded),
    };
    Ok(ChangeRules {
        owed_to,
        immutable,
        above: floor.above(api.registry.unix_nanos()),
        unseen: None,
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
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    keys: &[FactKey],
) -> Option<u64> {
    if !regional.has_others() {
        return None;
    }
    let asked = async {
        let regions = regional.owing(repository).await.regions;
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
    let needed = rule.ack_regions.saturating_sub(1);
    if needed == 0 {
        let sources = answering_keepers(regional, rule);
        regional.hints().send(sources, keys, Vec::new());
        return Ok(());
    }
    let sources = regional.keepers(repository);
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

/// What other regions owe of a key that is absent here.
#[derive(Debug)]
pub(in crate::http) enum OwedValue {
    /// The latest live value.
    Live(UnseenValue),
    /// It may have arrived since it was read here.
    ReadAgain,
    Nothing,
}

/// The latest value that other regions owe of a key that was absent here at `read_at`, so that a
/// delete can be written above it. The value is not copied.
///
/// # Errors
/// 503 if a region that may owe it does not answer. The region that forwarded the delete may: its
/// storage is out, so it does not list what it owes.
pub(in crate::http) async fn owed_value(
    regional: &Arc<Regional>,
    repository: &RepositoryName,
    key: &FactKey,
    read_at: Time,
    request: &Parts,
) -> Result<OwedValue, ApiError> {
    let undecided = |reason: &str| {
        unavailable(format_args!(
            "it is absent here, and another region may have it: {reason}; repeat the request"
        ))
    };
    let looked_up = regional.owed(repository, read_at).await;
    let sender = request.extensions.get::<FromRegion>();
    if let Some(FromRegion(sender)) = sender.filter(|it| looked_up.silent.contains(&it.0)) {
        return Err(undecided(&format!(
            "region {sender}, which forwarded the request, does not list what it owes"
        )));
    }
    let regions = match looked_up.owed {
        Owed::By(regions) => regions,
        Owed::Unknown => return Err(undecided("it was asked too often for absent content")),
        Owed::Nothing if looked_up.reads_again => return Ok(OwedValue::ReadAgain),
        Owed::Nothing => return Ok(OwedValue::Nothing),
    };
    let routes = regional.routes();
    let owing = routes.others_where(|region| regions.contains(region));
    let facts = owing
        .iter()
        .map(|source| timeout(STAMPS_TIMEOUT, one_fact(&**source, key)));
    let mut live = Vec::new();
    for fact in join_all(facts).await {
        let fact = fact.map_err(|_| undecided("it does not answer in time"))?;
        let fact = fact.map_err(|error| undecided(&error.to_string()))?;
        live.extend(live_value(fact));
    }
    let latest = live.into_iter().max_by(|a, b| a.stamp.cmp(&b.stamp));
    Ok(latest.map_or(OwedValue::Nothing, OwedValue::Live))
}

/// The stamp of a live value, and the subject of a live manifest.
fn live_value(fact: Fact) -> Option<UnseenValue> {
    match fact.head {
        FactHead::Manifest { stamp, .. } => {
            let subject = Manifest::parse(&fact.bytes)
                .ok()?
                .subject
                .map(|it| it.digest);
            Some(UnseenValue { stamp, subject })
        }
        FactHead::Tag {
            stamp,
            digest: Some(_),
        } => Some(UnseenValue {
            stamp,
            subject: None,
        }),
        _ => None,
    }
}

/// Tells the regions that keep a repository of a blob that a manifest will name soon, so that
/// little is left to copy when the manifest comes. Of a small blob they are told only if the push
/// of that manifest will wait for them: copying it takes little longer than telling.
pub(in crate::http) fn announce_blob(api: &Api, repository: &RepositoryName, digest: &Digest) {
    let Some(regional) = all_regions(api) else {
        return;
    };
    let policy = regional.members().policy();
    let rule = policy.policy().rule_for(repository);
    let size = api.registry.known_blob_size(repository, digest);
    if rule.ack_regions <= 1 && size.is_some_and(|size| size < ANNOUNCED_SIZE) {
        return;
    }
    let blobs = vec![(repository.clone(), *digest)];
    let sources = answering_keepers(regional, rule);
    regional.hints().send(sources, Vec::new(), blobs);
}

/// The other regions that keep the repositories of a rule and are not known to be out.
fn answering_keepers(regional: &Regional, rule: &RepositoryRule) -> Vec<Arc<dyn Source>> {
    let mut sources = regional.routes().usable_others();
    sources.retain(|source| rule.includes(source.region()));
    sources
}
