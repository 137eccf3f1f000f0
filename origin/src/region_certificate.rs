//! Whether this origin's certificate names its region, which the origins of other regions require.

use flotilla_common::name::RegionName;
use flotilla_runtime::identity::{Identity, IdentityError};
use flotilla_runtime::shutdown::Shutdown;

use crate::policy::{LivePolicy, Policy};

/// The policy lists other regions, but this origin cannot prove its own.
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
    /// [`MissingRegion`].
    pub(crate) fn check(&self, policy: &Policy) -> Result<(), MissingRegion> {
        let has_region = self.tls.as_ref().is_some_and(|tls| tls.region().is_some());
        if has_region || policy.others(&self.own).next().is_none() {
            return Ok(());
        }
        Err(MissingRegion::of(&self.own))
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
