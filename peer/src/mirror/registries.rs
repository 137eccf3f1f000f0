//! The registries whose images the mirror serves. containerd names the registry of an image in
//! each request (`?ns=`).
//!
//! A peer asks its origins for every image. If one mirror served two registries, an image of one
//! registry could be delivered under the other's name. Operators therefore list the registries
//! whose images the origins have. Requests for another registry are refused at once and logged, and
//! the runtime turns to that registry itself.

use core::time::Duration;

use axum::extract::Query;
use axum::http::Uri;
use moka::sync::Cache;
use serde::Deserialize;

use super::error::MirrorError;

/// The shortest time between two log lines about one registry.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Refused registries whose last log line is remembered.
const LOGGED: u64 = 64;

/// The registries whose images the origins have; all registries if the list is empty.
#[derive(Debug)]
pub(super) struct Registries {
    served: Vec<String>,
    logged: Cache<String, ()>,
}

#[derive(Deserialize)]
struct NamespaceQuery {
    ns: Option<String>,
}

impl Registries {
    pub(super) fn new(served: Vec<String>) -> Self {
        Self {
            served,
            logged: Cache::builder()
                .max_capacity(LOGGED)
                .time_to_live(LOG_INTERVAL)
                .build(),
        }
    }

    /// Accepts a request that names no registry or one whose images the origins have.
    pub(super) fn check(&self, uri: &Uri) -> Result<(), MirrorError> {
        let name = Query::<NamespaceQuery>::try_from_uri(uri)
            .ok()
            .and_then(|Query(query)| query.ns);
        let Some(name) = name.filter(|_| !self.served.is_empty()) else {
            return Ok(());
        };
        let is_name = |served: &String| served.eq_ignore_ascii_case(&name);
        if self.served.iter().any(is_name) {
            return Ok(());
        }
        let served = self.served.join(", ");
        if !self.logged.contains_key(&name) {
            tracing::warn!(
                registry = name,
                served,
                "request refused: this mirror does not serve the registry"
            );
            self.logged.insert(name.clone(), ());
        }
        Err(MirrorError::Unknown(format!(
            "this mirror does not serve images of {name}; it serves {served}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(served: &[&str], query: &str) -> Result<(), MirrorError> {
        let served = served.iter().map(|name| (*name).to_owned()).collect();
        let uri = format!("/v2/a/manifests/v1{query}");
        Registries::new(served).check(&uri.parse().expect("a URI"))
    }

    #[test]
    fn empty_list_serves_every_registry() {
        assert_eq!(check(&[], "?ns=docker.io"), Ok(()));
    }

    #[test]
    fn listed_registries_and_requests_without_registry() {
        let served = ["origin.internal:5000", "docker.io"];
        assert_eq!(check(&served, "?ns=origin.internal%3A5000"), Ok(()));
        assert_eq!(check(&served, "?ns=Docker.io&x=1"), Ok(()));
        assert_eq!(check(&served, ""), Ok(()));
        let refusal = check(&served, "?ns=ghcr.io").expect_err("another registry");
        assert!(
            refusal.to_string().contains("ghcr.io") && refusal.to_string().contains("docker.io")
        );
        assert!(check(&served, "?ns=").is_err());
    }
}
