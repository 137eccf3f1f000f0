//! A peer's wall clock is an hour wrong. What it measures, it measures on its monotonic clock; what
//! a certificate's dates allow, still works.

use std::path::PathBuf;
use std::time::Duration;

use crate::harness::lab_scene::{LabScene, SLOW_SIZE, slow_peers, slow_region};
use crate::harness::tools;

/// As long as with right clocks, and some room.
const BOUND: Duration = Duration::from_secs(9);

#[tokio::test(flavor = "multi_thread")]
async fn clocks_are_an_hour_wrong_in_both_directions() {
    let Some(library) = false_clock() else {
        return tools::skip("clocks are an hour wrong", "faketime is not installed");
    };
    let mut peers = slow_peers(3);
    for (peer, offset) in peers.iter_mut().zip(["+1h", "-1h"]) {
        let library = library.display().to_string();
        for (key, value) in [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME", offset),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ] {
            peer.environment.push((key.to_owned(), value.to_owned()));
        }
    }
    let scene = LabScene::of(slow_region(), SLOW_SIZE, &peers).await;
    for pull in scene.pull_everywhere() {
        let total = scene.completes(pull).await.total;
        assert!(total < BOUND, "a wrong clock cost a pull {total:?}");
    }
    let from_peers = scene.lab.stats(0).await.unwrap().bytes_from_peers
        + scene.lab.stats(1).await.unwrap().bytes_from_peers;
    assert!(
        from_peers > scene.image_bytes,
        "{from_peers} bytes came from neighbours to those with wrong clocks"
    );
}

/// The library of Debian's `faketime` that shifts a process's wall clock.
fn false_clock() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?;
    let mut candidates = folders.filter_map(|folder| {
        let library = folder.ok()?.path().join("faketime/libfaketime.so.1");
        library.is_file().then_some(library)
    });
    candidates.next()
}
