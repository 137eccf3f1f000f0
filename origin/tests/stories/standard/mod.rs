//! The OCI distribution specification, asked of the two set-ups in which an origin runs: one replica on a local
//! directory, and a plain round-robin over three.

mod bodies;
mod discovery;
mod management;
mod manifests;
mod official;
mod proxy;
mod pulling;
mod pushing;
mod table;

use flotilla_origin::Origin;
use flotilla_origin::storage;
use tempfile::TempDir;

use crate::support::{Registry, start_replicas};
use proxy::RoundRobin;

/// An origin as clients see it.
struct SetUp {
    name: &'static str,
    entrance: std::net::SocketAddr,
    _origins: Vec<Origin>,
    _proxy: Option<RoundRobin>,
    _directory: TempDir,
}

impl SetUp {
    async fn one_replica() -> Self {
        Self::start("one replica", 1).await
    }

    /// Each request goes to the next replica, whatever it asks for.
    async fn round_robin() -> Self {
        Self::start("round-robin over 3 replicas", 3).await
    }

    async fn start(name: &'static str, replicas: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let storage = storage::open(&format!("file://{}", directory.path().display()), 64 << 20).unwrap();
        let origins = start_replicas(replicas, storage, |_| {}).await;
        let addresses: Vec<_> = origins.iter().map(Origin::addr).collect();
        let proxy = match &*addresses {
            [_] => None,
            _ => Some(RoundRobin::start(addresses.clone()).await),
        };
        let entrance = proxy.as_ref().map_or(addresses[0], RoundRobin::addr);
        Self { name, entrance, _origins: origins, _proxy: proxy, _directory: directory }
    }

    fn client(&self) -> Registry {
        Registry::at(self.entrance)
    }
}
