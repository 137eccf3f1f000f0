//! `flotilla peer hosts-toml`: the configuration that makes a container runtime use a mirror.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use flotilla_peer::{docker_daemon_json, hosts_toml, registries_conf};

use super::serve::{ServeArgs, parse_service_url};
use crate::command::{CommandError, print_text};
use crate::commands::service::parse_address;

/// The arguments of `flotilla peer hosts-toml`.
#[derive(Debug, Args)]
pub(super) struct RuntimeConfigArgs {
    /// A peer's configuration file, for the mirror, origin and authority unless the flags below set
    /// them (also FLOTILLA_CONFIG, or FLOTILLA_MIRROR, FLOTILLA_ORIGIN and FLOTILLA_TLS_CA)
    #[arg(long = "config", id = "peer_config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address of the mirror [default: 127.0.0.1:5001]
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    mirror: Option<SocketAddr>,
    /// The registry that the runtime uses when the mirror is down; required for podman and crio
    #[arg(long, value_name = "URL", value_parser = parse_service_url)]
    origin: Option<String>,
    /// The authority of an https:// origin's certificate, PEM, if it is the fleet's own
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The container runtime
    #[arg(long = "for", value_enum, default_value_t = Runtime::Containerd)]
    runtime: Runtime,
}

/// A container runtime that supports mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runtime {
    /// containerd: a hosts.toml
    Containerd,
    /// Docker: a daemon.json; Docker uses mirrors only for images of Docker Hub
    Docker,
    /// Podman, Buildah, skopeo: a registries.conf
    Podman,
    /// CRI-O: a registries.conf
    Crio,
}

/// Prints the configuration.
///
/// # Errors
/// If a setting is missing or not valid.
pub(super) fn run(args: RuntimeConfigArgs) -> Result<(), CommandError> {
    print_text(render(args)?)
}

fn render(args: RuntimeConfigArgs) -> Result<String, CommandError> {
    let peer = ServeArgs::from_environment(args.config.as_deref())?;
    let mirror = args.mirror.unwrap_or(peer.mirror);
    let ca = args.ca.or_else(|| peer.tls.authority());
    let origin = args.origin.or_else(|| {
        let first = peer.origin.into_iter().next();
        first.map(|origin| origin.url)
    });
    match (args.runtime, origin) {
        (Runtime::Containerd, origin) => Ok(hosts_toml(mirror, origin.as_deref(), ca.as_deref())),
        (Runtime::Docker, _) => Ok(docker_daemon_json(mirror)),
        (Runtime::Podman | Runtime::Crio, Some(origin)) => Ok(registries_conf(mirror, &origin)),
        (Runtime::Podman | Runtime::Crio, None) => Err(CommandError::failed(
            "print the configuration",
            "--origin is missing; a registries.conf needs the name of the mirrored registry",
        )),
    }
}
