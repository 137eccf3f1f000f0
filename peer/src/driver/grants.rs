//! Grants: this peer presents them with each request to a neighbour, renews them during a pull, and
//! requires them of neighbours if so configured.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::{TrustError, TrustedKeys};
use flotilla_common::time::Time;

use super::Driver;
use super::tables::BlobEntry;
use super::tasks::TaskReport;
use crate::handles::Upstream;
use crate::origin::OriginError;
use crate::transport::{CloseReason, PeerLink};

/// Links whose last grant is remembered. This is more than the maximum number of connections.
const MAX_VERIFIED: usize = 128;
/// Forged grants after which a link is closed.
const MAX_FORGED: u32 = 3;
/// The shortest time between two requests for one manifest's grant.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);

/// The manifests whose grants were requested, with the time before which they are not requested
/// again.
pub(super) type Renewals = BTreeMap<Digest, Time>;

/// The last grant of each link whose signature was verified. A neighbour presents the same grant
/// with each request of a pull. Its holder, digests and expiry are checked each time.
#[derive(Debug, Default)]
pub(super) struct VerifiedGrants {
    /// The keys that the signatures were verified with. With other keys, all are verified again.
    trusted: Option<Arc<TrustedKeys>>,
    by_link: BTreeMap<u64, Grant>,
    /// How many forged grants were received over each link.
    forged: BTreeMap<u64, u32>,
}

impl VerifiedGrants {
    /// Verifies that a trusted origin signed a grant that was received over this link.
    fn verify(
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

    /// Counts a grant that failed its check. True if the link must be closed: to verify a signature
    /// over a long grant costs the driver far more than it costs the neighbour to send it.
    ///
    /// An expired grant, or one by an unknown key, may be an honest mistake and is cheap to refuse.
    fn count_failure(&mut self, link: u64, error: &TrustError) -> bool {
        if *error != TrustError::BadSignature {
            return false;
        }
        let forged = self.forged.entry(link).or_default();
        *forged += 1;
        *forged >= MAX_FORGED
    }

    /// Forgets the grants of a closed link.
    pub(super) fn forget(&mut self, link: u64) {
        self.by_link.remove(&link);
        self.forged.remove(&link);
    }
}

/// Why a neighbour's request is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotPermitted {
    #[error("the neighbour presented no grant, but this peer requires one")]
    NoGrant,
    #[error("invalid grant: {0}")]
    Grant(#[from] TrustError),
}

impl Driver {
    /// Checks that a neighbour may have the blob or manifest that it requests.
    pub(super) fn check_grant(
        &mut self,
        link: &PeerLink,
        digest: &Digest,
        grant: Option<&Grant>,
    ) -> Result<(), NotPermitted> {
        if !self.context.requires_grants {
            return Ok(());
        }
        let grant = grant.ok_or(NotPermitted::NoGrant)?;
        let trusted = self.context.upstream.trusted_keys.current();
        let unix_s = self.context.clock.unix_seconds();
        let verified = self.verified.verify(link.id(), grant, &trusted);
        let permitted = verified.and_then(|()| grant.permits(link.peer(), digest, unix_s));
        if let Err(error) = &permitted
            && self.verified.count_failure(link.id(), error)
        {
            tracing::warn!(
                peer = %link.peer(),
                "neighbour presented forged grants again and again; closing the link"
            );
            link.close(CloseReason::Misbehaved);
        }
        Ok(permitted?)
    }

    /// Requests new grants for pulls in progress whose grants expire soon.
    pub(super) fn renew_grants(&mut self, now: Time) {
        self.renewals.retain(|_, until| *until > now);
        let unix_s = self.context.clock.unix_seconds();
        let due = |(_, blob): (_, &BlobEntry)| {
            let is_pulled = blob.is_wanted && !blob.stored.is_complete();
            let grant = blob
                .grant
                .as_ref()
                .filter(|grant| is_pulled && grant.is_due(unix_s))?;
            Some((*grant.manifest()?, blob.repository.clone()?))
        };
        let due: BTreeMap<Digest, RepositoryName> = self.tables.blobs().filter_map(due).collect();
        for (manifest, repository) in due {
            if self.renewals.contains_key(&manifest) {
                continue;
            }
            self.renewals.insert(manifest, now + RENEWAL_INTERVAL);
            let (upstream, reports) = (self.context.upstream.clone(), self.reports.clone());
            self.context.shutdown.spawn(async move {
                if let Some(grant) = renew(&upstream, &repository, &manifest).await {
                    // Fails only when the driver has stopped.
                    let _ = reports.send(TaskReport::Granted(grant)).await;
                }
            });
        }
    }

    /// Stores a new grant with all blobs that it covers.
    pub(super) fn granted(&mut self, grant: &Grant) {
        for digest in &grant.digests {
            if let Some(blob) = self
                .tables
                .blob_slot(digest)
                .and_then(|slot| self.tables.blob_mut(slot))
            {
                blob.grant = Some(grant.clone());
            }
        }
    }
}

async fn renew(
    upstream: &Upstream,
    repository: &RepositoryName,
    manifest: &Digest,
) -> Option<Grant> {
    match upstream.origins.closure(repository, manifest).await {
        Ok(closure) => closure.grant,
        Err(OriginError::Refused(_) | OriginError::Missing(_)) => None,
        Err(error) => {
            tracing::warn!(%manifest, %error, "grant renewal failed; retrying");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_common::seal::{KeyId, SealKey};

    use super::*;

    #[test]
    fn link_is_closed_after_forged_grants_only() {
        let mut verified = VerifiedGrants::default();
        for _ in 0..10 {
            assert!(!verified.count_failure(1, &TrustError::Expired));
            let unknown = TrustError::UnknownKey(KeyId([0; 8]));
            assert!(!verified.count_failure(1, &unknown));
        }
        let forged = TrustError::BadSignature;
        assert!(!verified.count_failure(1, &forged) && !verified.count_failure(1, &forged));
        assert!(!verified.count_failure(2, &forged), "another link");
        assert!(verified.count_failure(1, &forged));
        verified.forget(1);
        assert!(!verified.count_failure(1, &forged));
    }

    #[test]
    fn grant_signature_is_verified_once_per_link_and_key() {
        let key = SealKey::from_secret("eu-1".parse().expect("a label"), &[1; 32]);
        let mut trusted = TrustedKeys::none();
        trusted.add(key.issuer(), &key.public()).expect("a key");
        let trusted = Arc::new(trusted);
        let untrusting = Arc::new(TrustedKeys::none());
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
        let mut verified = VerifiedGrants::default();
        assert_eq!(verified.verify(7, &grant, &trusted), Ok(()));
        assert_eq!(
            verified.verify(7, &forged, &trusted),
            Err(TrustError::BadSignature)
        );
        assert_eq!(verified.verify(7, &grant, &trusted), Ok(()));
        assert_eq!(verified.by_link.len(), 1);
        let unknown = Err(TrustError::UnknownKey(key.key_id()));
        assert_eq!(
            verified.verify(7, &grant, &untrusting),
            unknown,
            "an origin's key was withdrawn"
        );
        for link in 0..1000 {
            assert_eq!(verified.verify(link, &grant, &trusted), Ok(()));
            assert!(verified.by_link.len() <= MAX_VERIFIED);
        }
        verified.forget(999);
        assert!(!verified.by_link.contains_key(&999));
    }
}
