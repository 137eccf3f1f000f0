//! The start of an image pull: the peer obtains the proofs of all blobs and wants the blobs, before
//! the container runtime requests the first of them.
//!
//! ```text
//! mirror          pull starter                     origin         driver
//!   start ──────▶   StartPull ──────────────────────────────────────▶
//!                   the blobs are expected
//!                   closure: seals, chunk tables, grant ──▶
//!                   (proofs are checked, blobs added to the store)
//!                   Want, for each blob ────────────────────────────▶
//! ```
//!
//! The [`Opening`] machine decides whom to ask and what an answer means; this is its driver. Proofs
//! are checked no matter which side they come from.

use core::pin::{Pin, pin};
use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::manifest::{Descriptor, Manifest};
use flotilla_common::name::RepositoryName;
use flotilla_common::opening::{
    ClosureResult, ImageBlob, Opening, OpeningConfig, OpeningInput, OpeningOutput, ProofSource,
    ProvedBlob, Stored,
};
use flotilla_common::proof::Proof;
use flotilla_common::wire::peer::ImageBundle;
use flotilla_runtime::clock::Clock;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use moka::future::Cache;
use tokio::sync::oneshot;

use crate::driver::{Commands, DriverCommand};
use crate::expected_blobs::ExpectedBlobs;
use crate::handles::{Stores, Upstream};
use crate::origin::OriginError;
use crate::pulls::PullStart;
use crate::store::StoreError;
use crate::telemetry::Telemetry;

/// How long an image from a neighbour is cached, and how many are.
const IMAGES_TTL: Duration = Duration::from_secs(30);
const IMAGES_CACHED: u64 = 8;

/// Why an image is opened.
#[derive(Debug)]
pub(crate) enum PullTrigger {
    /// The container runtime requested the manifest. The response is held back until this is used
    /// or dropped.
    Manifest(oneshot::Sender<()>),
    /// The image is downloaded before it is pulled. The next one waits until this is used or
    /// dropped.
    Warming(oneshot::Sender<()>),
}

/// Starts image pulls.
#[derive(Debug)]
pub(crate) struct PullStarter {
    clock: Clock,
    stores: Stores,
    upstream: Upstream,
    telemetry: Arc<Telemetry>,
    commands: Commands,
    /// The blobs whose proofs are being obtained.
    expected: Arc<ExpectedBlobs>,
    /// Images that neighbours delivered a short time ago.
    images: Cache<Digest, Arc<ImageBundle>>,
}

/// The requests of an opening to origins and neighbours.
type PendingRequests<'a> =
    FuturesUnordered<Pin<Box<dyn Future<Output = OpeningInput> + Send + 'a>>>;

impl PullStarter {
    pub(crate) fn new(
        clock: Clock,
        stores: Stores,
        upstream: Upstream,
        telemetry: Arc<Telemetry>,
        commands: Commands,
    ) -> Self {
        Self {
            clock,
            stores,
            upstream,
            telemetry,
            commands,
            expected: Arc::default(),
            images: Cache::builder()
                .max_capacity(IMAGES_CACHED)
                .time_to_live(IMAGES_TTL)
                .build(),
        }
    }

    /// Opens an image and wants its blobs. `image` is its name for logs and status.
    pub(crate) async fn start(
        &self,
        repository: &RepositoryName,
        image: String,
        digest: Digest,
        manifest: &Manifest,
        trigger: PullTrigger,
    ) {
        let blobs = manifest.blobs();
        if blobs.is_empty() {
            return;
        }
        let started = self.clock.now();
        let start = PullStart {
            image,
            manifest: digest,
            blobs: blobs.iter().map(|blob| (blob.digest, blob.size)).collect(),
            is_warming: matches!(trigger, PullTrigger::Warming(_)),
            started,
        };
        let config = OpeningConfig::default();
        let mut hold = Some(trigger);
        let blobs = self.image_blobs(&blobs);
        let absent = blobs.iter().filter(|blob| blob.stored == Stored::Absent);
        let absent: Vec<Digest> = absent.map(|blob| blob.digest).collect();
        let mut expected = self.expected.expect(absent.iter().copied());
        let mut opening = Opening::new(started, &config, blobs, rand::random());
        let start = self.commands.send(DriverCommand::StartPull(start));
        self.run_beside(&mut opening, &mut hold, start).await;
        let mut asked = PendingRequests::new();
        loop {
            while let Some(output) = opening.poll_output() {
                let input = match output {
                    OpeningOutput::AskOrigins => {
                        asked.push(Box::pin(self.ask_origins(repository, &digest)));
                        None
                    }
                    OpeningOutput::AskNeighbours => {
                        asked.push(Box::pin(self.ask_neighbours(&digest, &absent)));
                        None
                    }
                    OpeningOutput::Add(blob) => {
                        let add = self.add(repository, *blob);
                        self.run_beside(&mut opening, &mut hold, add).await
                    }
                    OpeningOutput::Want { digest } => {
                        let want = self.want(repository, &digest);
                        self.run_beside(&mut opening, &mut hold, want).await;
                        None
                    }
                };
                if let Some(input) = input {
                    if let OpeningInput::NotStorable { digest } = &input {
                        expected.forget(digest);
                    }
                    opening.handle(self.clock.now(), input);
                }
            }
            if opening.is_finished() {
                // The response that is still held back is sent when `hold` is dropped.
                return;
            }
            let answer = async {
                match asked.next().await {
                    Some(answer) => answer,
                    // All have been answered; the machine waits for a deadline.
                    None => core::future::pending().await,
                }
            };
            if let Some(input) = self.until_due(&mut opening, &mut hold, answer).await {
                opening.handle(self.clock.now(), input);
            }
        }
    }

    /// Finishes `work`. Deadlines of the machine are handled meanwhile.
    async fn run_beside<T>(
        &self,
        opening: &mut Opening,
        hold: &mut Option<PullTrigger>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        loop {
            if let Some(finished) = self.until_due(opening, hold, &mut work).await {
                return finished;
            }
        }
    }

    /// Waits for `work` up to the machine's next deadline, which is handled. `None` after the
    /// deadline. If the proofs are late, the manifest's response or the warming of the next image is
    /// not held back any longer.
    async fn until_due<T>(
        &self,
        opening: &mut Opening,
        hold: &mut Option<PullTrigger>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let finished = tokio::select! {
            biased;
            finished = work => Some(finished),
            () = self.clock.sleep_until(opening.poll_timeout()) => None,
        };
        opening.handle_timeout(self.clock.now());
        if opening.is_late()
            && let Some(PullTrigger::Manifest(held) | PullTrigger::Warming(held)) = hold.take()
        {
            // A client that has gone needs no response.
            let _ = held.send(());
        }
        finished
    }

    /// The blobs whose proofs are being obtained.
    pub(crate) fn expected(&self) -> &ExpectedBlobs {
        &self.expected
    }

    /// The blobs of an image as they are in the store. Counts the bytes that it has already.
    fn image_blobs(&self, blobs: &[&Descriptor]) -> Vec<ImageBlob> {
        let image_blob = |blob: &&Descriptor| {
            let stored = self.stores.blobs.get(&blob.digest);
            let held = stored.as_ref().map_or(0, |blob| blob.held_bytes());
            self.telemetry.counters.from_store.add(held);
            ImageBlob {
                digest: blob.digest,
                size: blob.size,
                has_urls: !blob.urls.is_empty(),
                stored: match stored {
                    None => Stored::Absent,
                    Some(blob) if blob.is_complete() => Stored::Complete,
                    Some(_) => Stored::Incomplete,
                },
            }
        };
        blobs.iter().map(image_blob).collect()
    }

    async fn ask_origins(&self, repository: &RepositoryName, manifest: &Digest) -> OpeningInput {
        OpeningInput::Closure(self.closure(repository, manifest).await)
    }

    /// `absent` are the blobs that lack a proof. A neighbour that does not prove all of them is not
    /// the last one: the next seek asks others.
    async fn ask_neighbours(&self, manifest: &Digest, absent: &[Digest]) -> OpeningInput {
        let proofs = self.seek_image(manifest).await.map(|it| it.proofs.clone());
        let is_proved = |blob: &Digest| {
            let mut proofs = proofs.iter().flatten();
            proofs.any(|proof| proof.digest() == blob)
        };
        if !absent.iter().all(is_proved) {
            self.images.invalidate(manifest).await;
        }
        OpeningInput::Neighbours(proofs)
    }

    /// Adds and wants a blob, if its proof is valid. Returns the input for the machine.
    async fn add(&self, repository: &RepositoryName, blob: ProvedBlob) -> Option<OpeningInput> {
        let digest = *blob.proof.digest();
        let is_valid = self.want_proved(repository, blob).await;
        if self.stores.blobs.get(&digest).is_some() {
            self.expected.on_stored();
            return Some(OpeningInput::Stored { digest });
        }
        is_valid.then_some(OpeningInput::NotStorable { digest })
    }

    /// Asks the origins for the proofs of an image's blobs.
    async fn closure(&self, repository: &RepositoryName, manifest: &Digest) -> ClosureResult {
        let origins = &self.upstream.origins;
        match origins.closure(repository, manifest).await {
            Ok(answer) => ClosureResult::Proved(answer),
            Err(error @ (OriginError::Refused(_) | OriginError::Missing(_))) => {
                tracing::debug!(
                    %repository, %manifest, %error,
                    "origin has no seals; blobs are exchanged as wholes"
                );
                if matches!(error, OriginError::Refused(_)) {
                    ClosureResult::Refused
                } else {
                    ClosureResult::Missing
                }
            }
            Err(error) => {
                tracing::warn!(
                    %manifest, %error,
                    "no origin gave the proofs of an image's blobs; those that are not stored are sought elsewhere"
                );
                if matches!(error, OriginError::Unavailable(_)) {
                    ClosureResult::Unavailable
                } else {
                    ClosureResult::Unsure
                }
            }
        }
    }

    /// Wants a blob, if it is in the store.
    pub(crate) async fn want(&self, repository: &RepositoryName, digest: &Digest) {
        self.want_with_grant(repository, digest, None).await;
    }

    /// Asks the neighbours for an image, because no origin is available. The manifest that is
    /// returned has the digest.
    pub(crate) async fn seek_image(&self, digest: &Digest) -> Option<Arc<ImageBundle>> {
        let seek = async {
            let (answer, image) = oneshot::channel();
            let manifest = *digest;
            let command = DriverCommand::SeekImage { manifest, answer };
            self.commands.send(command).await;
            let image = image.await.ok()?;
            tracing::info!(
                %manifest,
                "no origin available; got the image's manifest from a neighbour"
            );
            Some(Arc::new(image))
        };
        self.images.optionally_get_with(*digest, seek).await
    }

    /// Adds a blob to the store, if its proof is valid, and wants it. Returns whether it is valid.
    async fn want_proved(&self, repository: &RepositoryName, blob: ProvedBlob) -> bool {
        let ProvedBlob {
            proof,
            grant,
            source,
        } = blob;
        let digest = *proof.digest();
        let geometry = match (proof.check(&self.upstream.trusted_keys.current()), source) {
            (Ok(geometry), _) => geometry,
            (Err(error), ProofSource::Origin) => {
                tracing::error!(
                    blob = %digest, %error,
                    "origin returned an invalid proof; passing the blob through"
                );
                return false;
            }
            (Err(error), ProofSource::Neighbour) => {
                tracing::debug!(blob = %digest, %error, "neighbour's proof is invalid");
                return false;
            }
        };
        if let Some(stored) = self.stores.blobs.get(&digest) {
            if contradict(stored.proof(), &proof) {
                let reason = "two valid seals of the digest describe different bytes".to_owned();
                let command = DriverCommand::Quarantine { digest, reason };
                self.commands.send(command).await;
            } else {
                self.want_with_grant(repository, &digest, grant).await;
            }
            return true;
        }
        match self.stores.blobs.insert(proof, geometry) {
            Ok((pin, evicted)) => {
                if !evicted.is_empty() {
                    self.commands.send(DriverCommand::Evicted(evicted)).await;
                }
                let repository = repository.clone();
                let command = DriverCommand::Want {
                    pin,
                    repository,
                    grant,
                };
                self.commands.send(command).await;
            }
            Err(error @ StoreError::Quarantined { .. }) => {
                tracing::warn!(%error, "adding a blob to the store failed: it is in quarantine; passing it through from an origin");
            }
            // Pulls that are running need the room: this is not a fault.
            Err(error @ StoreError::Full { .. }) => tracing::warn!(
                blob = %digest, %error,
                "the store has no room for a blob now; passing it through from an origin"
            ),
            Err(error) => tracing::error!(
                blob = %digest, %error,
                "the store cannot take a blob; passing it through from an origin"
            ),
        }
        true
    }

    async fn want_with_grant(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        grant: Option<Grant>,
    ) {
        if let Some(pin) = self.stores.blobs.pin(digest) {
            let repository = repository.clone();
            let command = DriverCommand::Want {
                pin,
                repository,
                grant,
            };
            self.commands.send(command).await;
        }
    }
}

/// Whether two valid seals of one digest describe different bytes.
fn contradict(known: &Proof, new: &Proof) -> bool {
    match (known, new) {
        (Proof::Sealed { seal: known, .. }, Proof::Sealed { seal: new, .. }) => {
            known.facts != new.facts
        }
        _ => false,
    }
}
