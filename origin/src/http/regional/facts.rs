//! Who serves what can change: tags, lists and all writes.
//!
//! | own storage | another replica of this region reaches it | what can change is served by |
//! |---|---|---|
//! | answers | | the own storage |
//! | is out, or returns in steps | no, or there is none | another region |
//! | is out | yes, or it may do so | none: 503 |
//! | returns in steps | yes | the own storage: the others use it fully |
//!
//! A replica that is cut off alone must not ask another region: its siblings acknowledge changes in
//! the own storage that the other region has not heard of, and would not know of its own.
//!
//! A single failed call does not mean that the storage is out. The answer waits for the probes,
//! which decide within 2.5 s, and is not taken from another region before. A storage that answers
//! probes is asked again, for 5 s.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::Arc;

use axum::body::Body;
use flotilla_common::failover::{Need, SourceId, Standing};
use flotilla_common::name::RepositoryName;
use flotilla_runtime::failover::Unserved;
use http::Response;
use tokio::time::{Instant, timeout, timeout_at};

use super::proxy::{ReadError, unavailable};
use super::read::{own_answer, unserved};
use crate::http::error::ApiError;
use crate::http::{Api, HandlerResult};
use crate::regions::regional::Regional;
use crate::regions::routes::{OWN, Routes};
use crate::regions::source::Source;

/// For asking the other replicas whether they reach storage.
const SIBLINGS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a storage may fail a read, whose probes say that it is not out.
const FACT_TIMEOUT: Duration = Duration::from_secs(5);
/// Within this time probes decide whether a storage that failed a call is out.
const DECISION_TIMEOUT: Duration = Duration::from_millis(2500);

/// Who serves what can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Authority {
    Own,
    /// The storage of this region is out.
    OtherRegion,
    /// This replica alone is cut off from the storage.
    CutOff,
}

impl Authority {
    const fn of(standing: Standing, sibling_reaches_storage: Option<bool>) -> Self {
        match (standing, sibling_reaches_storage) {
            (Standing::Fine | Standing::Suspect, _) | (Standing::Returning { .. }, Some(true)) => {
                Self::Own
            }
            (Standing::Out, Some(true)) => Self::CutOff,
            (Standing::Out | Standing::Returning { .. }, _) => Self::OtherRegion,
        }
    }
}

/// Who serves what can change now.
pub(super) async fn authority(api: &Api, routes: &Routes) -> Authority {
    let sibling = match routes.own_standing() {
        Standing::Fine | Standing::Suspect => return Authority::Own,
        Standing::Out | Standing::Returning { .. } => {
            let asked = api.registry.any_sibling_reaches_storage(SIBLINGS_TIMEOUT);
            asked.await
        }
    };
    Authority::of(routes.own_standing(), sibling)
}

/// The answer of a replica that is cut off alone.
pub(super) fn cut_off() -> ApiError {
    unavailable(
        "this replica does not reach the storage of its region, and another replica may do so; repeat the request, or ask another replica",
    )
}

/// An answer about something that can change.
pub(super) enum FactAnswer {
    Served(SourceId, Response<Body>),
    /// The storage of this region is out: other regions decide.
    OtherRegion,
}

/// Reads something that can change from the own storage. `other` reads it from another region, if
/// it is absent here and owed.
///
/// # Errors
/// The own storage's answer, 503 if it fails or this replica is cut off alone.
pub(super) async fn read_fact<OwnRead, OtherRead>(
    api: &Arc<Api>,
    regional: &Arc<Regional>,
    routes: &Arc<Routes>,
    repository: &RepositoryName,
    own: impl Fn() -> OwnRead,
    other: impl Fn(Arc<dyn Source>) -> OtherRead,
) -> Result<FactAnswer, ApiError>
where
    OwnRead: Future<Output = HandlerResult>,
    OtherRead: Future<Output = Result<Response<Body>, ReadError>>,
{
    let is_absent = AtomicBool::new(false);
    let call = |source: SourceId| {
        let (own, other, is_absent) = (&own, &other, &is_absent);
        async move {
            match routes.other(source) {
                None => {
                    let answer = own_answer(regional, repository, None, own).await;
                    let elsewhere = matches!(answer, Err(ReadError::MayBeElsewhere(..)));
                    is_absent.store(elsewhere, Ordering::Relaxed);
                    answer
                }
                Some(source) if is_absent.load(Ordering::Relaxed) => {
                    other(Arc::clone(source)).await
                }
                Some(_) => Err(ReadError::NotAsked),
            }
        }
    };
    let deadline = Instant::now() + FACT_TIMEOUT;
    loop {
        match authority(api, routes).await {
            Authority::Own => {}
            Authority::OtherRegion => return Ok(FactAnswer::OtherRegion),
            Authority::CutOff => return Err(cut_off()),
        }
        let asked = timeout_at(deadline, routes.failover.ask(Need::Fact, call));
        let error = match asked.await {
            Ok(Ok((source, response))) => return Ok(FactAnswer::Served(source, response)),
            Ok(Err(error)) => error,
            // Probes are answered, but this read is not.
            Err(_) => Unserved::Unavailable(Vec::new()),
        };
        let is_own_failure =
            matches!(error, Unserved::Unavailable(_)) && !is_absent.load(Ordering::Relaxed);
        if !is_own_failure {
            return Err(unserved(routes, error));
        }
        wait_for_probes(routes).await;
        if Instant::now() >= deadline {
            return match authority(api, routes).await {
                Authority::OtherRegion => Ok(FactAnswer::OtherRegion),
                Authority::Own | Authority::CutOff => Err(unserved(routes, error)),
            };
        }
    }
}

/// Waits until probes have decided whether the own storage is out.
async fn wait_for_probes(routes: &Routes) {
    let mut changes = routes.failover.changes();
    let decided = async {
        while routes.failover.standing(OWN) == Standing::Suspect {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    // Undecided probes are as good as none: the storage is asked again.
    let _decided = timeout(DECISION_TIMEOUT, decided).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_that_is_cut_off_alone_asks_no_other_region() {
        let returning = Standing::Returning { percent: 10 };
        for (standing, sibling, authority) in [
            (Standing::Fine, None, Authority::Own),
            (Standing::Suspect, Some(false), Authority::Own),
            (Standing::Out, Some(true), Authority::CutOff),
            (Standing::Out, Some(false), Authority::OtherRegion),
            (Standing::Out, None, Authority::OtherRegion),
            (returning, Some(true), Authority::Own),
            (returning, Some(false), Authority::OtherRegion),
            (returning, None, Authority::OtherRegion),
        ] {
            assert_eq!(
                Authority::of(standing, sibling),
                authority,
                "{standing:?} {sibling:?}"
            );
        }
    }
}
