//! `flotilla peer warm`: fetches an image into a peer's store ahead of the first pull.

use std::time::Duration;

use clap::Args;
use flotilla_common::digest::Digest;
use flotilla_peer::Warming;
use flotilla_peer::status::{PullReport, PullResult, Status};

use super::byte_progress::ByteProgress;
use super::image_reference::ImageReference;
use super::mirror::MirrorArg;
use super::status_text;
use crate::client::http_client;
use crate::command::{CommandError, block_on, print_json, print_text};

/// Time between two status requests.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The arguments of `flotilla peer warm`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla peer warm library/app:v1             returns when the image is in the peer's store
  flotilla peer warm library/app:v1 --no-wait   returns at once; `flotilla peer status` shows the progress")]
pub(super) struct WarmArgs {
    /// REPOSITORY:TAG or REPOSITORY@DIGEST, without the registry's name; for an index, all its
    /// images are fetched
    #[arg(value_name = "IMAGE")]
    image: ImageReference,
    #[command(flatten)]
    mirror: MirrorArg,
    /// Return as soon as the peer has started the download
    #[arg(long)]
    no_wait: bool,
    /// Print one JSON array, with an object per image as in `flotilla peer status --json` under
    /// "finished"
    #[arg(long)]
    json: bool,
}

/// Warms the image.
///
/// # Errors
/// If the peer cannot fetch the image; [`CommandError::CriteriaNotMet`] if it gave up.
pub(super) fn run(args: WarmArgs) -> Result<(), CommandError> {
    block_on(async move {
        let ImageReference {
            repository,
            reference,
        } = &args.image;
        let path = format!("/flotilla/warm/{repository}/manifests/{reference}");
        let client =
            http_client().map_err(|error| CommandError::failed("create an HTTP client", error))?;
        let response = client.post(args.mirror.url(&path)).send().await;
        let response = response.map_err(|error| args.mirror.request_error(error))?;
        let warming: Warming = args.mirror.decode(response).await?;
        if args.no_wait {
            if args.json {
                return Ok(());
            }
            return print_text(format!(
                "fetching {repository}; `flotilla peer status` shows the progress\n"
            ));
        }
        let progress = ByteProgress::start(args.json, repository.as_str());
        let reports = wait_until_warm(&args.mirror, &warming.manifests, &progress).await;
        progress.clear();
        print(&reports?, args.json)
    })
}

/// Waits until the peer has stored each of the images or given up; the peer bounds the time.
async fn wait_until_warm(
    mirror: &MirrorArg,
    manifests: &[Digest],
    progress: &ByteProgress,
) -> Result<Vec<PullReport>, CommandError> {
    loop {
        let status: Status = mirror.get("/flotilla/status").await?;
        let running: Vec<_> = status
            .pulls
            .iter()
            .filter(|pull| pull.is_warming && manifests.contains(&pull.manifest))
            .collect();
        if running.is_empty() {
            let mut reports = Vec::new();
            for manifest in manifests {
                let mut finished = status.finished.iter();
                let report =
                    finished.find(|report| report.is_warming && report.manifest == *manifest);
                reports.extend(report.cloned());
            }
            return Ok(reports);
        }
        progress.set_bytes(running.iter().map(|pull| pull.held).sum());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn print(reports: &[PullReport], json: bool) -> Result<(), CommandError> {
    if json {
        print_json(&reports)?;
    } else {
        for report in reports {
            let sources = status_text::sources(&report.sources);
            let image = &report.image;
            let seconds = report.seconds;
            print_text(match report.result {
                PullResult::Pulled => {
                    format!("{image} is in the store: {sources}; {seconds:.2} s\n")
                }
                PullResult::GivenUp => {
                    let why = report.why.as_deref().unwrap_or("it stalled");
                    format!("gave up on {image}: {why}\n")
                }
            })?;
        }
    }
    let all_pulled = reports
        .iter()
        .all(|report| report.result == PullResult::Pulled);
    if all_pulled {
        Ok(())
    } else {
        Err(CommandError::CriteriaNotMet)
    }
}
