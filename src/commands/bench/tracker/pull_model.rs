//! A model of the pulls of a fleet: which chunks each VM holds, which VMs it is connected to, and
//! when it turns to the tracker.
//!
//! The tracker is what the benchmark measures, so the model has its cost for the fleet's peers
//! only, and moves no bytes. A VM receives at most its link's rate of chunks that its neighbours
//! hold, takes leases for chunks that no neighbour holds, and fetches leased chunks from an origin
//! that answers after a fixed time. When a lease is requested and withdrawn follows the peer's
//! machine ([`flotilla_common::swarm`]); transfers, refusals and faults are left out. It is pure:
//! no clock and no I/O.

use core::time::Duration;

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::digest::Digest;
use flotilla_common::time::Time;
use flotilla_common::tracker::{LeaseUpdate, PeerSnapshot};
use flotilla_common::wire::tracker::{BlobState, Change, HeldLease, NeighboursWanted};

use super::images::{Image, Layer, peer_id};

/// From a handout to a neighbour's holdings: a dial, a handshake and a greeting.
const DIAL_TIME: Duration = Duration::from_millis(20);
/// Layers for which a VM asks for leases at once, as in the peer's machine.
const REQUESTED_LAYERS: usize = 2;
/// Minimum time between two requests for one layer, as in the peer's machine.
const REQUEST_INTERVAL: Duration = Duration::from_millis(100);
/// Most neighbours of a VM, as in the peer's machine.
const MAX_NEIGHBOURS: usize = 64;
/// A peer with fewer neighbours than the one looks for as many as the other, as in its machine.
const MIN_NEIGHBOURS: usize = 12;
const WANTED_NEIGHBOURS: usize = 16;

/// What a VM tells its tracker session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The VM's state changed.
    Announce,
    /// It needs a lease.
    RequestLease {
        layer: usize,
        missing: ChunkMap,
        starving: bool,
    },
    /// It does not need the lease that it asked for.
    WithdrawRequest { layer: usize },
    /// It fetches a leased chunk from the origin.
    Fetch { layer: usize, chunk: u32 },
    /// The state of a lease.
    UpdateLease { layer: usize, update: LeaseUpdate },
}

/// The state of the lease request for one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LayerRequest {
    None { not_before: Time },
    Parked { is_starving: bool },
}

/// A chunk on its way from the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OriginFetch {
    layer: usize,
    chunk: u32,
}

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Pulling,
    Complete,
}

#[derive(Debug)]
struct Vm {
    image: usize,
    phase: Phase,
    /// Chunks of the whole image, layer after layer.
    held: ChunkMap,
    /// Chunks held of each layer.
    held_in_layer: Vec<u32>,
    neighbours: Vec<u32>,
    dialling: Vec<(Time, u32)>,
    requests: Vec<LayerRequest>,
    fetches: Vec<OriginFetch>,
    /// Chunks that the link could have received by now and did not.
    credit: f64,
    /// Where the search for the next chunk begins.
    cursor: u32,
    extra: usize,
}

/// All VMs and their images.
#[derive(Debug)]
pub(super) struct PullModel {
    images: Vec<Image>,
    vms: Vec<Vm>,
    /// Digests that complete VMs hold besides.
    extra: Vec<Digest>,
    chunks_per_s: f64,
    ticked_at: Time,
    complete: usize,
}

impl PullModel {
    /// `count` idle VMs; VM i will pull image i modulo the number of images.
    pub(super) fn new(images: Vec<Image>, count: usize, chunks_per_s: f64) -> Self {
        let vm = |number: usize| {
            let image = number % images.len();
            let layers = images[image].layers();
            Vm {
                image,
                phase: Phase::Idle,
                held: ChunkMap::empty(images[image].chunks()),
                held_in_layer: vec![0; layers.len()],
                neighbours: Vec::new(),
                dialling: Vec::new(),
                requests: vec![
                    LayerRequest::None {
                        not_before: Time::ZERO
                    };
                    layers.len()
                ],
                fetches: Vec::new(),
                credit: 0.0,
                cursor: (number as u32).wrapping_mul(0x9e37_79b9),
                extra: 0,
            }
        };
        Self {
            vms: (0..count).map(vm).collect(),
            images,
            extra: Vec::new(),
            chunks_per_s,
            ticked_at: Time::ZERO,
            complete: 0,
        }
    }

    /// VMs whose pull is complete.
    pub(super) fn complete(&self) -> usize {
        self.complete
    }

    /// The layer of the VM's image with this digest.
    pub(super) fn layer(&self, vm: usize, digest: &Digest) -> Option<usize> {
        self.images[self.vms[vm].image].find(digest)
    }

    /// The digest of a layer of the VM's image.
    pub(super) fn digest(&self, vm: usize, layer: usize) -> Digest {
        self.images[self.vms[vm].image].layers()[layer].digest
    }

    /// The VM begins its pull.
    pub(super) fn start(&mut self, vm: usize) {
        self.vms[vm].phase = Phase::Pulling;
    }

    /// From now on the VM also holds these blobs, all of each.
    pub(super) fn hold(&mut self, vm: usize, extra: &[Digest]) {
        if self.extra.is_empty() {
            self.extra = extra.to_vec();
        }
        self.vms[vm].extra = self.extra.len();
    }

    /// The state that the VM announces.
    pub(super) fn snapshot(&self, number: usize) -> PeerSnapshot {
        let vm = &self.vms[number];
        let layers = self.images[vm.image].layers();
        let mut blobs = Vec::new();
        if vm.phase != Phase::Idle {
            for (layer, held) in layers.iter().zip(&vm.held_in_layer) {
                let is_wanted = *held < layer.chunks;
                let mut map = ChunkMap::empty(layer.chunks);
                (0..*held).for_each(|chunk| _ = map.insert(chunk));
                let state = BlobState::of(&map, is_wanted);
                blobs.extend(state.map(|state| Change {
                    digest: layer.digest,
                    state,
                }));
            }
        }
        let whole = BlobState::of(&ChunkMap::full(1), false);
        for digest in &self.extra[..vm.extra] {
            blobs.extend(whole.map(|state| Change {
                digest: *digest,
                state,
            }));
        }
        let lease = |fetch: &OriginFetch| HeldLease {
            digest: layers[fetch.layer].digest,
            chunk: fetch.chunk,
            chunks: layers[fetch.layer].chunks,
        };
        // The model does not tell neighbours of one layer from those of another.
        let known = vm.neighbours.len() + vm.dialling.len();
        let missing = if known < MIN_NEIGHBOURS {
            WANTED_NEIGHBOURS.saturating_sub(known)
        } else {
            0
        };
        let is_wanted = |(layer, held): &(&Layer, &u32)| **held < layer.chunks;
        let wanted = layers.iter().zip(&vm.held_in_layer).filter(is_wanted);
        let neighbours = wanted.map(|(layer, _)| NeighboursWanted {
            digest: layer.digest,
            count: missing as u8,
        });
        let is_pulling = vm.phase == Phase::Pulling;
        let neighbours = neighbours.filter(|_| is_pulling).collect();
        PeerSnapshot {
            blobs,
            neighbours,
            leases: vm.fetches.iter().map(lease).collect(),
            connected: vm.neighbours.iter().map(|it| peer_id(*it)).collect(),
            unreachable: Vec::new(),
        }
    }

    /// A tracker named other VMs.
    pub(super) fn on_handout(&mut self, now: Time, vm: usize, named: &[u32]) {
        let vm = &mut self.vms[vm];
        for other in named {
            let known = vm.neighbours.len() + vm.dialling.len();
            let is_new = !vm.neighbours.contains(other)
                && vm.dialling.iter().all(|(_, dialled)| dialled != other);
            if is_new && known < WANTED_NEIGHBOURS {
                vm.dialling.push((now + DIAL_TIME, *other));
            }
        }
    }

    /// A lease was granted.
    pub(super) fn on_granted(
        &mut self,
        now: Time,
        number: usize,
        layer: usize,
        chunk: u32,
    ) -> Vec<Action> {
        let at = self.images[self.vms[number].image].layers()[layer].first + chunk;
        let is_around = self.around(number).contains(at);
        let vm = &mut self.vms[number];
        vm.requests[layer] = LayerRequest::None { not_before: now };
        if vm.held.contains(at) || is_around {
            let update = LeaseUpdate::Done { chunk, from: None };
            return vec![Action::UpdateLease { layer, update }];
        }
        vm.fetches.push(OriginFetch { layer, chunk });
        let update = LeaseUpdate::Renew {
            chunk,
            received: 0,
            from: None,
        };
        vec![
            Action::UpdateLease { layer, update },
            Action::Fetch { layer, chunk },
        ]
    }

    /// The origin delivered a leased chunk.
    pub(super) fn on_fetched(
        &mut self,
        now: Time,
        number: usize,
        layer: usize,
        chunk: u32,
    ) -> Vec<Action> {
        let fetch = OriginFetch { layer, chunk };
        self.vms[number].fetches.retain(|other| *other != fetch);
        let update = LeaseUpdate::Done { chunk, from: None };
        let mut actions = vec![Action::UpdateLease { layer, update }];
        let at = self.images[self.vms[number].image].layers()[layer].first + chunk;
        self.insert(number, at, &mut actions);
        self.seek_leases(now, number, &mut actions);
        self.finish_pull(number);
        actions
    }

    /// A request came back without a lease.
    pub(super) fn on_wait(&mut self, now: Time, vm: usize, layer: usize, retry_after: Duration) {
        let not_before = now + retry_after.max(REQUEST_INTERVAL);
        self.vms[vm].requests[layer] = LayerRequest::None { not_before };
    }

    /// Moves all pulls to `now` and returns what the VMs tell their sessions, in order.
    pub(super) fn tick(&mut self, now: Time) -> Vec<(usize, Action)> {
        let elapsed = now.saturating_since(self.ticked_at);
        self.ticked_at = now;
        let mut actions = Vec::new();
        for number in 0..self.vms.len() {
            if self.vms[number].phase == Phase::Pulling {
                let mut of_vm = Vec::new();
                self.finish_dials(now, number);
                self.receive(number, elapsed, &mut of_vm);
                self.seek_leases(now, number, &mut of_vm);
                self.finish_pull(number);
                actions.extend(of_vm.into_iter().map(|action| (number, action)));
            }
        }
        actions
    }

    fn finish_dials(&mut self, now: Time, number: usize) {
        let vm = &mut self.vms[number];
        let due = vm.dialling.extract_if(.., |(at, _)| *at <= now);
        for (_, other) in due.collect::<Vec<_>>() {
            let dialled = &mut self.vms[other as usize];
            if dialled.neighbours.len() < MAX_NEIGHBOURS {
                dialled.neighbours.push(number as u32);
                self.vms[number].neighbours.push(other);
            }
        }
    }

    /// Chunks that a neighbour of the VM holds.
    fn around(&self, number: usize) -> ChunkMap {
        let vm = &self.vms[number];
        let mut around = ChunkMap::empty(vm.held.len());
        for other in &vm.neighbours {
            let other = &self.vms[*other as usize];
            if other.image == vm.image {
                around.union(&other.held);
            }
        }
        around
    }

    fn receive(&mut self, number: usize, elapsed: Duration, actions: &mut Vec<Action>) {
        let around = self.around(number);
        let vm = &mut self.vms[number];
        vm.credit = (vm.credit + self.chunks_per_s * elapsed.as_secs_f64())
            .min(1.0 + self.chunks_per_s / 10.0);
        let wanted = |chunk: &u32| !vm.held.contains(*chunk);
        let mut missing: Vec<u32> = around.iter().filter(wanted).collect();
        vm.cursor = vm.cursor.wrapping_mul(0x9e37_79b9).wrapping_add(1);
        if !missing.is_empty() {
            let start = vm.cursor as usize % missing.len();
            missing.rotate_left(start);
        }
        missing.truncate(vm.credit as usize);
        vm.credit -= missing.len() as f64;
        for chunk in missing {
            self.insert(number, chunk, actions);
        }
    }

    fn insert(&mut self, number: usize, chunk: u32, actions: &mut Vec<Action>) {
        let vm = &mut self.vms[number];
        if !vm.held.insert(chunk) {
            return;
        }
        let image = &self.images[vm.image];
        let layer = image.layer_of(chunk);
        vm.held_in_layer[layer] += 1;
        if vm.held_in_layer[layer] == image.layers()[layer].chunks {
            actions.push(Action::Announce);
        }
    }

    fn seek_leases(&mut self, now: Time, number: usize, actions: &mut Vec<Action>) {
        let mut seen = self.around(number);
        let vm = &mut self.vms[number];
        seen.union(&vm.held);
        let is_starving = vm.neighbours.is_empty();
        let mut requested = 0;
        for (at, layer) in self.images[vm.image].layers().iter().enumerate() {
            let is_unseen = |chunk: &u32| {
                !seen.contains(layer.first + chunk)
                    && !vm
                        .fetches
                        .iter()
                        .any(|it| it.layer == at && it.chunk == *chunk)
            };
            let mut unseen = (0..layer.chunks).filter(is_unseen).peekable();
            let request = &mut vm.requests[at];
            if unseen.peek().is_none() {
                if let LayerRequest::Parked { .. } = *request {
                    *request = LayerRequest::None { not_before: now };
                    actions.push(Action::WithdrawRequest { layer: at });
                }
                continue;
            }
            requested += 1;
            let may_ask = match *request {
                LayerRequest::None { not_before } => not_before <= now,
                LayerRequest::Parked {
                    is_starving: was_starving,
                } => is_starving && !was_starving,
            };
            if requested > REQUESTED_LAYERS || !may_ask {
                continue;
            }
            let mut missing = ChunkMap::empty(layer.chunks);
            unseen.for_each(|chunk| _ = missing.insert(chunk));
            *request = LayerRequest::Parked { is_starving };
            let starving = is_starving;
            actions.push(Action::RequestLease {
                layer: at,
                missing,
                starving,
            });
        }
    }

    fn finish_pull(&mut self, number: usize) {
        let vm = &mut self.vms[number];
        if vm.held.is_full() && vm.phase == Phase::Pulling {
            vm.phase = Phase::Complete;
            self.complete += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(50);

    fn model(vms: usize) -> PullModel {
        PullModel::new(vec![Image::new(0, &[4, 2, 1])], vms, 20.0)
    }

    fn requests(actions: &[(usize, Action)]) -> Vec<(usize, usize)> {
        let layer = |action: &Action| match action {
            Action::RequestLease { layer, .. } => Some(*layer),
            _ => None,
        };
        let requests = actions
            .iter()
            .filter_map(|(vm, action)| Some((*vm, layer(action)?)));
        requests.collect()
    }

    #[test]
    fn lone_vm_fetches_its_image_by_leases() {
        let mut model = model(1);
        let mut now = Time::ZERO + TICK;
        model.start(0);
        let mut granted = [0; 3];
        for _ in 0..100 {
            let mut actions = model.tick(now);
            while let Some((vm, action)) = actions.pop() {
                let Action::RequestLease { layer, .. } = action else {
                    continue;
                };
                let chunk = granted[layer];
                granted[layer] += 1;
                let answer = model.on_granted(now, vm, layer, chunk);
                assert!(answer.contains(&Action::Fetch { layer, chunk }));
                let next = model.on_fetched(now, vm, layer, chunk);
                actions.extend(next.into_iter().map(|action| (vm, action)));
            }
            now += TICK;
        }
        assert_eq!((model.complete(), granted), (1, [4, 2, 1]));
    }

    #[test]
    fn two_layers_are_asked_for_at_once() {
        let mut model = model(1);
        model.start(0);
        let actions = model.tick(Time::ZERO + TICK);
        assert_eq!(requests(&actions), [(0, 0), (0, 1)]);
    }

    #[test]
    fn neighbour_delivers_at_the_rate_of_the_link() {
        let mut model = model(2);
        model.start(0);
        model.start(1);
        for chunk in 0..7 {
            model.insert(0, chunk, &mut Vec::new());
        }
        let mut now = Time::ZERO + TICK;
        model.tick(now);
        model.on_handout(now, 1, &[0]);
        let started = now;
        while model.complete() < 2 && now < started + Duration::from_secs(5) {
            now += TICK;
            model.tick(now);
        }
        let took = now.saturating_since(started);
        assert!(
            (Duration::from_millis(300)..Duration::from_millis(450)).contains(&took),
            "{took:?}"
        );
        let snapshot = model.snapshot(1);
        assert_eq!(snapshot.connected, [peer_id(0)]);
        let is_complete = |change: &Change| change.state == BlobState::Held { progress: 15 };
        assert!(snapshot.blobs.iter().all(is_complete));
    }
}
