//! Storage backends: one suite that every implementation must pass, and tests of single backends.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets and processes, in real time"
)]

mod backend_suite;
mod local;
mod looks_first;
mod remote;
#[path = "../servers/mod.rs"]
mod servers;

use std::sync::Arc;

use backend_suite::Limitations;
use flotilla_origin::storage::{self, CountingStorage, LocalDirectory, Storage, TimeoutStorage};

fn memory() -> Arc<dyn Storage> {
    storage::open("memory:///", 64 << 20).unwrap()
}

const MEMORY: Limitations = Limitations {
    no_keys_under_keys: false,
    no_conditional_removal: true,
};

#[tokio::test]
async fn memory_backend() {
    backend_suite::check(memory(), MEMORY).await;
}

#[tokio::test]
async fn decorators() {
    let bounded = TimeoutStorage::new(
        Arc::new(CountingStorage::new(memory())),
        core::time::Duration::from_secs(60),
    );
    backend_suite::check(Arc::new(bounded), MEMORY).await;
}

#[tokio::test]
async fn local_directory_backend() {
    let directory = tempfile::tempdir().unwrap();
    backend_suite::check(
        Arc::new(LocalDirectory::open(directory.path()).unwrap()),
        Limitations::default(),
    )
    .await;
}
