//! Conformance to the OCI distribution specification, of the two deployments of an origin: one
//! replica on a local directory, and a round-robin proxy over three replicas on S3.
//!
//! The folder `tables` has a row for each requirement of the specification; `table.rs` describes
//! their format. `official_program.rs` runs the conformance program of the specification itself.

mod bodies;
mod official_program;
mod pagination;
mod round_robin;
mod run;
mod table;

use std::sync::Arc;

use flotilla_origin::Origin;
use flotilla_origin::storage::{LocalDirectory, Storage};
use tempfile::TempDir;

use crate::servers::{Kind, Server};
use crate::support::{Registry, start_replicas};
use round_robin::RoundRobin;
use run::check;

#[tokio::test]
async fn pulling() {
    check("conformance::pulling", include_str!("tables/pulling.txt")).await;
}

#[tokio::test]
async fn pushing_blobs() {
    let table = include_str!("tables/pushing-blobs.txt");
    check("conformance::pushing_blobs", table).await;
}

#[tokio::test]
async fn pushing_chunks() {
    let table = include_str!("tables/pushing-chunks.txt");
    check("conformance::pushing_chunks", table).await;
}

#[tokio::test]
async fn pushing_manifests() {
    let table = include_str!("tables/pushing-manifests.txt");
    check("conformance::pushing_manifests", table).await;
}

#[tokio::test]
async fn listing_tags() {
    let table = include_str!("tables/listing-tags.txt");
    check("conformance::listing_tags", table).await;
}

#[tokio::test]
async fn listing_referrers() {
    let table = include_str!("tables/listing-referrers.txt");
    check("conformance::listing_referrers", table).await;
}

#[tokio::test]
async fn deleting() {
    check("conformance::deleting", include_str!("tables/deleting.txt")).await;
}

#[tokio::test]
async fn errors() {
    check("conformance::errors", include_str!("tables/errors.txt")).await;
}

/// A registry as clients see it.
struct Deployment {
    name: &'static str,
    address: std::net::SocketAddr,
    _origins: Vec<Origin>,
    _proxy: Option<RoundRobin>,
    _backend: Backend,
}

/// Keeps the storage alive as long as the deployment.
enum Backend {
    Directory { _directory: TempDir },
    S3 { _server: Box<Server> },
}

impl Deployment {
    async fn one_replica() -> Self {
        let directory = TempDir::new().unwrap();
        let storage = Arc::new(LocalDirectory::open(directory.path()).unwrap());
        let backend = Backend::Directory {
            _directory: directory,
        };
        Self::start("one replica", 1, storage, backend).await
    }

    /// Sends each request to the next of three replicas. `None`, with a message, if no S3 server is
    /// installed.
    async fn round_robin(test: &str) -> Option<Self> {
        let server = Server::start(test, Kind::S3Fs).await?;
        let storage = server.storage();
        let backend = Backend::S3 {
            _server: Box::new(server),
        };
        Some(Self::start("round-robin over 3 replicas", 3, storage, backend).await)
    }

    async fn start_all(test: &str) -> Vec<Self> {
        let deployments = [
            Some(Self::one_replica().await),
            Self::round_robin(test).await,
        ];
        deployments.into_iter().flatten().collect()
    }

    async fn start(
        name: &'static str,
        replicas: usize,
        storage: Arc<dyn Storage>,
        backend: Backend,
    ) -> Self {
        let origins = start_replicas(replicas, storage, |_| {}).await;
        let addresses: Vec<_> = origins.iter().map(Origin::addr).collect();
        let proxy = match &*addresses {
            [_] => None,
            _ => Some(RoundRobin::start(addresses.clone()).await),
        };
        let address = proxy.as_ref().map_or(addresses[0], RoundRobin::addr);
        Self {
            name,
            address,
            _origins: origins,
            _proxy: proxy,
            _backend: backend,
        }
    }

    fn client(&self) -> Registry {
        Registry::at(self.address)
    }
}
