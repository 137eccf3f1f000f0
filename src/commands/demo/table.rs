//! The table that a demonstration prints.

use std::fmt::Write as _;

use flotilla_common::units::{BitRate, ByteSize};

use super::outcome::{
    MAX_ORIGIN_COPIES, MAX_STALL_S, MAX_WAN_COPIES, OutageOutcome, Outcome, PeerOutcome,
};

/// Renders a row per peer, then the summary.
pub(super) fn render(peers: &[PeerOutcome], outcome: &Outcome) -> String {
    let mut text = format!(
        "\n{:<10} {:<8} {:>8} {:>11} {:>12} {:>12} {:>12}\n",
        "peer", "zone", "time", "first byte", "from peers", "from origin", "from store"
    );
    for peer in peers {
        let time = peer.total.as_ref().map_or("failed".to_owned(), |total| {
            format!("{:.2} s", total.as_secs_f64())
        });
        line(
            &mut text,
            format_args!(
                "{:<10} {:<8} {:>8} {:>11} {:>12} {:>12} {:>12}",
                peer.id,
                peer.zone,
                time,
                format!("{:.2} s", peer.first_byte.as_secs_f64()),
                ByteSize(peer.from_peers).to_string(),
                ByteSize(peer.from_origin).to_string(),
                ByteSize(peer.from_store).to_string(),
            ),
        );
    }
    for peer in peers {
        if let Err(message) = &peer.total {
            line(&mut text, format_args!("\n{} failed: {message}", peer.id));
        }
    }
    text.push('\n');
    for (name, value) in summary(outcome) {
        line(&mut text, format_args!("{name:<16} {value}"));
    }
    text
}

/// The names and values of the summary.
fn summary(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let bound = format!(
        "{:.2} s at {} each; p99 is {:.3} times that",
        outcome.pipelined_bound_s,
        BitRate(outcome.rate_bit_s),
        outcome.p99_over_bound,
    );
    // In an outage other criteria hold.
    let limit = match outcome.outage {
        Some(_) => String::new(),
        None => format!("; limit {MAX_ORIGIN_COPIES}"),
    };
    let copies = format!(
        "{:.3} ({} for an image of {}{limit})",
        outcome.origin_copies,
        ByteSize(outcome.origin_bytes),
        ByteSize(outcome.image_bytes)
    );
    let mut rows = vec![
        (
            "time of a pull",
            format!("p50 {:.2} s, p99 {:.2} s", outcome.p50_s, outcome.p99_s),
        ),
        ("pipelined bound", bound),
        ("origin copies", copies),
        ("from peers", ByteSize(outcome.peer_bytes).to_string()),
    ];
    if let Some(regions) = &outcome.regions {
        let by_region = regions.bytes_by_region.iter();
        let by_region = by_region.map(|(name, bytes)| format!("{name} {}", ByteSize(*bytes)));
        rows.push(("from origins", by_region.collect::<Vec<_>>().join(", ")));
    }
    rows.extend(outcome.outage.iter().flat_map(outage_rows));
    let result = if outcome.ok {
        "ok"
    } else {
        "failed: a pull, or a limit above"
    };
    rows.push(("result", result.to_owned()));
    rows
}

fn outage_rows(outage: &OutageOutcome) -> [(&'static str, String); 4] {
    [
        ("outage", outage.outage.clone()),
        (
            "longest stall",
            format!("{:.2} s (limit {MAX_STALL_S})", outage.stall_s),
        ),
        (
            "wan copies",
            format!("{:.3} (limit {MAX_WAN_COPIES})", outage.wan_copies),
        ),
        (
            "",
            format!(
                "{} from other regions; unsent before: {}",
                ByteSize(outage.wan_bytes),
                ByteSize(outage.unsent_bytes)
            ),
        ),
    ]
}

/// Adds a line; writing to a string cannot fail.
fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{arguments}");
}
