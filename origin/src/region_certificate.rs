//! Whether this origin's certificate names its region, which the origins of other regions require.

use flotilla_common::name::RegionName;
use flotilla_runtime::identity::{Identity, IdentityError};
use flotilla_runtime::shutdown::Shutdown;

use crate::policy::{LivePolicy, Policy};

/// The policy lists other regions, but this origin cannot name its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policy lists other regions, so the certificate of this origin must name its region {region}: issue one \
     (`flotilla pki issue --server NAMES --region {region}`; with --renew it replaces the present one) and set tls-cert, \
     tls-key and tls-ca"
)]
pub struct MissingRegion {
    /// The region of this origin.
    region: RegionName,
}

impl MissingRegion {
    /// Of the origin of a region.
    pub(crate) fn of(region: &RegionName) -> Self {
        Self {
            region: region.clone(),
        }
    }
}

/// The policy lists other regions, and the certificate of this origin does not suffice for them.
#[derive(Debug, thiserror::Error)]
pub enum RegionCertificateError {
    /// There is no certificate, or it does not name the region.
    #[error(transparent)]
    Missing(#[from] MissingRegion),
    /// No other region would accept the certificate.
    #[error("the policy lists other regions, which verify the certificate of this origin: {0}")]
    Untrusted(IdentityError),
}

/// The identity of an origin in its region.
#[derive(Clone, Debug)]
pub(crate) struct RegionIdentity {
    own: RegionName,
    tls: Option<Identity>,
}

impl RegionIdentity {
    /// Binds the certificate to the region of the origin.
    ///
    /// # Errors
    /// It names another region.
    pub(crate) fn bind(own: RegionName, tls: Option<Identity>) -> Result<Self, IdentityError> {
        if let Some(identity) = &tls {
            identity.bind_region(&own)?;
        }
        Ok(Self { own, tls })
    }

    /// Checks that the certificate suffices for a policy.
    ///
    /// # Errors
    /// [`RegionCertificateError`].
    pub(crate) fn check(&self, policy: &Policy) -> Result<(), RegionCertificateError> {
        if policy.others(&self.own).next().is_none() {
            return Ok(());
        }
        // A single region may have a certificate of a public authority: its clients trust that one,
        // and its own authority is that of the peers.
        match self.tls.as_ref().filter(|tls| tls.region().is_some()) {
            Some(tls) => tls
                .verify_origin(&self.own)
                .map_err(RegionCertificateError::Untrusted),
            None => Err(MissingRegion::of(&self.own).into()),
        }
    }

    /// Logs an error for each later policy that the certificate does not suffice for, until the
    /// shutdown. The origin goes on: its own region does not depend on the others.
    pub(crate) fn check_later_policies(self, live: &LivePolicy, shutdown: &Shutdown) {
        let (mut policies, stop) = (live.subscribe(), shutdown.clone());
        shutdown.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.wait() => return,
                    changed = policies.changed() => if changed.is_err() { return },
                }
                if let Err(error) = self.check(&policies.borrow_and_update()) {
                    tracing::error!(%error, "other regions refuse this origin");
                }
            }
        });
    }
}
