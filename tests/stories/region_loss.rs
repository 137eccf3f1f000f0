//! The storage of a region is lost for good, as `docs/regions.md` describes it ("Loss of a
//! region").

use std::path::Path;

use flotilla::client::RegistryClient;
use flotilla_common::digest::Digest;
use flotilla_common::units::ByteSize;

use crate::harness::two_regions::TwoRegions;

const SIZE: ByteSize = ByteSize(256 << 10);
const ACKNOWLEDGED_BY_TWO: &str = "[[repository]]\nmatch = \"safe/**\"\nack_regions = 2\n";

/// Pulls a tag, which must name this image.
async fn assert_pulled(client: &RegistryClient, tag: &str, digest: Digest) {
    let pulled = client.pull(tag, |_| {}).await.unwrap();
    assert_eq!(pulled.digest, digest, "{tag}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_acknowledged_by_two_regions_survive_the_loss_of_one() {
    let regions = TwoRegions::on_directories(ACKNOWLEDGED_BY_TWO);
    let eu = regions.start_origin(0, &[]);
    let _us = regions.start_origin(1, &[]);
    let mut pushed = Vec::new();
    for number in 1..=5 {
        let layout = regions.generate(SIZE, number);
        let tag = format!("v{number}");
        pushed.push((regions.push("safe/app", &tag, &layout).await, tag));
    }
    // Killed right after the last acknowledgement.
    drop(eu);
    std::fs::remove_dir_all(regions.path("eu-1")).unwrap();
    let client = regions.client(1, "safe/app");
    for (digest, tag) in pushed {
        assert_pulled(&client, &tag, digest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_lost_with_a_region() {
    let regions = TwoRegions::on_directories("");
    let eu = regions.start_origin(0, &[]);
    let us = regions.start_origin(1, &[]);
    let layouts = [1, 2, 3].map(|number| regions.generate(SIZE, number));
    let kept = regions.push("app", "kept", &layouts[0]).await;
    regions.push("app", "moved", &layouts[0]).await;
    for image in ["app:kept", "app:moved"] {
        regions.wait(image, &["--region", "us-1"]).unwrap();
    }
    // Not replicated: the other region is away.
    drop(us);
    let lost = regions.push("app", "lost", &layouts[1]).await;
    let moved = regions.push("app", "moved", &layouts[2]).await;
    drop(eu);

    let us = regions.start_origin(1, &[]);
    let printed = regions.check(&["--deep", "--json"]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let named = report["pending"]["shown"].as_array().unwrap();
    let mut named: Vec<_> = named
        .iter()
        .map(|finding| finding["key"].as_str().unwrap())
        .collect();
    named.sort_unstable();
    let mut expected = vec![
        format!("rm/app/_/{lost}"),
        format!("rm/app/_/{moved}"),
        "tag/app/_/lost".to_owned(),
        "tag/app/_/moved".to_owned(),
    ];
    expected.sort_unstable();
    assert_eq!(named, expected, "{printed}");
    assert_eq!(report["damage"]["count"], 0, "{printed}");

    // The remaining region goes on alone.
    std::fs::remove_dir_all(regions.path("eu-1")).unwrap();
    drop(us);
    let file = regions.path("one.toml");
    std::fs::write(Path::new(&file), regions.policy_entry(1)).unwrap();
    regions.set_policy(1, &file);
    let _us = regions.start_origin(1, &[]);
    let client = regions.client(1, "app");
    assert_pulled(&client, "kept", kept).await;
    assert_pulled(&client, "moved", kept).await;
    let error = client.pull("lost", |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
}
