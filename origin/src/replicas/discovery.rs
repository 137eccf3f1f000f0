//! Discovers the replicas of a region: addresses and DNS names, resolved periodically.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_runtime::shutdown::Shutdown;
use tokio::sync::watch;

/// Interval between two look-ups.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
/// Maximum number of replicas.
const MAX_REPLICAS: usize = 64;

/// `HOST:PORT` on which replicas accept invalidations: an address, or a DNS name with the addresses
/// of several replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaAddress(String);

/// The text is not `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not HOST:PORT")]
pub struct ReplicaAddressError(String);

impl FromStr for ReplicaAddress {
    type Err = ReplicaAddressError;

    fn from_str(text: &str) -> Result<Self, ReplicaAddressError> {
        let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let is_valid =
            parts.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
        if is_valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReplicaAddressError(text.to_owned()))
        }
    }
}

impl fmt::Display for ReplicaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The replicas of a region; the address of the process itself may be among them.
#[derive(Clone, Debug)]
pub struct Replicas {
    addresses: Vec<ReplicaAddress>,
    listed: watch::Receiver<Arc<[SocketAddr]>>,
    list: Option<watch::Sender<Arc<[SocketAddr]>>>,
}

impl Replicas {
    /// No other replicas.
    pub fn none() -> Self {
        Self::at(Vec::new())
    }

    /// The replicas at these addresses.
    pub fn at(addresses: Vec<ReplicaAddress>) -> Self {
        let (list, listed) = watch::channel(Arc::default());
        Self {
            addresses,
            listed,
            list: Some(list),
        }
    }

    /// The replicas in a list that the caller maintains.
    pub const fn followed(listed: watch::Receiver<Arc<[SocketAddr]>>) -> Self {
        Self {
            addresses: Vec::new(),
            listed,
            list: None,
        }
    }

    /// Whether there are no other replicas, now or later.
    pub fn is_none(&self) -> bool {
        self.list.is_some() && self.addresses.is_empty()
    }

    /// Changes of the list from now on.
    pub(crate) fn changes(&self) -> ListChanges {
        let mut listed = self.listed.clone();
        listed.mark_unchanged();
        ListChanges(listed)
    }

    /// The addresses known now.
    pub(crate) fn current(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.listed.borrow())
    }

    /// Looks the addresses up, once before this returns and then periodically until the shutdown.
    pub(crate) async fn keep_resolved(&self, shutdown: &Shutdown) {
        let Some(list) = self.list.clone().filter(|_| !self.addresses.is_empty()) else {
            return;
        };
        let addresses = self.addresses.clone();
        look_up(&addresses, &list).await;
        let stop = shutdown.clone();
        shutdown.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.wait() => return,
                    () = tokio::time::sleep(LOOK_UP_EVERY) => look_up(&addresses, &list).await,
                }
            }
        });
    }
}

/// Waits for changes of the list of replicas.
#[derive(Debug)]
pub(crate) struct ListChanges(watch::Receiver<Arc<[SocketAddr]>>);

impl ListChanges {
    /// Waits until the list has changed since the last call.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // The list never changes any more.
            core::future::pending::<()>().await;
        }
    }
}

/// Updates the list. If a look-up fails, the list stays as it was: a failing resolver removes no
/// replica.
async fn look_up(addresses: &[ReplicaAddress], list: &watch::Sender<Arc<[SocketAddr]>>) {
    let mut resolved = BTreeSet::new();
    for address in addresses {
        match tokio::net::lookup_host(&address.0).await {
            Ok(addresses) => resolved.extend(addresses),
            Err(error) => {
                tracing::warn!(%address, %error, "resolving a replica name failed; keeping the previous list of replicas");
                return;
            }
        }
    }
    if resolved.len() > MAX_REPLICAS {
        tracing::warn!(
            found = resolved.len(),
            limit = MAX_REPLICAS,
            "too many origin replicas; those beyond the limit get no cache invalidations"
        );
    }
    let resolved: Arc<[SocketAddr]> = resolved.into_iter().take(MAX_REPLICAS).collect();
    list.send_if_modified(|listed| {
        let changed = *listed != resolved;
        if changed {
            tracing::info!(replicas = ?resolved, "list of origin replicas changed");
            *listed = resolved;
        }
        changed
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["10.0.0.1:5001", "origin.example:5001", "[::1]:5001"] {
            assert_eq!(good.parse::<ReplicaAddress>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "origin",
            ":5001",
            "origin:0",
            "origin:x",
            "origin:70000",
        ] {
            assert!(bad.parse::<ReplicaAddress>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn failed_look_up_keeps_the_list() {
        let address = |text: &str| text.parse::<ReplicaAddress>().unwrap();
        let (list, listed) = watch::channel(Arc::default());
        look_up(
            &[
                address("127.0.0.1:5001"),
                address("127.0.0.1:5002"),
                address("127.0.0.1:5001"),
            ],
            &list,
        )
        .await;
        assert_eq!(listed.borrow().len(), 2);
        look_up(
            &[address("127.0.0.1:5001"), address("no such name:5002")],
            &list,
        )
        .await;
        assert_eq!(listed.borrow().len(), 2);
    }
}
