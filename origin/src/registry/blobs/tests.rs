//! Stories of the collector's states, written into storage as a collector would.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_common::seal::SealKey;
use flotilla_runtime::clock::Clock;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::*;
use crate::config::Limits;
use crate::format::{Horizons, agree};
use crate::registry::uploads::Body;
use crate::replicas::{Invalidator, Replicas, Secret};
use crate::storage::open;

const BYTES: &[u8] = b"some bytes of a layer";

struct Story {
    storage: Arc<dyn Storage>,
    repository: RepositoryName,
    digest: Digest,
}

impl Story {
    fn new() -> Self {
        let storage = open("memory:///", 0).unwrap();
        Self {
            storage,
            repository: "app".parse().unwrap(),
            digest: Digest::sha256(BYTES),
        }
    }

    /// A replica that has seen nothing yet.
    async fn replica(&self) -> Registry {
        let format = agree(&*self.storage, Horizons::default()).await.unwrap();
        let key = SealKey::from_secret("eu-1".parse().unwrap(), &[7; 32]);
        let invalidator =
            Arc::new(Invalidator::new(Replicas::none(), Secret::of(&format)).unwrap());
        let storage = Arc::clone(&self.storage);
        let clock = Clock::tokio();
        Registry::new(storage, format, key, Limits::default(), invalidator, clock)
    }

    async fn push(&self) -> Generation {
        let registry = self.replica().await;
        let (ticket, progress) = registry.begin_upload(&self.repository, false);
        let bytes = stream::iter([Ok(BYTES.into())]).boxed();
        let body = Body {
            bytes,
            len: None,
            offset: None,
        };
        registry
            .finish(
                &self.repository,
                ticket,
                Some(progress.known),
                self.digest,
                body,
            )
            .await
            .unwrap();
        ticket.id
    }

    async fn set_record(&self, generation: &Generation, state: State) {
        let key = layout::blob(&self.digest, generation);
        let object = self.storage.read(&key).await.unwrap().unwrap();
        let record: BlobRecord = decode(&key, &object.body).unwrap();
        let record = BlobRecord {
            state,
            nonce: nonce(),
            ..record
        };
        self.storage
            .swap(&key, &object.version, encode(&key, &record).unwrap().into())
            .await
            .unwrap();
        if state == State::Dead {
            for segment in record.segments {
                self.storage
                    .delete(&layout::segment(generation, segment.nonce))
                    .await
                    .unwrap();
            }
        }
    }

    async fn record_state(&self, generation: &Generation) -> State {
        let key = layout::blob(&self.digest, generation);
        let object = self.storage.read(&key).await.unwrap().unwrap();
        decode::<BlobRecord>(&key, &object.body).unwrap().state
    }

    async fn set_claim(&self, state: State) {
        let key = layout::membership(&self.repository, &self.digest);
        let object = self.storage.read(&key).await.unwrap().unwrap();
        let claim: MembershipRecord = decode(&key, &object.body).unwrap();
        let claim = MembershipRecord {
            state,
            nonce: nonce(),
            ..claim
        };
        self.storage
            .swap(&key, &object.version, encode(&key, &claim).unwrap().into())
            .await
            .unwrap();
    }

    async fn claim(&self) -> MembershipRecord {
        let key = layout::membership(&self.repository, &self.digest);
        decode(&key, &self.storage.read(&key).await.unwrap().unwrap().body).unwrap()
    }

    async fn find(&self, registry: &Registry, need: Need) -> Option<Blob> {
        registry
            .blob(&self.repository, &self.digest, need)
            .await
            .unwrap()
    }

    async fn pulls(&self, registry: &Registry) -> bool {
        let Some(blob) = self.find(registry, Need::Bytes).await else {
            return false;
        };
        let bytes = registry
            .read_blob(&self.repository, &blob, 0..blob.size())
            .await
            .unwrap();
        bytes.try_collect::<Vec<_>>().await.unwrap().concat() == BYTES
    }
}

#[tokio::test]
async fn what_is_condemned_is_served_and_rescued_by_who_relies_on_it() {
    let story = Story::new();
    let generation = story.push().await;
    story.set_record(&generation, State::Condemned).await;
    story.set_claim(State::Condemned).await;
    let registry = story.replica().await;
    assert!(story.pulls(&registry).await);
    assert_eq!(
        story.record_state(&generation).await,
        State::Condemned,
        "a GET relies on nothing"
    );
    assert!(story.find(&registry, Need::Live).await.is_some());
    assert_eq!(story.record_state(&generation).await, State::Live);
    assert_eq!(story.claim().await.state, State::Live);
}

#[tokio::test]
async fn a_claim_to_a_dead_generation_finds_one_that_lives() {
    let story = Story::new();
    let (first, second) = (story.push().await, story.push().await);
    let (dead, alive) = if story.claim().await.generation == first {
        (first, second)
    } else {
        (second, first)
    };
    let warm = story.replica().await;
    assert!(story.find(&warm, Need::Bytes).await.is_some());
    story.set_record(&dead, State::Dead).await;
    let registry = story.replica().await;
    assert!(story.pulls(&registry).await);
    assert_eq!(story.claim().await.generation, alive);
    // A replica that remembers the dead one finds its data gone and looks again.
    assert!(story.pulls(&warm).await);
}

#[tokio::test]
async fn a_blob_whose_generations_are_all_dead_is_unknown_until_it_is_pushed_again() {
    let story = Story::new();
    let generation = story.push().await;
    story.set_record(&generation, State::Dead).await;
    let registry = story.replica().await;
    assert!(story.find(&registry, Need::Bytes).await.is_none());
    assert!(story.find(&registry, Need::Live).await.is_none());
    assert_eq!(
        story.record_state(&generation).await,
        State::Dead,
        "dead is final"
    );
    let again = story.push().await;
    assert_eq!(story.claim().await.generation, again);
    assert!(story.pulls(&story.replica().await).await);
}

#[tokio::test]
async fn a_dead_claim_is_revived_by_a_push() {
    let story = Story::new();
    story.push().await;
    story.set_claim(State::Dead).await;
    assert!(
        story
            .find(&story.replica().await, Need::Live)
            .await
            .is_none()
    );
    story.push().await;
    assert!(story.pulls(&story.replica().await).await);
}

#[tokio::test]
async fn a_finish_whose_record_has_died_since_is_an_unknown_upload() {
    let story = Story::new();
    let registry = story.replica().await;
    let (ticket, progress) = registry.begin_upload(&story.repository, false);
    let finish = async || {
        let body = Body {
            bytes: stream::iter([Ok(BYTES.into())]).boxed(),
            len: None,
            offset: None,
        };
        registry
            .finish(
                &story.repository,
                ticket,
                Some(progress.known),
                story.digest,
                body,
            )
            .await
    };
    finish().await.unwrap();
    story.set_record(&ticket.id, State::Dead).await;
    assert!(matches!(finish().await, Err(RegistryError::UploadUnknown)));
}
