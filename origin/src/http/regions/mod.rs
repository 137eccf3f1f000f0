//! Endpoints for the origins of other regions: what they are owed, the values of keys, and requests
//! to copy keys from them (`flotilla_common::wire::region`).
//!
//! The client's certificate alone says which region calls. Only regions of the policy are answered,
//! and never the own one: everything else is 403, also without TLS. A region reads and drops only
//! the entries that are owed to itself.

use core::time::Duration;
use std::sync::Arc;

use axum::body::Body;
use bincode::Decode;
use flotilla_common::codec::{self, CodecError};
use flotilla_common::name::RegionName;
use flotilla_common::storage_id::StorageId;
use flotilla_common::wire::region::{
    DoneRequest, EntryId, FROM_STORAGE_HEADER, FactsRequest, JournalPage, JournalRequest,
    KeysRequest, MAX_ENTRIES, MAX_FACTS, MAX_KEYS, OwedTo, RegionState, StorageStanding,
    TO_STORAGE_HEADER, TakeRequest, encode_facts,
};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::http::ClientIdentity;
use futures_util::future::{FutureExt as _, join_all};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::{ApiError, Code};
use super::request_body::whole_body;
use super::route::{RegionEndpoint, Route};
use super::{Api, FromRegion, HandlerResult, empty, not_allowed, text_of, typed};
use crate::cache::{Cache, CacheLimits};
use crate::policy::LivePolicy;
use crate::regions::regional::Regional;
use crate::regions::storage_pins::StoragePins;
use crate::regions::take::TakeQueue;
use crate::registry::{Registry, RegistryError};
use crate::storage::StorageError;

/// The maximum length of a request in bytes.
const MAX_REQUEST_LEN: usize = 1 << 20;
/// How long a page of the journal is good for: however many replicas of a region ask, the storage
/// lists once a second.
const PAGE_TIME_TO_LIVE: Duration = Duration::from_secs(1);
/// Memory for pages of the journal in bytes: a few of the longest.
const PAGES_LEN: u64 = 16 << 20;
/// For the reads of a page: thousands of entries after an absence.
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the number of entries that are owed to a region is good for.
const OWED_TIME_TO_LIVE: Duration = Duration::from_secs(5);
/// How long a state waits for what is owed, so that it arrives while the storage hangs.
const OWED_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the storage may take to answer before it counts as out.
const PROBE_TIMEOUT: Duration = Duration::from_millis(700);
/// Requests for facts that read concurrently; others wait. Each has up to 72 MiB in memory: 8 MiB,
/// and 16 manifests that are being read.
const FACTS_AT_ONCE: usize = 8;

/// Identifies a page of the journal: whose it is, after which entry it begins, its length.
type PageKey = (RegionName, Option<EntryId>, usize);

/// What the endpoints need beside the registry.
pub(crate) struct RegionServer {
    own: RegionName,
    policy: LivePolicy,
    takes: TakeQueue,
    pins: Arc<StoragePins>,
    pages: Cache<PageKey, Arc<JournalPage>>,
    owed: Cache<RegionName, OwedTo>,
    facts: Semaphore,
}

impl RegionServer {
    pub(crate) fn new(
        own: RegionName,
        policy: LivePolicy,
        takes: TakeQueue,
        pins: Arc<StoragePins>,
        clock: Clock,
    ) -> Self {
        let limits = |time_to_live, bytes| CacheLimits {
            time_to_live,
            term: None,
            refresh_after: None,
            bytes,
            fill_timeout: PAGE_TIMEOUT,
        };
        Self {
            own,
            policy,
            takes,
            pins,
            pages: Cache::new(
                limits(PAGE_TIME_TO_LIVE, PAGES_LEN),
                clock,
                |_, page: &Arc<JournalPage>| page_len(page),
            ),
            owed: Cache::new(limits(OWED_TIME_TO_LIVE, PAGES_LEN), clock, |_, _| {
                size_of::<OwedTo>()
            }),
            facts: Semaphore::new(FACTS_AT_ONCE),
        }
    }

    /// The region of this origin.
    pub(super) const fn own(&self) -> &RegionName {
        &self.own
    }

    /// The policy of the bucket.
    pub(super) const fn policy(&self) -> &LivePolicy {
        &self.policy
    }

    /// The region of the policy, other than the own one, whose origin sent a request.
    pub(super) fn caller(&self, client: Option<&ClientIdentity>) -> Option<RegionName> {
        let region = client?.region()?;
        let is_other = *region != self.own && self.policy.current().region(region).is_some();
        is_other.then(|| region.clone())
    }

    /// Refuses a request of another region if either side uses another storage than the other one
    /// knows, except the question which storage that is.
    pub(super) async fn check_storage(
        &self,
        route: &Route,
        caller: Option<&FromRegion>,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        let Some(FromRegion(caller)) = caller else {
            return Ok(());
        };
        if *route == Route::Region(RegionEndpoint::State) {
            return Ok(());
        }
        let named = |header| {
            let text = text_of(headers, HeaderName::from_static(header));
            text.and_then(|text| text.parse::<StorageId>().ok())
        };
        let own = self.pins.own();
        if let Some(expected) = named(TO_STORAGE_HEADER).filter(|expected| *expected != own) {
            return Err(ApiError::new(
                Code::Misdirected,
                format_args!(
                    "region {} uses storage {own}, but region {caller} knows it by {expected}; start each region with its own storage. A renewed one (`flotilla origin format renew`) is known within a minute",
                    self.own
                ),
            ));
        }
        let Some(from) = named(FROM_STORAGE_HEADER) else {
            return Ok(());
        };
        let checked = self.pins.check(caller, from, &[]).boxed().await;
        checked.map_err(|reason| {
            let message = format_args!("region {caller} with storage {from} is refused: {reason}");
            ApiError::new(Code::Misdirected, message)
        })
    }

    /// Learns which storages the other regions of the policy were known by.
    ///
    /// # Errors
    /// The own storage's.
    pub(crate) async fn load_pins(&self) -> Result<(), StorageError> {
        self.pins.load(&self.others()).await
    }

    /// The other regions of the policy.
    fn others(&self) -> Vec<RegionName> {
        let policy = self.policy.current();
        let others = policy.others(&self.own);
        others.map(|region| region.name.clone()).collect()
    }

    /// Why the client of a request may not use the endpoints.
    fn refusal(&self, client: Option<&ClientIdentity>) -> ApiError {
        let own = &self.own;
        let reason = match client.and_then(|client| client.0.as_deref()) {
            None => "the connection has none that is valid now; connect by TLS with one (`flotilla pki issue --server NAMES --region REGION`), or renew it if it has expired (`--renew`)".to_owned(),
            Some(certificate) => match certificate.region() {
                None => format!("this one names {}", certificate.name),
                Some(region) if region == own => format!("this one names {own}, the region that was asked"),
                Some(region) => format!(
                    "this one names region {region}, which is not in the policy of {own}; add it there (`flotilla origin policy set`); replicas take a policy up within 2 minutes"
                ),
            },
        };
        let message = format_args!(
            "only origins of other regions may use this endpoint, by the region that their certificate names: {reason}"
        );
        ApiError::new(Code::Denied, message)
    }
}

/// The approximate memory of a page.
fn page_len(page: &JournalPage) -> usize {
    let keys = page.entries.iter().flat_map(|entry| &entry.keys);
    let len = |key: &flotilla_common::wire::region::FactKey| 200 + key.repository().as_str().len();
    128 + 64 * page.entries.len() + keys.map(|(key, _)| len(key)).sum::<usize>()
}

/// Answers a request to one of the endpoints.
pub(super) async fn respond(
    api: &Arc<Api>,
    endpoint: RegionEndpoint,
    request: &Parts,
    body: Body,
) -> HandlerResult {
    let Some(FromRegion(caller)) = request.extensions.get() else {
        return Err(api.regions.refusal(request.extensions.get()));
    };
    let (method, allowed) = match endpoint {
        RegionEndpoint::State => (Method::GET, "GET"),
        _ => (Method::POST, "POST"),
    };
    if request.method != method {
        return Err(not_allowed(allowed));
    }
    let body = whole_body(api, body, MAX_REQUEST_LEN).await?;
    // Boxed one by one: the compiler does not see that they are `Send` as parts of one future.
    match endpoint {
        RegionEndpoint::State => state(api).boxed().await,
        RegionEndpoint::Journal => journal(api, caller, decode(&body)?).boxed().await,
        RegionEndpoint::Done => done(api, caller, decode(&body)?).boxed().await,
        RegionEndpoint::Facts => facts(api, decode(&body)?).boxed().await,
        RegionEndpoint::Keys => keys(api, decode(&body)?).boxed().await,
        RegionEndpoint::Take => take(api, caller, decode(&body)?).boxed().await,
    }
}

/// `GET state`.
async fn state(api: &Arc<Api>) -> HandlerResult {
    let regions = &api.regions;
    let regional = api.regional.as_deref();
    let standing = standing(api, regional).await;
    let owed = match standing {
        StorageStanding::Usable => {
            let others = regions.others();
            join_all(
                others
                    .into_iter()
                    .map(|other| owed_to(Arc::clone(api), other)),
            )
            .await
        }
        StorageStanding::Out => Vec::new(),
    };
    encoded(codec::encode(&RegionState {
        region: regions.own.clone(),
        storage_id: api.registry.storage_id(),
        replaced: api.registry.replaced_storages().to_vec(),
        clock: api.registry.unix_nanos(),
        standing,
        is_whole: regional.is_none_or(Regional::is_whole),
        owed: owed.into_iter().flatten().collect(),
    }))
}

/// Whether the storage can be used now. A region that asks wants to send requests here, so this
/// one finds out even without requests of its own.
async fn standing(api: &Api, regional: Option<&Regional>) -> StorageStanding {
    let Some(regional) = regional else {
        return StorageStanding::Usable;
    };
    let failed = match timeout(PROBE_TIMEOUT, api.registry.probe_storage()).await {
        Ok(Ok(())) => return regional.storage_standing(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {PROBE_TIMEOUT:?}"),
    };
    regional.own_failed(failed);
    StorageStanding::Out
}

/// What a region is owed; `None` if the storage does not answer.
async fn owed_to(api: Arc<Api>, region: RegionName) -> Option<OwedTo> {
    let fill = || {
        let (registry, region) = (Arc::clone(&api.registry), region.clone());
        async move {
            let owed = registry.owed_to(&region).await;
            owed.map(Some)
                .map_err(|error| storage_error(&region, error))
        }
    };
    let owed = timeout(OWED_TIMEOUT, api.regions.owed.get(&region, fill)).await;
    let owed = owed.ok()?.ok()??;
    (!owed.stale).then_some(owed.value)
}

/// `POST journal`.
async fn journal(api: &Arc<Api>, caller: &RegionName, request: JournalRequest) -> HandlerResult {
    let limit = (request.limit as usize).clamp(1, MAX_ENTRIES);
    let key = (caller.clone(), request.after, limit);
    let fill = || page(Arc::clone(&api.registry), key.clone());
    let cached = api.regions.pages.get(&key, fill).await;
    let cached = cached.map_err(RegistryError::from)?;
    let Some(cached) = cached.filter(|cached| !cached.stale) else {
        let message = "the storage does not answer, so what is owed is not known";
        return Err(ApiError::new(Code::Unavailable, message));
    };
    let age = api.clock.now().saturating_since(cached.read_at);
    encoded(codec::encode(&JournalPage {
        // Rounded up: the age may be overstated, but never understated.
        age_ms: u64::try_from(age.as_millis()).map_or(u64::MAX, |age| age.saturating_add(1)),
        ..JournalPage::clone(&cached.value)
    }))
}

async fn page(
    registry: Arc<Registry>,
    (region, after, limit): PageKey,
) -> Result<Option<Arc<JournalPage>>, StorageError> {
    let page = registry.journal_page(&region, after, limit).await;
    page.map(|page| Some(Arc::new(page)))
        .map_err(|error| storage_error(&region, error))
}

fn storage_error(region: &RegionName, error: RegistryError) -> StorageError {
    StorageError::unavailable("read the journal of region", region, error)
}

/// `POST done`.
async fn done(api: &Arc<Api>, caller: &RegionName, request: DoneRequest) -> HandlerResult {
    check_len("entries", request.entries.len(), MAX_ENTRIES)?;
    api.registry
        .drop_entries(caller, request.entries, request.sweep)
        .await?;
    Ok(empty(StatusCode::NO_CONTENT, &[]))
}

/// `POST facts`.
async fn facts(api: &Arc<Api>, request: FactsRequest) -> HandlerResult {
    check_len("keys", request.keys.len(), MAX_FACTS)?;
    // The semaphore is never closed.
    let _permit = api.regions.facts.acquire().await;
    let facts = api.registry.facts(&request.keys).await?;
    encoded(encode_facts(&facts))
}

/// `POST keys`.
async fn keys(api: &Arc<Api>, request: KeysRequest) -> HandlerResult {
    let limit = (request.limit as usize).clamp(1, MAX_KEYS);
    let page = api
        .registry
        .fact_keys(request.kind, request.after.as_ref(), limit)
        .await?;
    encoded(codec::encode(&page))
}

/// `POST take`.
async fn take(api: &Arc<Api>, caller: &RegionName, request: TakeRequest) -> HandlerResult {
    check_len("keys", request.keys.len(), MAX_KEYS)?;
    check_len("blobs", request.blobs.len(), MAX_KEYS)?;
    let answer = api.regions.takes.take(caller.clone(), request).await;
    encoded(codec::encode(&answer))
}

fn decode<T: Decode<()>>(body: &[u8]) -> Result<T, ApiError> {
    codec::decode(body).map_err(|error| ApiError::new(Code::RequestInvalid, error))
}

fn check_len(what: &str, len: usize, limit: usize) -> Result<(), ApiError> {
    if len <= limit {
        return Ok(());
    }
    let message = format_args!("{len} {what} in one request; the limit is {limit}");
    Err(ApiError::new(Code::RequestInvalid, message))
}

fn encoded(body: Result<Vec<u8>, CodecError>) -> HandlerResult {
    let body = body.map_err(|error| ApiError::new(Code::Unavailable, error))?;
    Ok(typed("application/octet-stream", Body::from(body)))
}

#[cfg(test)]
mod tests;
