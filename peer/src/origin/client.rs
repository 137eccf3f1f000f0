//! The client of all origins. Which origin is asked, and for how long, is decided by the failover
//! machine, which one peer has once: for the mirror, for chunks and for the probes.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::failover::{
    ContentKey, Failover, FailoverConfig, Input, Need, Outcome, SourceId, Standing,
};
use flotilla_common::manifest::{ACCEPT, MAX_MANIFEST_LEN};
use flotilla_common::name::{Reference, RegionName, RepositoryName};
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::time::Time;
use flotilla_common::wire::origin::{CLOSURE_PATH, ClosureAnswer, ClosureRequest};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::error_text::explain;
use flotilla_runtime::failover::{Sources, Unserved};
use reqwest::header::{ACCEPT as ACCEPT_HEADER, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder, Response};

use super::error::OriginError;
use super::request::{HttpClients, header};
use crate::config::OriginUrl;
use crate::status::{OriginStanding, OriginStatus, rounded};

/// How often a manifest or closure is requested at least, if answers break off.
const MIN_ATTEMPTS: usize = 2;

/// A manifest from an origin, checked against its digest.
#[derive(Debug, Clone)]
pub(crate) struct FetchedManifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// A client of all configured origins. Clones share their state.
#[derive(Debug, Clone)]
pub(crate) struct OriginClient(Arc<ClientState>);

#[derive(Debug)]
struct ClientState {
    http: HttpClients,
    clock: Clock,
    origins: Vec<Origin>,
    /// The number of each origin's region.
    regions: Vec<u32>,
    sources: Sources,
}

#[derive(Debug)]
struct Origin {
    /// Without a trailing slash.
    url: String,
    region: RegionName,
}

impl OriginClient {
    /// A client of these origins, in the order of preference; those without a region are in
    /// `own_region`. Each URL has the scheme `http` or `https` and a host.
    pub(crate) fn new(
        http: HttpClients,
        urls: &[OriginUrl],
        own_region: &RegionName,
        failover: FailoverConfig,
        rng_seed: u64,
        clock: Clock,
    ) -> Self {
        let origin = |origin: &OriginUrl| Origin {
            url: origin.url.trim_end_matches('/').to_owned(),
            region: origin.region.as_ref().unwrap_or(own_region).clone(),
        };
        let origins: Vec<Origin> = urls.iter().map(origin).collect();
        let regions = region_numbers(&origins, own_region);
        let machine = Failover::new(failover, &regions, rng_seed);
        let names = origins.iter().map(|origin| origin.url.clone()).collect();
        Self(Arc::new(ClientState {
            http,
            clock,
            origins,
            regions,
            sources: Sources::new(machine, names, clock),
        }))
    }

    /// The manifest of a reference, from the first origin that has it.
    pub(crate) async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, OriginError> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let need = match reference {
            Reference::Digest(digest) => content(digest),
            Reference::Tag(_) => Need::Fact,
        };
        let request = |origin| {
            let request = self.request(Method::GET, origin, &path);
            request.header(ACCEPT_HEADER, ACCEPT)
        };
        let decode = |media_type: Option<String>, bytes: Bytes| {
            let digest = match reference {
                Reference::Digest(digest) if digest.matches(&bytes) => *digest,
                Reference::Digest(_) => {
                    return Err("manifest does not match the requested digest".to_owned());
                }
                Reference::Tag(_) => Digest::sha256(&bytes),
            };
            Ok(FetchedManifest {
                digest,
                media_type: media_type.unwrap_or_default(),
                bytes,
            })
        };
        self.fetch(need, request, MAX_MANIFEST_LEN, decode).await
    }

    /// The proofs of all blobs of a manifest. Another kind of registry refuses the request or does
    /// not know it.
    pub(crate) async fn closure(
        &self,
        repository: &RepositoryName,
        manifest: &Digest,
    ) -> Result<ClosureAnswer, OriginError> {
        let request = ClosureRequest {
            repository: repository.clone(),
            manifest: *manifest,
        };
        let encoded =
            codec::encode(&request).map_err(|error| OriginError::Refused(error.to_string()))?;
        let body = Bytes::from(encoded);
        let request = |origin| {
            let request = self.request(Method::POST, origin, CLOSURE_PATH);
            request.body(body.clone())
        };
        let decode = |_, bytes: Bytes| codec::decode(&bytes).map_err(|error| error.to_string());
        self.fetch(closure_of(manifest), request, codec::MAX_LEN, decode)
            .await
    }

    /// Asks one origin after another until one serves the request, and reads its answer: the media
    /// type, and at most `limit` bytes. The next origin is also asked if an answer breaks off or
    /// `decode` refuses it; a single origin is asked once more, because a restart or a proxy may
    /// have closed the connection.
    async fn fetch<T>(
        &self,
        need: Need,
        request: impl Fn(SourceId) -> RequestBuilder,
        limit: usize,
        decode: impl Fn(Option<String>, Bytes) -> Result<T, String>,
    ) -> Result<T, OriginError> {
        let mut attempts = self.attempts().max(MIN_ATTEMPTS);
        loop {
            let call = |origin| self.0.http.send(request(origin));
            let (origin, response) = self.ask(need, call).await?;
            let media_type = header(&response, CONTENT_TYPE.as_str());
            let error = match self.read(origin, response, limit).await {
                Ok(bytes) => match decode(media_type, bytes) {
                    Ok(answer) => return Ok(answer),
                    Err(error) => OriginError::Unavailable(error),
                },
                Err(error) => error,
            };
            self.report_broken(origin, need, &error);
            attempts -= 1;
            if attempts == 0 {
                let message = self.with_url(origin, &error.to_string());
                return Err(OriginError::Unavailable(message));
            }
        }
    }

    /// Asks one origin after another, as the failover machine decides, until one answers that it
    /// serves the request.
    pub(super) async fn ask<T, F: Future<Output = Result<T, OriginError>>>(
        &self,
        need: Need,
        call: impl Fn(SourceId) -> F,
    ) -> Result<(SourceId, T), OriginError> {
        let unserved = match self.0.sources.ask(need, call).await {
            Ok(answer) => return Ok(answer),
            Err(unserved) => unserved,
        };
        Err(match unserved {
            Unserved::Final(origin, OriginError::Refused(message)) => {
                OriginError::Refused(self.with_url(origin, &message))
            }
            Unserved::Final(_, error) => error,
            Unserved::Absent(errors) => OriginError::Missing(self.explain_all(&errors)),
            Unserved::Unavailable(errors) => {
                let message = self.explain_all(&errors);
                let is_missing =
                    |(_, error): &(SourceId, OriginError)| matches!(error, OriginError::Missing(_));
                // An unavailable region may have the content. Only an error that is not `Missing`
                // tells the runtime that a later attempt may succeed.
                if errors.iter().any(is_missing) {
                    OriginError::Unsure(message)
                } else {
                    OriginError::Unavailable(message)
                }
            }
        })
    }

    /// The region of an origin, as trackers name it.
    pub(crate) fn region_of(&self, origin: SourceId) -> Option<OriginRegion> {
        let region = self.0.regions.get(origin.0 as usize)?;
        u8::try_from(*region).ok().map(OriginRegion)
    }

    /// Whether all origins of a region are out.
    pub(crate) fn is_out(&self, region: OriginRegion) -> bool {
        let region = u32::from(region.0);
        let mut regions = self.0.regions.iter();
        let of_region = self.0.sources.read_status(|status| {
            (regions.next() == Some(&region)).then_some(status.standing == Standing::Out)
        });
        let mut of_region = of_region.into_iter().flatten().peekable();
        of_region.peek().is_some() && of_region.all(|is_out| is_out)
    }

    /// How often a download may be continued at another origin after its body broke off.
    pub(crate) fn attempts(&self) -> usize {
        self.0.origins.len().max(1)
    }

    /// A body broke off or was wrong: other origins are preferred, for this content in any case.
    pub(crate) fn report_broken(&self, origin: SourceId, need: Need, error: &OriginError) {
        tracing::warn!(
            origin = self.url(origin), %error,
            "response of an origin is incomplete or wrong; trying the next origin"
        );
        let ended = |outcome| Input::Ended {
            source: origin,
            need,
            outcome,
        };
        if need != Need::Fact {
            self.0.sources.handle(ended(Outcome::Missing));
        }
        self.0.sources.handle(ended(Outcome::Failed {
            error: error.to_string(),
        }));
    }

    /// The next piece of a body, unless the origin goes out meanwhile.
    pub(crate) async fn next_piece(
        &self,
        origin: SourceId,
        response: &mut Response,
    ) -> Result<Option<Bytes>, OriginError> {
        let piece = self.0.sources.next_piece(origin, response.chunk()).await;
        let piece = piece.map_err(|error| OriginError::Unavailable(error.to_string()))?;
        piece.map_err(|error| OriginError::Unavailable(explain(&error)))
    }

    /// Reads a body of at most `limit` bytes.
    async fn read(
        &self,
        origin: SourceId,
        mut response: Response,
        limit: usize,
    ) -> Result<Bytes, OriginError> {
        let mut body = Vec::new();
        while let Some(piece) = self.next_piece(origin, &mut response).await? {
            if body.len() + piece.len() > limit {
                return Err(OriginError::Unavailable(format!(
                    "response body exceeds {limit} bytes"
                )));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Bytes::from(body))
    }

    /// The health of the origins.
    pub(crate) fn sources(&self) -> &Sources {
        &self.0.sources
    }

    /// The status of each origin.
    pub(crate) fn status(&self) -> Vec<OriginStatus> {
        let now = self.0.clock.now();
        let mut origins = self.0.origins.iter();
        let statuses = self.0.sources.read_status(|status| {
            let origin = origins.next()?;
            let is_fine = status.standing == Standing::Fine && status.is_answering != Some(false);
            let age = now.saturating_since(status.since);
            let has_changed = status.since != Time::ZERO;
            Some(OriginStatus {
                url: origin.url.clone(),
                region: origin.region.clone(),
                is_answering: status.is_answering,
                standing: OriginStanding::from(status.standing),
                share_percent: share_percent(status.standing),
                seconds: has_changed.then(|| rounded(age.as_secs_f64())),
                trouble: status.error.filter(|_| !is_fine).map(str::to_owned),
            })
        });
        statuses.into_iter().flatten().collect()
    }

    /// Sends a request to one origin and reads the head of its response.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, OriginError> {
        self.0.http.send(request).await
    }

    /// A request to an origin; `path` begins with a slash.
    pub(super) fn request(&self, method: Method, origin: SourceId, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.url(origin));
        self.0.http.pooled.request(method, url)
    }

    /// The URL of an origin.
    pub(crate) fn url(&self, origin: SourceId) -> &str {
        let origin = self.0.origins.get(origin.0 as usize);
        origin.map_or("", |origin| &origin.url)
    }

    /// The errors of all origins: of the calls, and of the origins that were not asked.
    fn explain_all(&self, errors: &[(SourceId, OriginError)]) -> String {
        let standings = self.0.sources.read_status(|status| {
            status
                .error
                .map_or_else(|| "not asked".to_owned(), str::to_owned)
        });
        let origins = (0..).map(SourceId).zip(standings);
        let messages = origins.map(|(origin, standing)| {
            let error = errors.iter().find(|(source, _)| *source == origin);
            let message = error.map_or(standing, |(_, error)| error.to_string());
            self.with_url(origin, &message)
        });
        messages.collect::<Vec<_>>().join("; ")
    }

    fn with_url(&self, origin: SourceId, message: &str) -> String {
        format!("origin {}: {message}", self.url(origin))
    }
}

/// The number of each origin's region: the own one first, if any origin is in it, and the others
/// in the order in which they are first named.
fn region_numbers(origins: &[Origin], own_region: &RegionName) -> Vec<u32> {
    let mut order: Vec<&RegionName> = Vec::new();
    let own = origins.iter().filter(|origin| origin.region == *own_region);
    for origin in own.chain(origins) {
        if !order.contains(&&origin.region) {
            order.push(&origin.region);
        }
    }
    let number = |origin: &Origin| {
        let at = order.iter().position(|region| **region == origin.region);
        at.and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX)
    };
    origins.iter().map(number).collect()
}

/// The number of regions whose origins these are.
pub(crate) fn region_count(urls: &[OriginUrl], own_region: &RegionName) -> u8 {
    let regions = urls.iter();
    let regions = regions.map(|origin| origin.region.as_ref().unwrap_or(own_region));
    let regions: HashSet<&RegionName> = regions.collect();
    u8::try_from(regions.len()).unwrap_or(u8::MAX)
}

/// The content of a digest.
pub(crate) fn content(digest: &Digest) -> Need {
    Need::Content(ContentKey(first_bytes(digest)))
}

/// The content of a digest, from the origins of the region `first` before the others.
pub(super) fn content_of(digest: &Digest, first: Option<OriginRegion>) -> Need {
    first.map_or(content(digest), |first| Need::ContentOf {
        key: ContentKey(first_bytes(digest)),
        region: first.0.into(),
    })
}

/// The closure of a manifest. An origin may have the manifest without proofs of its blobs.
fn closure_of(manifest: &Digest) -> Need {
    Need::Content(ContentKey(!first_bytes(manifest)))
}

fn first_bytes(digest: &Digest) -> u64 {
    let bytes: &[u8] = match digest {
        Digest::Sha256(bytes) => bytes,
        Digest::Sha512(bytes) => bytes,
    };
    let first = bytes.iter().take(8);
    first.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The share of requests that ask an origin that is preferred, in percent.
fn share_percent(standing: Standing) -> u8 {
    match standing {
        Standing::Fine | Standing::Suspect => 100,
        Standing::Out => 0,
        Standing::Returning { percent } => percent,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn own_region_is_first_and_the_others_follow_in_order() {
        let origin = |region: &str| Origin {
            url: String::new(),
            region: region.parse().unwrap(),
        };
        let origins = ["us", "eu", "ap", "us", "eu"].map(origin);
        let numbers = |own: &str| region_numbers(&origins, &own.parse().unwrap());
        assert_eq!(numbers("eu"), [1, 0, 2, 1, 0]);
        assert_eq!(
            numbers("sa"),
            [0, 1, 2, 0, 1],
            "no origin in the own region"
        );
    }
}
