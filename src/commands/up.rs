//! `flotilla up`: a region on this machine, to try things out with real tools.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use flotilla_common::name::{NameError, RegionName};
use flotilla_runtime::shutdown::Shutdown;
use flotilla_runtime::telemetry::{self, LogFormat};
use tokio::signal::unix::{SignalKind, signal};

use crate::command::{CommandError, block_on, print_text};
use crate::pki;
use crate::region::{PeerPlan, Region, RegionPlan};

const ORIGIN_PORT: u16 = 5000;
const MIRROR_PORTS: [u16; 2] = [5001, 5002];
const TRACKER_PORT: u16 = 7070;

/// The arguments of `flotilla up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The directory for images, peers' stores and keys
    #[arg(long, value_name = "DIR", default_value = "flotilla-data")]
    dir: PathBuf,
}

/// Runs the command until SIGTERM, SIGINT or, when its terminal is closed, SIGHUP.
///
/// # Errors
/// If a service does not start.
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
        .map_err(|error| CommandError::failed("load the fleet's keys", error))?;
    let plan = RegionPlan {
        origin: loopback(ORIGIN_PORT),
        tracker: loopback(TRACKER_PORT),
        rate: None,
    };
    let mut region = Region::start(&args.dir, fleet, plan).await?;
    for (number, port) in (1..).zip(MIRROR_PORTS) {
        region
            .add_peer(PeerPlan {
                mirror: loopback(port),
                ..PeerPlan::numbered(number, 1)
            })
            .await?;
    }
    print_text(instructions(&region))?;
    // The peers' SIGHUP handlers, which reload certificates, replace the signal's default action; a
    // closed terminal must end the command all the same.
    let mut hangup = signal(SignalKind::hangup())
        .map_err(|error| CommandError::failed("listen for signals", error))?;
    tokio::select! {
        () = shutdown.wait() => {}
        _ = hangup.recv() => {}
    }
    region.shut_down().await;
    Ok(())
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The services' addresses, and instructions.
fn instructions(region: &Region) -> String {
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
         Pull it with containerd through the first mirror:\n\n    \
         mkdir -p hosts/{registry}\n    \
         flotilla peer hosts-toml --mirror {mirror} --origin {origin} > hosts/{registry}/hosts.toml\n    \
         ctr images pull --hosts-dir hosts {registry}/app:v1\n\n\
         Stop with Ctrl-C.\n",
        mirror = region.peers().first().map_or_else(|| loopback(MIRROR_PORTS[0]), |peer| peer.mirror_addr()),
        origin = region.origin_url(),
    ));
    text
}
