//! Images handed on: what no origin can tell is asked of neighbours, and told to them.
//!
//! ```text
//! mirror            driver                    tracker               neighbours
//!   Seek {manifest} ──▶  wanted: manifest ────▶
//!                        ◀──── who announced it
//!                        dial, AskImage ─────────────────────────────▶  manifest and proofs from their stores
//!   ◀──── the first one whose manifest has the digest ◀──────────────────
//! ```
//!
//! Everything that comes is checked as if a stranger had sent it: the manifest against its digest
//! here, the proofs where they are used. Where grants are required, an image is told only to whom
//! an origin permitted it. Bounded are the images sought at once, the neighbours asked for each,
//! the images told at once, and every wait.

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
use flotilla_common::wire::peer::{Image, Refusal};
use flotilla_common::wire::tracker::Handout;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Driver, Report, Shared};
use crate::transport::{ImageQuestion, Link, ask_image, hands_on};

/// Images sought at once.
const MAX_SEEKS: usize = 16;
/// Neighbours asked for one image.
const MAX_ASKED: usize = 8;
/// From a question to the whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Images told to neighbours at once.
pub(crate) const MAX_TOLD: usize = 4;
/// Bytes of proofs beside a manifest: whatever the manifest's length, a frame holds both.
const MAX_PROOFS_LEN: usize = MAX_BODY_LEN / 2;
/// Of a proof, besides the 32 bytes for each chunk.
const PROOF_LEN: usize = 512;

/// The images that are sought, by their manifests' digests.
#[derive(Debug, Default)]
pub(super) struct Seeks(BTreeMap<Digest, Seek>);

#[derive(Debug, Default)]
struct Seek {
    waiting: Vec<oneshot::Sender<Image>>,
    asked: BTreeSet<PeerId>,
}

impl Seeks {
    /// What is sought, for the tracker.
    pub(super) fn manifests(&self) -> impl Iterator<Item = &Digest> {
        self.0.keys()
    }

    fn retain_awaited(&mut self) {
        self.0.retain(|_, seek| {
            seek.waiting.retain(|waiting| !waiting.is_closed());
            !seek.waiting.is_empty()
        });
    }
}

impl Driver {
    /// Looks for an image among the peers. Whoever waits is answered by the first one that has it,
    /// or not at all.
    pub(super) fn seek(&mut self, manifest: Digest, answer: oneshot::Sender<Image>) {
        self.seeks.retain_awaited();
        if self.seeks.0.len() >= MAX_SEEKS && !self.seeks.0.contains_key(&manifest) {
            return;
        }
        self.seeks
            .0
            .entry(manifest)
            .or_default()
            .waiting
            .push(answer);
        let links: Vec<Link> = self
            .roster
            .peers()
            .filter_map(|peer| peer.link.clone())
            .collect();
        for link in links {
            self.ask_for_images(&link);
        }
        self.shared.trackers.announce();
    }

    /// The tracker names peers for something that is no blob.
    pub(super) fn image_handout(&mut self, now: Time, handout: &Handout) {
        self.seeks.retain_awaited();
        if !self.seeks.0.contains_key(&handout.digest) {
            return;
        }
        let own = self.shared.me.id.clone();
        for info in handout
            .peers
            .iter()
            .filter(|info| info.id != own)
            .take(MAX_ASKED)
        {
            let facts = self.meet(info);
            match self.roster.link(facts.peer).cloned() {
                Some(link) => self.ask_for_images(&link),
                // The neighbour is asked once it is connected.
                None => self.machine.handle(now, Input::Dial { facts }),
            }
        }
    }

    /// Asks a neighbour for everything that is sought and that it was not asked for yet.
    pub(super) fn ask_for_images(&mut self, link: &Link) {
        self.seeks.retain_awaited();
        for (manifest, seek) in &mut self.seeks.0 {
            let may_ask = hands_on(link) && seek.asked.len() < MAX_ASKED;
            if !may_ask || !seek.asked.insert(link.peer().clone()) {
                continue;
            }
            let mut grants = self
                .roster
                .blobs()
                .filter_map(|(_, blob)| blob.grant.as_ref());
            let grant = grants
                .find(|grant| grant.manifest() == Some(manifest))
                .cloned();
            let (manifest, link, reports) = (*manifest, link.clone(), self.reports.clone());
            self.shared.shutdown.spawn(async move {
                match timeout(ANSWER_TIMEOUT, ask_image(&link, manifest, grant)).await {
                    Ok(Ok(image)) => {
                        // Only fails when the driver is gone.
                        let _ = reports
                            .send(Report::HandedOn(manifest, Box::new(image)))
                            .await;
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(peer = %link.peer(), %manifest, %error, "ask for image")
                    }
                    Err(_) => tracing::debug!(peer = %link.peer(), %manifest, "no image in time"),
                }
            });
        }
    }

    /// A neighbour had an image that was sought.
    pub(super) fn handed_on(&mut self, manifest: &Digest, image: &Image) {
        let seek = self.seeks.0.remove(manifest).unwrap_or_default();
        for waiting in seek.waiting {
            // Who waited may have gone.
            let _ = waiting.send(image.clone());
        }
    }

    /// A neighbour seeks an image.
    pub(super) fn asked_for_image(&mut self, link: &Link, question: ImageQuestion) {
        let ask = &question.ask;
        let may_have = self.check_grant(link, &ask.manifest, ask.grant.as_ref());
        if let Err(error) = &may_have {
            tracing::debug!(peer = %link.peer(), manifest = %ask.manifest, %error, "refuse image");
            self.shared.counters.refused_not_permitted.add(1);
        }
        let permit = Arc::clone(&self.shared.images_told).try_acquire_owned();
        let shared = Arc::clone(&self.shared);
        self.shared.shutdown.spawn(async move {
            let answer = match (may_have, &permit) {
                (Err(_), _) => Err(Refusal::NotPermitted),
                (Ok(()), Err(_)) => Err(Refusal::Busy),
                (Ok(()), Ok(_)) => image(&shared, &question.ask.manifest)
                    .await
                    .ok_or(Refusal::Gone),
            };
            if let Err(error) = question.answer(answer).await {
                tracing::debug!(%error, "hand image on");
            }
        });
    }
}

/// An image as it is known here.
async fn image(shared: &Shared, digest: &Digest) -> Option<Image> {
    let stored = shared.manifests.get(digest).await?;
    let manifest = Manifest::parse(&stored.bytes).ok()?;
    let mut room = MAX_PROOFS_LEN;
    let mut proofs = Vec::new();
    for blob in manifest.blobs() {
        let Some(known) = shared.store.get(&blob.digest) else {
            continue;
        };
        let length = PROOF_LEN
            + known
                .table()
                .map_or(0, |_| known.geometry().chunks() as usize * 32);
        if length <= room {
            room -= length;
            proofs.push(Proof::clone(known.proof()));
        }
    }
    Some(Image {
        media_type: stored.media_type,
        manifest: stored.bytes.to_vec(),
        proofs,
    })
}
