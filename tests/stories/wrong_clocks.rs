//! Peers whose wall clock is an hour wrong: they measure time with the monotonic clock, and their
//! certificates are still valid.

use std::path::PathBuf;
use std::time::Duration;

use crate::harness::lab::{SLOW_SIZE, TestLab, slow_peers, slow_region};
use crate::harness::tools;

/// The time of a pull with correct clocks, and some margin.
const PULL_LIMIT: Duration = Duration::from_secs(9);

#[tokio::test(flavor = "multi_thread")]
async fn wall_clocks_an_hour_ahead_or_behind_do_not_slow_pulls() {
    let Some(library) = faketime_library() else {
        return tools::skip("wrong wall clocks", "faketime is not installed");
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
    let lab = TestLab::with_plan(slow_region(), SLOW_SIZE, &peers).await;
    for pull in lab.pull_everywhere() {
        let total = lab.finish_pull(pull).await.total;
        assert!(
            total < PULL_LIMIT,
            "a pull took {total:?} with a wrong clock"
        );
    }
    let from_peers =
        lab.stats(0).await.unwrap().bytes_from_peers + lab.stats(1).await.unwrap().bytes_from_peers;
    assert!(
        from_peers > lab.image_bytes,
        "peers with wrong clocks got only {from_peers} bytes from neighbours"
    );
}

/// The library of Debian's `faketime` that shifts a process's wall clock.
fn faketime_library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?;
    let mut candidates = folders.filter_map(|folder| {
        let library = folder.ok()?.path().join("faketime/libfaketime.so.1");
        library.is_file().then_some(library)
    });
    candidates.next()
}
