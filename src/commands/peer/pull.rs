//! `flotilla peer pull`: pulls an image through a mirror as containerd would, verifies it, and
//! discards it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use flotilla_common::units::ByteSize;
use serde::Serialize;

use super::byte_progress::ByteProgress;
use super::image_reference::ImageReference;
use super::mirror::MirrorArg;
use crate::client::{PulledImage, RegistryClient};
use crate::command::{CommandError, block_on, print_json, print_text};

/// The arguments of `flotilla peer pull`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
It reads all blobs through the mirror, three at a time, and verifies their digests. It writes nothing; the peer stores
the blobs as for any pull. The exit status is 1 if a blob is not available or does not match its digest.

Examples:
  flotilla peer pull library/app:v1
  flotilla peer pull library/app:v1 --ns registry.example.com:5000 --mirror 127.0.0.1:5001
  flotilla peer pull library/app@sha256:... --json")]
pub(super) struct PullArgs {
    /// REPOSITORY:TAG or REPOSITORY@DIGEST, without the registry's name
    #[arg(value_name = "IMAGE")]
    image: ImageReference,
    #[command(flatten)]
    mirror: MirrorArg,
    /// The registry's name, as containerd sends it to the mirror
    #[arg(long, value_name = "REGISTRY")]
    ns: Option<String>,
    /// Print one JSON object: image, manifest, bytes, first_byte_s, total_s
    #[arg(long)]
    json: bool,
}

/// The figures that are printed.
#[derive(Serialize)]
struct Outcome {
    image: String,
    manifest: String,
    bytes: u64,
    first_byte_s: f64,
    total_s: f64,
}

/// Pulls the image.
///
/// # Errors
/// If a blob is not available or does not match its digest.
pub(super) fn run(args: PullArgs) -> Result<(), CommandError> {
    block_on(async move {
        let ImageReference {
            repository,
            reference,
        } = &args.image;
        let image = args.image.to_string();
        let failed = |error| {
            CommandError::failed(
                format!("pull {image} through {}", args.mirror.mirror),
                error,
            )
        };
        let mut client =
            RegistryClient::new(args.mirror.url(""), repository.clone()).map_err(failed)?;
        if let Some(namespace) = &args.ns {
            client = client.through_mirror(namespace);
        }
        let progress = ByteProgress::start(args.json, &image);
        let on_bytes = {
            let progress = progress.clone();
            let received = Arc::new(AtomicU64::new(0));
            move |bytes| progress.set_bytes(received.fetch_add(bytes, Ordering::Relaxed) + bytes)
        };
        let pulled = client.pull(&reference.to_string(), on_bytes).await;
        progress.clear();
        print(&image, &pulled.map_err(failed)?, args.json)
    })
}

fn print(image: &str, pulled: &PulledImage, json: bool) -> Result<(), CommandError> {
    let total_s = pulled.total.as_secs_f64();
    let first_byte_s = pulled.first_byte.as_secs_f64();
    let manifest = pulled.digest.to_string();
    if json {
        return print_json(&Outcome {
            image: image.to_owned(),
            manifest,
            bytes: pulled.bytes,
            first_byte_s,
            total_s,
        });
    }
    let rate = ByteSize((pulled.bytes as f64 / total_s.max(0.001)) as u64);
    let size = ByteSize(pulled.bytes);
    print_text(format!(
        "{image}\nmanifest    {manifest}\nbytes       {size}, all digests verified\n\
         time        {total_s:.2} s, first byte after {first_byte_s:.2} s, {rate}/s\n"
    ))
}
