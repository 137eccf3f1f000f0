//! `flotilla up`: one or several regions on this machine, to try things out with real tools.

mod control;
mod instructions;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, value_parser};
use flotilla_common::name::RegionName;
use flotilla_runtime::shutdown::Shutdown;
use flotilla_runtime::telemetry::{self, LogFormat};
use tokio::signal::unix::{SignalKind, signal};

use crate::breakable_storage::Outage;
use crate::command::{CommandError, block_on, print_text};
use crate::pki;
use crate::region::{PeerPlan, Region, RegionPlan};
use crate::regions::{MAX_REGIONS, Regions, region_name};
use control::{Control, Request};

const ORIGIN_PORT: u16 = 5000;
const MIRROR_PORTS: [u16; 2] = [5001, 5002];
const TRACKER_PORT: u16 = 7070;
/// From a port of one region to the same port of the next one.
const REGION_PORTS: u16 = 100;

/// The arguments of `flotilla up`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  flotilla up                                   an origin, a tracker and two peers
  flotilla up --regions 2                       the same in each of two regions that replicate to each other
  flotilla up break region-1                    the storage of a region hangs; --how selects another form of outage
  flotilla up heal region-1                     it works again")]
pub struct UpArgs {
    #[command(subcommand)]
    action: Option<UpAction>,
    /// The directory for images, peers' stores and keys
    #[arg(
        long,
        value_name = "DIR",
        default_value = "flotilla-data",
        global = true
    )]
    dir: PathBuf,
    /// Regions, each with an origin, a storage, a tracker and two peers
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = value_parser!(u32).range(1..=i64::from(MAX_REGIONS)))]
    regions: u32,
}

/// What to do with regions that run.
#[derive(Debug, Subcommand)]
enum UpAction {
    /// Break the storage of a region of `flotilla up --regions` that runs
    Break {
        /// The region, as `flotilla up` names it
        #[arg(value_name = "REGION")]
        region: RegionName,
        /// The form of the outage
        #[arg(long, value_name = "FORM", value_enum, default_value_t = Outage::Hang)]
        how: Outage,
    },
    /// Heal the storage of a region
    Heal {
        /// The region
        #[arg(value_name = "REGION")]
        region: RegionName,
    },
}

/// Runs the command until SIGTERM, SIGINT or, when its terminal is closed, SIGHUP; or breaks or
/// heals a storage.
///
/// # Errors
/// If a service does not start; if no regions run in the directory.
pub fn run(args: &UpArgs) -> Result<(), CommandError> {
    let request = match &args.action {
        None => {
            telemetry::init(LogFormat::Auto)
                .map_err(|error| CommandError::failed("start logging", error))?;
            return block_on(serve(args));
        }
        Some(UpAction::Break { region, how }) => Request::Break(region.clone(), *how),
        Some(UpAction::Heal { region }) => Request::Heal(region.clone()),
    };
    block_on(async {
        let answer = control::send(&args.dir, &request).await?;
        print_text(format_args!("{answer}\n"))
    })
}

async fn serve(args: &UpArgs) -> Result<(), CommandError> {
    let shutdown = Shutdown::on_signals()
        .map_err(|error| CommandError::failed("listen for signals", error))?;
    if args.regions == 1 {
        let region = start_one(&args.dir).await?;
        print_text(instructions::of_one(&region))?;
        wait_for_end(&shutdown).await?;
        region.shut_down().await;
        return Ok(());
    }
    // Before the regions: it also finds out whether others run in the directory.
    let control = Control::listen(&args.dir).await?;
    let regions = start_several(&args.dir, args.regions).await?;
    print_text(instructions::of_several(&regions, &args.dir))?;
    tokio::select! {
        ended = wait_for_end(&shutdown) => ended?,
        () = control.serve(&regions) => {}
    }
    drop(control);
    regions.shut_down().await;
    Ok(())
}

async fn wait_for_end(shutdown: &Shutdown) -> Result<(), CommandError> {
    // The peers' SIGHUP handlers, which reload certificates, replace the signal's default action; a
    // closed terminal must end the command all the same.
    let mut hangup = signal(SignalKind::hangup())
        .map_err(|error| CommandError::failed("listen for signals", error))?;
    tokio::select! {
        () = shutdown.wait() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

async fn start_one(dir: &Path) -> Result<Region, CommandError> {
    let name: RegionName = "local"
        .parse()
        .map_err(|error: flotilla_common::name::NameError| {
            CommandError::failed("name the region", error)
        })?;
    let fleet = pki::open_or_init(&dir.join("pki"), &name)
        .map_err(|error| CommandError::failed("load the fleet's keys", error))?;
    let mut region = Region::start(dir, fleet, plan(0)).await?;
    add_peers(&mut region, 0).await?;
    Ok(region)
}

async fn start_several(dir: &Path, count: u32) -> Result<Regions, CommandError> {
    let names: Vec<_> = (1..=count).map(region_name).collect();
    let pki_dir = dir.join("pki");
    let fleets = pki::open_or_init_regions(&pki_dir, &names)
        .map_err(|error| CommandError::failed("load the fleet's keys", error))?;
    instructions::write_client_trust(&pki_dir)?;
    let mut regions = Regions::start(dir, fleets, plan).await?;
    for (at, region) in (0..).zip(regions.all_mut()) {
        add_peers(&mut region.region, at).await?;
    }
    Ok(regions)
}

/// The ports of a region; `at` is its place, from 0.
fn plan(at: u16) -> RegionPlan {
    RegionPlan {
        origin: loopback(ORIGIN_PORT + at * REGION_PORTS),
        tracker: loopback(TRACKER_PORT + at * REGION_PORTS),
        ..RegionPlan::default()
    }
}

async fn add_peers(region: &mut Region, at: u16) -> Result<(), CommandError> {
    // Peers are numbered through, so that their names differ between regions.
    let first = u32::from(at) * MIRROR_PORTS.len() as u32 + 1;
    for (number, port) in (first..).zip(MIRROR_PORTS) {
        region
            .add_peer(PeerPlan {
                mirror: loopback(port + at * REGION_PORTS),
                ..PeerPlan::numbered(number, 1)
            })
            .await?;
    }
    Ok(())
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Up {
        #[command(flatten)]
        args: UpArgs,
    }

    fn parse(arguments: &[&str]) -> Result<UpArgs, String> {
        let all = ["up"].iter().chain(arguments);
        let parsed = Up::try_parse_from(all).map_err(|error| error.to_string())?;
        Ok(parsed.args)
    }

    #[test]
    fn an_outage_needs_a_region_and_hangs_by_default() {
        let args = parse(&["break", "region-1", "--dir", "d"]).expect("it is valid");
        assert_eq!(args.dir, PathBuf::from("d"));
        assert!(
            matches!(&args.action, Some(UpAction::Break { region, how: Outage::Hang }) if region.as_str() == "region-1")
        );
        let args = parse(&["break", "region-1", "--how", "refuse"]).expect("it is valid");
        assert!(matches!(
            args.action,
            Some(UpAction::Break {
                how: Outage::Refuse,
                ..
            })
        ));
        assert!(parse(&["break"]).is_err_and(|message| message.contains("REGION")));
        let message = parse(&["break", "region-1", "--how", "burn"]);
        assert!(message.is_err_and(|message| message.contains("slow")));
        assert!(parse(&["heal", "Region 1"]).is_err());
    }

    #[test]
    fn ports_of_regions_do_not_overlap() {
        assert_eq!(parse(&[]).expect("it is valid").regions, 1);
        assert!(parse(&["--regions", "9"]).is_err());
        let last = u16::try_from(MAX_REGIONS).expect("it is small") - 1;
        assert!(ORIGIN_PORT + last * REGION_PORTS < TRACKER_PORT);
        assert_eq!(plan(1).origin.port(), 5100);
    }
}
