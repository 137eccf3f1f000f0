//! Reads and pushes against records whose states a collector changed.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_common::seal::SealKey;
use flotilla_runtime::clock::Clock;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::*;
use crate::config::Limits;
use crate::format::{Horizons, read_or_create};
use crate::registry::uploads::UploadBody;
use crate::replicas::{Invalidator, Replicas, Secret};
use crate::storage::open;

const BYTES: &[u8] = b"some bytes of a layer";

struct Fixture {
    storage: Arc<dyn Storage>,
    repository: RepositoryName,
    digest: Digest,
}

impl Fixture {
    fn new() -> Self {
        let storage = open("memory:///", 0).unwrap();
        Self {
            storage,
            repository: "app".parse().unwrap(),
            digest: Digest::sha256(BYTES),
        }
    }

    /// A replica with empty caches.
    async fn replica(&self) -> Registry {
        let format = read_or_create(&*self.storage, Horizons::default())
            .await
            .unwrap();
        let key = SealKey::from_secret("eu-1".parse().unwrap(), &[7; 32]);
        let invalidator = Arc::new(
            Invalidator::new(Replicas::none(), Secret::new(&key, &format), Clock::tokio()).unwrap(),
        );
        let storage = Arc::clone(&self.storage);
        let clock = Clock::tokio();
        Registry::new(storage, format, key, Limits::default(), invalidator, clock)
    }

    async fn push(&self) -> Generation {
        let registry = self.replica().await;
        let (ticket, progress) = registry.begin_upload(&self.repository, false);
        let bytes = stream::iter([Ok(BYTES.into())]).boxed();
        let body = UploadBody {
            bytes,
            len: None,
            offset: None,
        };
        registry
            .finish(
                &self.repository,
                ticket,
                Some(progress.hint),
                self.digest,
                body,
            )
            .await
            .unwrap();
        ticket.id
    }

    async fn set_record(&self, generation: &Generation, state: RecordState) {
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
        if state == RecordState::Dead {
            for segment in record.segments {
                self.storage
                    .delete(&layout::segment(generation, segment.nonce))
                    .await
                    .unwrap();
            }
        }
    }

    async fn record_state(&self, generation: &Generation) -> RecordState {
        let key = layout::blob(&self.digest, generation);
        let object = self.storage.read(&key).await.unwrap().unwrap();
        decode::<BlobRecord>(&key, &object.body).unwrap().state
    }

    async fn set_membership(&self, state: RecordState) {
        let key = layout::membership(&self.repository, &self.digest);
        let object = self.storage.read(&key).await.unwrap().unwrap();
        let membership: MembershipRecord = decode(&key, &object.body).unwrap();
        let membership = MembershipRecord {
            state,
            nonce: nonce(),
            ..membership
        };
        self.storage
            .swap(
                &key,
                &object.version,
                encode(&key, &membership).unwrap().into(),
            )
            .await
            .unwrap();
    }

    async fn membership(&self) -> MembershipRecord {
        let key = layout::membership(&self.repository, &self.digest);
        decode(&key, &self.storage.read(&key).await.unwrap().unwrap().body).unwrap()
    }

    async fn find(&self, registry: &Registry, need: Need) -> Option<FoundBlob> {
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
async fn condemned_blob_is_served_by_get_and_rescued_by_head() {
    let fixture = Fixture::new();
    let generation = fixture.push().await;
    fixture
        .set_record(&generation, RecordState::Condemned)
        .await;
    fixture.set_membership(RecordState::Condemned).await;
    let registry = fixture.replica().await;
    assert!(fixture.pulls(&registry).await);
    assert_eq!(
        fixture.record_state(&generation).await,
        RecordState::Condemned,
        "a GET does not rely on the blob"
    );
    assert!(fixture.find(&registry, Need::Live).await.is_some());
    assert_eq!(fixture.record_state(&generation).await, RecordState::Live);
    assert_eq!(fixture.membership().await.state, RecordState::Live);
}

#[tokio::test]
async fn membership_of_a_dead_generation_moves_to_a_live_one() {
    let fixture = Fixture::new();
    let first = fixture.push().await;
    let second = fixture.push().await;
    let (dead, alive) = if fixture.membership().await.generation == first {
        (first, second)
    } else {
        (second, first)
    };
    let warm = fixture.replica().await;
    assert!(fixture.find(&warm, Need::Bytes).await.is_some());
    fixture.set_record(&dead, RecordState::Dead).await;
    let registry = fixture.replica().await;
    assert!(fixture.pulls(&registry).await);
    assert_eq!(fixture.membership().await.generation, alive);
    // A replica with the dead generation in its cache finds no data and looks again.
    assert!(fixture.pulls(&warm).await);
}

#[tokio::test]
async fn dead_blob_is_unknown_until_pushed_again() {
    let fixture = Fixture::new();
    let generation = fixture.push().await;
    fixture.set_record(&generation, RecordState::Dead).await;
    let registry = fixture.replica().await;
    assert!(fixture.find(&registry, Need::Bytes).await.is_none());
    assert!(fixture.find(&registry, Need::Live).await.is_none());
    assert_eq!(
        fixture.record_state(&generation).await,
        RecordState::Dead,
        "dead is final"
    );
    let again = fixture.push().await;
    assert_eq!(fixture.membership().await.generation, again);
    assert!(fixture.pulls(&fixture.replica().await).await);
}

#[tokio::test]
async fn push_revives_a_dead_membership() {
    let fixture = Fixture::new();
    fixture.push().await;
    fixture.set_membership(RecordState::Dead).await;
    assert!(
        fixture
            .find(&fixture.replica().await, Need::Live)
            .await
            .is_none()
    );
    fixture.push().await;
    assert!(fixture.pulls(&fixture.replica().await).await);
}

#[tokio::test]
async fn repeated_finish_of_a_dead_record_is_an_unknown_upload() {
    let fixture = Fixture::new();
    let registry = fixture.replica().await;
    let (ticket, progress) = registry.begin_upload(&fixture.repository, false);
    let finish = async || {
        let body = UploadBody {
            bytes: stream::iter([Ok(BYTES.into())]).boxed(),
            len: None,
            offset: None,
        };
        registry
            .finish(
                &fixture.repository,
                ticket,
                Some(progress.hint),
                fixture.digest,
                body,
            )
            .await
    };
    finish().await.unwrap();
    fixture.set_record(&ticket.id, RecordState::Dead).await;
    assert!(matches!(finish().await, Err(RegistryError::UploadUnknown)));
}

/// Deletes the data of a generation, but leaves its record live.
async fn lose_data(fixture: &Fixture, generation: &Generation) {
    let key = layout::blob(&fixture.digest, generation);
    let object = fixture.storage.read(&key).await.unwrap().unwrap();
    let record: BlobRecord = decode(&key, &object.body).unwrap();
    for segment in record.segments {
        let segment = layout::segment(generation, segment.nonce);
        fixture.storage.delete(&segment).await.unwrap();
    }
}

#[tokio::test]
async fn push_alone_does_not_replace_lost_data() {
    let fixture = Fixture::new();
    let lost = fixture.push().await;
    let registry = fixture.replica().await;
    let find = || registry.lost_generation(&fixture.repository, &fixture.digest);
    assert!(find().await.unwrap().is_none(), "it is whole");
    lose_data(&fixture, &lost).await;
    let found = find().await.unwrap().unwrap();
    assert_eq!(found.size(), BYTES.len() as u64);

    // Its record is live, so the membership keeps it.
    fixture.push().await;
    assert_eq!(fixture.membership().await.generation, lost);
    assert!(registry.bury_generation(found).await.unwrap());
    assert_eq!(fixture.record_state(&lost).await, RecordState::Dead);
    let again = fixture.push().await;
    assert_eq!(fixture.membership().await.generation, again);
    assert!(fixture.pulls(&fixture.replica().await).await);
    assert!(find().await.unwrap().is_none());
}

#[tokio::test]
async fn one_replica_buries_a_lost_generation() {
    let fixture = Fixture::new();
    let lost = fixture.push().await;
    lose_data(&fixture, &lost).await;
    let mut buried = Vec::new();
    let replicas = [fixture.replica().await, fixture.replica().await];
    let mut found = Vec::new();
    for replica in &replicas {
        let lost = replica.lost_generation(&fixture.repository, &fixture.digest);
        found.push(lost.await.unwrap().unwrap());
    }
    for (replica, found) in replicas.iter().zip(found) {
        buried.push(replica.bury_generation(found).await.unwrap());
    }
    assert_eq!(buried, [true, false]);
}
