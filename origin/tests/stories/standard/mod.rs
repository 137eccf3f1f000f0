//! The OCI distribution specification, asked of the two set-ups in which an origin runs: one
//! replica on a local directory, and a plain round-robin over three on S3.

mod bodies;
mod discovery;
mod management;
mod manifests;
mod official;
mod proxy;
mod pulling;
mod pushing;
mod table;

use std::sync::Arc;

use flotilla_origin::Origin;
use flotilla_origin::storage::{LocalDirectory, Storage};
use tempfile::TempDir;

use crate::servers::{Kind, Server};
use crate::support::{Registry, start_replicas};
use proxy::RoundRobin;

/// An origin as clients see it.
struct SetUp {
    name: &'static str,
    entrance: std::net::SocketAddr,
    _origins: Vec<Origin>,
    _proxy: Option<RoundRobin>,
    _storage: Place,
}

/// Where the storage is; it goes with the set-up.
enum Place {
    Directory { _directory: TempDir },
    S3 { _server: Server },
}

impl SetUp {
    async fn one_replica() -> Self {
        let directory = TempDir::new().unwrap();
        let storage = Arc::new(LocalDirectory::open(directory.path()).unwrap());
        Self::start(
            "one replica",
            1,
            storage,
            Place::Directory {
                _directory: directory,
            },
        )
        .await
    }

    /// Each request goes to the next replica, whatever it asks for. `None`, said loudly, without an
    /// S3 server.
    async fn round_robin(story: &str) -> Option<Self> {
        let server = Server::start(story, Kind::S3Fs).await?;
        let storage = server.storage();
        Some(
            Self::start(
                "round-robin over 3 replicas",
                3,
                storage,
                Place::S3 { _server: server },
            )
            .await,
        )
    }

    /// Both of them.
    async fn all(story: &str) -> Vec<Self> {
        [
            Some(Self::one_replica().await),
            Self::round_robin(story).await,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    async fn start(
        name: &'static str,
        replicas: usize,
        storage: Arc<dyn Storage>,
        place: Place,
    ) -> Self {
        let origins = start_replicas(replicas, storage, |_| {}).await;
        let addresses: Vec<_> = origins.iter().map(Origin::addr).collect();
        let proxy = match &*addresses {
            [_] => None,
            _ => Some(RoundRobin::start(addresses.clone()).await),
        };
        let entrance = proxy.as_ref().map_or(addresses[0], RoundRobin::addr);
        Self {
            name,
            entrance,
            _origins: origins,
            _proxy: proxy,
            _storage: place,
        }
    }

    fn client(&self) -> Registry {
        Registry::at(self.entrance)
    }
}
