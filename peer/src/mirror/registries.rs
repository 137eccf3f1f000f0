//! For which registries the mirror answers. containerd names the registry of an image with each
//! request (`?ns=`).
//!
//! A peer asks its origins for everything. If one mirror stood for two registries, an image of one
//! could be served under the other's name; so an operator may say whose images the origins have,
//! and requests for another registry are refused, at once and loudly, and the runtime turns to that
//! registry itself.

use core::time::Duration;

use axum::extract::Query;
use axum::http::Uri;
use moka::sync::Cache;
use serde::Deserialize;

use super::answer::Failure;

/// Between two log lines about one registry.
const SAID: Duration = Duration::from_secs(60);
/// Registries of which is remembered that they were refused.
const REFUSED: u64 = 64;

/// The registries whose images the origins have; all, if none is named.
#[derive(Debug)]
pub(super) struct Registries {
    served: Vec<String>,
    refused: Cache<String, ()>,
}

#[derive(Deserialize)]
struct Asked {
    ns: Option<String>,
}

impl Registries {
    pub(super) fn new(served: Vec<String>) -> Self {
        Self {
            served,
            refused: Cache::builder()
                .max_capacity(REFUSED)
                .time_to_live(SAID)
                .build(),
        }
    }

    /// Whether a request may be answered: it names no registry, or one whose images the origins
    /// have.
    pub(super) fn check(&self, uri: &Uri) -> Result<(), Failure> {
        let asked = Query::<Asked>::try_from_uri(uri)
            .ok()
            .and_then(|Query(asked)| asked.ns);
        let Some(name) = asked.filter(|_| !self.served.is_empty()) else {
            return Ok(());
        };
        if self
            .served
            .iter()
            .any(|served| served.eq_ignore_ascii_case(&name))
        {
            return Ok(());
        }
        let served = self.served.join(", ");
        if !self.refused.contains_key(&name) {
            tracing::warn!(
                registry = name,
                served,
                "refuse a request for a registry that this mirror is not for"
            );
            self.refused.insert(name.clone(), ());
        }
        Err(Failure::Unknown(format!(
            "this mirror is not for images of {name}; it is for those of {served}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(served: &[&str], query: &str) -> Result<(), Failure> {
        let served = served.iter().map(|name| (*name).to_owned()).collect();
        Registries::new(served).check(&format!("/v2/a/manifests/v1{query}").parse().expect("a URI"))
    }

    #[test]
    fn without_a_list_every_registry_is_served() {
        assert_eq!(asks(&[], "?ns=docker.io"), Ok(()));
    }

    #[test]
    fn with_a_list_only_these_and_who_names_none() {
        let served = ["origin.internal:5000", "docker.io"];
        assert_eq!(asks(&served, "?ns=origin.internal%3A5000"), Ok(()));
        assert_eq!(asks(&served, "?ns=Docker.io&x=1"), Ok(()));
        assert_eq!(asks(&served, ""), Ok(()));
        let refusal = asks(&served, "?ns=ghcr.io").expect_err("another registry");
        assert!(
            refusal.to_string().contains("ghcr.io") && refusal.to_string().contains("docker.io")
        );
        assert!(asks(&served, "?ns=").is_err());
    }
}
