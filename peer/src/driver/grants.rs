//! Grants: shown by this peer with each question, renewed while a pull goes on, and asked of others
//! if so configured.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::{TrustError, TrustedKeys};
use flotilla_common::time::Time;

use super::{Driver, Report, Shared};
use crate::transport::Link;

/// Links whose last grant is remembered: more than there are connections.
const MAX_VERIFIED: usize = 128;
/// Least time between two questions for one manifest's grant.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);

/// Which manifests' grants were asked for lately, and until when they are not asked for again.
pub(super) type Renewals = BTreeMap<Digest, Time>;

/// Grants that were verified, the last one of each link: a neighbour shows the same one with each
/// question of a pull. Nothing but the signature is remembered; whom a grant is for, for what and
/// until when is looked at each time.
#[derive(Debug, Default)]
pub(super) struct Verified {
    /// The keys that it was verified with: with others, nothing counts.
    trusted: Option<Arc<TrustedKeys>>,
    by_link: BTreeMap<u64, Grant>,
}

impl Verified {
    /// That an origin signed the grant that came over this link.
    fn check(
        &mut self,
        link: u64,
        grant: &Grant,
        trusted: &Arc<TrustedKeys>,
    ) -> Result<(), TrustError> {
        if !self
            .trusted
            .as_ref()
            .is_some_and(|before| Arc::ptr_eq(before, trusted))
        {
            self.trusted = Some(Arc::clone(trusted));
            self.by_link.clear();
        }
        if self.by_link.get(&link) == Some(grant) {
            return Ok(());
        }
        grant.verify(trusted)?;
        if self.by_link.len() >= MAX_VERIFIED {
            self.by_link.clear();
        }
        self.by_link.insert(link, grant.clone());
        Ok(())
    }

    /// A link is no more.
    pub(super) fn unlinked(&mut self, link: u64) {
        self.by_link.remove(&link);
    }
}

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
    pub(super) fn check_grant(
        &mut self,
        link: &Link,
        digest: &Digest,
        grant: Option<&Grant>,
    ) -> Result<(), NotPermitted> {
        if !self.shared.requires_grants {
            return Ok(());
        }
        let grant = grant.ok_or(NotPermitted::NoGrant)?;
        self.verified
            .check(link.id(), grant, &self.shared.trusted.current())?;
        Ok(grant.permits(link.peer(), digest, self.shared.clock.unix_seconds())?)
    }

    /// Asks for new grants where a pull goes on and the old one ends soon.
    pub(super) fn renew_grants(&mut self, now: Time) {
        self.renewals.retain(|_, until| *until > now);
        let unix_s = self.shared.clock.unix_seconds();
        let due = |(_, blob): (_, &super::roster::Blob)| {
            let is_pulled = blob.pin.is_some() && !blob.stored.is_complete();
            let grant = blob
                .grant
                .as_ref()
                .filter(|grant| is_pulled && grant.is_due(unix_s))?;
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
            if let Some(blob) = self
                .roster
                .blob_slot(digest)
                .and_then(|slot| self.roster.blob_mut(slot))
            {
                blob.grant = Some(grant.clone());
            }
        }
    }
}

async fn ask_again(
    shared: &Shared,
    repository: &RepositoryName,
    manifest: &Digest,
) -> Option<Grant> {
    match shared.origins.closure(repository, manifest).await {
        Ok(closure) => closure?.grant,
        Err(error) => {
            tracing::warn!(%manifest, %error, "renew grant");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_common::seal::SealKey;

    use super::*;

    #[test]
    fn a_grant_is_verified_once_for_each_link_and_again_with_other_keys() {
        let key = SealKey::from_secret("eu-1".parse().expect("a label"), &[1; 32]);
        let mut trusted = TrustedKeys::none();
        trusted.add(&key.public()).expect("a key");
        let (trusted, nobody) = (Arc::new(trusted), Arc::new(TrustedKeys::none()));
        let grant = Grant::sign(
            &key,
            "vm-1".parse().expect("a label"),
            vec![Digest::sha256(b"x")],
            100,
        );
        let forged = Grant {
            expires_unix_s: 1_000,
            ..grant.clone()
        };
        let mut verified = Verified::default();
        assert_eq!(verified.check(7, &grant, &trusted), Ok(()));
        assert_eq!(
            verified.check(7, &forged, &trusted),
            Err(TrustError::BadSignature)
        );
        assert_eq!(verified.check(7, &grant, &trusted), Ok(()));
        assert_eq!(verified.by_link.len(), 1);
        let unknown = Err(TrustError::UnknownKey(key.key_id()));
        assert_eq!(
            verified.check(7, &grant, &nobody),
            unknown,
            "an origin's key was withdrawn"
        );
        for link in 0..1000 {
            assert_eq!(verified.check(link, &grant, &trusted), Ok(()));
            assert!(verified.by_link.len() <= MAX_VERIFIED);
        }
        verified.unlinked(999);
        assert!(!verified.by_link.contains_key(&999));
    }
}
