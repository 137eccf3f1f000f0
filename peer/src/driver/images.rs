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
//! valid grant. The number of seeks, of neighbours asked for each, of images sent at a time, and
//! every wait are bounded.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::PeerId;
use flotilla_common::proof::Proof;
use flotilla_common::swarm::Input;
use flotilla_common::time::Time;
use flotilla_common::wire::frame::MAX_BODY_LEN;
use flotilla_common::wire::peer::{ImageBundle, Refusal};
use flotilla_common::wire::tracker::Handout;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::Driver;
use super::tasks::TaskReport;
use crate::handles::Stores;
use crate::transport::{ImageRequest, PeerLink, request_image};

/// Images sought at a time.
const MAX_SEEKS: usize = 16;
/// Neighbours asked for one image.
const MAX_ASKED: usize = 8;
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
pub(super) struct ImageSeeks {
    by_manifest: BTreeMap<Digest, ImageSeek>,
    answers: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct ImageSeek {
    waiting: Vec<oneshot::Sender<ImageBundle>>,
    asked: BTreeSet<PeerId>,
}

impl Default for ImageSeeks {
    fn default() -> Self {
        Self {
            by_manifest: BTreeMap::new(),
            answers: Arc::new(Semaphore::new(MAX_ANSWERS)),
        }
    }
}

impl ImageSeeks {
    /// The digests of the manifests that are sought, for the trackers.
    pub(super) fn manifests(&self) -> impl Iterator<Item = &Digest> {
        self.by_manifest.keys()
    }

    /// Forgets the images for which no request waits any more.
    fn retain_awaited(&mut self) {
        self.by_manifest.retain(|_, seek| {
            seek.waiting.retain(|waiting| !waiting.is_closed());
            !seek.waiting.is_empty()
        });
    }
}

impl Driver {
    /// Seeks an image among the peers. `answer` gets the first valid answer, or is dropped.
    pub(super) fn seek_image(&mut self, manifest: Digest, answer: oneshot::Sender<ImageBundle>) {
        self.seeks.retain_awaited();
        let seeks = &mut self.seeks.by_manifest;
        if seeks.len() >= MAX_SEEKS && !seeks.contains_key(&manifest) {
            return;
        }
        seeks.entry(manifest).or_default().waiting.push(answer);
        let peers = self.tables.peers();
        let links: Vec<PeerLink> = peers.filter_map(|peer| peer.link.clone()).collect();
        for link in links {
            self.ask_for_images(&link);
        }
        self.context.network.trackers.announce();
    }

    /// Handles a tracker's handout for a digest that is not a blob of this peer.
    pub(super) fn image_handout(&mut self, now: Time, handout: &Handout) {
        self.seeks.retain_awaited();
        if !self.seeks.by_manifest.contains_key(&handout.digest) {
            return;
        }
        let own = self.context.network.me.id.clone();
        let others = handout.peers.iter().filter(|info| info.id != own);
        for info in others.take(MAX_ASKED) {
            let facts = self.store_peer_info(info);
            match self.tables.link(facts.peer).cloned() {
                Some(link) => self.ask_for_images(&link),
                // The peer is asked once it is connected.
                None => self.machine.handle(now, Input::Dial { facts }),
            }
        }
    }

    /// Asks a neighbour for all images that are sought and for which it was not asked yet.
    pub(super) fn ask_for_images(&mut self, link: &PeerLink) {
        self.seeks.retain_awaited();
        for (manifest, seek) in &mut self.seeks.by_manifest {
            let may_ask = link.is_serving_images() && seek.asked.len() < MAX_ASKED;
            if !may_ask || !seek.asked.insert(link.peer().clone()) {
                continue;
            }
            let mut grants = self
                .tables
                .blobs()
                .filter_map(|(_, blob)| blob.grant.as_ref());
            let grant = grants
                .find(|grant| grant.manifest() == Some(manifest))
                .cloned();
            let (manifest, link, reports) = (*manifest, link.clone(), self.reports.clone());
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
    }

    /// Delivers an image to the requests that wait for it.
    pub(super) fn image_received(&mut self, manifest: &Digest, image: &ImageBundle) {
        let seek = self.seeks.by_manifest.remove(manifest).unwrap_or_default();
        for waiting in seek.waiting {
            // A request that timed out needs no image.
            let _ = waiting.send(image.clone());
        }
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
        let permit = Arc::clone(&self.seeks.answers).try_acquire_owned();
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
