//! `flotilla up`: one region on this machine, for trying things out with real tools.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use flotilla_common::name::{NameError, RegionName};
use flotilla_runtime::shutdown::Shutdown;
use flotilla_runtime::telemetry::{self, LogFormat};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{CommandError, block_on, print_text};
use crate::pki;
use crate::region::{PeerPlan, Region, RegionPlan};

const ORIGIN_PORT: u16 = 5000;
const MIRROR_PORTS: [u16; 2] = [5001, 5002];
const TRACKER_PORT: u16 = 7070;

/// The arguments of `flotilla up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Where images, peers' stores and keys are kept
    #[arg(long, value_name = "DIR", default_value = "flotilla-data")]
    dir: PathBuf,
}

/// Runs the command until SIGTERM, SIGINT or, when its terminal is closed, SIGHUP.
///
/// # Errors
/// What did not start, and why.
pub fn run(args: &UpArgs) -> Result<(), CommandError> {
    telemetry::init(LogFormat::Auto)
        .map_err(|error| CommandError::failed("start logging", error))?;
    block_on(serve(args))
}

async fn serve(args: &UpArgs) -> Result<(), CommandError> {
    let shutdown = Shutdown::on_signals()
        .map_err(|error| CommandError::failed("listen for signals", error))?;
    let name: RegionName = "local"
        .parse()
        .map_err(|error: NameError| CommandError::failed("name the region", error))?;
    let fleet = pki::open_or_init(&args.dir.join("pki"), &name)
        .map_err(|error| CommandError::failed("open the fleet's keys", error))?;
    let plan = RegionPlan {
        origin: local(ORIGIN_PORT),
        tracker: local(TRACKER_PORT),
        rate: None,
    };
    let mut region = Region::start(&args.dir, fleet, plan).await?;
    for (number, port) in (1..).zip(MIRROR_PORTS) {
        region
            .add_peer(PeerPlan {
                mirror: local(port),
                ..PeerPlan::numbered(number, 1)
            })
            .await?;
    }
    print_text(greeting(&region))?;
    // Its peers listen for SIGHUP, to read certificates again; so it would not end here by itself.
    let mut hangup = signal(SignalKind::hangup())
        .map_err(|error| CommandError::failed("listen for signals", error))?;
    tokio::select! {
        () = shutdown.wait() => {}
        _ = hangup.recv() => {}
    }
    region.shut_down().await;
    Ok(())
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// What to do with the region.
fn greeting(region: &Region) -> String {
    let registry = region.registry();
    let mut text = format!(
        "origin   {}\ntracker  {}\n",
        region.origin_url(),
        region.tracker_url()
    );
    for peer in region.peers() {
        text.push_str(&format!(
            "{}   mirror http://{}\n",
            peer.id(),
            peer.mirror_addr()
        ));
    }
    text.push_str(&format!(
        "\nPush an image:\n\n    \
         skopeo copy --dest-tls-verify=false oci:DIR docker://{registry}/app:v1\n\n\
         Pull it with containerd through a mirror:\n\n    \
         mkdir -p hosts/{registry}\n    \
         flotilla peer hosts-toml --mirror {mirror} --origin {origin} > hosts/{registry}/hosts.toml\n    \
         ctr images pull --hosts-dir hosts {registry}/app:v1\n\n\
         Stop with Ctrl-C.\n",
        mirror = region.peers().first().map_or_else(|| local(MIRROR_PORTS[0]), |peer| peer.mirror_addr()),
        origin = region.origin_url(),
    ));
    text
}
