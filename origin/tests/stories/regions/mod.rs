//! Regions that copy from each other.

mod absence;
mod copies;
mod costs;
mod cut_off;
mod deletes;
mod endpoints;
mod figures;
pub(crate) mod harness;
mod joining;
mod monitoring;
pub(crate) mod network;
mod outage_table;
mod outages;
mod reads;
mod replication;
mod selection;
mod shares;
mod storage_outages;
mod storage_servers;
mod writes;
mod wrong_storage;

use std::time::{Duration, Instant};

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within 40 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
