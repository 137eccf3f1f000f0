//! Compares a region with the other regions of its policy: ids, policies, standing and lag; and, if
//! asked for, every key in both directions.
//!
//! ```text
//! own storage ── policy, region/<other>, journal/<other> ──┐
//!                                                          ├─▶ report
//! other's origin ── state, /flotilla/v1/regions, journal ──┘
//! ```
//! The other regions are asked as replication asks them, under a certificate of this region. A key
//! that differs is *pending* if a journal entry or a sweep will bring it, and *damage* if nothing
//! will. Origins may serve meanwhile: what differs is looked at again before it counts as damage.
//!
//! It must never write, neither here nor in another region.

mod compare;
mod difference;
mod journal;

use core::time::Duration;
use std::sync::Arc;

use axum::body::Body;
use flotilla_common::name::RegionName;
use flotilla_common::wire::region::{RegionState, StorageStanding};
use flotilla_common::wire::region_list::{REGIONS_PATH, RegionList};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::Identity;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::Findings;
use crate::policy::{self, Policy, PolicyError, Region};
use crate::record::{RegionRecord, decode};
use crate::regions::remote::{RegionClient, RemoteSource};
use crate::regions::source::{Source, SourceError};
use crate::regions::storage_pins::{FoundStorage, KnownStorage, compare};
use crate::storage::{Storage, StorageError};
use crate::{format, layout};

/// Attempts of one request to another region, and the pause between them.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// For the head of an answer that other regions forward as a client's request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum length of a list of regions in bytes.
const MAX_LIST_LEN: usize = 1 << 20;
/// Clocks that differ by more cannot order changes; origins refuse to write at this difference from
/// the storage's clock.
const MAX_CLOCK_SKEW_S: f64 = 60.0;

/// Why regions cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum RegionsCheckError {
    /// The own storage cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The storage has no policy: it belongs to a single region.
    #[error(
        "the storage has no policy, so it belongs to a single region; is --storage the same as in the origins' configuration?"
    )]
    NoPolicy,
    /// The policy is not valid.
    #[error("the stored policy: {0}; set a valid one (`flotilla origin policy set`)")]
    Policy(#[from] PolicyError),
    /// The other regions answer only certificates of a region of the policy.
    #[error(
        "the certificate must name the region of the storage ({listed}); it names {named}. `flotilla pki issue --server NAMES --region REGION` issues one"
    )]
    Certificate {
        /// The region in the certificate.
        named: String,
        /// The regions of the policy.
        listed: String,
    },
}

/// The comparison of a region with the others.
#[derive(Clone, Debug, Serialize)]
pub struct RegionsReport {
    /// The region of the storage.
    pub region: RegionName,
    /// The id of its bucket; `null` if its format object is not valid.
    pub storage_id: Option<String>,
    /// The other regions.
    pub regions: Vec<RegionReport>,
    /// Keys that were compared, each once for each other region; `null` unless they were asked for.
    pub compared: Option<u64>,
    /// Keys that differ now, and that replication will bring.
    pub pending: Findings,
    /// Keys that differ, and that nothing will bring.
    pub damage: Findings,
}

impl RegionsReport {
    /// Whether all regions answered, and nothing is wrong that replication does not mend.
    pub fn is_complete(&self) -> bool {
        self.damage.count == 0 && self.regions.iter().all(|region| region.problems.is_empty())
    }
}

/// One other region.
#[derive(Clone, Debug, Serialize)]
pub struct RegionReport {
    /// Its name.
    pub region: RegionName,
    /// Where it is asked.
    pub url: String,
    /// The id of its bucket; like the following ones `null` if it did not answer.
    pub storage_id: Option<String>,
    /// Whether it can use its storage.
    pub storage_usable: Option<bool>,
    /// Whether it has all that the other regions had when it joined.
    pub whole: Option<bool>,
    /// Whether the checking region has all that this region had.
    pub whole_from_it: bool,
    /// How far its clock is ahead of this machine's, in seconds.
    pub clock_ahead_s: Option<f64>,
    /// Whether its policy has the same content as the one in the checked storage.
    pub same_policy: Option<bool>,
    /// What it owes the checking region.
    pub owes: Option<Owed>,
    /// What the checking region owes it.
    pub owed: Owed,
    /// The fault, as text for people.
    pub problems: Vec<String>,
}

/// What one region owes another.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Owed {
    /// Journal entries; at most 9,990 are counted.
    pub entries: u64,
    /// The age of the oldest, in seconds.
    pub oldest_s: Option<u64>,
    /// Whether a sweep of all keys is owed, because entries were dropped unread.
    pub sweep: bool,
}

/// Compares the region of `storage` with all others of its policy; with `deep`, also every key that
/// both keep. `identity` has a certificate of the region.
///
/// # Errors
/// [`RegionsCheckError`]. A region that does not answer is no error, but a problem in the report.
pub async fn check_regions(
    storage: Arc<dyn Storage>,
    identity: &Identity,
    clock: Clock,
    deep: bool,
) -> Result<RegionsReport, RegionsCheckError> {
    let stored = policy::read(&*storage).await?;
    let policy = stored.ok_or(RegionsCheckError::NoPolicy)?.parse()?;
    let own = own_region(&policy, identity)?;
    let mut report = RegionsReport {
        storage_id: format::read_storage_id(&*storage)
            .await?
            .map(|id| id.to_string()),
        region: own.clone(),
        regions: Vec::new(),
        compared: deep.then_some(0),
        pending: Findings::default(),
        damage: Findings::default(),
    };
    let check = RegionCheck {
        storage,
        policy,
        own,
        clock,
    };
    for region in check.policy.others(&check.own) {
        let (mut compared, source) = check.look_at(region, identity).await?;
        if let (true, Some((source, state))) = (deep, source) {
            let walked = check.compare_keys(&*source, &state, &compared, &mut report);
            if let Err(error) = walked.await? {
                compared.problems.push(error.to_string());
            }
        }
        report.regions.push(compared);
    }
    Ok(report)
}

/// The region of the certificate, which must be one of the policy.
fn own_region(policy: &Policy, identity: &Identity) -> Result<RegionName, RegionsCheckError> {
    let named = identity.region();
    match named {
        Some(region) if policy.region(&region).is_some() => Ok(region),
        other => {
            let listed = policy.regions().iter().map(|region| region.name.as_str());
            Err(RegionsCheckError::Certificate {
                named: other.map_or_else(|| "none".to_owned(), |region| region.to_string()),
                listed: listed.collect::<Vec<_>>().join(", "),
            })
        }
    }
}

struct RegionCheck {
    storage: Arc<dyn Storage>,
    policy: Policy,
    own: RegionName,
    clock: Clock,
}

type Reached = Option<(Arc<dyn Source>, RegionState)>;

impl RegionCheck {
    /// Asks one region for its state.
    async fn look_at(
        &self,
        region: &Region,
        identity: &Identity,
    ) -> Result<(RegionReport, Reached), StorageError> {
        let record = self.record(&region.name).await?;
        let mut report = RegionReport {
            region: region.name.clone(),
            url: region.url.as_str().to_owned(),
            storage_id: None,
            storage_usable: None,
            whole: None,
            whole_from_it: record.as_ref().is_some_and(|record| record.is_whole),
            clock_ahead_s: None,
            same_policy: None,
            owes: None,
            owed: self.owed_to(&region.name).await?,
            problems: Vec::new(),
        };
        let client = RegionClient::new(identity, region.name.clone(), region.url.as_str());
        let source: Arc<dyn Source> = match client {
            Ok(client) => Arc::new(RemoteSource::new(client)),
            Err(error) => {
                report.problems.push(error.to_string());
                return Ok((report, None));
            }
        };
        let state = match retried(|| source.state()).await {
            Ok(state) => state,
            Err(error) => {
                report.problems.push(error.to_string());
                return Ok((report, None));
            }
        };
        self.describe(&mut report, &state, record.as_ref()).await?;
        match retried(|| self.policy_of(&*source)).await {
            Ok(digest) => {
                let is_same = digest == Some(self.policy.digest());
                report.same_policy = Some(is_same);
                if !is_same {
                    report.problems.push(format!(
                        "region {} uses another policy; set the same file in both storages, and wait 2 minutes",
                        region.name
                    ));
                }
            }
            Err(error) => report.problems.push(error.to_string()),
        }
        Ok((report, Some((source, state))))
    }

    /// Fills in what a region's state says.
    async fn describe(
        &self,
        report: &mut RegionReport,
        state: &RegionState,
        record: Option<&RegionRecord>,
    ) -> Result<(), StorageError> {
        let name = &report.region;
        let ahead_s = (state.clock as f64 - self.clock.unix_nanos() as f64) / 1e9;
        let owes = state.owed.iter().find(|owed| owed.region == self.own);
        report.owes = owes.map(|owed| Owed {
            entries: u64::from(owed.entries),
            oldest_s: owed.oldest.map(|oldest| age_s(state.clock, oldest)),
            sweep: owed.sweep.is_some(),
        });
        let mut problems = Vec::new();
        if let Some(own) = format::read_storage_id(&*self.storage).await? {
            let known = record.map(KnownStorage::of).unwrap_or_default();
            match compare(own, &known, state.storage_id, &state.replaced) {
                FoundStorage::Known => {}
                FoundStorage::Renewed => problems.push(format!(
                    "region {name} has a renewed storage that this region has not recorded yet; an origin of this region does that within a minute"
                )),
                FoundStorage::Refused(reason) => problems.push(format!(
                    "nothing is replicated between this region and {name} with storage {}: {reason}",
                    state.storage_id
                )),
            }
        }
        if state.standing == StorageStanding::Out {
            problems.push(format!("the storage of region {name} is out"));
        }
        if ahead_s.abs() > MAX_CLOCK_SKEW_S {
            problems.push(format!(
                "the clock of region {name} differs by {ahead_s:.0} s from this machine's; correct the time of both"
            ));
        }
        report.storage_id = Some(state.storage_id.to_string());
        report.storage_usable = Some(state.standing == StorageStanding::Usable);
        report.whole = Some(state.is_whole);
        report.clock_ahead_s = Some(ahead_s);
        report.problems.extend(problems);
        Ok(())
    }

    /// What this region knows of another.
    async fn record(&self, region: &RegionName) -> Result<Option<RegionRecord>, StorageError> {
        let key = layout::region(region);
        let object = self.storage.read(&key).await?;
        object.map(|object| decode(&key, &object.body)).transpose()
    }

    /// The policy that a region uses.
    async fn policy_of(
        &self,
        source: &dyn Source,
    ) -> Result<Option<flotilla_common::digest::Digest>, SourceError> {
        let (status, body) = ask(source, "GET", REGIONS_PATH).await?;
        if status != StatusCode::OK {
            let reason = format!("it answered {status} to {REGIONS_PATH}");
            return Err(error_of(source, reason));
        }
        let list: RegionList = serde_json::from_slice(&body)
            .map_err(|error| error_of(source, format!("its list of regions: {error}")))?;
        Ok(list.policy)
    }
}

/// Sends a client's request without a body; returns the status and the body of the answer.
async fn ask(
    source: &dyn Source,
    method: &str,
    path: &str,
) -> Result<(StatusCode, bytes::Bytes), SourceError> {
    let request = Request::builder().method(method).uri(path);
    let request = request
        .body(Body::empty())
        .map_err(|error| error_of(source, error.to_string()))?;
    let whole = async {
        let response = source.send(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_LIST_LEN)
            .collect()
            .await;
        let body = body.map_err(|error| error_of(source, error.to_string()))?;
        Ok((status, body.to_bytes()))
    };
    let asked = timeout(HEAD_TIMEOUT, whole).await;
    asked.unwrap_or_else(|_| {
        Err(error_of(
            source,
            format!("no answer within {HEAD_TIMEOUT:?}"),
        ))
    })
}

fn error_of(source: &dyn Source, reason: String) -> SourceError {
    SourceError {
        region: source.region().clone(),
        reason,
    }
}

/// Repeats a request that failed.
async fn retried<T, F: Future<Output = Result<T, SourceError>>>(
    ask: impl Fn() -> F,
) -> Result<T, SourceError> {
    let mut attempt = 1;
    loop {
        match ask().await {
            Err(_) if attempt < ATTEMPTS => {
                attempt += 1;
                sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// The age of an instant in whole seconds; both in nanoseconds since 1970.
const fn age_s(now: u64, then: u64) -> u64 {
    now.saturating_sub(then) / 1_000_000_000
}

#[cfg(test)]
mod tests;
