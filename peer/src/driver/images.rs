//! Images from neighbours: if no origin is available, neighbours are asked for an image's manifest
//! and the proofs of its blobs. This peer answers the same requests of its neighbours.
//!
//! ```text
//! mirror                driver                    tracker               neighbours
//!   SeekImage {manifest} ──▶  wanted: manifest ────▶
//!                             ◀──── peers that announced it
//!                             dial, AskImage ─────────────────────────────▶  from their stores
//!   ◀──── the first valid answer ◀─────────── manifest and proofs ─────────
//! ```
//!
//! Nothing that a neighbour sends is trusted: the manifest is checked against its digest here, the
//! proofs where they are used. If grants are required, an image is sent only to neighbours with a
//! valid grant. Which neighbours are asked, and for how long, is decided by the [`ImageSeeks`]
//! machine; the number of images sent at a time is bounded here.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::PeerId;
use flotilla_common::opening::{ImageSeeks, NamedPeer, PeerConnection, SeekInput, SeekOutput};
use flotilla_common::proof::Proof;
use flotilla_common::swarm::Input;
use flotilla_common::time::Time;
use flotilla_common::tracker::{NamedPeers, Urgency};
use flotilla_common::wire::frame::MAX_BODY_LEN;
use flotilla_common::wire::peer::{ImageBundle, Refusal};
use flotilla_common::wire::tracker::PeerInfo;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::Driver;
use super::tasks::TaskReport;
use crate::handles::Stores;
use crate::transport::{ImageRequest, PeerLink, request_image};

/// From a request to the end of its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Images sent to neighbours at a time.
const MAX_ANSWERS: usize = 4;
/// Bytes of proofs in an answer. A frame holds them together with the longest manifest.
const MAX_PROOFS_LEN: usize = MAX_BODY_LEN / 2;
/// Bytes of a proof, without the 32 bytes for each chunk.
const PROOF_LEN: usize = 512;

/// The images that are sought, and the images that are being sent.
#[derive(Debug)]
pub(super) struct ImageExchange {
    pub(super) seeks: ImageSeeks,
    /// The requests that wait for each image.
    waiting: BTreeMap<Digest, Vec<oneshot::Sender<ImageBundle>>>,
    answers: Arc<Semaphore>,
}

impl Default for ImageExchange {
    fn default() -> Self {
        Self {
            seeks: ImageSeeks::default(),
            waiting: BTreeMap::new(),
            answers: Arc::new(Semaphore::new(MAX_ANSWERS)),
        }
    }
}

impl ImageExchange {
    /// Gives up the images for which no request waits any more.
    fn retain_awaited(&mut self, now: Time) {
        let seeks = &mut self.seeks;
        self.waiting.retain(|manifest, waiting| {
            waiting.retain(|waiting| !waiting.is_closed());
            if waiting.is_empty() {
                let manifest = *manifest;
                seeks.handle(now, SeekInput::Abandon { manifest });
            }
            !waiting.is_empty()
        });
    }
}

impl Driver {
    /// Seeks an image among the peers. `answer` gets the first valid answer, or is dropped.
    pub(super) fn seek_image(
        &mut self,
        now: Time,
        manifest: Digest,
        answer: oneshot::Sender<ImageBundle>,
    ) {
        self.images.retain_awaited(now);
        let waiting = self.images.waiting.entry(manifest).or_default();
        waiting.push(answer);
        self.handle_seek(now, SeekInput::Seek { manifest });
    }

    /// Handles a tracker's handout for a digest that is not a blob of this peer.
    pub(super) fn image_handout(&mut self, now: Time, handout: &NamedPeers) {
        self.images.retain_awaited(now);
        if !self.images.waiting.contains_key(&handout.digest) {
            return;
        }
        let mut peers = Vec::new();
        for info in &handout.peers {
            let connection = self.connection(&info.id);
            if connection != PeerConnection::None {
                self.store_peer_info(info);
            }
            let peer = info.id.clone();
            peers.push(NamedPeer { peer, connection });
        }
        let manifest = handout.digest;
        let input = SeekInput::Handout { manifest, peers };
        self.images.seeks.handle(now, input);
        self.carry_out_seeks(now, &handout.peers, None);
    }

    /// Asks a neighbour for all images that are sought and for which it was not asked yet.
    pub(super) fn ask_for_images(&mut self, now: Time, link: &PeerLink) {
        if link.is_serving_images() {
            let peer = link.peer().clone();
            self.images.retain_awaited(now);
            self.handle_seek(now, SeekInput::Neighbour { peer });
        }
    }

    /// Delivers an image to the requests that wait for it.
    pub(super) fn image_received(&mut self, now: Time, manifest: Digest, image: &ImageBundle) {
        self.images
            .seeks
            .handle(now, SeekInput::Delivered { manifest });
        self.carry_out_seeks(now, &[], Some(image));
    }

    /// Ends the seeks that took too long.
    pub(super) fn end_late_seeks(&mut self, now: Time) {
        self.images.seeks.handle_timeout(now);
        self.carry_out_seeks(now, &[], None);
    }

    fn handle_seek(&mut self, now: Time, input: SeekInput) {
        self.images.seeks.handle(now, input);
        self.carry_out_seeks(now, &[], None);
    }

    fn connection(&self, peer: &PeerId) -> PeerConnection {
        let slot = self.tables.peer_slot(peer);
        match slot.and_then(|slot| self.tables.link(slot)) {
            None => PeerConnection::None,
            Some(link) if link.is_serving_images() => PeerConnection::ServesImages,
            Some(_) => PeerConnection::LacksImages,
        }
    }

    /// Carries out what the seeks ask for. `named` are the peers of the handout that was handled,
    /// `image` is the one that was delivered.
    fn carry_out_seeks(&mut self, now: Time, named: &[PeerInfo], image: Option<&ImageBundle>) {
        while let Some(output) = self.images.seeks.poll_output() {
            match output {
                SeekOutput::Started { .. } => {
                    let peers = self.tables.peers();
                    let links = peers.filter_map(|peer| peer.link.as_ref());
                    let serving = links.filter(|link| link.is_serving_images());
                    for peer in serving.map(|link| link.peer().clone()).collect::<Vec<_>>() {
                        let neighbour = SeekInput::Neighbour { peer };
                        self.images.seeks.handle(now, neighbour);
                    }
                    self.context.network.trackers.announce(Urgency::Now);
                }
                SeekOutput::Ask { peer, manifest } => self.request_image(&peer, manifest),
                SeekOutput::Connect { peer } => {
                    if let Some(info) = named.iter().find(|info| info.id == peer) {
                        let facts = self.store_peer_info(info);
                        self.machine.handle(now, Input::Dial { facts });
                    }
                }
                SeekOutput::Found { manifest } => {
                    let waiting = self.images.waiting.remove(&manifest);
                    for waiting in waiting.unwrap_or_default() {
                        if let Some(image) = image {
                            // A request that has ended needs no image.
                            let _ = waiting.send(image.clone());
                        }
                    }
                }
                SeekOutput::GaveUp { manifest } => {
                    self.images.waiting.remove(&manifest);
                }
            }
        }
    }

    /// Sends a neighbour a request for an image.
    fn request_image(&self, peer: &PeerId, manifest: Digest) {
        let slot = self.tables.peer_slot(peer);
        let Some(link) = slot.and_then(|slot| self.tables.link(slot)).cloned() else {
            return;
        };
        let mut grants = self
            .tables
            .blobs()
            .filter_map(|(_, blob)| blob.grant.as_ref());
        let grant = grants
            .find(|grant| grant.manifest() == Some(&manifest))
            .cloned();
        let reports = self.reports.clone();
        self.context.shutdown.spawn(async move {
            match timeout(ANSWER_TIMEOUT, request_image(&link, manifest, grant)).await {
                Ok(Ok(image)) => {
                    let report = TaskReport::ImageReceived(manifest, Box::new(image));
                    // Fails only when the driver has stopped.
                    let _ = reports.send(report).await;
                }
                Ok(Err(error)) => tracing::debug!(
                    peer = %link.peer(), %manifest, %error,
                    "neighbour did not deliver an image"
                ),
                Err(_) => tracing::debug!(
                    peer = %link.peer(), %manifest,
                    "neighbour did not deliver an image in time"
                ),
            }
        });
    }

    /// Answers a neighbour's request for an image.
    pub(super) fn on_image_request(&mut self, link: &PeerLink, request: ImageRequest) {
        let ask = &request.ask;
        let permission = self.check_grant(link, &ask.manifest, ask.grant.as_ref());
        if let Err(error) = &permission {
            tracing::debug!(
                peer = %link.peer(), manifest = %ask.manifest, %error,
                "refused a neighbour's request for an image"
            );
            let counters = &self.context.telemetry.counters;
            counters.refused_not_permitted.add(1);
        }
        let permit = Arc::clone(&self.images.answers).try_acquire_owned();
        let stores = self.context.stores.clone();
        self.context.shutdown.spawn(async move {
            let answer = match (permission, &permit) {
                (Err(_), _) => Err(Refusal::NotPermitted),
                (Ok(()), Err(_)) => Err(Refusal::Busy),
                (Ok(()), Ok(_)) => stored_image(&stores, &request.ask.manifest)
                    .await
                    .ok_or(Refusal::Gone),
            };
            if let Err(error) = request.answer(answer).await {
                tracing::debug!(%error, "answer to a neighbour's request for an image failed");
            }
        });
    }
}

/// An image from the stores: its manifest and the proofs of its blobs, as far as they are stored.
async fn stored_image(stores: &Stores, digest: &Digest) -> Option<ImageBundle> {
    let stored = stores.manifests.get(digest).await?;
    let manifest = Manifest::parse(&stored.bytes).ok()?;
    let mut room = MAX_PROOFS_LEN;
    let mut proofs = Vec::new();
    for blob in manifest.blobs() {
        let Some(blob) = stores.blobs.get(&blob.digest) else {
            continue;
        };
        let chunks = blob.table().map_or(0, |_| blob.geometry().chunks());
        let length = PROOF_LEN + chunks as usize * 32;
        if length <= room {
            room -= length;
            proofs.push(Proof::clone(blob.proof()));
        }
    }
    Some(ImageBundle {
        media_type: stored.media_type,
        manifest: stored.bytes.to_vec(),
        proofs,
    })
}
