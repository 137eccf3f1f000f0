//! `flotilla peer pull`: an image pulled through a mirror as containerd would, checked, and thrown
//! away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use flotilla_common::units::ByteSize;
use serde::Serialize;

use super::progress::Bytes;
use super::{ImageReference, MirrorArg};
use crate::cli::{CommandError, block_on, print_json, print_text};
use crate::client::{Pulled, RegistryClient};

/// The arguments of `flotilla peer pull`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Every blob is read through the mirror, three at a time, and its digest is checked; nothing is kept but what the
peer's store keeps. The exit status is 1 if a blob cannot be had or is not what its digest says.

Examples:
  flotilla peer pull library/app:v1
  flotilla peer pull library/app:v1 --ns registry.example.com:5000 --mirror 127.0.0.1:5001
  flotilla peer pull library/app@sha256:... --json")]
pub struct PullArgs {
    /// REPOSITORY:TAG or REPOSITORY@DIGEST, without the registry's name
    #[arg(value_name = "IMAGE")]
    image: ImageReference,
    #[command(flatten)]
    mirror: MirrorArg,
    /// The registry that the mirror stands in for, as containerd would name it
    #[arg(long, value_name = "REGISTRY")]
    ns: Option<String>,
    /// Print one JSON object: image, manifest, bytes, first_byte_s, total_s
    #[arg(long)]
    json: bool,
}

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
/// What could not be had, and why.
pub fn run(args: PullArgs) -> Result<(), CommandError> {
    block_on(async move {
        let ImageReference {
            repository,
            reference,
        } = &args.image;
        let reference = reference.to_string();
        let separator = if reference.contains(':') { '@' } else { ':' };
        let image = format!("{repository}{separator}{reference}");
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
        let done = Arc::new(AtomicU64::new(0));
        let progress = Bytes::start(args.json, &image);
        let counter = (Arc::clone(&done), progress.clone());
        let pulled = client
            .pull(&reference, move |bytes| {
                let (done, progress) = &counter;
                progress.at(done.fetch_add(bytes, Ordering::Relaxed) + bytes);
            })
            .await;
        progress.end();
        say(&image, &pulled.map_err(failed)?, args.json)
    })
}

fn say(image: &str, pulled: &Pulled, is_json: bool) -> Result<(), CommandError> {
    let (total_s, first_byte_s) = (pulled.total.as_secs_f64(), pulled.first_byte.as_secs_f64());
    let manifest = pulled.digest.to_string();
    if is_json {
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
        "{image}\nmanifest    {manifest}\nbytes       {size}, every digest checked\n\
         time        {total_s:.2} s, first byte after {first_byte_s:.2} s, {rate}/s\n"
    ))?;
    Ok(())
}
