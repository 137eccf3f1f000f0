//! Who the replicas are: addresses and names, each name asked for again and again.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_runtime::shutdown::Shutdown;
use tokio::sync::watch;

/// How often names are asked for.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Replicas that are told at most.
const MAX_REPLICAS: usize = 64;

/// `HOST:PORT`, where a replica listens for the others: an address, or a name that has the
/// addresses of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaAddress(String);

/// Text that is no `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not HOST:PORT")]
pub struct ReplicaAddressError(String);

impl FromStr for ReplicaAddress {
    type Err = ReplicaAddressError;

    fn from_str(text: &str) -> Result<Self, ReplicaAddressError> {
        let parted = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let valid = parted.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
        if valid {
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

/// The replicas of a region as one of them knows them; its own address may be among them.
#[derive(Clone, Debug)]
pub struct Replicas {
    addresses: Vec<ReplicaAddress>,
    listed: watch::Receiver<Arc<[SocketAddr]>>,
    list: Option<watch::Sender<Arc<[SocketAddr]>>>,
}

impl Replicas {
    /// No others.
    pub fn none() -> Self {
        Self::at(Vec::new())
    }

    /// Those at these addresses.
    pub fn at(addresses: Vec<ReplicaAddress>) -> Self {
        let (list, listed) = watch::channel(Arc::default());
        Self {
            addresses,
            listed,
            list: Some(list),
        }
    }

    /// Those that somebody else keeps a list of.
    pub const fn followed(listed: watch::Receiver<Arc<[SocketAddr]>>) -> Self {
        Self {
            addresses: Vec::new(),
            listed,
            list: None,
        }
    }

    /// Whether there is anybody to tell, now or later.
    pub fn is_none(&self) -> bool {
        self.list.is_some() && self.addresses.is_empty()
    }

    /// Where they listen now.
    pub(crate) fn now(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.listed.borrow())
    }

    /// Asks for the names, once before it returns and then until the shutdown.
    pub(crate) async fn follow(&self, shutdown: &Shutdown) {
        let Some(list) = self.list.clone().filter(|_| !self.addresses.is_empty()) else {
            return;
        };
        let addresses = self.addresses.clone();
        ask(&addresses, &list).await;
        let stop = shutdown.clone();
        shutdown.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.wait() => return,
                    () = tokio::time::sleep(ASK_EVERY) => ask(&addresses, &list).await,
                }
            }
        });
    }
}

/// A name that cannot be asked for now leaves the whole list as it was: nobody is forgotten because
/// of a resolver.
async fn ask(addresses: &[ReplicaAddress], list: &watch::Sender<Arc<[SocketAddr]>>) {
    let mut found = BTreeSet::new();
    for address in addresses {
        match tokio::net::lookup_host(&address.0).await {
            Ok(resolved) => found.extend(resolved),
            Err(error) => {
                tracing::warn!(%address, %error, "look up replicas");
                return;
            }
        }
    }
    if found.len() > MAX_REPLICAS {
        tracing::warn!(
            found = found.len(),
            most = MAX_REPLICAS,
            "more replicas than are told of changes"
        );
    }
    let found: Arc<[SocketAddr]> = found.into_iter().take(MAX_REPLICAS).collect();
    list.send_if_modified(|listed| {
        let changed = *listed != found;
        if changed {
            tracing::info!(replicas = ?found, "replicas listed");
            *listed = found;
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
    async fn a_name_that_cannot_be_resolved_forgets_nobody() {
        let known = |text: &str| text.parse::<ReplicaAddress>().unwrap();
        let (list, listed) = watch::channel(Arc::default());
        ask(
            &[
                known("127.0.0.1:5001"),
                known("127.0.0.1:5002"),
                known("127.0.0.1:5001"),
            ],
            &list,
        )
        .await;
        assert_eq!(listed.borrow().len(), 2);
        ask(
            &[known("127.0.0.1:5001"), known("no such name:5002")],
            &list,
        )
        .await;
        assert_eq!(listed.borrow().len(), 2);
    }
}
