//! From one region to two, with real processes: what an operator and a pipeline see.

use std::path::Path;
use std::time::Duration;

use flotilla_common::units::ByteSize;

use crate::harness::two_regions::TwoRegions;
use crate::metrics::{assert_documented, exported};

const SIZE: ByteSize = ByteSize(1 << 20);

#[tokio::test(flavor = "multi_thread")]
async fn pipeline_waits_until_the_other_region_has_the_image() {
    let regions =
        TwoRegions::on_directories("[[repository]]\nmatch = \"eu/**\"\nregions = [\"eu-1\"]\n");
    let eu = regions.start_origin(0, &[]);
    regions.push("app", "v1", &regions.generate(SIZE, 1)).await;
    let us = ["--region", "us-1"];
    let error = regions.wait("app:v1", &[&us[..], &["--timeout", "0s"]].concat());
    let error = error.unwrap_err();
    assert!(
        error.contains("timeout after 0s: ask the region for the tag"),
        "{error}"
    );
    let ca = regions.authority();
    let refused = ["origin", "wait", "127.0.0.1:1/app:v1", "--tls-ca", &ca];
    let short = ["--timeout", "1s"];
    let error = regions.flotilla(&[&refused[..], &us, &short].concat());
    let error = error.unwrap_err();
    assert!(
        error.contains("Connection refused (os error 111); trying again for 1s")
            && error.contains("timeout after 1s: ask the registry for its regions"),
        "{error}"
    );
    let error = regions.wait("app:typo", &us).unwrap_err();
    assert!(error.contains("is it pushed there?"), "{error}");
    let error = regions.wait("app:v1", &["--region", "us-2"]).unwrap_err();
    assert!(error.contains("it has eu-1, us-1"), "{error}");
    let error = regions.wait("eu/app:v1", &us).unwrap_err();
    assert!(
        error.contains("does not keep eu/app in region us-1"),
        "{error}"
    );

    // The other region starts after the push, and its first contact finds what it is owed.
    let second = regions.start_origin(1, &[]);
    let printed = regions.wait("app:v1", &us).unwrap();
    assert!(printed.contains("region us-1 has "), "{printed}");
    // The image is there even if the first region is lost: this origin cannot ask it.
    drop(eu);
    let image = format!("{}/app:v1", regions.registry(1));
    let arguments = ["origin", "wait", &image, "--tls-ca", &ca, "--json"];
    let printed = regions.flotilla(&[&arguments[..], &us].concat()).unwrap();
    let outcome: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(outcome["ok"], true, "{printed}");
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_compares_the_regions() {
    let regions = TwoRegions::on_directories("");
    let _eu = regions.start_origin(0, &[]);
    let mut us = regions.start_origin(1, &[]);
    regions.push("app", "v1", &regions.generate(SIZE, 2)).await;
    regions.wait("app:v1", &["--region", "us-1"]).unwrap();
    let report = loop {
        let printed = regions.check(&["--deep", "--json"]).unwrap();
        let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
        // The entry is dropped after the image has arrived.
        if report["regions"][0]["owed"]["entries"] == 0 {
            break report;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(report["compared"], 2, "{report}");
    assert_eq!(report["damage"]["count"], 0, "{report}");
    assert_eq!(report["pending"]["count"], 0, "{report}");
    assert_eq!(report["regions"][0]["same_policy"], true, "{report}");
    assert_eq!(report["regions"][0]["whole"], false, "{report}");

    // All metrics have samples once something was copied, and read by a client.
    regions.get(1, "/v2/app/tags/list").await;
    let text = regions.metrics(1).await;
    let mut exported = exported(&text);
    exported.retain(|name, _| {
        let is_other = name.starts_with("flotilla_origin_region_takes");
        name.starts_with("flotilla_origin_region_") && !is_other
    });
    assert_documented(exported, "flotilla_origin_region_");
    let list: serde_json::Value =
        serde_json::from_str(&regions.get(1, "/flotilla/v1/regions?repository=app").await).unwrap();
    assert_eq!(list["region"], "us-1");
    assert_eq!(list["regions"][0]["name"], "eu-1");
    assert_eq!(list["regions"][0]["keeps"], true, "{list}");
    assert_eq!(list["regions"][0]["standing"], "usable", "{list}");
    assert_eq!(list["regions"][0]["lag"]["entries"], 0, "{list}");

    let file = regions.path("other.toml");
    std::fs::write(&file, regions.policy("[[repository]]\nmatch = \"x\"\n")).unwrap();
    regions.set_policy(0, &file);
    let error = regions.check(&[]).unwrap_err();
    assert!(error.contains("us-1 uses another policy"), "{error}");
    regions.set_policy(0, &regions.path("policy.toml"));

    // A blob that is lost in one region is named.
    let blobs = walk(Path::new(&regions.path("us-1/rb")));
    std::fs::remove_file(&blobs[0]).unwrap();
    // It remembers the blob for a while, so it is restarted.
    drop(us);
    us = regions.start_origin(1, &[]);
    let error = regions.check(&["--deep"]).unwrap_err();
    assert!(
        error.contains("lost or deleted in region us-1") && error.contains("damaged: push"),
        "{error}"
    );

    drop(us);
    let error = regions.check(&[]).unwrap_err();
    assert!(error.contains("problem: ask region us-1"), "{error}");
    let error = regions.flotilla(&[
        "origin",
        "check",
        "--storage",
        &regions.storage(0),
        "--regions",
    ]);
    let error = error.unwrap_err();
    assert!(error.contains("--server NAMES --region REGION"), "{error}");
}

/// All files below a folder.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}
