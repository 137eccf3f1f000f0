//! `flotilla origin`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use flotilla_common::name::RegionName;
use flotilla_common::units::BitRate;
use flotilla_origin::{Config, Origin};
use flotilla_runtime::config::ConfigFile;
use flotilla_runtime::identity::load_seal_key;

use super::begin;
use super::tls::TlsArgs;
use crate::cli::{CommandError, block_on};

/// The arguments of `flotilla origin`.
#[derive(Debug, Args)]
pub struct OriginArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,
    /// Where images are stored: file:///dir or memory:///
    #[arg(long, value_name = "URL")]
    storage: String,
    /// The region of this origin
    #[arg(long, value_name = "NAME", default_value = "local")]
    region: RegionName,
    /// The key that seals are signed with, as `flotilla pki init` makes it
    #[arg(long, value_name = "FILE")]
    seal_key: PathBuf,
    /// Cap on the bytes of blobs that are sent [default: none]
    #[arg(long, value_name = "BITS")]
    up: Option<BitRate>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs the origin until it is told to stop.
///
/// # Errors
/// Why it does not start.
pub fn run(args: OriginArgs) -> Result<(), CommandError> {
    block_on(async move {
        let shutdown = begin()?;
        let seal_key = load_seal_key(&args.seal_key)
            .map_err(|error| CommandError::failed("load the seal key", error))?;
        let mut config = Config::new(args.listen, args.storage, args.region, seal_key).with_uplink(args.up);
        config.tls = args.tls.identity()?;
        let origin =
            Origin::start(config).await.map_err(|error| CommandError::failed("start the origin", error))?;
        shutdown.wait().await;
        origin.shutdown().await;
        Ok(())
    })
}
