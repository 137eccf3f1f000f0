//! A peer's status as text: tables and lines.

use std::fmt::Write as _;

use flotilla_common::digest::Digest;
use flotilla_common::swarm::StallReason;
use flotilla_common::units::ByteSize;
use flotilla_peer::status::{
    BlobStatus, Direction, Exchange, Near, NeighbourStatus, OriginStanding, OriginStatus,
    PullReport, PullResult, PullStatus, Sources, Status, TrackerStatus, Waits,
};

/// Characters shown of a digest.
const DIGEST_LEN: usize = 12;
/// Sources listed per blob.
const MAX_SOURCES: usize = 4;
/// Finished pulls listed.
const MAX_FINISHED: usize = 5;

/// Renders the whole status.
pub(super) fn render(status: &Status) -> String {
    let mut text = String::new();
    head(&mut text, status);
    section(
        &mut text,
        "pulling",
        &["image", "time", "held", "to runtime", "of", "from"],
        &pulls(status),
    );
    section(
        &mut text,
        "wanted",
        &["blob", "held", "of", "rate", "from", "waiting for"],
        &wanted(status),
    );
    let columns = ["peer", "zone", "rtt", "down", "", "up", ""];
    section(&mut text, "neighbours", &columns, &neighbours(status));
    services(&mut text, status);
    let finished = status
        .finished
        .iter()
        .take(MAX_FINISHED)
        .map(finished)
        .collect::<Vec<_>>();
    let columns = [
        "recent pulls",
        "",
        "time",
        "first byte",
        "rate",
        "slowdown",
        "from",
        "stalled",
    ];
    table(&mut text, &columns, &finished);
    text
}

fn head(text: &mut String, status: &Status) {
    let Status {
        id,
        region,
        zone,
        slots,
        down,
        up,
        ..
    } = status;
    line(
        text,
        format_args!("{id} in zone {zone}, region {region}, {}", status.address),
    );
    line(
        text,
        format_args!("down {}, up {}", direction(down), direction(up)),
    );
    let (downloads, uploads, each_way) = (slots.downloads, slots.uploads, slots.each_way);
    line(
        text,
        format_args!("transfers: {downloads} down, {uploads} up, {each_way} each way at a time"),
    );
    if !status.stalled.is_empty() {
        line(
            text,
            format_args!("stalled since the start: {}", waits(&status.stalled)),
        );
    }
}

fn pulls(status: &Status) -> Vec<Vec<String>> {
    let row = |pull: &PullStatus| {
        let image = if pull.is_warming {
            format!("{} (warming)", pull.image)
        } else {
            pull.image.clone()
        };
        let mut from = sources(&pull.sources);
        if let Some(trouble) = &pull.trouble {
            let _ = write!(from, "; {trouble}");
        }
        vec![
            image,
            seconds(pull.seconds),
            size(pull.held),
            size(pull.emitted),
            size(pull.bytes),
            from,
        ]
    };
    status.pulls.iter().map(row).collect()
}

fn wanted(status: &Status) -> Vec<Vec<String>> {
    let row = |blob: &BlobStatus| {
        let from = blob
            .transfers
            .iter()
            .map(|transfer| transfer.from.as_str())
            .take(MAX_SOURCES);
        let reason = blob
            .waits_for
            .map_or_else(String::new, |wait| description(wait).to_owned());
        let so_far = if blob.waited.is_empty() {
            String::new()
        } else {
            format!(" (so far: {})", waits(&blob.waited))
        };
        vec![
            short(&blob.digest),
            size(blob.held),
            size(blob.bytes),
            rate(blob.bytes_per_second),
            from.collect::<Vec<_>>().join(", "),
            format!("{reason}{so_far}").trim_start().to_owned(),
        ]
    };
    status.wanted.iter().map(row).collect()
}

fn neighbours(status: &Status) -> Vec<Vec<String>> {
    let row = |neighbour: &NeighbourStatus| {
        let place = match neighbour.nearness {
            Near::SameZone => "same".to_owned(),
            Near::SameRegion => neighbour.zone.to_string(),
            Near::Elsewhere => format!("{} in {}", neighbour.zone, neighbour.region),
        };
        let exchange = |exchange: &Exchange| {
            let running = match exchange.transfers {
                0 => String::new(),
                count => format!(" ({count} running)"),
            };
            [
                rate(exchange.bytes_per_second),
                format!("{}{running}", size(exchange.bytes)),
            ]
        };
        let rtt = format!("{:.1} ms", neighbour.rtt_seconds * 1000.0);
        let mut row = vec![neighbour.id.to_string(), place, rtt];
        row.extend(
            exchange(&neighbour.down)
                .into_iter()
                .chain(exchange(&neighbour.up)),
        );
        row
    };
    status.connected.iter().map(row).collect()
}

fn services(text: &mut String, status: &Status) {
    text.push('\n');
    for banned in &status.quarantined {
        let left = seconds(banned.seconds_left);
        line(
            text,
            format_args!(
                "quarantine  {} sent corrupt bytes; not used for another {left}",
                banned.id
            ),
        );
    }
    trackers(text, &status.trackers);
    for origin in &status.origins {
        let health = origin_health(origin);
        let OriginStatus { url, region, .. } = origin;
        line(text, format_args!("origin      {url}  {region}  {health}"));
    }
    let store = &status.store;
    let used = size(store.bytes);
    let quota = size(store.quota);
    let blobs = store.blobs;
    let complete = store.complete;
    let dir = store.dir.display();
    line(
        text,
        format_args!("store       {used} of {quota}, {complete} of {blobs} blobs complete, {dir}"),
    );
    let leases = status
        .leases
        .iter()
        .map(|lease| format!("{}/{}", short(&lease.blob), lease.chunk));
    let leases = leases.collect::<Vec<_>>().join(" ");
    line(
        text,
        format_args!(
            "leases      {}",
            if leases.is_empty() { "none" } else { &leases }
        ),
    );
}

/// Each tracker, with its region if there are several.
fn trackers(text: &mut String, trackers: &[TrackerStatus]) {
    let mut regions = trackers.iter().map(|tracker| &tracker.region);
    let first = regions.next();
    let has_several_regions = regions.any(|region| Some(region) != first);
    for tracker in trackers {
        let health = match (tracker.is_answering, &tracker.trouble) {
            (None, _) if has_several_regions && !tracker.is_used => {
                "not used while a nearer one answers".to_owned()
            }
            (None, _) => "not used yet".to_owned(),
            (Some(true), _) => "up".to_owned(),
            (Some(false), Some(trouble)) => format!("down: {trouble}"),
            (Some(false), None) => "down".to_owned(),
        };
        let region = match &tracker.region {
            Some(region) if has_several_regions => format!("  {region}"),
            _ => String::new(),
        };
        let url = &tracker.url;
        line(text, format_args!("tracker     {url}{region}  {health}"));
    }
}

/// How far an origin is used, since when, and the last error.
fn origin_health(origin: &OriginStatus) -> String {
    let standing = match (origin.standing, origin.is_answering) {
        (OriginStanding::Fine, None) => return "not used yet".to_owned(),
        (OriginStanding::Fine, _) => "up".to_owned(),
        (OriginStanding::Suspect, _) => "slow or failing, being probed".to_owned(),
        (OriginStanding::Out, _) => "down".to_owned(),
        (OriginStanding::Returning, _) => {
            format!("up again, used by {} % of requests", origin.share_percent)
        }
    };
    let since = match origin.seconds {
        Some(age) if origin.standing != OriginStanding::Fine => format!(" for {}", seconds(age)),
        _ => String::new(),
    };
    let trouble = origin.trouble.as_ref();
    let trouble = trouble.map_or_else(String::new, |trouble| format!(": {trouble}"));
    format!("{standing}{since}{trouble}")
}

fn finished(report: &PullReport) -> Vec<String> {
    let result = match (report.result, report.is_warming) {
        (PullResult::Pulled, false) => "pulled".to_owned(),
        (PullResult::Pulled, true) => "warmed".to_owned(),
        (PullResult::GivenUp, _) => {
            format!(
                "given up: {}",
                report.why.as_deref().unwrap_or("it stalled")
            )
        }
    };
    vec![
        report.image.clone(),
        result,
        seconds(report.seconds),
        report.first_byte_seconds.map_or_else(String::new, seconds),
        rate(report.bytes_per_second),
        report
            .over_bound
            .map_or_else(String::new, |ratio| format!("{ratio:.2} x")),
        sources(&report.sources),
        waits(&report.waits),
    ]
}

/// Adds a table with `title` as the head of its first column; nothing if there are no rows.
fn section(text: &mut String, title: &str, columns: &[&str], rows: &[Vec<String>]) {
    let mut columns = columns.to_vec();
    if let Some(first) = columns.first_mut() {
        *first = title;
    }
    table(text, &columns, rows);
}

/// Adds a table whose columns are as wide as their widest cell; nothing if there are no rows.
fn table(text: &mut String, head: &[&str], rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    let head: Vec<String> = head.iter().map(|&column| column.to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    text.push('\n');
    for row in [&head].into_iter().chain(rows) {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        line(
            text,
            format_args!("{}", cells.collect::<Vec<_>>().join("  ").trim_end()),
        );
    }
}

/// A description of the reason why a blob waits.
fn description(wait: StallReason) -> &'static str {
    match wait {
        StallReason::FirstByte => "the first byte of a requested chunk",
        StallReason::Holders => "neighbours that have it but are busy",
        StallReason::Neighbours => "connections to other peers",
        StallReason::Lease => {
            "a lease: no neighbour has it; other peers may be fetching it from the origin"
        }
        StallReason::Turn => {
            "its lease request: the limit of concurrent lease requests is used by other blobs"
        }
        StallReason::Tracker => "the next request to the tracker (rate limit)",
        StallReason::NoTracker => "the origin: no tracker answers, and other peers fetch from it",
        StallReason::Origin => "an origin; all are down",
        StallReason::Quarantine => "another source; all known ones sent corrupt bytes",
        StallReason::Store => "the peer's store, which reported an error",
    }
}

/// The reasons and their times, the longest first.
fn waits(waits: &Waits) -> String {
    let mut longest: Vec<_> = waits.iter().collect();
    longest.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let items = longest
        .into_iter()
        .map(|(wait, time)| format!("{} {}", wait.name(), seconds(*time)));
    items.collect::<Vec<_>>().join(", ")
}

/// The sources that bytes came from, with their sizes.
pub(super) fn sources(sources: &Sources) -> String {
    let all = [
        ("store", sources.own_store),
        ("zone", sources.same_zone),
        ("other zones", sources.other_zones),
        ("origin", sources.origin_leased),
        ("origin without lease", sources.origin_unleased),
        ("pass-through", sources.passed_through),
    ];
    let used = all.into_iter().filter(|(_, bytes)| *bytes > 0);
    used.map(|(name, bytes)| format!("{name} {}", size(bytes)))
        .collect::<Vec<_>>()
        .join(", ")
}

fn direction(direction: &Direction) -> String {
    let cap = direction
        .cap_bits_per_second
        .map_or_else(String::new, |cap| format!(" of {cap}"));
    format!(
        "{}{cap} ({} so far)",
        bits(direction.bytes_per_second),
        size(direction.bytes)
    )
}

/// A rate in bits per second, the unit of rate limits.
fn bits(bytes_per_second: f64) -> String {
    format!("{:.1}Mbit", bytes_per_second * 8.0 / 1e6)
}

fn rate(bytes_per_second: f64) -> String {
    if bytes_per_second < 1.0 {
        "-".to_owned()
    } else {
        format!("{}/s", size(bytes_per_second as u64))
    }
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.2} s")
}

fn short(digest: &Digest) -> String {
    let text = digest.to_string();
    let hash = text.split_once(':').map_or(text.as_str(), |(_, hash)| hash);
    hash.chars().take(DIGEST_LEN).collect()
}

/// Adds a line; writing to a string cannot fail.
fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{arguments}");
}
