//! What people and their tools ask of a peer: counters as metrics, and its state as JSON.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::Mirror;
use crate::stats::Stats;

/// The peer's counters and blobs.
pub(super) async fn status(State(mirror): State<Arc<Mirror>>) -> Json<Stats> {
    Json(mirror.shared.stats())
}

/// The counters in the Prometheus text format.
pub(super) async fn metrics(State(mirror): State<Arc<Mirror>>) -> impl IntoResponse {
    let text = render(&mirror.shared.stats());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

fn render(stats: &Stats) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in [
        (
            "bytes_from_peers_total",
            "counter",
            "Received from neighbours and verified.",
            stats.bytes_from_peers,
        ),
        ("bytes_from_origin_total", "counter", "Received from origins.", stats.bytes_from_origin),
        ("bytes_passed_through_total", "counter", "Passed through, not stored.", stats.bytes_passed_through),
        ("bytes_from_store_total", "counter", "Held when a pull began.", stats.bytes_from_store),
        ("bytes_to_peers_total", "counter", "Sent to neighbours.", stats.bytes_to_peers),
        ("bytes_to_runtime_total", "counter", "Handed to the container runtime.", stats.bytes_to_runtime),
        ("corrupt_chunks_total", "counter", "Chunks that failed their check.", stats.corrupt_chunks),
        ("quarantined_peers_total", "counter", "Neighbours found lying.", stats.quarantined_peers),
        ("quarantined_blobs_total", "counter", "Blobs with contradicting proofs.", stats.quarantined_blobs),
        ("refused_busy_total", "counter", "Requests refused for want of a slot.", stats.refused_busy),
        (
            "refused_not_permitted_total",
            "counter",
            "Requests refused for want of a grant.",
            stats.refused_not_permitted,
        ),
        ("neighbours", "gauge", "Connections to neighbours.", stats.neighbours),
        ("store_bytes", "gauge", "Bytes of the blobs in the store.", stats.store_bytes),
        (
            "certificate_ends_timestamp_seconds",
            "gauge",
            "When the certificate in use is over, in seconds since 1970.",
            stats.certificate_ends_unix_s,
        ),
    ] {
        let _ = writeln!(text, "# HELP flotilla_peer_{name} {help}");
        let _ = writeln!(text, "# TYPE flotilla_peer_{name} {kind}");
        let _ = writeln!(text, "flotilla_peer_{name} {value}");
    }
    text
}
