//! Writes that another region does: while the own storage is out, for a repository whose home is
//! elsewhere, and for an upload that began elsewhere.
//!
//! The whole request is forwarded, without knowledge of the protocol, to one region that is chosen
//! before its first byte is sent. It is never sent to a second one: the outcome of the first would
//! be unknown. Its answer means that the change is durable there.

use std::sync::Arc;

use axum::body::Body;
use flotilla_common::digest::Digest;
use flotilla_common::failover::Standing;
use flotilla_common::name::{Reference, RegionName, RepositoryName, Tag};
use flotilla_common::stamp::Stamp;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};

use super::facts::{Authority, authority, cut_off};
use super::forward_call::{self, head_timeout};
use super::proxy::{copy_of, end_to_end, unavailable};
use crate::http::manifests::{keys_of, tags_of};
use crate::http::route::Route;
use crate::http::{Api, CONTENT_DIGEST, HandlerResult};
use crate::regions::clock_floor::SenderClocks;
use crate::regions::regional::Regional;
use crate::regions::routes::Routes;
use crate::regions::source::{Source, SourceError};
use crate::replicas::{Changed, Receiver as _};

/// The stamp of a change, in the answer to a forwarded request: `<clock>.<region>`.
pub(in crate::http) const STAMP: HeaderName = HeaderName::from_static("flotilla-stamp");
/// The highest clock of a forwarded change's keys that the sender knows, in nanoseconds since 1970.
const ABOVE: HeaderName = HeaderName::from_static("flotilla-above");
/// The wall clock of the sender of a forwarded change, in nanoseconds since 1970.
const CLOCK: HeaderName = HeaderName::from_static("flotilla-clock");

/// Which region does a write.
enum Writer {
    Own,
    Other(Arc<dyn Source>),
    /// None: this replica alone is cut off from the storage.
    CutOff,
    /// None can now; for people.
    Unavailable(String),
}

/// Whether another region may have to do a request.
pub(in crate::http) fn may_be_forwarded(route: &Route, method: &Method) -> bool {
    written_repository(route, method).is_some()
}

/// Forwards a request that another region must do; `Err` gives the request back if this one does.
///
/// # Errors
/// The request itself, untouched.
pub(in crate::http) async fn forward(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    route: &Route,
    request: Parts,
    body: Body,
) -> Result<HandlerResult, (Parts, Body)> {
    let Some(repository) = written_repository(route, &request.method) else {
        return Err((request, body));
    };
    let routes = regional.routes();
    let authority = authority(api, &routes).await;
    match writer(
        regional,
        &routes,
        authority,
        route,
        &request.method,
        repository,
    ) {
        Writer::Own => Err((request, body)),
        Writer::CutOff => {
            regional.count_forwarded(None);
            Ok(Err(cut_off()))
        }
        Writer::Unavailable(reason) => {
            regional.count_forwarded(None);
            Ok(Err(unavailable(reason)))
        }
        Writer::Other(source) => {
            regional.count_forwarded(Some(source.region()));
            let policy = regional.members().policy();
            let ack_regions = policy.policy().rule_for(repository).ack_regions;
            let limit = head_timeout(route, &request.method, ack_regions);
            let path = request.uri.path_and_query();
            let path = path.map_or("/", |path| path.as_str());
            let mut copy = copy_of(&request, path, body);
            let clocks = SenderClocks {
                known: known_clock(regional, route, &request),
                wall: api.registry.unix_nanos(),
            };
            insert_clocks(copy.headers_mut(), clocks);
            let sent = forward_call::send(&routes, &*source, api.clock, copy, limit).await;
            Ok(answer_of(api, route, &request, sent).await)
        }
    }
}

/// The repository of a request that changes something, or that belongs to a push.
fn written_repository<'a>(route: &'a Route, method: &Method) -> Option<&'a RepositoryName> {
    match route {
        Route::Uploads { repository } | Route::Upload { repository, .. } => Some(repository),
        Route::Manifest { repository, .. }
            if *method == Method::PUT || *method == Method::DELETE =>
        {
            Some(repository)
        }
        // A HEAD asks whether an upload can be skipped: the region that gets the push knows.
        Route::Blob { repository, .. } if *method == Method::DELETE || *method == Method::HEAD => {
            Some(repository)
        }
        _ => None,
    }
}

fn writer(
    regional: &Regional,
    routes: &Routes,
    authority: Authority,
    route: &Route,
    method: &Method,
    repository: &RepositoryName,
) -> Writer {
    let find = |region: &RegionName| routes.usable(region);
    let policy = regional.members().policy();
    if let Route::Upload { id, .. } = route
        && let Some(region) = upload_region(id)
    {
        if region == *regional.own() || policy.policy().region(&region).is_none() {
            return Writer::Own;
        }
        let not_now = || {
            Writer::Unavailable(format!(
                "the upload began in region {region}, which does not answer; repeat the request later, or begin the upload again"
            ))
        };
        return find(&region).map_or_else(not_now, Writer::Other);
    }
    let rule = policy.policy().rule_for(repository);
    if let Some(home) = &rule.home
        && let Some(writer) =
            writer_at_home(regional, routes, authority, method, repository, home, &find)
    {
        return writer;
    }
    let is_kept_here = rule.includes(regional.own());
    if is_kept_here && authority == Authority::CutOff {
        return Writer::CutOff;
    }
    let is_out = authority == Authority::OtherRegion;
    if is_kept_here
        && !is_out
        && regional.is_own_full()
        && regional.forwards_writes()
        && needs_space(route, method)
        && let Some(source) = rule.others(regional.own()).find_map(find)
    {
        return Writer::Other(source);
    }
    if is_kept_here && (!is_out || (*method == Method::HEAD && !regional.forwards_writes())) {
        return Writer::Own;
    }
    if is_kept_here && !regional.forwards_writes() {
        return Writer::Unavailable(
            "the storage of this region does not answer, and forward-writes is off; repeat the request later"
                .to_owned(),
        );
    }
    let problem = match is_kept_here {
        true => {
            "the storage of this region does not answer, and no other region can take the change"
        }
        false => {
            "the policy does not keep the repository in this region, and none of its regions answers"
        }
    };
    // Those of the rule, in its order.
    match rule.others(regional.own()).find_map(find) {
        Some(source) => Writer::Other(source),
        None => Writer::Unavailable(format!("{problem}; repeat the request later")),
    }
}

/// Which region does a write of a repository whose changes are made in `home` alone; `None` for a
/// question that another region may answer.
fn writer_at_home(
    regional: &Regional,
    routes: &Routes,
    authority: Authority,
    method: &Method,
    repository: &RepositoryName,
    home: &RegionName,
    find: &impl Fn(&RegionName) -> Option<Arc<dyn Source>>,
) -> Option<Writer> {
    let is_own = home == regional.own();
    // A storage that returns in steps is written at once: no other region has newer changes.
    if is_own && routes.own_standing() != Standing::Out {
        return Some(Writer::Own);
    }
    if is_own && authority == Authority::CutOff {
        return Some(Writer::CutOff);
    }
    if let Some(source) = find(home) {
        return Some(Writer::Other(source));
    }
    if *method == Method::HEAD {
        return None;
    }
    let problem = match is_own {
        true => "whose storage does not answer",
        false => "which does not answer",
    };
    Some(Writer::Unavailable(format!(
        "the policy says that changes of {repository} are made in region {home}, {problem}; repeat the request later, or set a policy with another home"
    )))
}

/// Whether a change needs space in storage. The DELETE of a blob concerns one region, and is how
/// space comes back.
const fn needs_space(route: &Route, method: &Method) -> bool {
    !matches!((route, method), (Route::Blob { .. }, &Method::DELETE))
}

/// The other region to which a change goes at present, if one does.
pub(super) fn forwards_to(
    regional: &Regional,
    routes: &Routes,
    route: &Route,
    method: &Method,
) -> Option<RegionName> {
    let repository = written_repository(route, method)?;
    // An upload stays where it began, so it is a new one that is forwarded.
    let begun = Route::Uploads {
        repository: repository.clone(),
    };
    let route = match route {
        Route::Upload { .. } => &begun,
        other => other,
    };
    // The own storage has just answered that it is full.
    match writer(regional, routes, Authority::Own, route, method, repository) {
        Writer::Other(source) => Some(source.region().clone()),
        Writer::Own | Writer::CutOff | Writer::Unavailable(_) => None,
    }
}

/// The region in which an upload began, if its id names one.
pub(in crate::http) fn upload_region(id: &str) -> Option<RegionName> {
    let (region, _) = id.split_once('.')?;
    region.parse().ok()
}

/// The answer to the client, and to the replicas of this region.
async fn answer_of(
    api: &Arc<Api>,
    route: &Route,
    request: &Parts,
    sent: Result<Response<Body>, SourceError>,
) -> HandlerResult {
    let response = match sent {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(region = %error.region, %error, "a forwarded change failed; its outcome is unknown");
            return Err(unavailable(format_args!(
                "the change was forwarded to region {}, which did not answer; its outcome is unknown, repeat the request",
                error.region
            )));
        }
    };
    if response.status().is_success() {
        tell_replicas(api, route, request, response.headers()).await;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers = end_to_end(&parts.headers);
    parts.headers.remove(STAMP);
    Ok(Response::from_parts(parts, body))
}

/// The highest clock that this replica knows of the keys of a request.
fn known_clock(regional: &Regional, route: &Route, request: &Parts) -> Option<u64> {
    let Route::Manifest {
        repository,
        reference,
    } = route
    else {
        return None;
    };
    let tags = tags_of(reference, request.uri.query()).unwrap_or_default();
    let digest = match reference {
        Reference::Digest(digest) => Some(*digest),
        Reference::Tag(_) => None,
    };
    regional.known_clock(&keys_of(repository, digest, &tags))
}

/// Lets all replicas of this region serve a forwarded change before it is acknowledged.
async fn tell_replicas(api: &Arc<Api>, route: &Route, request: &Parts, headers: &HeaderMap) {
    let changed = match route {
        Route::Manifest {
            repository,
            reference,
        } => {
            let stamp = headers.get(STAMP).and_then(parse_stamp);
            let digest = digest_of(request, reference, headers);
            changes(repository, reference, request, stamp, digest)
        }
        Route::Blob { repository, digest } if request.method == Method::DELETE => {
            vec![Changed::Blob(repository.clone(), *digest)]
        }
        _ => Vec::new(),
    };
    if !changed.is_empty() {
        for change in &changed {
            api.invalidate(change.clone());
        }
        api.registry.invalidate_replicas(changed).await;
    }
}

/// The manifest that the tags name now; `None` after a delete.
fn digest_of(request: &Parts, reference: &Reference, headers: &HeaderMap) -> Option<Digest> {
    if request.method == Method::DELETE {
        return None;
    }
    match reference {
        Reference::Digest(digest) => Some(*digest),
        Reference::Tag(_) => headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok(),
    }
}

fn changes(
    repository: &RepositoryName,
    reference: &Reference,
    request: &Parts,
    stamp: Option<Stamp>,
    digest: Option<Digest>,
) -> Vec<Changed> {
    let tags = tags_of(reference, request.uri.query()).unwrap_or_default();
    let forwarded = |tag: Tag| match &stamp {
        Some(stamp) => Changed::ForwardedTag {
            repository: repository.clone(),
            tag,
            stamp: stamp.clone(),
            digest,
        },
        None => Changed::Tag(repository.clone(), tag),
    };
    let mut changed: Vec<_> = tags.into_iter().map(forwarded).collect();
    if let Reference::Digest(digest) = reference {
        changed.push(match stamp {
            Some(stamp) => Changed::ForwardedManifest {
                repository: repository.clone(),
                digest: *digest,
                stamp,
                is_deleted: request.method == Method::DELETE,
            },
            None => Changed::Manifest(repository.clone(), *digest),
        });
    }
    changed
}

/// The value of [`STAMP`].
pub(in crate::http) fn stamp_text(stamp: &Stamp) -> String {
    format!("{}.{}", stamp.clock, stamp.region)
}

fn parse_stamp(value: &HeaderValue) -> Option<Stamp> {
    let (clock, region) = value.to_str().ok()?.split_once('.')?;
    Some(Stamp {
        clock: clock.parse().ok()?,
        region: region.parse().ok()?,
    })
}

fn insert_clocks(headers: &mut HeaderMap, clocks: SenderClocks) {
    headers.remove(ABOVE);
    if let Some(known) = clocks.known {
        headers.insert(ABOVE, HeaderValue::from(known));
    }
    headers.insert(CLOCK, HeaderValue::from(clocks.wall));
}

/// The clocks that the sender of a forwarded change states.
pub(in crate::http) fn sender_clocks(headers: &HeaderMap) -> Option<SenderClocks> {
    let clock = |name: &HeaderName| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    Some(SenderClocks {
        known: clock(&ABOVE),
        wall: clock(&CLOCK)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive_their_header() {
        let stamp = Stamp {
            clock: u64::MAX,
            region: "eu-1".parse().expect("a label"),
        };
        let value = HeaderValue::from_str(&stamp_text(&stamp)).expect("a header");
        assert_eq!(parse_stamp(&value), Some(stamp));
        for text in ["", "x.eu-1", "1", "1.EU", "1."] {
            let value = HeaderValue::from_str(text).expect("a header");
            assert_eq!(parse_stamp(&value), None, "{text}");
        }
    }

    #[test]
    fn clocks_survive_their_headers() {
        let mut headers = HeaderMap::new();
        // A client's own header does not pass.
        headers.insert(ABOVE, HeaderValue::from(u64::MAX));
        assert_eq!(sender_clocks(&headers), None);
        for known in [None, Some(7)] {
            let clocks = SenderClocks { known, wall: 9 };
            insert_clocks(&mut headers, clocks);
            assert_eq!(sender_clocks(&headers), Some(clocks));
        }
    }

    #[test]
    fn upload_ids_name_their_region() {
        assert_eq!(
            upload_region("us-1.abcd").map(|region| region.to_string()),
            Some("us-1".to_owned())
        );
        assert_eq!(upload_region("abcd"), None);
        assert_eq!(upload_region("US.abcd"), None);
    }
}
