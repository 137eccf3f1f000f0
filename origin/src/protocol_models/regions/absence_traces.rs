//! Reads of what the own storage does not have (traces R9, R26, F9, F14).

use core::time::Duration;
use std::sync::{Arc, Mutex};

use flotilla_common::name::Reference;
use flotilla_common::wire::region::{FactHead, FactKey};
use flotilla_runtime::clock::Clock;
use futures_util::future::BoxFuture;
use tokio::time::advance;

use super::super::blob_collection::repository;
use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::follower::{Age, Follower, Follows};
use super::world::{Region, delete_manifest, index, manifest_key, owed_to, put, tag, tag_key};
use crate::regions::absence::{Absence, Missed, OwnRead, Presence};
use crate::regions::owed::{Owed, OwedPages};
use crate::regions::routes::no_routes;
use crate::regions::source::{Source, Unreachable, one_fact};
use crate::registry::{MergeReason, Registry, RegistryError};

/// Longer than a page may be old.
const LONG_AGO: Duration = Duration::from_secs(2);
/// How long the answer of a read is on its way.
const ANSWER: Duration = Duration::from_millis(1);

/// The behaviour of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// As shipped.
    Shipped,
    /// Violates "the own storage is read again after a later page".
    Once,
    /// Violates "a read is as old as its beginning".
    TimedByItsEnd,
    /// Violates "a delete here is older than what counts elsewhere".
    OverDeletes,
    /// Violates "a later value elsewhere counts over a delete here".
    NeverOverDeletes,
    /// Violates "while a region is silent, those that answer are asked".
    OnlyOwing,
}

/// What a client saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Served,
    /// 404.
    Missing,
    /// 503.
    Unavailable,
}

/// A replica of B.
struct Reader {
    model: ModelStorage,
    registry: Arc<Registry>,
    pages: Arc<OwedPages>,
    clock: Clock,
    sources: Vec<Arc<dyn Source>>,
    reads: Reads,
}

impl Reader {
    async fn new(model: &ModelStorage, sources: &[Region], reads: Reads) -> Self {
        let mut opened = Vec::new();
        for source in sources {
            opened.push(source.source(model, Region::B).await);
        }
        let clock = Clock::tokio();
        Self {
            model: model.clone(),
            registry: Region::B.replica(model).await,
            pages: Arc::new(OwedPages::new(clock)),
            clock,
            sources: opened,
            reads,
        }
    }

    /// GET of a manifest.
    async fn get(&self, key: &FactKey) -> Answer {
        let found = match self.reads {
            Reads::Shipped => self.find(key, Some(key)).await,
            Reads::OverDeletes => self.find(key, None).await,
            Reads::NeverOverDeletes => {
                let own = self.registry.fact(key).await.expect("no faults");
                if matches!(own.head, FactHead::DeletedManifest { .. }) {
                    return Answer::Missing;
                }
                self.find(key, Some(key)).await
            }
            Reads::Once | Reads::TimedByItsEnd | Reads::OnlyOwing => self.find_once(key).await,
        };
        match found {
            Presence::Here(()) => Answer::Served,
            Presence::Elsewhere(..) => self.ask_others(key).await,
            Presence::Nowhere(_) => Answer::Missing,
            Presence::Unknown | Presence::Failed(_) => Answer::Unavailable,
        }
    }

    /// The shipped decision.
    async fn find(
        &self,
        key: &FactKey,
        deletable: Option<&FactKey>,
    ) -> Presence<(), RegistryError> {
        let absence = Absence {
            registry: &self.registry,
            pages: &self.pages,
            sources: self.sources.clone(),
            routes: Arc::new(no_routes(self.clock)),
            is_whole: true,
        };
        let read = || self.read_own(key);
        let read_at = self.clock.now();
        match read().await {
            OwnRead::Found(()) => Presence::Here(()),
            OwnRead::Failed(error) => Presence::Failed(error),
            OwnRead::Absent(error) => {
                let missed = Missed { read_at, error };
                absence.find(&repository(), deletable, missed, read).await
            }
        }
    }

    /// A decision after one read of the own storage.
    async fn find_once(&self, key: &FactKey) -> Presence<(), RegistryError> {
        let began = self.clock.now();
        let absent = match self.read_own(key).await {
            OwnRead::Found(()) => return Presence::Here(()),
            OwnRead::Absent(error) => error,
            OwnRead::Failed(error) => return Presence::Failed(error),
        };
        let read_at = match self.reads {
            Reads::TimedByItsEnd => self.clock.now(),
            _ => began,
        };
        let sources = match self.reads {
            // As if the silent ones did not exist.
            Reads::OnlyOwing => &self.sources[..1],
            _ => &self.sources[..],
        };
        let routes = no_routes(self.clock);
        let looked_up = self
            .pages
            .look_up(sources, &routes, &repository(), read_at, true)
            .await;
        if looked_up.reads_again
            && self.reads == Reads::TimedByItsEnd
            && matches!(self.read_own(key).await, OwnRead::Found(()))
        {
            return Presence::Here(());
        }
        match looked_up.owed {
            Owed::By(regions) => Presence::Elsewhere(absent, regions),
            Owed::Nothing => Presence::Nowhere(absent),
            Owed::Unknown => Presence::Unknown,
        }
    }

    async fn read_own(&self, key: &FactKey) -> OwnRead<(), RegistryError> {
        let reference = match key {
            FactKey::Manifest(_, digest) => Reference::Digest(*digest),
            FactKey::Tag(_, tag) => Reference::Tag(tag.clone()),
        };
        let read = self.registry.manifest(&repository(), &reference).await;
        self.model.pause("the answer of the read arrives").await;
        advance(ANSWER).await;
        match read {
            Ok(_) => OwnRead::Found(()),
            Err(error @ RegistryError::ManifestUnknown) => OwnRead::Absent(error),
            Err(error) => OwnRead::Failed(error),
        }
    }

    async fn ask_others(&self, key: &FactKey) -> Answer {
        let mut is_silent = false;
        for source in &self.sources {
            match one_fact(&**source, key).await.map(|fact| fact.head) {
                Ok(
                    FactHead::Manifest { .. }
                    | FactHead::Tag {
                        digest: Some(_), ..
                    },
                ) => return Answer::Served,
                Ok(_) => {}
                Err(_) => is_silent = true,
            }
        }
        match is_silent {
            true => Answer::Unavailable,
            false => Answer::Missing,
        }
    }
}

/// The answer that a client got, once it has one.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Option<Answer>>>);

impl Seen {
    fn set(&self, answer: Answer) {
        *self.0.lock().expect("no panic") = Some(answer);
    }

    fn refuse(&self, answer: Answer, violation: &str) -> Result<(), String> {
        match *self.0.lock().expect("no panic") == Some(answer) {
            true => Err(violation.to_owned()),
            false => Ok(()),
        }
    }
}

/// A pushed the tag long ago. B merges it and drops the entry.
async fn push_long_ago(model: &ModelStorage) -> BoxFuture<'static, ()> {
    let pushing = Region::A.replica(model).await;
    let pushed = put(&pushing, &index(1), &[tag()], &owed_to(&[Region::B])).await;
    let stamp = pushed.expect("a push");
    advance(LONG_AGO).await;
    let source = Region::A.source(model, Region::B).await;
    let page = source.journal(None, 99).await.expect("no faults");
    let entries = page.entries.iter().map(|entry| entry.id).collect();
    let registry = Region::B.replica(model).await;
    let manifest = manifest_key(&index(1));
    let fact = one_fact(&*source, &manifest).await.expect("no faults");
    let FactKey::Manifest(repository, digest) = manifest else {
        unreachable!("a manifest")
    };
    Box::pin(async move {
        let needed = MergeReason::Needed;
        let merged = registry.merge_manifest(&repository, &digest, &fact, needed, &[]);
        merged.await.expect("no faults");
        let tag = tag();
        let merged = registry.merge_tag(&repository, &tag, &stamp, Some(digest));
        merged.await.expect("no faults");
        source.done(entries, None).await.expect("no faults");
    })
}

/// R26: B reads a tag that A pushed long ago, while a follower of B merges it and another request
/// of the same replica has asked A for the page.
async fn explore_merged_meanwhile(reads: Reads) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let merge = push_long_ago(&model).await;
        let reader = Reader::new(&model, &[Region::A], reads).await;
        model.keep_private(&["a/rm/", "a/tag/", "a/trimmed/", "b/rm/"]);
        let earlier = {
            let (pages, clock) = (Arc::clone(&reader.pages), reader.clock);
            let sources = reader.sources.clone();
            async move {
                let now = clock.now();
                let routes = no_routes(clock);
                pages
                    .look_up(&sources, &routes, &repository(), now, true)
                    .await;
            }
        };
        let seen = Seen::default();
        let read = {
            let seen = seen.clone();
            async move { seen.set(reader.get(&tag_key()).await) }
        };
        Scenario::new(
            vec![Box::pin(read), Box::pin(earlier), Box::pin(merge)],
            Box::new(move |_| seen.refuse(Answer::Missing, "404 for what was pushed long ago")),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn absence_is_read_again_after_a_later_page() {
    explore_merged_meanwhile(Reads::Shipped)
        .await
        .assert_holds(100);
    for reads in [Reads::Once, Reads::TimedByItsEnd] {
        explore_merged_meanwhile(reads)
            .await
            .assert_violated("404 for what was pushed long ago");
    }
}

/// R9: a client of B deletes a manifest that A has, too, and reads it. A owes B another push of the
/// repository, so A may be asked.
async fn explore_read_after_delete(reads: Reads) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let pushing = Region::A.replica(&model).await;
        let rules = owed_to(&[Region::B]);
        put(&pushing, &index(1), &[], &rules).await.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
        follower.follow(Age::Young).await;
        let pushed = put(&pushing, &index(2), &[tag()], &rules).await;
        pushed.expect("a push");
        let deleting = Region::B.replica(&model).await;
        let reader = Reader::new(&model, &[Region::A], reads).await;
        let of_a = Follower::new(&model, Region::A, &[Region::B], Follows::Shipped).await;
        model.keep_private(&["a/journal/", "a/trimmed/", "b/trimmed/", "b/rm/"]);
        let seen = Seen::default();
        let client = {
            let seen = seen.clone();
            async move {
                let rules = owed_to(&[Region::A]);
                let deleted = delete_manifest(&deleting, &index(1), &rules).await;
                deleted.expect("a delete");
                seen.set(reader.get(&manifest_key(&index(1))).await);
            }
        };
        let follow = async move {
            of_a.follow(Age::Young).await;
        };
        Scenario::new(
            vec![Box::pin(client), Box::pin(follow)],
            Box::new(move |_| seen.refuse(Answer::Served, "a deleted image is served")),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn deleted_manifests_are_not_served_by_other_regions() {
    explore_read_after_delete(Reads::Shipped)
        .await
        .assert_holds(5);
    explore_read_after_delete(Reads::OverDeletes)
        .await
        .assert_violated("a deleted image is served");
}

/// F14: B deleted a manifest, and a client of A pushes it again. A client of B reads it a while
/// after that, while B follows.
async fn explore_read_after_push_over_delete(reads: Reads) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let pushing = Region::A.replica(&model).await;
        let rules = owed_to(&[Region::B]);
        put(&pushing, &index(1), &[], &rules).await.expect("a push");
        let follower = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
        follower.follow(Age::Young).await;
        let deleting = Region::B.replica(&model).await;
        let deleted = delete_manifest(&deleting, &index(1), &owed_to(&[Region::A])).await;
        deleted.expect("a delete");
        advance(LONG_AGO).await;
        put(&pushing, &index(1), &[], &rules).await.expect("a push");
        advance(LONG_AGO).await;
        let reader = Reader::new(&model, &[Region::A], reads).await;
        model.keep_private(&["a/rm/", "a/trimmed/"]);
        let seen = Seen::default();
        let read = {
            let seen = seen.clone();
            async move { seen.set(reader.get(&manifest_key(&index(1))).await) }
        };
        let follow = async move {
            follower.follow(Age::Young).await;
        };
        Scenario::new(
            vec![Box::pin(read), Box::pin(follow)],
            Box::new(move |_| seen.refuse(Answer::Missing, "404 for an acknowledged push")),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn pushes_over_deletes_are_served_before_they_are_copied() {
    explore_read_after_push_over_delete(Reads::Shipped)
        .await
        .assert_holds(20);
    explore_read_after_push_over_delete(Reads::NeverOverDeletes)
        .await
        .assert_violated("404 for an acknowledged push");
}

/// F9: a push to A was acknowledged after C had merged it. Then A is gone. C's journal owes B
/// nothing, since it has only C's own pushes.
async fn read_while_source_is_silent(reads: Reads) -> Answer {
    let model = ModelStorage::default();
    let pushing = Region::A.replica(&model).await;
    let rules = owed_to(&[Region::B, Region::C]);
    let pushed = put(&pushing, &index(1), &[tag()], &rules).await;
    pushed.expect("a push");
    let follower = Follower::new(&model, Region::C, &[Region::A], Follows::Shipped).await;
    follower.follow(Age::Young).await;
    let mut reader = Reader::new(&model, &[Region::C], reads).await;
    let away = Unreachable::new(Region::A.name(), "it is gone".to_owned());
    reader.sources.push(Arc::new(away));
    reader.get(&tag_key()).await
}

#[tokio::test(start_paused = true)]
async fn regions_that_answer_are_asked_while_one_is_silent() {
    assert_eq!(
        read_while_source_is_silent(Reads::Shipped).await,
        Answer::Served
    );
    assert_eq!(
        read_while_source_is_silent(Reads::OnlyOwing).await,
        Answer::Missing
    );
}
