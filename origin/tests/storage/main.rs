//! One backend_suite suite for every implementation of storage, and what is special about the local
//! directory.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets and processes, in real time"
)]

mod backend_suite;
mod local;
mod remote;
#[path = "../servers/mod.rs"]
mod servers;

use std::sync::Arc;

use backend_suite::Lacks;
use flotilla_origin::storage::{self, CountingStorage, LocalDirectory, Storage, TimeoutStorage};

fn memory() -> Arc<dyn Storage> {
    storage::open("memory:///", 64 << 20).unwrap()
}

#[tokio::test]
async fn memory_conforms() {
    backend_suite::check(memory(), Lacks::default()).await;
}

#[tokio::test]
async fn the_decorators_conform() {
    let bounded = TimeoutStorage::new(
        Arc::new(CountingStorage::new(memory())),
        core::time::Duration::from_secs(60),
    );
    backend_suite::check(Arc::new(bounded), Lacks::default()).await;
}

#[tokio::test]
async fn a_local_directory_conforms() {
    let directory = tempfile::tempdir().unwrap();
    backend_suite::check(
        Arc::new(LocalDirectory::open(directory.path()).unwrap()),
        Lacks::default(),
    )
    .await;
}
