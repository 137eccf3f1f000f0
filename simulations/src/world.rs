//! The world: peers, links, the tracker, and the loop that takes one event after the other.

use core::time::Duration;

use flotilla_common::chunk::Geometry;
use flotilla_common::digest::Digest;
use flotilla_common::figures::percentile;
use flotilla_common::map::ChunkMap;
use flotilla_common::swarm::{BlobSlot, Config, Input, PeerMachine, Refusal, TransferId};
use flotilla_common::time::Time;
use flotilla_common::tracker::SessionInput;
use flotilla_common::units::ByteSize;
use flotilla_common::wire::tracker::PeerInfo;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

use crate::link::{Broadcast, Greeting, Links};
use crate::network::{Moved, Network};
use crate::oracle::Oracle;
use crate::outcome::{Details, Outcome, bounds};
use crate::queue::Queue;
use crate::scenario::Scenario;
use crate::session::{Session, layer_digests, peer_info};
use crate::slab::{Key, Slab};
use crate::tracking::Tracking;

/// Whatever happens at a time of its own.
#[derive(Debug)]
pub(crate) enum Event {
    /// A peer begins its pull.
    Start { peer: u32 },
    /// A peer's deadline.
    Wake { peer: u32 },
    /// A dial has had its round trips.
    Dialled { peer: u32, slot: u32 },
    /// A dial has had its time.
    DialTimeout { peer: u32, slot: u32 },
    /// A connection's end reaches the other side.
    Closed { peer: u32, slot: u32, epoch: u32 },
    /// Newly held chunks reach some neighbours.
    Have { broadcast: Key },
    /// A greeting reaches a neighbour.
    Greeted { greeting: Key },
    /// A request reaches its source.
    Asked { request: Key },
    /// A refusal reaches the asker.
    Refused { request: Key, reason: Refusal },
    /// The answer's first byte reaches the asker.
    FirstByte { request: Key },
    /// The last byte reaches the asker.
    Arrived { request: Key },
    /// A source's error reaches the asker.
    SourceFailed { request: Key },
    /// A message reaches the tracker.
    ToTracker { message: Key },
    /// An answer of the tracker reaches a peer.
    FromTracker { answer: Key },
    /// The tracker's deadline.
    TrackerWake,
    /// A deadline of a peer's session with the tracker.
    SessionWake { peer: u32 },
    /// A failure of the scenario begins.
    Fails { failure: usize },
    /// It ends.
    Recovers { failure: usize },
    /// A peer dies or leaves.
    Goes { peer: u32, says_so: bool },
}

/// A fetch under way, between its two sides.
#[derive(Debug)]
pub(crate) struct Request {
    /// Who asked.
    pub(crate) peer: u32,
    pub(crate) transfer: TransferId,
    pub(crate) source: Origin,
    pub(crate) blob: BlobSlot,
    pub(crate) chunk: u32,
    pub(crate) flow: Option<Key>,
}

/// The source of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A peer, and the asker's slot there.
    Peer { peer: u32, asker: u32 },
    /// An origin, by region.
    Region(u32),
}

/// Where a peer is. Zones are numbered across regions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) zone: u32,
    pub(crate) region: u32,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) machine: PeerMachine,
    pub(crate) key: u64,
    /// Its links, bits per second.
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) lies: bool,
    pub(crate) alive: bool,
    /// While it is frozen, the inputs that it has not handled.
    pub(crate) frozen: Option<Backlog>,
    pub(crate) links: Links,
    pub(crate) session: Option<Session>,
    /// Our requests under way.
    pub(crate) fetches: Vec<(TransferId, Key)>,
    /// What was verified, by the oracle's own account.
    pub(crate) verified: Vec<ChunkMap>,
    /// For each blob, what the reader waits for.
    pub(crate) cursors: Vec<u32>,
    pub(crate) complete: u32,
    pub(crate) started_at: Time,
    pub(crate) first_byte_at: Option<Time>,
    pub(crate) completed_at: Option<Time>,
    /// The time of its next `Wake`.
    wake_at: Time,
}

/// Inputs of a frozen peer, in order.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) inputs: Vec<Input>,
    pub(crate) session_inputs: Vec<SessionInput>,
}

impl Node {
    /// The slower of its links, bits per second.
    pub(crate) fn rate(&self) -> u64 {
        self.up.min(self.down)
    }
}

pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    rng_seed: u64,
    pub(crate) rng: Pcg64Mcg,
    pub(crate) now: Time,
    pub(crate) queue: Queue<Event>,
    pub(crate) network: Network,
    pub(crate) nodes: Vec<Node>,
    /// Where each peer is. Apart, for every message looks there.
    pub(crate) places: Vec<Place>,
    /// The name and address of each peer in messages to the tracker.
    pub(crate) infos: Vec<PeerInfo>,
    pub(crate) geometries: Vec<Geometry>,
    /// The name of each blob in messages to the tracker.
    pub(crate) digests: Vec<Digest>,
    pub(crate) requests: Slab<Request>,
    pub(crate) broadcasts: Slab<Broadcast>,
    pub(crate) greetings: Slab<Greeting>,
    /// Connections that have ended so far.
    pub(crate) hang_ups: u64,
    pub(crate) tracking: Tracking,
    /// Whether each region's origin answers.
    pub(crate) origins_up: Vec<bool>,
    pub(crate) origin_bytes: u64,
    pub(crate) wan_bytes: u64,
    pub(crate) cross_zone_bytes: u64,
    pub(crate) oracle: Oracle,
    /// Peers alive and not done.
    pub(crate) unfinished: u32,
    events: u64,
    trace: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new(scenario: &'a Scenario, rng_seed: u64) -> Self {
        let mut world = World {
            scenario,
            rng_seed,
            rng: Pcg64Mcg::seed_from_u64(rng_seed),
            now: Time::ZERO,
            queue: Queue::new(),
            network: Network::new(),
            nodes: Vec::new(),
            places: Vec::new(),
            infos: Vec::new(),
            geometries: scenario
                .image
                .layers
                .iter()
                .map(|size| geometry(scenario, *size))
                .collect(),
            digests: layer_digests(scenario),
            requests: Slab::new(),
            broadcasts: Slab::new(),
            greetings: Slab::new(),
            hang_ups: 0,
            tracking: Tracking::new(scenario, rng_seed),
            origins_up: vec![true; scenario.peers.regions.get() as usize],
            origin_bytes: 0,
            wan_bytes: 0,
            cross_zone_bytes: 0,
            oracle: Oracle::default(),
            unfinished: scenario.peers.count,
            events: 0,
            trace: rng_seed,
        };
        world.populate();
        for (index, failure) in scenario.failures.iter().enumerate() {
            world.queue.push(
                Time::ZERO + seconds(failure.at_s),
                Event::Fails { failure: index },
            );
        }
        world
    }

    /// Makes the peers, then the origins: a peer's number is its end in the network, and the
    /// origins follow.
    fn populate(&mut self) {
        let peers = &self.scenario.peers;
        let regions = peers.regions.get();
        for number in 0..peers.count {
            let is_slow = self.rng.random_bool(peers.slow_share);
            let divisor = if is_slow { 10 } else { 1 };
            let (up, down) = (
                (peers.up.0 / divisor).max(1),
                (peers.down.0 / divisor).max(1),
            );
            self.network.add_end(up as f64 / 8.0, down as f64 / 8.0);
            let key = mix(u64::from(number) + 1);
            let machine = PeerMachine::new(self.config(up, down, key), self.rng.random());
            let region = number % regions;
            let zone = region * peers.zones.get() + number / regions % peers.zones.get();
            let place = Place { zone, region };
            self.places.push(place);
            self.infos.push(peer_info(number, place));
            let lies = self.rng.random_bool(peers.lying_share);
            let started_at = Time::ZERO + seconds(peers.start_spread_s * self.rng.random::<f64>());
            self.nodes.push(Node {
                machine,
                key,
                up,
                down,
                lies,
                alive: true,
                frozen: None,
                links: Links::default(),
                session: None,
                fetches: Vec::new(),
                verified: self
                    .geometries
                    .iter()
                    .map(|geometry| ChunkMap::empty(geometry.chunks()))
                    .collect(),
                cursors: vec![0; self.geometries.len()],
                complete: 0,
                started_at,
                first_byte_at: None,
                completed_at: None,
                wake_at: Time::MAX,
            });
            self.queue.push(started_at, Event::Start { peer: number });
        }
        for _ in 0..regions {
            self.network
                .add_end(self.scenario.origin.up.bytes_per_second(), 1e12);
        }
    }

    fn config(&self, up: u64, down: u64, key: u64) -> Config {
        let default = Config::default();
        let settings = &self.scenario.machine;
        let millis = |value: Option<u64>, otherwise| value.map_or(otherwise, Duration::from_millis);
        Config {
            up_bits_per_second: Some(up),
            down_bits_per_second: Some(down),
            origins: self.scenario.peers.regions.get(),
            key,
            slots: settings.slots.unwrap_or(default.slots),
            in_order_one_in: settings.in_order_one_in.unwrap_or(default.in_order_one_in),
            have_interval: millis(settings.have_interval_ms, default.have_interval),
            nearly_done: millis(settings.nearly_done_ms, default.nearly_done),
            max_connections: self
                .scenario
                .peers
                .max_connections
                .unwrap_or(default.max_connections),
            ..default
        }
    }

    /// Takes events until nobody is left who could finish, or the time is up.
    pub(crate) fn run(mut self) -> Outcome {
        let limit = Time::ZERO + seconds(self.scenario.time_limit_s);
        while self.unfinished > 0 {
            let (event_at, moved_at) = (self.queue.next_at(), self.network.next_at());
            let Some(next_at) = event_at
                .into_iter()
                .chain(moved_at)
                .min()
                .filter(|at| *at <= limit)
            else {
                break;
            };
            self.now = next_at;
            if moved_at == Some(next_at) {
                if let Some((_, Some(moved))) = self.network.pop() {
                    self.count(moved_fingerprint(&moved));
                    self.on_moved(moved);
                }
            } else if let Some((_, event)) = self.queue.pop() {
                self.take(event);
            }
        }
        self.outcome()
    }

    fn take(&mut self, event: Event) {
        self.count(fingerprint(&event));
        match event {
            Event::Start { peer } => self.on_start(peer),
            Event::Wake { peer } => self.on_wake(peer),
            Event::Dialled { peer, slot } => self.on_dialled(peer, slot),
            Event::DialTimeout { peer, slot } => self.on_dial_timeout(peer, slot),
            Event::Closed { peer, slot, epoch } => self.on_closed(peer, slot, epoch),
            Event::Have { broadcast } => self.on_broadcast(broadcast),
            Event::Greeted { greeting } => self.on_greeting(greeting),
            Event::Asked { request } => self.on_asked(request),
            Event::Refused { request, reason } => self.on_refusal(request, reason),
            Event::FirstByte { request } => self.on_first_byte(request),
            Event::Arrived { request } => self.on_arrived(request),
            Event::SourceFailed { request } => self.on_source_failed(request),
            Event::ToTracker { message } => self.on_tracker_message(message),
            Event::FromTracker { answer } => self.on_tracker_answer(answer),
            Event::TrackerWake => self.on_tracker_wake(),
            Event::SessionWake { peer } => self.on_session_wake(peer),
            Event::Fails { failure } => self.on_failure(failure),
            Event::Recovers { failure } => self.on_recovery(failure),
            Event::Goes { peer, says_so } => self.on_goes(peer, says_so),
        }
    }

    fn count(&mut self, (kind, number): (u64, u64)) {
        self.events += 1;
        self.trace = mix(self.trace ^ self.now.as_nanos() ^ (kind << 56) ^ (number << 8));
    }

    fn on_start(&mut self, peer: u32) {
        if !self.nodes[peer as usize].alive {
            return;
        }
        self.begin_session(peer);
        for blob in (0..self.geometries.len() as u32).map(BlobSlot) {
            let geometry = self.geometries[blob.0 as usize];
            let held = ChunkMap::empty(geometry.chunks());
            self.feed(
                peer,
                Input::AddBlob {
                    blob,
                    geometry,
                    held,
                },
            );
            self.feed(
                peer,
                Input::Reader {
                    blob,
                    cursor: Some(0),
                },
            );
            self.feed(peer, Input::Want { blob });
        }
        if !self.tracking.is_enabled {
            self.meet_known_peers(peer);
        }
    }

    fn on_wake(&mut self, peer: u32) {
        let node = &mut self.nodes[peer as usize];
        if node.alive && node.wake_at == self.now {
            node.wake_at = Time::MAX;
            if node.frozen.is_some() {
                return;
            }
            node.machine.handle_timeout(self.now);
            self.drain(peer);
        }
    }

    /// Gives a peer's machine an input and does what it says.
    pub(crate) fn feed(&mut self, peer: u32, input: Input) {
        let node = &mut self.nodes[peer as usize];
        if let Some(backlog) = &mut node.frozen {
            backlog.inputs.push(input);
        } else if node.alive {
            node.machine.handle(self.now, input);
            self.drain(peer);
        }
    }

    pub(crate) fn drain(&mut self, peer: u32) {
        while let Some(output) = self.nodes[peer as usize].machine.poll_output() {
            self.act(peer, output);
        }
        let node = &mut self.nodes[peer as usize];
        if let Some(at) = node.machine.poll_timeout()
            && at < node.wake_at
        {
            // A deadline that has passed already is met at once, but by an event of its own.
            let at = at.max(self.now);
            node.wake_at = at;
            self.queue.push(at, Event::Wake { peer });
        }
    }

    /// One-way delay between two peers.
    pub(crate) fn delay(&self, one: u32, other: u32) -> Duration {
        let (one, other) = (self.places[one as usize], self.places[other as usize]);
        let links = &self.scenario.links;
        if one.zone == other.zone {
            millis(links.zone_ms)
        } else if one.region == other.region {
            millis(links.region_ms)
        } else {
            millis(links.wan_ms)
        }
    }

    /// One-way delay to a region's origin and tracker.
    pub(crate) fn delay_to_region(&self, peer: u32, region: u32) -> Duration {
        let links = &self.scenario.links;
        millis(if self.places[peer as usize].region == region {
            links.region_ms
        } else {
            links.wan_ms
        })
    }

    fn outcome(mut self) -> Outcome {
        let scenario = self.scenario;
        self.check_maps();
        let since_start =
            |node: &Node, at: Time| at.saturating_since(node.started_at).as_secs_f64();
        let mut completions: Vec<f64> = Vec::new();
        let mut first_bytes: Vec<f64> = Vec::new();
        for node in &self.nodes {
            completions.extend(node.completed_at.map(|at| since_start(node, at)));
            first_bytes.extend(node.first_byte_at.map(|at| since_start(node, at)));
        }
        completions.sort_by(f64::total_cmp);
        first_bytes.sort_by(f64::total_cmp);
        let up_sum = self.nodes.iter().map(|node| node.rate() as f64 / 8.0).sum();
        let slowest = self
            .nodes
            .iter()
            .map(|node| node.rate() as f64 / 8.0)
            .fold(f64::INFINITY, f64::min);
        let (fluid_bound_s, pipelined_bound_s) = bounds(scenario, up_sum, slowest);
        let p99_s = percentile(&completions, 0.99);
        let p99_over_bound = p99_s / fluid_bound_s.max(pipelined_bound_s);
        let bytes = scenario.image_bytes() as f64;
        let origin_copies =
            self.origin_bytes as f64 / bytes / f64::from(scenario.peers.regions.get());
        let is_unfinished = |node: &&Node| node.alive && node.completed_at.is_none();
        let stranded = self.nodes.iter().filter(is_unfinished).count() as u32;
        self.oracle
            .judge(&scenario.bars, stranded, p99_over_bound, origin_copies);
        let mut details = Details {
            completions_s: completions,
            first_chunks_s: first_bytes,
            cross_zone_copies: self.cross_zone_bytes as f64 / bytes,
            ..Details::default()
        };
        for node in &self.nodes {
            let stats = node.machine.stats();
            details.served += stats.served;
            details.refused_busy += stats.refused_busy;
            details.unleased += stats.from_origin_unleased;
            details.failures += stats.failures;
            details.corrupt += stats.corrupt;
        }
        details.complaints = self.oracle.take_complaints();
        Outcome {
            scenario: scenario.name.clone(),
            rng_seed: self.rng_seed,
            peers: scenario.peers.count,
            simulated_s: self.now.as_secs_f64(),
            wall_s: 0.0,
            events: self.events,
            p50_s: percentile(&details.completions_s, 0.5),
            p99_s,
            max_s: percentile(&details.completions_s, 1.0),
            first_byte_p99_s: percentile(&details.first_chunks_s, 0.99),
            fluid_bound_s,
            pipelined_bound_s,
            p99_over_bound,
            origin_copies,
            wan_bytes: self.wan_bytes,
            stranded,
            trace_hash: format!("{:016x}", self.trace),
            ok: details.complaints.is_empty(),
            details,
        }
    }

    /// The machines must believe exactly what was verified.
    fn check_maps(&mut self) {
        for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            for (blob, verified) in (0_u32..).map(BlobSlot).zip(&node.verified) {
                if node.machine.held(blob).is_some_and(|held| held != verified) {
                    self.oracle.complain(|| {
                        format!("peer {number} holds what was not verified, or forgot what was")
                    });
                }
            }
        }
    }
}

/// The cut of a layer.
pub(crate) fn geometry(scenario: &Scenario, size: ByteSize) -> Geometry {
    if scenario.image.digest_only {
        Geometry::whole(size.0)
    } else {
        Geometry::for_size(size.0)
    }
}

pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

pub(crate) fn millis(millis: f64) -> Duration {
    Duration::from_nanos((millis * 1e6) as u64)
}

/// A mixing function (splitmix64): for the trace, and for stable keys of peers.
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn moved_fingerprint(moved: &Moved) -> (u64, u64) {
    match *moved {
        Moved::Progress { tag, moved } => (1, tag ^ moved << 32),
        Moved::Done { tag, .. } => (2, tag),
    }
}

fn fingerprint(event: &Event) -> (u64, u64) {
    let pair = |one: u32, other: u32| u64::from(one) | u64::from(other) << 32;
    match *event {
        Event::Start { peer } => (3, peer.into()),
        Event::Wake { peer } => (4, peer.into()),
        Event::Dialled { peer, slot } => (5, pair(peer, slot)),
        Event::DialTimeout { peer, slot } => (6, pair(peer, slot)),
        Event::Closed { peer, slot, .. } => (7, pair(peer, slot)),
        Event::Have { broadcast } => (8, broadcast.to_bits()),
        Event::Greeted { greeting } => (9, greeting.to_bits()),
        Event::Asked { request } => (10, request.to_bits()),
        Event::Refused { request, .. } => (11, request.to_bits()),
        Event::FirstByte { request } => (12, request.to_bits()),
        Event::Arrived { request } => (13, request.to_bits()),
        Event::SourceFailed { request } => (14, request.to_bits()),
        Event::ToTracker { message } => (15, message.to_bits()),
        Event::FromTracker { answer } => (16, answer.to_bits()),
        Event::TrackerWake => (17, 0),
        Event::SessionWake { peer } => (18, peer.into()),
        Event::Fails { failure } | Event::Recovers { failure } => (19, failure as u64),
        Event::Goes { peer, .. } => (20, peer.into()),
    }
}
