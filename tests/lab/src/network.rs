//! The network of a laboratory: addresses on loopback, or a switch with a link to each host. The
//! hosts of each region are on a bridge of their own; the traffic between regions passes an uplink
//! of each bridge, which counts it.
//!
//! ```text
//!  hosts of region 1 ── br0 ── uplink0 ── core ── uplink1 ── br1 ── hosts of region 2
//! ```

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::LabError;
use crate::host::{Host, Namespace};
use crate::link::{LinkShape, VirtualLink};

/// The programs that network namespaces require.
const REQUIRED_PROGRAMS: [&str; 5] = ["unshare", "ip", "tc", "bridge", "ethtool"];
/// The bridge between the regions.
const CORE: &str = "core";
/// The first bytes of the hosts' addresses, which exist only in the laboratory's namespaces.
const SWITCH_NETWORK: [u8; 3] = [10, 77, 0];
/// A laboratory reserves a network of loopback by listening on this port of it.
const LOOPBACK_LOCK_PORT: u16 = 15_999;
/// Networks of loopback that are tried before giving up.
const LOOPBACK_ATTEMPTS: u32 = 1_000;

/// How hosts are connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NetworkKind {
    /// All hosts share this process's network; each has an address on loopback.
    Loopback,
    /// Each host has a network namespace and a link to a switch, shaped if set.
    Namespaces(Option<LinkShape>),
}

/// Why this machine does not allow network namespaces; `None` if it does.
pub fn why_namespaces_are_unavailable() -> Option<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_installed =
        |program: &&str| env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let mut programs = REQUIRED_PROGRAMS.iter();
    if let Some(missing) = programs.find(|program| !is_installed(program)) {
        return Some(format!("{missing} is not installed"));
    }
    let trial = Network::start(NetworkKind::Namespaces(None), 1)
        .and_then(|mut network| network.add_host("trial", 0));
    trial
        .err()
        .map(|error| format!("network namespaces are not allowed ({error})"))
}

/// Excludes the bridge from the firewall. Kernels with bridge filtering, as container runtimes
/// enable it, would otherwise pass each frame through iptables, as no switch does.
const DISABLE_BRIDGE_FILTER: &str = r#"for call in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e "$call" ] || echo 0 >"$call"; done"#;

/// The hosts' network.
#[derive(Debug)]
pub(crate) struct Network {
    base: [u8; 3],
    regions: usize,
    hosts: u8,
    medium: Medium,
}

#[derive(Debug)]
enum Medium {
    /// Holds the reservation of a loopback network.
    Loopback { _lock: TcpListener },
    Switch {
        switch: Host,
        shape: Option<LinkShape>,
    },
}

impl Network {
    pub(crate) fn start(kind: NetworkKind, regions: usize) -> Result<Self, LabError> {
        match kind {
            NetworkKind::Loopback => {
                let (base, lock) = reserve_loopback_network()?;
                Ok(Self {
                    base,
                    regions,
                    hosts: 0,
                    medium: Medium::Loopback { _lock: lock },
                })
            }
            NetworkKind::Namespaces(shape) => {
                let switch = Host::start("switch", Ipv4Addr::UNSPECIFIED, Namespace::Own)?;
                switch.run(&["ip", "-batch", "-"], &bridges(regions))?;
                switch.run(&["sh", "-c", DISABLE_BRIDGE_FILTER], "")?;
                Ok(Self {
                    base: SWITCH_NETWORK,
                    regions,
                    hosts: 0,
                    medium: Medium::Switch { switch, shape },
                })
            }
        }
    }

    /// Adds a host to a region; on a switch, with its link.
    pub(crate) fn add_host(
        &mut self,
        name: &str,
        region: usize,
    ) -> Result<(Host, Option<VirtualLink>), LabError> {
        let number = self.hosts.checked_add(1).filter(|&number| number < 255);
        let number = number.ok_or_else(|| {
            LabError::failed(
                format!("add host {name}"),
                "a network has at most 254 hosts",
            )
        })?;
        self.hosts = number;
        let [a, b, c] = self.base;
        let address = Ipv4Addr::new(a, b, c, number);
        match &self.medium {
            Medium::Loopback { .. } => Ok((Host::start(name, address, Namespace::Shared)?, None)),
            Medium::Switch { switch, shape } => {
                let host = Host::start(name, address, Namespace::Own)?;
                let port = format!("port{number}");
                let link = VirtualLink::connect(&host, switch, &bridge(region), port)?;
                if let Some(shape) = shape {
                    link.shape(*shape)?;
                }
                Ok((host, Some(link)))
            }
        }
    }

    /// Bytes that each region has sent to others, packet headers included.
    pub(crate) fn bytes_to_other_regions(&self) -> Result<Vec<u64>, LabError> {
        let Medium::Switch { switch, .. } = &self.medium else {
            return Err(LabError::failed(
                "count the bytes between regions",
                "loopback has no links",
            ));
        };
        let sent = |region| {
            let name = uplink(region);
            let command = ["ip", "-s", "-j", "link", "show", "dev", &name];
            let output = switch.run(&command, "")?;
            let interfaces: Vec<InterfaceStatistics> =
                serde_json::from_str(&output).map_err(|error| {
                    LabError::failed(format!("parse the statistics of {name}"), error)
                })?;
            Ok(interfaces.iter().map(|each| each.stats64.tx.bytes).sum())
        };
        (0..self.regions).map(sent).collect()
    }
}

/// An interface's counters in the output of `ip -s -j link`.
#[derive(serde::Deserialize)]
struct InterfaceStatistics {
    stats64: Counters,
}

#[derive(serde::Deserialize)]
struct Counters {
    tx: Sent,
}

#[derive(serde::Deserialize)]
struct Sent {
    bytes: u64,
}

/// The `ip` commands that create a bridge for each region and connect them.
fn bridges(regions: usize) -> String {
    let mut commands = "link set lo up\n".to_owned();
    let mut add = |name: &str| {
        let kind = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0";
        commands.push_str(&format!("link add {name} {kind}\nlink set {name} up\n"));
    };
    add(CORE);
    (0..regions).for_each(|region| add(&bridge(region)));
    for region in 0..regions {
        let (bridge, uplink) = (bridge(region), uplink(region));
        commands.push_str(&format!(
            "link add {uplink} type veth peer name core{region}\n\
             link set {uplink} master {bridge} up\nlink set core{region} master {CORE} up\n"
        ));
    }
    commands
}

/// The bridge of a region.
fn bridge(region: usize) -> String {
    format!("br{region}")
}

/// The interface of a region's bridge to the other regions.
fn uplink(region: usize) -> String {
    format!("uplink{region}")
}

/// Reserves a network 127.a.b.0/24 that no other laboratory on this machine uses.
fn reserve_loopback_network() -> Result<([u8; 3], TcpListener), LabError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut last_error = String::new();
    for _ in 0..LOOPBACK_ATTEMPTS {
        // Different for each process, so that the first attempt usually succeeds.
        let number = process::id()
            .wrapping_mul(37)
            .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
            % 64_000;
        let base = [127, 1 + (number / 256) as u8, (number % 256) as u8];
        let [a, b, c] = base;
        match TcpListener::bind((Ipv4Addr::new(a, b, c, 255), LOOPBACK_LOCK_PORT)) {
            Ok(lock) => return Ok((base, lock)),
            Err(error) => last_error = error.to_string(),
        }
    }
    Err(LabError::failed("reserve a loopback network", last_error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_have_distinct_addresses() {
        let mut first = Network::start(NetworkKind::Loopback, 1).unwrap();
        let mut second = Network::start(NetworkKind::Loopback, 1).unwrap();
        let hosts = [
            first.add_host("a", 0),
            first.add_host("b", 0),
            second.add_host("a", 0),
        ]
        .map(Result::unwrap);
        let addresses = hosts.map(|(host, _)| host.address());
        assert!(addresses.iter().all(Ipv4Addr::is_loopback));
        assert_ne!(addresses[0], addresses[1]);
        assert_ne!(addresses[0], addresses[2]);
        assert_ne!(addresses[1], addresses[2]);
    }
}
