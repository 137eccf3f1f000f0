//! One conformance suite for every implementation of storage, and what is special about the local
//! directory.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets and processes, in real time"
)]

mod conformance;
mod local;
mod remote;
#[path = "../servers/mod.rs"]
mod servers;

use std::sync::Arc;

use conformance::Lacks;
use flotilla_origin::storage::{self, Bounded, Counted, LocalDirectory, Storage};

fn memory() -> Arc<dyn Storage> {
    storage::open("memory:///", 64 << 20).unwrap()
}

#[tokio::test]
async fn memory_conforms() {
    conformance::check(memory(), Lacks::default()).await;
}

#[tokio::test]
async fn the_decorators_conform() {
    let bounded = Bounded::new(
        Arc::new(Counted::new(memory())),
        core::time::Duration::from_secs(60),
    );
    conformance::check(Arc::new(bounded), Lacks::default()).await;
}

#[tokio::test]
async fn a_local_directory_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conformance::check(
        Arc::new(LocalDirectory::open(directory.path()).unwrap()),
        Lacks::default(),
    )
    .await;
}
