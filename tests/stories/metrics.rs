//! The metrics that services export are those that `docs/operations.md` lists, each with its
//! labels: no more and no fewer.

use std::collections::{BTreeMap, BTreeSet};

use flotilla::client::http_client;
use flotilla_common::units::ByteSize;

use crate::harness::scene::Scene;

/// Labels by the name of their metric.
type Metrics = BTreeMap<String, BTreeSet<String>>;

/// What is between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The table of a service's metrics: its rows, each with the names and the labels in it.
fn documented(service: &str) -> Vec<(Vec<String>, BTreeSet<String>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let page = std::fs::read_to_string(path).unwrap();
    let prefix = format!("flotilla_{service}_");
    let (_, after) = page
        .split_once(&format!("(`{prefix}`):"))
        .expect("a table of its metrics");
    let rows = after
        .trim_start()
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').collect();
        let names = quoted(cells[1])
            .map(|name| format!("{prefix}{name}"))
            .collect();
        (names, quoted(cells[2]).map(str::to_owned).collect())
    };
    rows.map(row).collect()
}

/// What a service prints.
fn exported(text: &str) -> Metrics {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = types.filter_map(|line| line.split(' ').next());
    let mut metrics: Metrics = names
        .map(|name| (name.to_owned(), BTreeSet::new()))
        .collect();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((sample, rest)) = line.split_once('{') else {
            continue;
        };
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| sample.strip_suffix(suffix));
        let labels = rest
            .split_once('}')
            .unwrap()
            .0
            .split("\",")
            .filter_map(|label| label.split('=').next());
        let known = metrics
            .get_mut(name.unwrap_or(sample))
            .expect("each sample has a type");
        known.extend(labels.filter(|label| *label != "le").map(str::to_owned));
    }
    metrics
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operations_page_lists_every_metric_with_its_labels() {
    let mut scene = Scene::with_image(ByteSize(1 << 20), None).await;
    scene.add_peers(1).await;
    let pull = scene.pull(0);
    scene.completes(pull).await;
    let peer = format!("http://{}/flotilla", scene.region.peers()[0].mirror_addr());
    for (service, url) in [
        ("origin", scene.region.origin_url()),
        ("tracker", scene.region.tracker_url()),
        ("peer", peer),
    ] {
        let text = http_client()
            .unwrap()
            .get(format!("{url}/metrics"))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let mut exported = exported(&text);
        for (names, labels) in documented(service) {
            let mut found = BTreeSet::new();
            for name in &names {
                found.extend(
                    exported
                        .remove(name)
                        .unwrap_or_else(|| panic!("{name} is only documented:\n{text}")),
                );
            }
            assert_eq!(found, labels, "the labels of {names:?}");
        }
        assert!(
            exported.is_empty(),
            "exported and not documented: {exported:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_runtime_asks_is_counted_from_the_start() {
    let mut scene = Scene::with_image(ByteSize(1 << 20), None).await;
    scene.add_peers(1).await;
    let url = format!(
        "http://{}/flotilla/metrics",
        scene.region.peers()[0].mirror_addr()
    );
    let text = http_client()
        .unwrap()
        .get(url)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for route in ["manifest", "blob"] {
        let line = format!("flotilla_peer_http_requests_total{{route=\"{route}\",code=\"200\"}} 0");
        assert!(
            text.lines().any(|printed| printed == line),
            "{line} is missing in\n{text}"
        );
    }
}
