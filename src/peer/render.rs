//! A peer's status as people read it.

use std::fmt::Write as _;

use flotilla_common::digest::Digest;
use flotilla_common::swarm::Wait;
use flotilla_common::units::ByteSize;
use flotilla_peer::status::{
    BlobStatus, Direction, Exchange, Near, NeighbourStatus, PullReport, PullResult, PullStatus,
    Sources, Status, Waits,
};

/// Characters of a digest that are shown.
const DIGEST_SHOWN: usize = 12;
/// Sources of one blob that are shown.
const SOURCES_SHOWN: usize = 4;
/// Pulls that are over and shown.
const FINISHED_SHOWN: usize = 5;

/// The whole status.
pub(super) fn status(status: &Status) -> String {
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
        &["blob", "held", "of", "rate", "from", "waits for"],
        &wanted(status),
    );
    let columns = ["peer", "where", "rtt", "down", "", "up", ""];
    section(&mut text, "neighbours", &columns, &neighbours(status));
    services(&mut text, status);
    let finished = status
        .finished
        .iter()
        .take(FINISHED_SHOWN)
        .map(finished)
        .collect::<Vec<_>>();
    let columns = [
        "last pulls",
        "",
        "time",
        "first byte",
        "rate",
        "bound",
        "from",
        "stood still",
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
        format_args!("{id} in {zone} of {region}, {}", status.address),
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
            format_args!("stood still since the start: {}", waits(&status.stalled)),
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
            .take(SOURCES_SHOWN);
        let waiting = blob
            .waits_for
            .map_or_else(String::new, |wait| reason(wait).to_owned());
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
            format!("{waiting}{so_far}").trim_start().to_owned(),
        ]
    };
    status.wanted.iter().map(row).collect()
}

fn neighbours(status: &Status) -> Vec<Vec<String>> {
    let row = |neighbour: &NeighbourStatus| {
        let place = match neighbour.nearness {
            Near::SameZone => "near".to_owned(),
            Near::SameRegion => format!("{} (far)", neighbour.zone),
            Near::Elsewhere => format!("{} of {} (far)", neighbour.zone, neighbour.region),
        };
        let exchange = |exchange: &Exchange| {
            let under_way = match exchange.transfers {
                0 => String::new(),
                some => format!(" ({some} now)"),
            };
            [
                rate(exchange.bytes_per_second),
                format!("{}{under_way}", size(exchange.bytes)),
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
                "quarantine  {} sent corrupt bytes; not used for {left}",
                banned.id
            ),
        );
    }
    let trackers = status
        .trackers
        .iter()
        .map(|it| ("tracker", &it.url, it.is_answering, &it.trouble));
    let origins = status
        .origins
        .iter()
        .map(|it| ("origin", &it.url, it.is_answering, &it.trouble));
    for (what, url, is_answering, trouble) in trackers.chain(origins) {
        let health = match (is_answering, trouble) {
            (None, _) => "not asked yet".to_owned(),
            (Some(true), _) => "answers".to_owned(),
            (Some(false), Some(trouble)) => format!("DOES NOT ANSWER: {trouble}"),
            (Some(false), None) => "DOES NOT ANSWER".to_owned(),
        };
        line(text, format_args!("{what:<11} {url}  {health}"));
    }
    let store = &status.store;
    let (used, quota) = (size(store.bytes), size(store.quota));
    let (blobs, complete, dir) = (store.blobs, store.complete, store.dir.display());
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

fn finished(report: &PullReport) -> Vec<String> {
    let result = match (report.result, report.is_warming) {
        (PullResult::Pulled, false) => "pulled".to_owned(),
        (PullResult::Pulled, true) => "warmed".to_owned(),
        (PullResult::GivenUp, _) => {
            format!(
                "GIVEN UP: {}",
                report.why.as_deref().unwrap_or("it stood still")
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

/// Adds a table under a title in its first column; nothing if there are no rows.
fn section(text: &mut String, title: &str, columns: &[&str], rows: &[Vec<String>]) {
    let mut columns = columns.to_vec();
    if let Some(first) = columns.first_mut() {
        *first = title;
    }
    table(text, &columns, rows);
}

/// Adds rows under a head, each column as wide as it must be.
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

/// Why a blob waits, in words.
fn reason(wait: Wait) -> &'static str {
    match wait {
        Wait::FirstByte => "the first byte of a source that was asked",
        Wait::Holders => "neighbours that have it and are busy",
        Wait::Neighbours => "neighbours that are being dialled",
        Wait::Lease => "a lease: nobody around has it, others may be fetching it from the origin",
        Wait::Turn => "its turn: the tracker is asked about other blobs first",
        Wait::Tracker => "the tracker, which may not be asked again yet",
        Wait::NoTracker => "other peers, which come first at the origin while no tracker answers",
        Wait::Origin => "an origin: none answers",
        Wait::Quarantine => "somebody else: all who have it sent corrupt bytes",
        Wait::Store => "the own store, which failed",
    }
}

/// Reasons and times, the longest first.
fn waits(waits: &Waits) -> String {
    let mut longest: Vec<_> = waits.iter().collect();
    longest.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let words = longest
        .into_iter()
        .map(|(wait, time)| format!("{} {}", wait.name(), seconds(*time)));
    words.collect::<Vec<_>>().join(", ")
}

/// Where bytes came from, leaving out where none did.
pub(super) fn sources(sources: &Sources) -> String {
    let words = [
        ("own store", sources.own_store),
        ("zone", sources.same_zone),
        ("other zones", sources.other_zones),
        ("origin", sources.origin_leased),
        ("origin without lease", sources.origin_unleased),
        ("passed through", sources.passed_through),
    ];
    let some = words.into_iter().filter(|(_, bytes)| *bytes > 0);
    some.map(|(word, bytes)| format!("{word} {}", size(bytes)))
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

/// A rate beside a cap: in its unit.
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
    hash.chars().take(DIGEST_SHOWN).collect()
}

/// Adds a line. Writing to a string cannot fail.
fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{arguments}");
}
