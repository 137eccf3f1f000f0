//! What the driver spawns: downloads, uploads, and the hashing of whole blobs. Each reports how it
//! goes.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::grant::Grant;
use flotilla_common::name::RepositoryName;
use flotilla_common::proof::Proof;
use flotilla_common::swarm::{Failure, OriginSlot, Refusal, TransferId, UploadId};
use flotilla_common::wire::peer;
use flotilla_runtime::rate::Limiter;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Report, Shared};
use crate::origin::{self, OriginError, OriginFetchError};
use crate::store::{StoreError, StoredBlob};
use crate::transport::{self, FetchError, Link, Outbound, Question, ServeError};

/// Time between two progress reports of one transfer.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);
/// A transfer reports at every such part of its length at least: on a fast link it is over before
/// the time is.
const REPORTS: u64 = 4;

/// How a download ended.
#[derive(Debug)]
pub(super) enum Fetched {
    Received,
    Refused(Refusal),
    Failed(Failure),
}

/// Tells the driver now and then how many of a transfer's bytes have moved. A driver that is busy
/// hears of later ones.
struct Progress<F> {
    reports: mpsc::Sender<Report>,
    told: u64,
    told_at: Instant,
    step: u64,
    report: F,
}

impl<F: Fn(u64) -> Report> Progress<F> {
    fn new(reports: mpsc::Sender<Report>, length: u64, report: F) -> Self {
        Self {
            reports,
            told: 0,
            told_at: Instant::now(),
            step: length / REPORTS,
            report,
        }
    }

    fn tell(&mut self, bytes: u64) {
        let is_due = || bytes - self.told >= self.step || self.told_at.elapsed() >= REPORT_INTERVAL;
        if bytes == 0 || is_due() {
            self.told = bytes;
            self.told_at = Instant::now();
            let _ = self.reports.try_send((self.report)(bytes));
        }
    }
}

const fn download_report(transfer: TransferId) -> impl Fn(u64) -> Report {
    move |bytes| {
        if bytes == 0 {
            Report::FirstByte(transfer)
        } else {
            Report::Progress(transfer, bytes)
        }
    }
}

/// Downloads a chunk from a neighbour.
pub(super) async fn from_peer(
    transfer: TransferId,
    link: Link,
    blob: Arc<StoredBlob>,
    chunk: u32,
    grant: Option<Grant>,
    cap: Limiter,
    reports: mpsc::Sender<Report>,
) {
    let length = blob.geometry().chunk_len(chunk);
    let mut progress = Progress::new(reports.clone(), length, download_report(transfer));
    let fetched = transport::fetch_chunk(&link, &blob, chunk, grant, &cap, |bytes| {
        progress.tell(bytes)
    })
    .await;
    let outcome = match fetched {
        Ok(()) => Fetched::Received,
        Err(FetchError::Refused(peer::Refusal::Busy)) => Fetched::Refused(Refusal::Busy),
        Err(FetchError::Refused(peer::Refusal::Gone | peer::Refusal::NotPermitted)) => {
            Fetched::Refused(Refusal::Gone)
        }
        Err(error) => {
            tracing::debug!(peer = %link.peer(), blob = %blob.digest(), chunk, %error, "fetch chunk");
            Fetched::Failed(match error {
                FetchError::Corrupt => Failure::Corrupt,
                FetchError::Store(error) => store_failed(&blob, &error),
                _ => Failure::Link,
            })
        }
    };
    finish(reports, Report::Fetched(transfer, outcome)).await;
}

/// Downloads a chunk from an origin.
#[allow(clippy::too_many_arguments, reason = "what a download is made of")]
pub(super) async fn from_origin(
    transfer: TransferId,
    shared: Arc<Shared>,
    origin: OriginSlot,
    repository: RepositoryName,
    blob: Arc<StoredBlob>,
    chunk: u32,
    reports: mpsc::Sender<Report>,
) {
    let length = blob.geometry().chunk_len(chunk);
    let mut progress = Progress::new(reports.clone(), length, download_report(transfer));
    let progress = |bytes| progress.tell(bytes);
    let fetched = origin::fetch_chunk(
        &shared.origins,
        origin,
        &repository,
        &blob,
        chunk,
        &shared.down,
        progress,
    )
    .await;
    let trouble = match &fetched {
        Err(OriginFetchError::Origin(error)) => Some(error.to_string()),
        _ => None,
    };
    shared.origins.heard(origin, trouble);
    let outcome = match fetched {
        Ok(()) => Fetched::Received,
        Err(error) => {
            tracing::warn!(origin = origin.0, blob = %blob.digest(), chunk, %error, "fetch chunk from origin");
            let is_whole = matches!(blob.proof(), Proof::DigestOnly { .. });
            Fetched::Failed(match error {
                // Nobody vouched for it: it is that blob that is wrong there, not the origin.
                OriginFetchError::Corrupt | OriginFetchError::Origin(OriginError::Refused(_))
                    if is_whole =>
                {
                    blob.bypass();
                    Failure::Store
                }
                OriginFetchError::Corrupt => Failure::Corrupt,
                OriginFetchError::Store(error) => store_failed(&blob, &error),
                OriginFetchError::Origin(_) => Failure::Link,
            })
        }
    };
    finish(reports, Report::Fetched(transfer, outcome)).await;
}

/// The store cannot take the blob: readers get the rest from the origin, past the store.
fn store_failed(blob: &StoredBlob, error: &StoreError) -> Failure {
    tracing::error!(blob = %blob.digest(), %error, "the store cannot take a blob, which is passed through now");
    blob.bypass();
    Failure::Store
}

/// Answers a neighbour's question with the chunk.
pub(super) async fn serve(
    upload: UploadId,
    question: Question,
    blob: Arc<StoredBlob>,
    shared: Arc<Shared>,
    outbound: Arc<dyn Outbound>,
    reports: mpsc::Sender<Report>,
) {
    let length = blob.geometry().chunk_len(question.ask.chunk);
    let mut progress = Progress::new(reports.clone(), length, move |bytes| {
        Report::UploadProgress(upload, bytes)
    });
    let mut sent = 0;
    match question
        .serve(&blob, &shared.up, &outbound, |bytes| progress.tell(bytes))
        .await
    {
        Ok(bytes) => {
            sent = bytes;
            shared.counters.to_peers.add(bytes);
        }
        Err(ServeError::Store(StoreError::Doubtful { digest, chunk })) => {
            tracing::warn!(blob = %digest, chunk, "a stored chunk was damaged and is fetched again");
            finish(reports.clone(), Report::Lost(digest, chunk)).await;
        }
        Err(error) => tracing::debug!(blob = %blob.digest(), %error, "serve chunk"),
    }
    finish(reports, Report::UploadEnded(upload, sent)).await;
}

/// What a whole blob turned out to be.
#[derive(Debug)]
pub(super) enum Whole {
    /// What its digest says.
    Right,
    /// Something else, although every chunk is as its proof says.
    Wrong,
    /// These chunks are not on the own disk as they were verified.
    Damaged(Vec<u32>),
}

/// Hashes a whole blob whose chunks are all held.
pub(super) async fn check(blob: Arc<StoredBlob>, reports: mpsc::Sender<Report>) {
    match judge(&blob).await {
        Ok(whole) => finish(reports, Report::Checked(*blob.digest(), whole)).await,
        Err(error) => tracing::warn!(blob = %blob.digest(), %error, "hash blob"),
    }
}

/// Before anybody is accused of a wrong digest, the chunks are looked at once more, for the own
/// disk may have changed them; and then the digest, for they may have been fetched again meanwhile.
async fn judge(blob: &StoredBlob) -> Result<Whole, StoreError> {
    if blob.check_digest().await? {
        return Ok(Whole::Right);
    }
    let damaged = blob.damaged_chunks().await?;
    if !damaged.is_empty() {
        return Ok(Whole::Damaged(damaged));
    }
    Ok(if blob.check_digest().await? {
        Whole::Right
    } else {
        Whole::Wrong
    })
}

async fn finish(reports: mpsc::Sender<Report>, report: Report) {
    // Only fails when the driver is gone.
    let _ = reports.send(report).await;
}
