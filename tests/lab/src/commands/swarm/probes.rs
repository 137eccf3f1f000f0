//! Round trips between hosts while a burst runs. Small packets wait in the same queues as the
//! packets of a question, so they show what links add to its delay.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flotilla::client::ClientError;
use flotilla_common::bounds::percentile;
use flotilla_lab::{Host, Lab, LabError};
use serde::Serialize;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval};

use super::outcome::ascending;

/// The port of the probes on each host.
const PORT: u16 = 15_090;
/// Between two probes of a host.
const INTERVAL: Duration = Duration::from_millis(50);
/// The first byte of a packet; the time of the probe in nanoseconds follows.
const PROBE: u8 = 0;
const REPLY: u8 = 1;
const LEN: usize = 1 + size_of::<u64>();

/// Running probes: each peer's host probes the next peer's, the tracker's and its origin's.
/// Dropping them stops them.
pub(super) struct Probes {
    round_trips: Shared,
    tasks: Vec<AbortHandle>,
}

/// Round trips of all peers' hosts, in the order of [`RoundTrips`].
type Shared = Arc<Mutex<[Vec<Duration>; 3]>>;

/// Round trips during a burst.
#[derive(Debug, Serialize)]
pub(super) struct RoundTrips {
    /// Between the hosts of two peers.
    pub(super) between_peers: Spread,
    pub(super) to_tracker: Spread,
    pub(super) to_origin: Spread,
}

/// Milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Spread {
    pub(super) p50_ms: f64,
    pub(super) mean_ms: f64,
    pub(super) p90_ms: f64,
}

impl Probes {
    /// Starts probing.
    ///
    /// # Errors
    /// If a host's port is in use.
    pub(super) async fn start(lab: &mut Lab, regions: &[usize]) -> Result<Self, LabError> {
        let mut probes = Self {
            round_trips: Shared::default(),
            tasks: Vec::new(),
        };
        let mut hosts = Vec::new();
        for region in 0..lab.region_count() {
            hosts.push((lab.origin_host(region).clone(), Vec::new()));
        }
        let mut trackers = Vec::new();
        for number in 0..lab.tracker_count() {
            let tracker = lab.tracker(number).host().clone();
            hosts.push((tracker.clone(), Vec::new()));
            trackers.push(tracker);
        }
        for (peer, region) in regions.iter().enumerate() {
            let next = lab.peer_host((peer + 1) % regions.len());
            let tracker = &trackers[region % trackers.len()];
            let targets = [next, tracker, lab.origin_host(*region)];
            let targets = targets.map(|host| host.public_address(PORT)).to_vec();
            hosts.push((lab.peer_host(peer).clone(), targets));
        }
        for (host, targets) in hosts {
            probes.add(&host, targets).await?;
        }
        Ok(probes)
    }

    async fn add(&mut self, host: &Host, targets: Vec<SocketAddr>) -> Result<(), LabError> {
        let bound = host.spawn(UdpSocket::bind(host.public_address(PORT))).await;
        let socket = bound
            .map_err(ClientError::from)?
            .map_err(|error| LabError::Failed {
                action: format!("probe from {}", host.name()),
                cause: error.to_string(),
            })?;
        let probe = probe(socket, targets, Arc::clone(&self.round_trips));
        self.tasks.push(host.spawn(probe).abort_handle());
        Ok(())
    }

    /// The round trips so far.
    pub(super) fn round_trips(&self) -> RoundTrips {
        let round_trips = self.round_trips.lock();
        let round_trips = round_trips.unwrap_or_else(PoisonError::into_inner);
        let [between_peers, to_tracker, to_origin] =
            round_trips.each_ref().map(|all| Spread::of(all));
        RoundTrips {
            between_peers,
            to_tracker,
            to_origin,
        }
    }
}

impl Spread {
    fn of(round_trips: &[Duration]) -> Self {
        let millis = round_trips.iter().map(|trip| trip.as_secs_f64() * 1000.0);
        let millis = ascending(millis);
        Self {
            p50_ms: percentile(&millis, 0.5),
            mean_ms: millis.iter().sum::<f64>() / millis.len().max(1) as f64,
            p90_ms: percentile(&millis, 0.9),
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Probes the targets, and replies to the probes of others, until it is aborted. A probe that is
/// lost is not counted.
async fn probe(socket: UdpSocket, targets: Vec<SocketAddr>, round_trips: Shared) {
    let start = Instant::now();
    let now = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut ticks = interval(INTERVAL);
    let mut packet = [0; LEN];
    loop {
        // A packet that is not sent is a lost one.
        tokio::select! {
            _ = ticks.tick() => for target in &targets {
                packet[0] = PROBE;
                packet[1..].copy_from_slice(&now().to_be_bytes());
                let _ = socket.send_to(&packet, target).await;
            },
            received = socket.recv_from(&mut packet) => match received {
                Ok((LEN, from)) if packet[0] == PROBE => {
                    packet[0] = REPLY;
                    let _ = socket.send_to(&packet, from).await;
                }
                Ok((LEN, from)) => {
                    let mut sent_at = [0; size_of::<u64>()];
                    sent_at.copy_from_slice(&packet[1..]);
                    let round_trip = now().saturating_sub(u64::from_be_bytes(sent_at));
                    let target = targets.iter().position(|target| *target == from);
                    let mut all = round_trips.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(of_target) = target.and_then(|target| all.get_mut(target)) {
                        of_target.push(Duration::from_nanos(round_trip));
                    }
                }
                // Something else, or an error that a later packet may not meet.
                _ => {}
            },
        }
    }
}
