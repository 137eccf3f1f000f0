//! A region that joins: the shipped sweeps, stopped at every call of the storage, and beside a
//! replica that does not know the region yet (traces R18, F9).

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::name::RegionName;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::rate::Limiter;
use tokio::sync::Notify;
use tokio::time::advance;

use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::follower::{Age, Follower, Follows};
use super::properties::{differences_are_owed, held, tags_are_whole};
use super::world::{Region, image, index, owed_to, put, tag, tag_key, warm_replica};
use crate::layout;
use crate::nonce::nonce;
use crate::policy::LivePolicy;
use crate::record::{RegionRecord, SweepState, Unfinished, decode, encode};
use crate::regions::copy::BlobCopier;
use crate::regions::counts::RegionCounts;
use crate::regions::members::Members;
use crate::regions::replicate::Replicator;
use crate::regions::source::Source;
use crate::regions::sweep::Sweeper;
use crate::regions::sweep_state::{SweepStep, SweepTimes, next_step, page_merged};
use crate::registry::{ChangeRules, MergeReason, Registry};
use crate::storage::Storage;

pub(super) const TIMES: SweepTimes = SweepTimes {
    settle: Duration::from_secs(1),
    second: Duration::from_secs(10),
    repeat: Duration::from_hours(1_000),
    give_up: Duration::from_hours(24),
};

/// How a region sweeps another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweeps {
    /// As shipped.
    Shipped,
    /// Violates "the position is stored after the page is merged": stores it before.
    StoresPositionFirst,
}

/// A replica that sweeps A.
pub(super) struct Joining {
    pub(super) sweeper: Sweeper,
    pub(super) source: Arc<dyn Source>,
    replicator: Arc<Replicator>,
    members: Arc<Members>,
    registry: Arc<Registry>,
    storage: ModelStorage,
    from: RegionName,
    sweeps: Sweeps,
}

impl Joining {
    /// A replica of `region` by a policy that lists it and `others`. It sweeps the first of them.
    pub(super) async fn new(
        model: &ModelStorage,
        region: Region,
        others: &[Region],
        sweeps: Sweeps,
    ) -> Self {
        let storage = region.storage(model);
        set_policy(&storage, region, others).await;
        let registry = region.replica(model).await;
        let mut sources = Vec::new();
        for other in others {
            sources.push(other.source(model, region).await);
        }
        let source = Arc::clone(&sources[0]);
        let policy = LivePolicy::start(Arc::new(storage.clone()), region.name(), Clock::tokio());
        let connect = move |listed: &crate::policy::Region| {
            let found = sources
                .iter()
                .find(|source| *source.region() == listed.name);
            Arc::clone(found.expect("a source of each region"))
        };
        let policy = policy.await.expect("a policy");
        let members = Arc::new(Members::new(region.name(), policy, Box::new(connect)));
        let counts = Arc::new(RegionCounts::default());
        let copier = BlobCopier::new(Arc::clone(&registry), Limiter::unlimited(), counts);
        let replicator = Arc::new(Replicator::new(Arc::clone(&registry), copier));
        let from = source.region().clone();
        let sweeper = Sweeper::new(Arc::clone(&replicator), Arc::clone(&members), &from, TIMES);
        Self {
            sweeper,
            source,
            replicator,
            members,
            registry,
            storage,
            from,
            sweeps,
        }
    }

    async fn record(&self) -> Option<RegionRecord> {
        record(&self.storage, &self.from).await
    }

    /// One step, as the follower takes it. Returns whether there was one.
    pub(super) async fn step(&mut self) -> bool {
        let checked = self.sweeper.check_storage_id(&*self.source).await;
        checked.expect("another storage");
        let page = self.source.journal(None, 99).await.expect("no faults");
        if self.sweeps == Sweeps::StoresPositionFirst && self.store_position_first(page.sweep).await
        {
            return true;
        }
        let stepped = self.sweeper.step(&self.source, page.sweep).await;
        stepped.expect("no faults")
    }

    /// A page whose position is stored before it is merged; false if the next step is another one.
    async fn store_position_first(&self, owed: Option<u128>) -> bool {
        let key = layout::region(&self.from);
        let Some(present) = self.storage.read(&key).await.expect("no faults") else {
            return false;
        };
        let record: RegionRecord = decode(&key, &present.body).expect("a record");
        let now = self.registry.unix_nanos();
        let selection = self.members.policy().selection();
        let SweepStep::Page { kind, after } = next_step(&record, now, owed, &selection, &TIMES)
        else {
            return false;
        };
        let page = self.source.keys(kind, after.as_ref(), 99).await;
        let page = page.expect("no faults");
        let last = page.keys.last().cloned();
        let next = RegionRecord {
            sweep: page_merged(record.sweep, now, last, page.more, Vec::new()),
            nonce: nonce(),
            ..record
        };
        let body = encode(&key, &next).expect("a body").into();
        let swapped = self.storage.swap(&key, &present.version, body).await;
        swapped.expect("the only writer");
        let facts = self.source.facts(&page.keys).await.expect("no faults");
        let sources = self.members.sources();
        for (key, fact) in page.keys.iter().zip(&facts) {
            let sweep = MergeReason::Sweep;
            let merged = self.replicator.replicate(&sources, key, fact, sweep);
            merged.await.expect("no faults");
        }
        true
    }

    /// Writes down that the first sweep has ended and the second one begins now.
    async fn end_first(&self) {
        let record = RegionRecord {
            storage_id: self.source.state().await.expect("no faults").storage_id,
            retired: Vec::new(),
            is_whole: false,
            selection: self.members.policy().selection(),
            sweep: SweepState::Waiting {
                from: 0,
                round: 1,
                unfinished: Unfinished::default(),
            },
            nonce: nonce(),
        };
        let key = layout::region(&self.from);
        let body = encode(&key, &record).expect("a body").into();
        let created = self.storage.create(&key, body).await;
        created.expect("the first contact");
    }

    /// Whether the region has swept once.
    async fn waits_for_second(&self) -> bool {
        let sweep = self.record().await.map(|record| record.sweep);
        matches!(sweep, Some(SweepState::Waiting { round: 1, .. }))
    }

    /// Sweeps until the region is whole. `horizon` ends H, between the first two sweeps.
    pub(super) async fn run(&mut self, mut horizon: Option<Arc<Notify>>) {
        for _ in 0..100 {
            if self.record().await.is_some_and(|record| record.is_whole) {
                return;
            }
            if self.step().await {
                continue;
            }
            if self.waits_for_second().await
                && let Some(horizon) = horizon.take()
            {
                horizon.notified().await;
            }
            advance(TIMES.settle).await;
        }
        panic!("the region is never whole");
    }
}

/// Writes the policy of `region`, which lists it and `others`.
async fn set_policy(storage: &ModelStorage, region: Region, others: &[Region]) {
    let listed = core::iter::once(&region).chain(others);
    let text: String = listed
        .map(|region| {
            let name = region.name();
            format!("[[region]]\nname = \"{name}\"\nurl = \"https://{name}.example\"\n")
        })
        .collect();
    let key = layout::policy();
    match storage.read(&key).await.expect("no faults") {
        None => storage.create(&key, text.into()).await.map(drop),
        Some(present) => {
            let swapped = storage.swap(&key, &present.version, text.into()).await;
            swapped.map(drop)
        }
    }
    .expect("the only writer");
}

pub(super) async fn record(storage: &ModelStorage, from: &RegionName) -> Option<RegionRecord> {
    let key = layout::region(from);
    let object = storage.read(&key).await.expect("no faults")?;
    Some(decode(&key, &object.body).expect("a record"))
}

/// Which sweep the region is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    /// The first one.
    AtFirst,
    /// The second one: what A has now landed behind the first.
    AtSecond,
}

/// B sweeps A, and the replica may stop at any call of B's storage. Another one goes on.
async fn explore_stop(sweeps: Sweeps, begins: Begins) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let mut joining = Joining::new(&model, Region::B, &[Region::A], sweeps).await;
        if begins == Begins::AtSecond {
            joining.end_first().await;
        }
        let registry = warm_replica(&model, Region::A).await;
        let rules = ChangeRules::default();
        let pushed = put(&registry, &image(), &[tag()], &rules).await;
        pushed.expect("a push");
        model.keep_private(&["a/"]);
        let crashing = model.clone();
        let sweep = async move { joining.run(None).await };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(async move { crashing.until_crash(sweep).await })],
            settle: Some(Box::pin(async move {
                let storage = Region::B.storage(&settling);
                let stopped = record(&storage, &Region::A.name()).await;
                if stopped.is_some_and(|record| record.is_whole) {
                    differences_are_owed(&settling, Region::A, Region::B)?;
                }
                let mut next = Joining::new(&settling, Region::B, &[Region::A], sweeps).await;
                next.run(None).await;
                differences_are_owed(&settling, Region::A, Region::B)
            })),
            check: Box::new(|model| tags_are_whole(model, Region::B)),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn backfill_goes_on_after_a_stop_at_any_call() {
    for begins in [Begins::AtFirst, Begins::AtSecond] {
        explore_stop(Sweeps::Shipped, begins).await.assert_holds(20);
    }
    explore_stop(Sweeps::StoresPositionFirst, Begins::AtSecond)
        .await
        .assert_violated("neither merged nor owed");
}

/// When the second sweep begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Second {
    /// As shipped: after H, which no request outlasts.
    AfterHorizon,
    /// Violates that.
    AtOnce,
}

/// R18: B joins, and a replica of A that does not know B yet pushes meanwhile.
async fn explore_join(second: Second) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        // A region without keys is whole for the others at once.
        let pushed = put(&registry, &index(0), &[], &ChangeRules::default()).await;
        pushed.expect("a push");
        let mut joining = Joining::new(&model, Region::B, &[Region::A], Sweeps::Shipped).await;
        model.keep_private(&["b/", "a/journal/", "a/trimmed/"]);
        let is_answered = Arc::new(Notify::new());
        let client = {
            let is_answered = Arc::clone(&is_answered);
            async move {
                let pushed = put(&registry, &index(1), &[tag()], &ChangeRules::default()).await;
                pushed.expect("a push");
                is_answered.notify_one();
            }
        };
        let horizon = (second == Second::AfterHorizon).then_some(is_answered);
        let sweep = async move { joining.run(horizon).await };
        Scenario::new(
            vec![Box::pin(client), Box::pin(sweep)],
            Box::new(|model| differences_are_owed(model, Region::A, Region::B)),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn second_sweep_finds_what_landed_behind_the_first() {
    explore_join(Second::AfterHorizon).await.assert_holds(10);
    explore_join(Second::AtOnce)
        .await
        .assert_violated("neither merged nor owed");
}

/// Whether a region notices that another one has left the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// As shipped: each remaining region sweeps the others.
    Noticed,
    /// Violates that.
    Unnoticed,
}

/// F9: a push to A was acknowledged after B had merged it; C has not heard of it when A leaves the
/// policy for good. B's journal owes C nothing. Returns whether C has the tag in the end.
async fn sweep_after_leaving(leaves: Leaves) -> bool {
    let model = ModelStorage::default();
    let mut joining =
        Joining::new(&model, Region::C, &[Region::B, Region::A], Sweeps::Shipped).await;
    joining.run(None).await;
    let registry = Region::A.replica(&model).await;
    let rules = owed_to(&[Region::B, Region::C]);
    let pushed = put(&registry, &index(1), &[tag()], &rules).await;
    pushed.expect("a push");
    let follower = Follower::new(&model, Region::B, &[Region::A], Follows::Shipped).await;
    follower.follow(Age::Young).await;

    let mut remaining = Joining::new(&model, Region::C, &[Region::B], Sweeps::Shipped).await;
    if leaves == Leaves::Unnoticed {
        let key = layout::region(&Region::B.name());
        let present = remaining.storage.read(&key).await.expect("no faults");
        let present = present.expect("a record");
        let record: RegionRecord = decode(&key, &present.body).expect("a record");
        let record = RegionRecord {
            selection: remaining.members.policy().selection(),
            ..record
        };
        let body = encode(&key, &record).expect("a body").into();
        let swapped = remaining.storage.swap(&key, &present.version, body).await;
        swapped.expect("the only writer");
    }
    remaining.step().await;
    remaining.run(None).await;
    held(&model, Region::C).contains_key(&tag_key())
}

#[tokio::test(start_paused = true)]
async fn remaining_regions_sweep_each_other_when_one_leaves() {
    assert!(sweep_after_leaving(Leaves::Noticed).await);
    assert!(!sweep_after_leaving(Leaves::Unnoticed).await);
}
