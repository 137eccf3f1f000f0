//! The link between a host and the switch: a pair of virtual interfaces that can be shaped and cut.

use std::time::Duration;

use flotilla_common::units::{BitRate, ByteSize};

use crate::error::LabError;
use crate::host::Host;

/// The name of the interface at the host's end of every link.
const HOST_INTERFACE: &str = "eth0";

/// How each direction of a link is shaped: a token bucket with a queue, as in clouds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkShape {
    /// The sustained rate.
    pub rate: BitRate,
    /// The bucket's size: what may be sent at once after a pause.
    pub burst: ByteSize,
    /// The longest time in the queue; packets that would wait longer are dropped.
    pub queue: Duration,
}

impl LinkShape {
    /// A rate, with 5 ms of burst (at least 32 KiB) and 50 ms of queue.
    pub fn with_rate(rate: BitRate) -> Self {
        let burst = (rate.0 / 8 / 200).max(32 << 10);
        Self {
            rate,
            burst: ByteSize(burst),
            queue: Duration::from_millis(50),
        }
    }

    /// The `tc` command that shapes what `interface` sends.
    fn tc_command(&self, interface: &str) -> String {
        let Self { rate, burst, queue } = self;
        format!(
            "qdisc replace dev {interface} root tbf rate {}bit burst {} latency {}ms\n",
            rate.0,
            burst.0,
            queue.as_millis()
        )
    }
}

/// What one direction of a link has carried since it was shaped, packet headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkTraffic {
    /// Bytes sent.
    pub bytes: u64,
    /// Packets dropped because the queue was full.
    pub dropped: u64,
}

/// The link between a host and the switch.
#[derive(Clone, Debug)]
pub struct VirtualLink {
    host: Host,
    switch: Host,
    /// The interface at the switch's end.
    port: String,
}

impl VirtualLink {
    /// Connects a host to a bridge of the switch.
    pub(crate) fn connect(
        host: &Host,
        switch: &Host,
        bridge: &str,
        port: String,
    ) -> Result<Self, LabError> {
        let namespace = host.thread_id();
        let commands = format!(
            "link add {port} type veth peer name {HOST_INTERFACE} netns {namespace}\nlink set {port} master {bridge} up\n"
        );
        switch.run(&["ip", "-batch", "-"], &commands)?;
        let commands = format!(
            "link set lo up\naddr add {}/24 dev {HOST_INTERFACE}\nlink set {HOST_INTERFACE} up\n",
            host.address()
        );
        host.run(&["ip", "-batch", "-"], &commands)?;
        Ok(Self {
            host: host.clone(),
            switch: switch.clone(),
            port,
        })
    }

    /// Cuts the link at the switch: packets in both directions are dropped silently.
    ///
    /// # Errors
    /// If the switch refuses.
    pub fn cut(&self) -> Result<(), LabError> {
        self.set_port_state("disabled")
    }

    /// Reverts [`VirtualLink::cut`].
    ///
    /// # Errors
    /// If the switch refuses.
    pub fn heal(&self) -> Result<(), LabError> {
        self.set_port_state("forwarding")
    }

    fn set_port_state(&self, state: &str) -> Result<(), LabError> {
        let command = ["bridge", "link", "set", "dev", &self.port, "state", state];
        self.switch.run(&command, "").map(drop)
    }

    /// Shapes both directions. Segmentation offload is turned off, so that the shaper sees the
    /// packets of a real wire.
    ///
    /// # Errors
    /// If `ethtool` or `tc` fails.
    pub fn shape(&self, shape: LinkShape) -> Result<(), LabError> {
        for (host, interface) in self.ends() {
            let mut command = vec!["ethtool", "-K", interface];
            command.extend(["tso", "off", "gso", "off", "gro", "off"]);
            host.run(&command, "")?;
            host.run(&["tc", "-batch", "-"], &shape.tc_command(interface))?;
        }
        Ok(())
    }

    /// What the shapers have carried from the host and to it.
    ///
    /// # Errors
    /// If `tc` fails.
    pub fn traffic(&self) -> Result<[LinkTraffic; 2], LabError> {
        let [from, to] = self.ends();
        Ok([sent_by(from)?, sent_by(to)?])
    }

    /// Both ends: a host, and its interface to the link.
    fn ends(&self) -> [(&Host, &str); 2] {
        [(&self.host, HOST_INTERFACE), (&self.switch, &self.port)]
    }
}

/// What the shaper of an interface has carried.
fn sent_by((host, interface): (&Host, &str)) -> Result<LinkTraffic, LabError> {
    let command = ["tc", "-s", "-j", "qdisc", "show", "dev", interface];
    let output = host.run(&command, "")?;
    let shapers: Vec<TcStatistics> = serde_json::from_str(&output)
        .map_err(|error| LabError::failed(format!("parse the statistics of {interface}"), error))?;
    let shaper = shapers.into_iter().next().unwrap_or_default();
    Ok(LinkTraffic {
        bytes: shaper.bytes,
        dropped: shaper.drops,
    })
}

/// The statistics of a queueing discipline in the output of `tc -s -j`.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct TcStatistics {
    bytes: u64,
    drops: u64,
}
