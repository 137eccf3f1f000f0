//! Reads while the own storage has an older value than another region, or cannot be asked.

use std::time::Duration;

use flotilla_common::digest::Digest;
use reqwest::StatusCode;

use super::harness::Regions;
use super::until;
use crate::faulty_storage::Outage;
use crate::servers::GateState;
use crate::support::sample;

/// A blob that comes from another region goes on from a third one when the link stalls. Without a
/// third one it ends, so that the client can ask again.
#[tokio::test]
async fn bodies_from_another_region_do_not_stall() {
    for count in [3, 2] {
        let mut regions = Regions::start(count, |_, _| {}).await;
        let layer = sample(24 << 20, 3);
        regions
            .client(0)
            .push_image("app", "v1", core::slice::from_ref(&layer))
            .await;
        for region in 1..count {
            until("the copy", async || regions.stores_tag(region, "v1").await).await;
        }
        let cold = regions.cold_client(0).await;
        regions.faults(0).set_outage(Some(Outage::Refuses));
        let path = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
        let mut answer = cold.get(&path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let mut received = answer.chunk().await.unwrap().unwrap().to_vec();
        regions.gate(0, 1).set(GateState::Hanging);
        let rest = async {
            while let Ok(Some(piece)) = answer.chunk().await {
                received.extend_from_slice(&piece);
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(12), rest).await;
        assert!(ended.is_ok(), "{count} regions: the body stalls");
        assert_eq!(received == layer, count == 3, "{count} regions");
    }
}
