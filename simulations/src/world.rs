//! The world: peers, links, the tracker, and the loop that takes one event after the other.

use core::time::Duration;

use flotilla_common::swarm::Input;
use flotilla_common::time::Time;
use flotilla_common::wire::tracker::PeerInfo;
use rand::SeedableRng as _;
use rand_pcg::Pcg64Mcg;

use crate::delays::Delays;
use crate::event::Event;
use crate::fetch::SimulatedFetch;
use crate::holders::Holders;
use crate::images::Images;
use crate::links::{Broadcast, BroadcastBuffers, ChunkMapMessage};
use crate::network::Network;
use crate::oracle::Oracle;
use crate::origin_calls::OriginCall;
use crate::origin_connections::OriginConnections;
use crate::origin_site::SimulatedOrigin;
use crate::outages::Outage;
use crate::outcome::Outcome;
use crate::peer::{Location, SimulatedPeer};
use crate::queue::Queue;
use crate::record::{Recorder, RunOptions};
use crate::region_links::{RegionLinks, WideConnections};
use crate::rng::mix;
use crate::scenario::{Scenario, seconds};
use crate::slab::Slab;
use crate::storage_site::SimulatedStorage;
use crate::tracker::{SimulatedTracker, TrackerAnswer, TrackerMessage, simulated_trackers};

/// The state of a run.
pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) rng_seed: u64,
    pub(crate) rng: Pcg64Mcg,
    pub(crate) delays: Delays,
    pub(crate) now: Time,
    pub(crate) queue: Queue<Event>,
    pub(crate) network: Network,
    pub(crate) region_links: RegionLinks,
    pub(crate) wide_connections: WideConnections,
    pub(crate) origin_connections: OriginConnections,
    pub(crate) peers: Vec<SimulatedPeer>,
    /// Where each peer is; apart from the peers, because every message looks there.
    pub(crate) locations: Vec<Location>,
    /// The name and address of each peer in messages to the tracker.
    pub(crate) infos: Vec<PeerInfo>,
    pub(crate) images: Images,
    pub(crate) holders: Holders,
    pub(crate) fetches: Slab<SimulatedFetch>,
    pub(crate) broadcasts: Slab<Broadcast>,
    pub(crate) broadcast_buffers: BroadcastBuffers,
    pub(crate) chunk_map_messages: Slab<ChunkMapMessage>,
    /// Number of connections that have ended so far.
    pub(crate) closed_connections: u64,
    pub(crate) trackers: Vec<SimulatedTracker>,
    pub(crate) tracker_messages: Slab<TrackerMessage>,
    pub(crate) tracker_answers: Slab<TrackerAnswer>,
    /// Number of messages between peers and trackers so far, in both directions.
    pub(crate) sent_tracker_messages: u64,
    /// The origin of each region.
    pub(crate) origins: Vec<SimulatedOrigin>,
    pub(crate) calls: Slab<OriginCall>,
    /// Draws the times to the first byte of origins and slow trackers.
    pub(crate) latency_rng: Pcg64Mcg,
    /// Whether each region is cut off from all others.
    pub(crate) is_cut_off: Vec<bool>,
    /// Origins that failed for good.
    pub(crate) outages: Vec<Outage>,
    /// Bytes that came from origins, own and other ones, into each region.
    pub(crate) origin_bytes: Vec<u64>,
    pub(crate) wan_bytes: u64,
    /// Bytes among them of chunks that a living peer of the receiving region held already.
    pub(crate) repeated_wan_bytes: u64,
    pub(crate) cross_zone_bytes: u64,
    pub(crate) oracle: Oracle,
    pub(crate) recorder: Recorder<'a>,
    /// The longest time in which a pull under way delivered no byte.
    pub(crate) longest_stall: Duration,
    /// Peers that are alive and not complete.
    pub(crate) unfinished: u32,
    events: u64,
    pub(crate) trace_hash: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new(scenario: &'a Scenario, rng_seed: u64, options: &RunOptions<'a>) -> Self {
        let regions = scenario.peers.regions.get();
        let images = Images::new(scenario);
        let mut world = World {
            scenario,
            rng_seed,
            rng: Pcg64Mcg::seed_from_u64(rng_seed),
            delays: Delays::new(&scenario.links, rng_seed),
            now: Time::ZERO,
            queue: Queue::new(),
            network: Network::new(),
            region_links: RegionLinks::default(),
            wide_connections: WideConnections::new(),
            origin_connections: OriginConnections::default(),
            peers: Vec::new(),
            locations: Vec::new(),
            infos: Vec::new(),
            holders: Holders::new(&images, regions),
            images,
            fetches: Slab::new(),
            broadcasts: Slab::new(),
            broadcast_buffers: BroadcastBuffers::default(),
            chunk_map_messages: Slab::new(),
            closed_connections: 0,
            trackers: simulated_trackers(scenario, rng_seed),
            tracker_messages: Slab::new(),
            tracker_answers: Slab::new(),
            sent_tracker_messages: 0,
            origins: (0..regions)
                .map(|region| {
                    let storage = SimulatedStorage::new(scenario, region, rng_seed);
                    SimulatedOrigin::new(&scenario.origin, storage)
                })
                .collect(),
            calls: Slab::new(),
            latency_rng: Pcg64Mcg::seed_from_u64(mix(rng_seed ^ 1)),
            is_cut_off: vec![false; regions as usize],
            outages: Vec::new(),
            origin_bytes: vec![0; regions as usize],
            wan_bytes: 0,
            repeated_wan_bytes: 0,
            cross_zone_bytes: 0,
            oracle: Oracle::default(),
            recorder: Recorder::new(options, scenario),
            longest_stall: Duration::ZERO,
            unfinished: 0,
            events: 0,
            trace_hash: rng_seed,
        };
        world.populate();
        for (index, failure) in scenario.failures.iter().enumerate() {
            world.queue.push(
                Time::ZERO + seconds(failure.at_s),
                Event::FailureStarts { failure: index },
            );
        }
        world
    }

    /// Handles events until every living peer is complete, or the time limit is reached.
    pub(crate) fn run(mut self) -> Outcome {
        let limit = Time::ZERO + seconds(self.scenario.time_limit_s);
        while self.unfinished > 0 {
            let event_at = self.queue.next_at();
            let flow_event_at = self.network.next_at();
            let Some(next_at) = event_at
                .into_iter()
                .chain(flow_event_at)
                .min()
                .filter(|at| *at <= limit)
            else {
                break;
            };
            self.now = next_at;
            self.record_time();
            if flow_event_at == Some(next_at) {
                if let Some((_, Some(event))) = self.network.pop() {
                    self.record_flow_event(&event);
                    self.trace(event.fingerprint());
                    self.on_flow_event(event);
                }
            } else if let Some((_, event)) = self.queue.pop() {
                self.handle(event);
            }
        }
        self.outcome()
    }

    fn handle(&mut self, event: Event) {
        self.record_event(&event);
        self.trace(event.fingerprint());
        match event {
            Event::Start { peer } => self.on_start(peer),
            Event::Wake { peer } => self.on_wake(peer),
            Event::OpeningWake { peer } => self.on_opening_wake(peer),
            Event::ReadWake { peer } => self.on_read_wake(peer),
            Event::ManifestRequested { peer, pull } => self.request_manifest(peer, pull),
            Event::BlobRequested { peer, blob } => self.request_blob(peer, blob),
            Event::Dialled { peer, slot } => self.on_dialled(peer, slot),
            Event::DialTimeout { peer, slot } => self.on_dial_timeout(peer, slot),
            Event::Closed { peer, slot, epoch } => self.on_closed(peer, slot, epoch),
            Event::Have { broadcast } => self.on_broadcast(broadcast),
            Event::ChunkMap { message } => self.on_chunk_map(message),
            Event::SlotFree { peer, slot, epoch } => self.on_slot_free(peer, slot, epoch),
            Event::Requested { fetch } => self.on_requested(fetch),
            Event::Refused { fetch, reason } => self.on_refusal(fetch, reason),
            Event::FirstByte { fetch } => self.on_first_byte(fetch),
            Event::Arrived { fetch } => self.on_arrived(fetch),
            Event::RequestWake { fetch } => self.on_request_wake(fetch),
            Event::OriginAsked { call } => self.on_origin_asked(call),
            Event::OriginServes { call } => self.on_origin_serves(call),
            Event::OriginAnswered { call, outcome } => self.on_origin_answered(call, *outcome),
            Event::OriginArrived { call } => self.on_call_arrived(call),
            Event::BodyWatched { call } => self.on_body_watched(call),
            Event::BodyBroke { call } => self.on_body_broke(call, "connection reset"),
            Event::RelayAsked { call, by } => self.on_relay_asked(call, by),
            Event::ReadAnswered { call, by, outcome } => self.on_read_answered(call, by, *outcome),
            Event::StorageWake { call } => self.on_storage_wake(call),
            Event::BodyStalled { call } => self.resume_body(call),
            Event::FailoverWake { peer } => self.on_failover_wake(peer),
            Event::Probed {
                peer,
                source,
                probe,
                is_good,
            } => self.on_probed(peer, source, probe, is_good),
            Event::ToTracker { message } => self.on_tracker_message(message),
            Event::TrackerServes { tracker, exchange } => self.on_tracker_serves(tracker, exchange),
            Event::FromTracker { answer } => self.on_tracker_answer(answer),
            Event::TrackerWake { tracker } => self.on_tracker_wake(tracker),
            Event::SessionWake { peer } => self.on_session_wake(peer),
            Event::FailureStarts { failure } => self.on_failure(failure),
            Event::FailureEnds { failure } => self.on_recovery(failure),
            Event::Departs { peer, is_orderly } => self.on_departure(peer, is_orderly),
            Event::Restarts { peer, failure } => self.on_restart(peer, failure),
            Event::Returns { peer } => self.on_return(peer),
        }
    }

    /// Number of events so far.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    fn trace(&mut self, (kind, number): (u64, u64)) {
        self.events += 1;
        self.trace_hash = mix(self.trace_hash ^ self.now.as_nanos() ^ (kind << 56) ^ (number << 8));
    }

    fn on_start(&mut self, peer: u32) {
        if !self.peers[peer as usize].is_alive {
            return;
        }
        self.begin_session(peer);
        self.start_pulls(peer);
    }

    fn on_wake(&mut self, peer: u32) {
        let simulated = &mut self.peers[peer as usize];
        if simulated.is_alive && simulated.wake_at == self.now {
            simulated.wake_at = Time::MAX;
            if simulated.frozen.is_some() {
                return;
            }
            simulated.machine.handle_timeout(self.now);
            self.drain(peer);
        }
    }

    /// Gives an input to a peer's machine and carries out its outputs. A frozen peer gets it when
    /// it thaws.
    pub(crate) fn feed(&mut self, peer: u32, input: Input) {
        let simulated = &mut self.peers[peer as usize];
        if let Some(backlog) = &mut simulated.frozen {
            backlog.inputs.push(input);
        } else if simulated.is_alive {
            simulated.machine.handle(self.now, input);
            self.drain(peer);
        }
    }

    /// Bytes of the image have reached a peer.
    pub(crate) fn note_delivery(&mut self, peer: u32) {
        let simulated = &mut self.peers[peer as usize];
        simulated.reads.last_received_at = self.now;
        if simulated.is_alive && simulated.frozen.is_none() && !simulated.lies() {
            let stall = self.now.saturating_since(simulated.delivered_at);
            simulated.delivered_at = self.now;
            self.longest_stall = self.longest_stall.max(stall);
        }
    }

    pub(crate) fn drain(&mut self, peer: u32) {
        while let Some(output) = self.peers[peer as usize].machine.poll_output() {
            self.act(peer, output);
        }
        let simulated = &mut self.peers[peer as usize];
        if let Some(at) = simulated.machine.poll_timeout()
            && at < simulated.wake_at
        {
            // A deadline in the past is handled at once, but in an event of its own.
            let at = at.max(self.now);
            simulated.wake_at = at;
            self.queue.push(at, Event::Wake { peer });
        }
    }
}
