//! What the hosts of a laboratory hang on: loopback, or a switch with a shaped link to each host.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flotilla_common::units::{BitRate, ByteSize};

use super::LabError;
use super::host::{Host, Namespace};

/// The programs that hosts of their own take.
const PROGRAMS: [&str; 5] = ["unshare", "ip", "tc", "bridge", "ethtool"];
/// The switch's network; no namespace but its own ever sees it.
const NETWORK: [u8; 3] = [10, 77, 0];
/// The port by which a laboratory claims a loopback network.
const CLAIM_PORT: u16 = 15_999;
/// Loopback networks that are tried.
const CLAIMS: u32 = 1_000;

/// Where the hosts are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ground {
    /// All on loopback, each under an address of its own, nothing shaped.
    Loopback,
    /// Each in a network namespace, on a link of its own; shaped, if so.
    Hosts(Option<Shape>),
}

/// How a link is shaped, each way for itself: a token bucket with a queue before it, as clouds do
/// it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// What goes through.
    pub rate: BitRate,
    /// What goes through at once after a pause.
    pub burst: ByteSize,
    /// How long a packet waits in the queue at most; what would wait longer is lost.
    pub queue: Duration,
}

impl Shape {
    /// A rate, with 5 ms of burst (at least 32 KiB) and 50 ms of queue.
    pub fn of(rate: BitRate) -> Self {
        let burst = (rate.0 / 8 / 200).max(32 << 10);
        Self {
            rate,
            burst: ByteSize(burst),
            queue: Duration::from_millis(50),
        }
    }

    fn tbf(&self, device: &str) -> String {
        let Self { rate, burst, queue } = self;
        format!(
            "qdisc replace dev {device} root tbf rate {}bit burst {} latency {}ms\n",
            rate.0,
            burst.0,
            queue.as_millis()
        )
    }
}

/// What a shaper has done since it was set, packet headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes that went through.
    pub bytes: u64,
    /// Packets that found its queue full.
    pub lost: u64,
}

/// Why there can be no hosts of their own on this machine; `None` if there can.
pub fn missing_for_hosts() -> Option<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &&str| env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if let Some(missing) = PROGRAMS.iter().find(|program| !is_there(program)) {
        return Some(format!("{missing} is not installed"));
    }
    let tried =
        Network::start(Ground::Hosts(None)).and_then(|mut network| network.add_host("trial"));
    tried
        .err()
        .map(|error| format!("network namespaces are not allowed ({error})"))
}

/// Lets the switch pass frames on unseen. Where the kernel filters bridges, as it does beside
/// container runtimes, each frame would go through a firewall that no switch has.
const UNFILTERED: &str = r#"for call in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e "$call" ] || echo 0 >"$call"; done"#;

/// The hosts' network.
#[derive(Debug)]
pub(super) struct Network {
    base: [u8; 3],
    hosts: u8,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Loopback { _claim: TcpListener },
    Switch { switch: Host, shape: Option<Shape> },
}

impl Network {
    pub(super) fn start(ground: Ground) -> Result<Self, LabError> {
        match ground {
            Ground::Loopback => {
                let (base, claim) = claim_loopback()?;
                Ok(Self {
                    base,
                    hosts: 0,
                    kind: Kind::Loopback { _claim: claim },
                })
            }
            Ground::Hosts(shape) => {
                let switch = Host::start("switch", Ipv4Addr::UNSPECIFIED, Namespace::Own, |_| {
                    Ok(None)
                })?;
                let bridge = "link set lo up\n\
                              link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
                              link set br0 up\n";
                switch.run(&["ip", "-batch", "-"], bridge)?;
                switch.run(&["sh", "-c", UNFILTERED], "")?;
                Ok(Self {
                    base: NETWORK,
                    hosts: 0,
                    kind: Kind::Switch { switch, shape },
                })
            }
        }
    }

    /// Adds a host, its link shaped like all others.
    pub(super) fn add_host(&mut self, name: &str) -> Result<Host, LabError> {
        let number = self.hosts.checked_add(1).filter(|&number| number < 255);
        let number = number
            .ok_or_else(|| LabError::failed(format!("add host {name}"), "254 are the most"))?;
        self.hosts = number;
        let [a, b, c] = self.base;
        let address = Ipv4Addr::new(a, b, c, number);
        match &self.kind {
            Kind::Loopback { .. } => Host::start(name, address, Namespace::Shared, |_| Ok(None)),
            Kind::Switch { switch, shape } => Host::start(name, address, Namespace::Own, |host| {
                let link = Link {
                    switch: switch.clone(),
                    port: format!("port{number}"),
                };
                link.plug(host)?;
                if let Some(shape) = shape {
                    link.shape(host, *shape)?;
                }
                Ok(Some(link))
            }),
        }
    }
}

/// A network 127.a.b.0/24 that no other laboratory on this machine uses.
fn claim_loopback() -> Result<([u8; 3], TcpListener), LabError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut told = String::new();
    for _ in 0..CLAIMS {
        // Spread over processes, so that most first tries succeed.
        let number = process::id()
            .wrapping_mul(37)
            .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
            % 64_000;
        let base = [127, 1 + (number / 256) as u8, (number % 256) as u8];
        match TcpListener::bind((Ipv4Addr::new(base[0], base[1], base[2], 255), CLAIM_PORT)) {
            Ok(claim) => return Ok((base, claim)),
            Err(error) => told = error.to_string(),
        }
    }
    Err(LabError::failed("claim a loopback network", told))
}

/// The cable between a host and the switch: a pair of virtual interfaces.
#[derive(Clone, Debug)]
pub(super) struct Link {
    switch: Host,
    port: String,
}

/// The host's end of every cable.
const HOST_END: &str = "eth0";

impl Link {
    fn plug(&self, host: &Host) -> Result<(), LabError> {
        let (port, thread) = (&self.port, host.thread_id());
        let here = format!(
            "link add {port} type veth peer name {HOST_END} netns {thread}\nlink set {port} master br0 up\n"
        );
        self.switch.run(&["ip", "-batch", "-"], &here)?;
        let there = format!(
            "link set lo up\naddr add {}/24 dev {HOST_END}\nlink set {HOST_END} up\n",
            host.address()
        );
        host.run(&["ip", "-batch", "-"], &there)?;
        Ok(())
    }

    /// Lets packets through, or loses them.
    pub(super) fn open(&self, is_open: bool) -> Result<(), LabError> {
        let state = if is_open { "forwarding" } else { "disabled" };
        self.switch.run(
            &["bridge", "link", "set", "dev", &self.port, "state", state],
            "",
        )?;
        Ok(())
    }

    /// Shapes both ways. Packets are then what a wire carries: nothing is cut or put together
    /// behind the shaper.
    pub(super) fn shape(&self, host: &Host, shape: Shape) -> Result<(), LabError> {
        for (host, device) in [(host, HOST_END), (&self.switch, &self.port)] {
            host.run(
                &[
                    "ethtool", "-K", device, "tso", "off", "gso", "off", "gro", "off",
                ],
                "",
            )?;
            host.run(&["tc", "-batch", "-"], &shape.tbf(device))?;
        }
        Ok(())
    }
}

impl Link {
    /// What the shapers carried from and to the host.
    pub(super) fn carried(&self, host: &Host) -> Result<[Carried; 2], LabError> {
        let of = |host: &Host, device: &str| {
            let told = host.run(&["tc", "-s", "-j", "qdisc", "show", "dev", device], "")?;
            let shapers: Vec<Shaper> = serde_json::from_str(&told).map_err(|error| {
                LabError::failed(format!("read what tc tells of {device}"), error)
            })?;
            let shaper = shapers.into_iter().next().unwrap_or_default();
            Ok::<_, LabError>(Carried {
                bytes: shaper.bytes,
                lost: shaper.drops,
            })
        };
        Ok([of(host, HOST_END)?, of(&self.switch, &self.port)?])
    }
}

/// A queueing discipline as `tc -s -j` tells of it.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Shaper {
    bytes: u64,
    drops: u64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn two_loopback_networks_never_meet() {
        let mut first = Network::start(Ground::Loopback).unwrap();
        let mut second = Network::start(Ground::Loopback).unwrap();
        let hosts = [
            first.add_host("a"),
            first.add_host("b"),
            second.add_host("a"),
        ]
        .map(Result::unwrap);
        let addresses = hosts.map(|host| host.address());
        assert!(addresses.iter().all(Ipv4Addr::is_loopback));
        assert_ne!(addresses[0], addresses[1]);
        assert_ne!(addresses[0], addresses[2]);
        assert_ne!(addresses[1], addresses[2]);
    }

    #[test]
    fn a_host_of_loopback_has_no_link_to_cut() {
        let mut network = Network::start(Ground::Loopback).unwrap();
        let error = network
            .add_host("a")
            .unwrap()
            .cut()
            .unwrap_err()
            .to_string();
        assert!(error.contains("loopback has no links"), "{error}");
    }
}
