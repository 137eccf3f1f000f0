//! The table of a burst's figures.

use std::fmt::Write as _;

use flotilla_common::units::ByteSize;
use flotilla_lab::LinkTraffic;

use super::outcome::{
    MAX_FIRST_BYTE_S, MAX_ORIGIN_COPIES, MAX_P99_OVER_BOUND, Measured, Outcome, PeerOutcome,
};
use super::probes::RoundTrips;

/// Renders a row per peer, then one per region if there are several, then the summary.
pub(super) fn render(measured: &Measured, outcome: &Outcome) -> String {
    let mut text = peer_rows(&measured.peers);
    if outcome.regions.len() > 1 {
        text.push_str(&region_rows(outcome));
    }
    let traffic = &measured.traffic;
    let limited = |value: String, limit: f64| format!("{value} (limit {limit})");
    let p99_over_bound = format!("{:.3}", outcome.p99_over_bound);
    for (name, value) in [
        ("time of a pull", times(outcome.p50_s, outcome.p99_s)),
        ("pipelined bound", seconds(outcome.pipelined_bound_s)),
        (
            "p99 over bound",
            match outcome.has_outage {
                false => limited(p99_over_bound, MAX_P99_OVER_BOUND),
                true => p99_over_bound,
            },
        ),
        (
            "origin copies",
            limited(format!("{:.3}", outcome.origin_copies), MAX_ORIGIN_COPIES),
        ),
        (
            "first byte",
            limited(
                format!("p99 {}", seconds(outcome.first_byte_p99_s)),
                MAX_FIRST_BYTE_S,
            ),
        ),
        ("longest stall", seconds(outcome.stall_s)),
        ("round trips", round_trips(outcome.round_trips)),
        ("peers' links", copies(&traffic.peers, traffic.size)),
        ("origins' links", copies(&traffic.origins, traffic.size)),
        ("CPUs", format!("{:.0} % busy", outcome.cpu_busy * 100.0)),
        (
            "result",
            if outcome.ok { "ok" } else { "failed" }.to_owned(),
        ),
    ] {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{name:<16} {value}");
    }
    text.push('\n');
    text
}

fn peer_rows(peers: &[PeerOutcome]) -> String {
    let mut text = format!(
        "\n{:<10} {:>9} {:>11} {:>12} {:>12} {:>12} {:>8}\n",
        "peer", "time", "first byte", "from peers", "from origin", "to peers", "refused"
    );
    for (number, peer) in (1..).zip(peers) {
        let time = peer
            .total
            .as_ref()
            .map_or("failed".to_owned(), |total| seconds(total.as_secs_f64()));
        text.push_str(&format!(
            "{:<10} {:>9} {:>11} {:>12} {:>12} {:>12} {:>8}\n",
            format!("peer-{number}"),
            time,
            seconds(peer.first_byte.as_secs_f64()),
            ByteSize(peer.stats.bytes_from_peers).to_string(),
            ByteSize(peer.stats.bytes_from_origin).to_string(),
            ByteSize(peer.stats.bytes_to_peers).to_string(),
            peer.stats.refused_busy,
        ));
        if let Err(message) = &peer.total {
            text.push_str(&format!("           {message}\n"));
        }
    }
    text
}

fn region_rows(outcome: &Outcome) -> String {
    let mut text = format!(
        "\n{:<10} {:>6} {:>9} {:>9} {:>12} {:>16}\n",
        "region", "peers", "p50", "p99", "from origin", "to other regions"
    );
    for (number, region) in (1..).zip(&outcome.regions) {
        text.push_str(&format!(
            "{:<10} {:>6} {:>9} {:>9} {:>12} {:>16}\n",
            format!("region-{number}"),
            region.peers,
            seconds(region.p50_s),
            seconds(region.p99_s),
            ByteSize(region.origin_bytes).to_string(),
            ByteSize(region.bytes_to_other_regions).to_string(),
        ));
    }
    text.push_str(&format!(
        "\nWide-area copies, headers included: {:.3}\n",
        outcome.wan_copies
    ));
    text
}

/// The traffic from and to some hosts, as a multiple of the layer's size.
fn copies([from, to]: &[LinkTraffic; 2], size: u64) -> String {
    let copies = |traffic: &LinkTraffic| traffic.bytes as f64 / size.max(1) as f64;
    let (sent, received) = (copies(from), copies(to));
    format!(
        "{sent:.3} copies out ({} packets dropped), {received:.3} in ({} dropped)",
        from.dropped, to.dropped
    )
}

/// The mean round trips during the burst.
fn round_trips(trips: &RoundTrips) -> String {
    let RoundTrips {
        between_peers,
        to_tracker,
        to_origin,
    } = trips;
    format!(
        "between peers {:.1} ms, to the tracker {:.1} ms, to the origin {:.1} ms",
        between_peers.mean_ms, to_tracker.mean_ms, to_origin.mean_ms
    )
}

fn times(p50_s: f64, p99_s: f64) -> String {
    format!("p50 {}, p99 {}", seconds(p50_s), seconds(p99_s))
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.2} s")
}
