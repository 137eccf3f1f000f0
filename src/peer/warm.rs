//! `flotilla peer warm`: an image fetched into a peer's store before anybody pulls it.

use std::time::Duration;

use clap::Args;
use flotilla_common::digest::Digest;
use flotilla_peer::Warming;
use flotilla_peer::status::{PullReport, PullResult, Status};

use super::progress::Bytes;
use super::{ImageReference, MirrorArg, render};
use crate::cli::{CommandError, block_on, print_json, print_text};
use crate::client::http_client;

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The arguments of `flotilla peer warm`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla peer warm library/app:v1             returns when the image is in the peer's store
  flotilla peer warm library/app:v1 --no-wait   returns at once; `flotilla peer status` shows how far it is")]
pub struct WarmArgs {
    /// REPOSITORY:TAG or REPOSITORY@DIGEST, without the registry's name; of an index, all its
    /// images
    #[arg(value_name = "IMAGE")]
    image: ImageReference,
    #[command(flatten)]
    mirror: MirrorArg,
    /// Return as soon as the peer has begun
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
/// What could not be had, and why.
pub fn run(args: WarmArgs) -> Result<(), CommandError> {
    block_on(async move {
        let ImageReference {
            repository,
            reference,
        } = &args.image;
        let path = format!("/flotilla/warm/{repository}/manifests/{reference}");
        let client =
            http_client().map_err(|error| CommandError::failed("set up an HTTP client", error))?;
        let response = client.post(args.mirror.url(&path)).send().await;
        let response = response.map_err(|error| args.mirror.failed(error))?;
        let warming: Warming = args.mirror.read(response).await?;
        if args.no_wait {
            let told = format!(
                "{repository} is being fetched; `flotilla peer status` shows how far it is\n"
            );
            return if args.json { Ok(()) } else { print_text(told) };
        }
        let progress = Bytes::start(args.json, repository.as_str());
        let reports = until_warm(&args.mirror, &warming.manifests, &progress).await;
        progress.end();
        say(&reports?, args.json)
    })
}

/// Waits until each of the images is warmed or given up; the peer bounds how long that may take.
async fn until_warm(
    mirror: &MirrorArg,
    manifests: &[Digest],
    progress: &Bytes,
) -> Result<Vec<PullReport>, CommandError> {
    loop {
        let status: Status = mirror.get("/flotilla/status").await?;
        let is_ours =
            |manifest: &Digest, is_warming: bool| is_warming && manifests.contains(manifest);
        let open: Vec<_> = status
            .pulls
            .iter()
            .filter(|pull| is_ours(&pull.manifest, pull.is_warming))
            .collect();
        if open.is_empty() {
            let mut reports = Vec::new();
            for manifest in manifests {
                let is_it =
                    |report: &&PullReport| report.is_warming && report.manifest == *manifest;
                reports.extend(status.finished.iter().find(is_it).cloned());
            }
            return Ok(reports);
        }
        progress.at(open.iter().map(|pull| pull.held).sum());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn say(reports: &[PullReport], is_json: bool) -> Result<(), CommandError> {
    if is_json {
        print_json(&reports)?;
    } else {
        for report in reports {
            let sources = render::sources(&report.sources);
            let (image, seconds) = (&report.image, report.seconds);
            print_text(match report.result {
                PullResult::Pulled => {
                    format!("{image} is in the store: {sources}; {seconds:.2} s\n")
                }
                PullResult::GivenUp => {
                    format!(
                        "{image} was given up: {}\n",
                        report.why.as_deref().unwrap_or("it stood still")
                    )
                }
            })?;
        }
    }
    let is_well = reports
        .iter()
        .all(|report| report.result == PullResult::Pulled);
    if is_well {
        Ok(())
    } else {
        Err(CommandError::NotOk)
    }
}
