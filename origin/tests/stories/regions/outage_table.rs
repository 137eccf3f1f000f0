//! What clients see in each form of outage, made outside the origin: a table.
//!
//! `docs/benchmarks` has it from `cargo test --release -p flotilla-origin --test stories
//! regions::outage_table -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use futures_util::future::join4;
use futures_util::stream::{self, StreamExt as _};
use reqwest::StatusCode;

use super::storage_outages::{BROWN_OUT, FIRST, S3, burst};
use super::storage_servers::{OutageSite, is_not_now, pull, push_until_accepted};
use super::until;
use crate::servers::{Behaviour, Outage};
use crate::support::{Registry, sample};

/// Forms that are tried at once: each has two servers, two regions and four cold replicas.
const AT_ONCE: usize = 3;
const LAYER: usize = 100_000;
/// A push is acknowledged after this time at most.
const PUSH: Duration = Duration::from_secs(10);
/// The same if probes do not see the outage: changes have to fail several times first.
const PUSH_IN_BROWN_OUT: Duration = Duration::from_secs(60);

/// How the storage fails, as in the table.
const FORMS: [(&str, Outage); 10] = [
    ("accepts, and hangs", Outage::Hangs),
    ("refuses connections", Outage::Refuses),
    ("process stopped", Outage::ProcessStops),
    ("process killed", Outage::ProcessDies),
    ("throttles (503)", Outage::Answers(Behaviour::Throttles)),
    ("answers 500", Outage::Answers(Behaviour::Fails)),
    ("tears bodies", Outage::Answers(Behaviour::TearsBodies)),
    (
        "lost data objects",
        Outage::Answers(Behaviour::LosesObjects),
    ),
    ("lost its bucket", Outage::Answers(Behaviour::HasNoBucket)),
    ("full (507)", Outage::Answers(Behaviour::IsFull)),
];

/// What a client saw.
struct Cell {
    status: StatusCode,
    first: Duration,
    later: Duration,
}

impl Cell {
    fn text(&self) -> String {
        let (first, later) = (self.first.as_secs_f64(), self.later.as_secs_f64());
        format!("{} {first:.2} s, {later:.2} s", self.status.as_u16())
    }
}

/// Whether the storage answers what it is asked, so that absence is known.
fn is_sure(outage: Outage) -> bool {
    use Behaviour::{IsFull, LosesObjects, TearsBodies};
    matches!(outage, Outage::Answers(TearsBodies | LosesObjects | IsFull))
}

/// Whether the storage answers probes although requests fail or hang.
fn is_brown_out(outage: Outage) -> bool {
    use Behaviour::{HangsUnprobed, SlowUnprobed};
    matches!(outage, Outage::Answers(HangsUnprobed | SlowUnprobed))
}

/// Pulls by tag, which can change: in a brown-out, 503 after a bounded wait is right.
async fn pull_by_tag(client: &Registry, expected: &Bytes, outage: Outage) -> Cell {
    let attempt = async || {
        let started = Instant::now();
        let answer = client.get("/v2/app/manifests/v1").await;
        let status = answer.status();
        if is_brown_out(outage) && is_not_now(&answer) {
            let took = started.elapsed();
            assert!(took < BROWN_OUT, "{took:?}");
            return (status, took);
        }
        assert_eq!(status, StatusCode::OK, "{outage:?}");
        assert!(answer.bytes().await.unwrap() == *expected);
        let took = started.elapsed();
        assert!(is_brown_out(outage) || took < FIRST, "{outage:?}: {took:?}");
        (status, took)
    };
    let (status, first) = attempt().await;
    let (_, later) = attempt().await;
    Cell {
        status,
        first,
        later,
    }
}

async fn pull_by_digest(client: &Registry, manifest: &Bytes) -> Cell {
    let path = format!("/v2/app/manifests/{}", Digest::sha256(manifest));
    Cell {
        status: StatusCode::OK,
        first: pull(client, &path, manifest).await,
        later: pull(client, &path, manifest).await,
    }
}

async fn pull_in_burst(client: &Registry, site: &OutageSite) -> Cell {
    Cell {
        status: StatusCode::OK,
        first: burst(client, site).await,
        later: burst(client, site).await,
    }
}

/// Pushes twice, as clients do; returns also how many requests were refused.
async fn push(client: &Registry) -> (Cell, usize) {
    let push = async |tag: &str, salt: usize| {
        let started = Instant::now();
        let refused = push_until_accepted(client, tag, &sample(50_000, salt)).await;
        (started.elapsed(), refused)
    };
    let (first, refused) = push("during", 77).await;
    let (later, _) = push("during-2", 78).await;
    let status = StatusCode::CREATED;
    let cell = Cell {
        status,
        first,
        later,
    };
    (cell, refused)
}

/// One form of outage; `None`, with a message, if a program is missing.
async fn row(name: &str, outage: Outage) -> Option<String> {
    let test = "clients_in_each_form_of_outage";
    let mut site = OutageSite::start(test, [S3, S3], 0, LAYER).await?;
    // Each of them notices the outage by itself.
    let mut cold = Vec::new();
    for _ in 0..4 {
        cold.push(site.regions.cold_client(0).await);
    }
    site.set_outage(Some(outage));
    let manifest = &site.image.manifest;
    let (tag, digest, burst, (push, refused)) = join4(
        pull_by_tag(&cold[0], manifest, outage),
        pull_by_digest(&cold[1], manifest),
        pull_in_burst(&cold[2], &site),
        push(&cold[3]),
    )
    .await;
    for (what, cell) in [("digest", &digest), ("burst", &burst)] {
        assert!(cell.first < FIRST, "{outage:?}, {what}: {:?}", cell.first);
    }
    let limit = if is_brown_out(outage) {
        PUSH_IN_BROWN_OUT
    } else {
        PUSH
    };
    assert!(push.first < limit, "{outage:?}: {:?}", push.first);
    let absent = Digest::sha256(b"absent");
    for path in [
        format!("/v2/app/manifests/{absent}"),
        format!("/v2/app/blobs/{absent}"),
        "/v2/app/manifests/absent".to_owned(),
    ] {
        let answer = cold[1].get(&path).await;
        let is_absent = answer.status() == StatusCode::NOT_FOUND;
        let is_right = is_not_now(&answer) || (is_sure(outage) && is_absent);
        assert!(is_right, "{outage:?}: {path}: {answer:?}");
    }
    // Acknowledged pushes are read at once.
    for tag in ["during", "during-2"] {
        let answer = cold[3].get(&format!("/v2/app/manifests/{tag}")).await;
        assert_eq!(answer.status(), StatusCode::OK, "{outage:?}: {tag}");
    }
    site.set_outage(None);
    let healed = Instant::now();
    for tag in ["during", "during-2"] {
        let what = format!("{outage:?}: {tag} is in the own storage");
        until(&what, async || site.stores_tag(0, tag).await).await;
    }
    let whole = healed.elapsed().as_secs_f64();
    let row = format!(
        "| {name} | {} | {} | {} | {} ({refused} refused) | {whole:.1} s |",
        tag.text(),
        digest.text(),
        burst.text(),
        push.text(),
    );
    eprintln!("{row}");
    Some(row)
}

#[tokio::test]
#[ignore = "prints a table; half a minute"]
async fn clients_in_each_form_of_outage() {
    let rows = stream::iter(FORMS).map(|(name, outage)| row(name, outage));
    let rows: Vec<_> = rows.buffered(AT_ONCE).collect().await;
    eprintln!("| S3 storage | by tag | by digest | burst of 8 | push | forwarded push returned |");
    eprintln!("|---|---|---|---|---|---|");
    for row in rows.into_iter().flatten() {
        eprintln!("{row}");
    }
}
