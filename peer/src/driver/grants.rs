//! Grants: shown by this peer with each question, renewed while a pull goes on, and asked of others if so configured.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::name::{PeerId, RepositoryName};
use flotilla_common::seal::TrustError;
use flotilla_common::time::Time;
use flotilla_common::wire::peer::Ask;
use flotilla_runtime::clock::Clock;

use super::{Driver, Report, Shared};

/// Least time between two questions for one manifest's grant.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);

/// Which manifests' grants were asked for lately, and until when they are not asked for again.
pub(super) type Renewals = BTreeMap<Digest, Time>;

/// Why a neighbour gets nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotPermitted {
    #[error("it shows no grant, and this peer requires one")]
    NoGrant,
    #[error("check grant: {0}")]
    Grant(#[from] TrustError),
}

impl Driver {
    /// Whether a neighbour may have what it asks for.
    pub(super) fn check_grant(&self, peer: &PeerId, ask: &Ask) -> Result<(), NotPermitted> {
        if !self.shared.requires_grants {
            return Ok(());
        }
        let grant = ask.grant.as_ref().ok_or(NotPermitted::NoGrant)?;
        let trusted = self.shared.trusted.current();
        Ok(grant.check(&trusted, peer, &ask.digest, Clock::unix_seconds())?)
    }

    /// Asks for new grants where a pull goes on and the old one ends soon.
    pub(super) fn renew_grants(&mut self, now: Time) {
        self.renewals.retain(|_, until| *until > now);
        let unix_s = Clock::unix_seconds();
        let due = |(_, blob): (_, &super::roster::Blob)| {
            let is_pulled = blob.pin.is_some() && !blob.stored.is_complete();
            let grant = blob.grant.as_ref().filter(|grant| is_pulled && grant.is_due(unix_s))?;
            Some((*grant.manifest()?, blob.repository.clone()?))
        };
        let due: BTreeMap<Digest, RepositoryName> = self.roster.blobs().filter_map(due).collect();
        for (manifest, repository) in due {
            if self.renewals.contains_key(&manifest) {
                continue;
            }
            self.renewals.insert(manifest, now + RENEWAL_INTERVAL);
            let (shared, reports) = (Arc::clone(&self.shared), self.reports.clone());
            self.shared.shutdown.spawn(async move {
                if let Some(grant) = ask_again(&shared, &repository, &manifest).await {
                    // Only fails when the driver is gone.
                    let _ = reports.send(Report::Granted(grant)).await;
                }
            });
        }
    }

    /// Takes a new grant for all that it is for.
    pub(super) fn granted(&mut self, grant: &Grant) {
        for digest in &grant.digests {
            if let Some(blob) = self.roster.blob_slot(digest).and_then(|slot| self.roster.blob_mut(slot)) {
                blob.grant = Some(grant.clone());
            }
        }
    }
}

async fn ask_again(shared: &Shared, repository: &RepositoryName, manifest: &Digest) -> Option<Grant> {
    match shared.origins.closure(repository, manifest).await {
        Ok(closure) => closure?.grant,
        Err(error) => {
            tracing::warn!(%manifest, %error, "renew grant");
            None
        }
    }
}
