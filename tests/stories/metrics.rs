//! The exported metrics and their labels are exactly those in `docs/operations.md`.

use std::collections::{BTreeMap, BTreeSet};

use flotilla::client::http_client;
use flotilla_common::units::ByteSize;

use crate::harness::region::TestRegion;

/// The labels of each metric, by its name.
pub(crate) type Metrics = BTreeMap<String, BTreeSet<String>>;

/// The code spans of a table cell.
fn code_spans(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The rows of the documented table of the metrics with a prefix: the names and the labels in each.
fn documented(prefix: &str) -> Vec<(Vec<String>, BTreeSet<String>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let page = std::fs::read_to_string(path).unwrap();
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
        let names = code_spans(cells[1])
            .map(|name| format!("{prefix}{name}"))
            .collect();
        (names, code_spans(cells[2]).map(str::to_owned).collect())
    };
    rows.map(row).collect()
}

/// Parses the metrics of a service.
pub(crate) fn exported(text: &str) -> Metrics {
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

/// Asserts that the table of the metrics with a prefix lists exactly these metrics and labels.
pub(crate) fn assert_documented(mut exported: Metrics, prefix: &str) {
    for (names, labels) in documented(prefix) {
        let mut found = BTreeSet::new();
        for name in &names {
            let known = exported.remove(name);
            found.extend(known.unwrap_or_else(|| panic!("{name} is documented but not exported")));
        }
        assert_eq!(found, labels, "the labels of {names:?}");
    }
    assert!(
        exported.is_empty(),
        "exported but not documented: {exported:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn documentation_lists_every_metric_with_its_labels() {
    let mut region = TestRegion::with_image(ByteSize(1 << 20), None).await;
    region.add_peers(1).await;
    let pull = region.pull(0);
    region.finish_pull(pull).await;
    let peer = format!("http://{}", region.peers()[0].admin_addr());
    for (service, url) in [
        ("origin", region.origin_admin_url()),
        ("tracker", region.tracker_admin_url()),
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
        assert_documented(exported(&text), &format!("flotilla_{service}_"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_request_counters_start_at_zero() {
    let mut region = TestRegion::with_image(ByteSize(1 << 20), None).await;
    region.add_peers(1).await;
    let url = format!("http://{}/metrics", region.peers()[0].admin_addr());
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
