//! The tasks that the driver spawns: downloads, uploads, and the verification of whole blobs. Each
//! reports its progress and its result.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::failover::SourceId;
use flotilla_common::grant::Grant;
use flotilla_common::name::RepositoryName;
use flotilla_common::origin_region::OriginRegion;
use flotilla_common::proof::Proof;
use flotilla_common::swarm::{DownloadFailure, RefusalReason, TransferId, UploadId};
use flotilla_common::wire::peer::{self, ImageBundle};
use flotilla_runtime::rate::Limiter;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::handles::Upstream;
use crate::origin::{self, ChunkProgress, OriginError, OriginFetchError};
use crate::store::{StoreError, StoredBlob};
use crate::telemetry::Telemetry;
use crate::transport::{self, ChunkInterceptor, ChunkRequest, FetchError, PeerLink, ServeError};

/// The longest time between two progress reports of a transfer.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);
/// The least number of progress reports of a transfer. On a fast link, a transfer ends before
/// `REPORT_INTERVAL` has passed.
const REPORTS: u64 = 4;

/// A report of a task to the driver.
#[derive(Debug)]
pub(super) enum TaskReport {
    /// A download's response has begun.
    FirstByte(TransferId),
    /// The origin that sends the response of a download.
    Origin(TransferId, SourceId),
    /// The bytes of a download received so far.
    Progress(TransferId, u64),
    /// A download ended.
    Fetched(TransferId, Fetched),
    /// The bytes of an upload sent so far.
    UploadProgress(UploadId, u64),
    /// An upload ended; the bytes sent.
    UploadEnded(UploadId, u64),
    /// A chunk was found damaged while it was served.
    Damaged(Digest, u32),
    /// A whole blob was verified.
    Verified(Digest, Verdict),
    /// An origin renewed a grant.
    Granted(Grant),
    /// A neighbour sent an image, whose manifest has this digest.
    ImageReceived(Digest, Box<ImageBundle>),
}

/// How a download ended.
#[derive(Debug)]
pub(super) enum Fetched {
    Received,
    Refused(RefusalReason),
    Failed(DownloadFailure),
}

/// Reports the progress of a transfer at intervals. While the driver's queue is full, reports are
/// dropped.
struct ProgressReporter<F> {
    reports: mpsc::Sender<TaskReport>,
    reported: u64,
    reported_at: Instant,
    /// The bytes after which a report is due.
    step: u64,
    report: F,
}

impl<F: Fn(u64) -> TaskReport> ProgressReporter<F> {
    fn new(reports: mpsc::Sender<TaskReport>, length: u64, report: F) -> Self {
        Self {
            reports,
            reported: 0,
            reported_at: Instant::now(),
            step: length / REPORTS,
            report,
        }
    }

    fn report(&mut self, bytes: u64) {
        let is_due =
            || bytes - self.reported >= self.step || self.reported_at.elapsed() >= REPORT_INTERVAL;
        if bytes == 0 || is_due() {
            self.reported = bytes;
            self.reported_at = Instant::now();
            let _ = self.reports.try_send((self.report)(bytes));
        }
    }
}

const fn download_report(transfer: TransferId) -> impl Fn(u64) -> TaskReport {
    move |bytes| {
        if bytes == 0 {
            TaskReport::FirstByte(transfer)
        } else {
            TaskReport::Progress(transfer, bytes)
        }
    }
}

/// Downloads a chunk from a neighbour.
pub(super) async fn fetch_from_peer(
    transfer: TransferId,
    link: PeerLink,
    blob: Arc<StoredBlob>,
    chunk: u32,
    grant: Option<Grant>,
    limit: Limiter,
    reports: mpsc::Sender<TaskReport>,
) {
    let length = blob.geometry().chunk_len(chunk);
    let mut progress = ProgressReporter::new(reports.clone(), length, download_report(transfer));
    let progress = |bytes| progress.report(bytes);
    let fetched = transport::fetch_chunk(&link, &blob, chunk, grant, &limit, progress).await;
    let outcome = match fetched {
        Ok(()) => Fetched::Received,
        Err(FetchError::Refused(peer::Refusal::Busy)) => Fetched::Refused(RefusalReason::Busy),
        Err(FetchError::Refused(peer::Refusal::Gone | peer::Refusal::NotPermitted)) => {
            Fetched::Refused(RefusalReason::Gone)
        }
        Err(error) => {
            tracing::debug!(
                peer = %link.peer(), blob = %blob.digest(), chunk, %error,
                "download of a chunk from a neighbour failed"
            );
            Fetched::Failed(match error {
                FetchError::Corrupt => DownloadFailure::Corrupt,
                FetchError::Store(error) => store_failed(&blob, &error),
                _ => DownloadFailure::Link,
            })
        }
    };
    send(&reports, TaskReport::Fetched(transfer, outcome)).await;
}

/// Downloads a chunk from the origins, those of the region `first` before the others.
pub(super) async fn fetch_from_origin(
    transfer: TransferId,
    upstream: Upstream,
    repository: RepositoryName,
    blob: Arc<StoredBlob>,
    (chunk, first): (u32, Option<OriginRegion>),
    reports: mpsc::Sender<TaskReport>,
) {
    let length = blob.geometry().chunk_len(chunk);
    let mut progress = ProgressReporter::new(reports.clone(), length, download_report(transfer));
    let progress = |made| match made {
        ChunkProgress::Begun(origin) => {
            // While the driver's queue is full, the status and the tracker lack the origin.
            let _ = reports.try_send(TaskReport::Origin(transfer, origin));
            progress.report(0);
        }
        ChunkProgress::Received(bytes) => progress.report(bytes),
    };
    let Upstream {
        origins,
        download_limit: limit,
        ..
    } = &upstream;
    let chunk_of = (chunk, first);
    let fetched = origin::fetch_chunk(origins, &repository, &blob, chunk_of, limit, progress).await;
    let outcome = match fetched {
        Ok(()) => Fetched::Received,
        Err(error) => {
            tracing::warn!(
                blob = %blob.digest(), chunk, %error,
                "download of a chunk from the origins failed; requesting the chunk again"
            );
            let is_unsealed = matches!(blob.proof(), Proof::DigestOnly { .. });
            Fetched::Failed(match error {
                // The origin has no seal for the blob, so this proves a fault of the blob, not of
                // the origin.
                OriginFetchError::Corrupt
                | OriginFetchError::Origin(OriginError::Refused(_) | OriginError::Missing(_))
                    if is_unsealed =>
                {
                    blob.mark_bypassed();
                    DownloadFailure::Store
                }
                OriginFetchError::Corrupt => DownloadFailure::Corrupt,
                OriginFetchError::Store(error) => store_failed(&blob, &error),
                OriginFetchError::Origin(_) => DownloadFailure::Link,
            })
        }
    };
    send(&reports, TaskReport::Fetched(transfer, outcome)).await;
}

/// The store cannot take the blob: readers get the rest from an origin, without the store.
fn store_failed(blob: &StoredBlob, error: &StoreError) -> DownloadFailure {
    // The store has logged a lack of file descriptors.
    if !matches!(error, StoreError::OutOfFiles { .. }) {
        tracing::error!(
            blob = %blob.digest(), %error,
            "the store cannot take a blob; passing it through from an origin"
        );
    }
    blob.mark_bypassed();
    DownloadFailure::Store
}

/// Sends a chunk to the neighbour that asked for it.
pub(super) async fn serve(
    upload: UploadId,
    request: ChunkRequest,
    blob: Arc<StoredBlob>,
    limit: Limiter,
    telemetry: Arc<Telemetry>,
    interceptor: Arc<dyn ChunkInterceptor>,
    reports: mpsc::Sender<TaskReport>,
) {
    let length = blob.geometry().chunk_len(request.ask.chunk);
    let mut progress = ProgressReporter::new(reports.clone(), length, move |bytes| {
        TaskReport::UploadProgress(upload, bytes)
    });
    let progress = |bytes| progress.report(bytes);
    let mut sent = 0;
    match request.serve(&blob, &limit, &interceptor, progress).await {
        Ok(bytes) => {
            sent = bytes;
            telemetry.counters.to_peers.add(bytes);
        }
        Err(ServeError::Store(StoreError::Damaged { digest, chunk })) => {
            tracing::warn!(blob = %digest, chunk, "stored chunk is damaged; downloading it again");
            send(&reports, TaskReport::Damaged(digest, chunk)).await;
        }
        Err(error) => {
            tracing::debug!(blob = %blob.digest(), %error, "upload of a chunk failed");
        }
    }
    send(&reports, TaskReport::UploadEnded(upload, sent)).await;
}

/// The result of verifying a whole blob.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The blob has its digest.
    Valid,
    /// The blob has another digest, although every chunk matches its proof.
    WrongDigest,
    /// These chunks changed on this machine's disk after they were verified.
    Damaged(Vec<u32>),
}

/// Verifies a whole blob whose chunks are all held.
pub(super) async fn verify(blob: Arc<StoredBlob>, reports: mpsc::Sender<TaskReport>) {
    match verdict(&blob).await {
        Ok(verdict) => send(&reports, TaskReport::Verified(*blob.digest(), verdict)).await,
        Err(error) => {
            tracing::warn!(blob = %blob.digest(), %error, "could not read back a blob to verify its digest; the digest stays unverified")
        }
    }
}

/// A wrong digest means that an origin's seal is wrong. Before that is reported, the chunks are
/// verified again, because the disk may have changed them, and then the digest, because chunks may
/// have been downloaded again meanwhile.
async fn verdict(blob: &StoredBlob) -> Result<Verdict, StoreError> {
    if blob.check_digest().await? {
        return Ok(Verdict::Valid);
    }
    let damaged = blob.damaged_chunks().await?;
    if !damaged.is_empty() {
        return Ok(Verdict::Damaged(damaged));
    }
    Ok(if blob.check_digest().await? {
        Verdict::Valid
    } else {
        Verdict::WrongDigest
    })
}

/// Sends a report, waiting while the queue is full. It is dropped if the driver has stopped.
async fn send(reports: &mpsc::Sender<TaskReport>, report: TaskReport) {
    let _ = reports.send(report).await;
}
