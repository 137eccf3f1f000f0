//! Everything about other regions that one replica runs: who they are, whether they and the own
//! storage answer, what they owe, and the copies that requests ask for.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use flotilla_common::digest::Digest;
use flotilla_common::failover::{Input, Need, Outcome};
use flotilla_common::name::{Reference, RegionName, RepositoryName, Tag};
use flotilla_common::time::Time;
use flotilla_common::wire::region::{FactKey, StorageStanding};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::timeout;

use super::absence::Absence;
use super::ahead::{AheadOfOwn, AheadValue, Noted, forwarded_values};
use super::clock_check::ClockCheck;
use super::copies::CopyJob;
use super::foreign_streams::ForeignStreams;
use super::freshest::{ComparedKeys, Freshest};
use super::hints::Hints;
use super::lease::Lease;
use super::members::Members;
use super::owed::{OwedLookUp, OwedPages, Owing};
use super::push_copies::PushCopies;
use super::replicate::Replicator;
use super::routes::{LiveRoutes, OWN, Routes, no_routes};
use super::source::Source;
use super::sweep::Sweeper;
use super::sweep_state::SweepTimes;
use super::take::TakeOrders;
use super::trim::trim_journals;
use crate::policy::TagReads;
use crate::registry::{KnownTag, Registry};
use crate::replicas::Changed;

const HOURLY: Duration = Duration::from_hours(1);
/// How often it is looked up whether this region is whole.
const WHOLE_INTERVAL: Duration = Duration::from_secs(30);
/// Blobs whose lost data was copied anew that are remembered, and how long: so long no second try
/// is made.
const MAX_REPLACED: u64 = 10_000;
const REPLACED_FOR: Duration = Duration::from_mins(1);
/// How long changes go to another region after the own storage had no space for one. The next one
/// afterwards tries the own storage again.
const FULL_FOR: Duration = Duration::from_secs(30);
/// How long another region may take to say whether it can serve.
const STATE_TIMEOUT: Duration = Duration::from_secs(1);

/// Settings of the work between regions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionalConfig {
    pub(crate) sweeps: SweepTimes,
    /// H.
    pub(crate) horizon: Duration,
    /// Whether writes go to another region while the own storage is out.
    pub(crate) forward_writes: bool,
}

/// The regions, as one replica sees them.
pub(crate) struct Regional {
    pub(super) registry: Arc<Registry>,
    pub(super) members: Arc<Members>,
    pub(super) replicator: Arc<Replicator>,
    pub(super) routes: LiveRoutes,
    pub(super) owed: OwedPages,
    hints: Hints,
    ahead: AheadOfOwn,
    pub(super) compared: ComparedKeys,
    pub(super) clock: Clock,
    pub(super) config: RegionalConfig,
    /// What detached copies are bringing.
    pub(super) copying: Mutex<HashSet<CopyJob>>,
    /// Bodies that other regions send of blobs that this one lacks.
    foreign_streams: Arc<ForeignStreams>,
    /// Blobs whose lost data was copied anew lately, or could not be.
    pub(super) replaced: moka::sync::Cache<Digest, ()>,
    /// Copies that pushes wait for.
    pub(super) push_copies: PushCopies,
    is_whole: AtomicBool,
    pub(super) freshest: Freshest,
    /// When the own storage was last found out, or returning.
    pub(super) last_out: Mutex<Option<Time>>,
    clock_check: ClockCheck,
    /// Until when other regions take this region's changes, because the own storage is full.
    full_until: Mutex<Time>,
    pub(super) shutdown: Shutdown,
}

impl core::fmt::Debug for Regional {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Regional")
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

impl Regional {
    pub(crate) fn new(
        registry: Arc<Registry>,
        members: Arc<Members>,
        replicator: Arc<Replicator>,
        clock: Clock,
        config: RegionalConfig,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let routes = Arc::new(ArcSwap::from_pointee(no_routes(clock)));
        let freshest = Freshest::new(clock.now(), registry.unix_nanos());
        let ahead = AheadOfOwn::new(Arc::clone(&registry), Arc::clone(&members));
        Arc::new(Self {
            registry,
            members,
            replicator,
            routes,
            owed: OwedPages::new(clock),
            hints: Hints::new(shutdown.clone()),
            ahead,
            compared: ComparedKeys::new(clock),
            clock,
            config,
            copying: Mutex::default(),
            foreign_streams: Arc::default(),
            replaced: moka::sync::Cache::builder()
                .max_capacity(MAX_REPLACED)
                .time_to_live(REPLACED_FOR)
                .build(),
            push_copies: PushCopies::default(),
            is_whole: AtomicBool::new(false),
            freshest,
            last_out: Mutex::default(),
            clock_check: ClockCheck::default(),
            full_until: Mutex::new(Time::ZERO),
            shutdown,
        })
    }

    /// Starts probes and followers, and restarts them whenever the policy changes the regions.
    pub(crate) fn start(self: &Arc<Self>, orders: TakeOrders) {
        let regional = Arc::clone(self);
        self.shutdown.spawn(regional.take_all(orders));
        let mut changes = self.members.changes();
        changes.mark_unchanged();
        self.connect();
        let regional = Arc::clone(self);
        self.shutdown.spawn(async move {
            loop {
                tokio::select! {
                    () = regional.shutdown.wait() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(WHOLE_INTERVAL) => {
                        regional.look_up_whole().await;
                        regional.end_freshest().await;
                        continue;
                    }
                }
                // A region that kept less, or was alone, has not got what the others had before.
                regional.is_whole.store(false, Ordering::Relaxed);
                regional.connect();
                regional.look_up_whole().await;
            }
        });
        let regional = Arc::clone(self);
        self.shutdown.spawn(async move {
            regional.look_up_whole().await;
            let storage = Arc::clone(regional.registry.storage());
            let mut lease = Lease::new(storage, regional.clock, "trim-journals");
            loop {
                tokio::select! {
                    () = regional.shutdown.wait() => return,
                    () = regional.do_hourly(&mut lease) => {}
                }
                tokio::select! {
                    () = regional.shutdown.wait() => return,
                    () = tokio::time::sleep(HOURLY) => {}
                }
            }
        });
    }

    /// The own storage and the other regions.
    pub(crate) fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    /// Whether there are other regions.
    pub(crate) fn has_others(&self) -> bool {
        !self.routes.load().others.is_empty()
    }

    pub(crate) const fn members(&self) -> &Arc<Members> {
        &self.members
    }

    pub(crate) const fn replicator(&self) -> &Arc<Replicator> {
        &self.replicator
    }

    /// Whether this region has everything that the others had when it joined.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Relaxed)
    }

    /// Reports that the own storage failed a request outside a read.
    pub(crate) fn own_failed(&self, error: String) {
        self.routes.load().failover.handle(Input::Ended {
            source: OWN,
            need: Need::Fact,
            outcome: Outcome::Failed { error },
        });
    }

    /// Takes note that the own storage had no space for a change. It answers reads and probes, so
    /// it is not out; but changes go to another region for a while.
    pub(crate) fn own_is_full(&self) {
        let until = self.clock.now() + FULL_FOR;
        let mut full_until = self
            .full_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *full_until < self.clock.now() {
            tracing::warn!(region = %self.own(), "the storage is full; forwarding changes to other regions");
        }
        *full_until = until;
    }

    /// Whether the own storage had no space a short time ago.
    pub(crate) fn is_own_full(&self) -> bool {
        let full_until = self
            .full_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.clock.now() < *full_until
    }

    /// A region that can serve now, if any says so within a second.
    pub(crate) async fn serving_region(&self) -> Option<RegionName> {
        let others = self.routes.load().others.clone();
        let mut asked: FuturesUnordered<_> = others
            .iter()
            .map(|other| async move {
                let state = timeout(STATE_TIMEOUT, other.state()).await;
                (other.region().clone(), state)
            })
            .collect();
        while let Some((region, state)) = asked.next().await {
            if let Ok(Ok(state)) = state
                && state.standing == StorageStanding::Usable
            {
                return Some(region);
            }
        }
        None
    }

    /// The standing that other regions are told.
    pub(crate) fn storage_standing(&self) -> StorageStanding {
        if self.routes.load().is_own_out() {
            StorageStanding::Out
        } else {
            StorageStanding::Usable
        }
    }

    /// The other regions that keep a repository.
    pub(crate) fn keepers(&self, repository: &RepositoryName) -> Vec<Arc<dyn Source>> {
        let policy = self.members.policy();
        let rule = policy.policy().rule_for(repository);
        self.routes
            .load()
            .others_where(|region| rule.includes(region))
    }

    /// The monotonic clock.
    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// What a read of a repository does when the own storage does not have what it asks for.
    pub(crate) fn absence(&self, repository: &RepositoryName) -> Absence<'_> {
        Absence {
            registry: &self.registry,
            pages: &self.owed,
            sources: self.keepers(repository),
            routes: self.routes(),
            is_whole: self.is_whole(),
        }
    }

    /// The regions that may have something of a repository that is absent here.
    pub(crate) async fn owed(&self, repository: &RepositoryName, read_at: Time) -> OwedLookUp {
        let sources = self.keepers(repository);
        if sources.is_empty() {
            return OwedLookUp::ALONE;
        }
        let routes = self.routes();
        self.owed
            .look_up(&sources, &routes, repository, read_at, self.is_whole())
            .await
    }

    /// The regions that may have something of a repository that this one has not got yet. Unlike
    /// [`Self::owed`] it is no question about absent content, and so not limited.
    pub(crate) async fn owing(&self, repository: &RepositoryName) -> Owing {
        let (sources, routes) = (self.keepers(repository), self.routes());
        self.owed
            .owing(&sources, &routes, repository, self.is_whole())
            .await
    }

    /// Whether tags are read from all regions that owe something: by the policy, or for a while
    /// after a start or an outage.
    pub(crate) fn reads_freshest(&self, repository: &RepositoryName) -> bool {
        let policy = self.members.policy();
        policy.policy().rule_for(repository).tag_reads == TagReads::Freshest || self.may_be_behind()
    }

    /// Whether changes of this region's clients may be in other regions only: for a while after a
    /// start or an outage.
    pub(super) fn may_be_behind(&self) -> bool {
        self.freshest.is_on(self.clock.now())
    }

    /// Whether memory of the own storage may answer a read, as far as other regions are concerned.
    pub(crate) fn may_answer_from_memory(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> bool {
        match reference {
            Reference::Digest(digest) => {
                let key = || FactKey::Manifest(repository.clone(), *digest);
                let ahead = self.ahead.known_of(key);
                !ahead.is_some_and(|ahead| ahead.is_deleted())
                    && (!self.may_be_behind()
                        || self
                            .owed
                            .owe_no_manifest(&self.routes.load().others, &key()))
            }
            Reference::Tag(tag) => {
                let key = || FactKey::Tag(repository.clone(), tag.clone());
                self.ahead.known_of(key).is_none()
                    && (!self.reads_freshest(repository)
                        || self.compared.are_fresh(&key())
                        || self
                            .owed
                            .owe_nothing(&self.routes.load().others, repository))
            }
        }
    }

    /// Whether clients may have been told lately what other regions have: requests were forwarded
    /// within the time for which a look at a blob is good.
    pub(super) fn has_forwarded_lately(&self) -> bool {
        let last = self.last_out.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| self.registry.is_recent(at))
    }

    /// The own region.
    pub(crate) fn own(&self) -> &RegionName {
        self.registry.region()
    }

    /// The time of journal entries, in nanoseconds since 1970.
    pub(crate) fn unix_nanos(&self) -> u64 {
        self.registry.unix_nanos()
    }

    /// Whether this replica's clock agrees with the storage's.
    pub(crate) const fn clock_check(&self) -> &ClockCheck {
        &self.clock_check
    }

    /// Whether writes go to another region while the own storage is out.
    pub(crate) const fn forwards_writes(&self) -> bool {
        self.config.forward_writes
    }

    /// Bodies that other regions send of blobs that this one lacks.
    pub(crate) const fn foreign_streams(&self) -> &Arc<ForeignStreams> {
        &self.foreign_streams
    }

    pub(crate) const fn hints(&self) -> &Hints {
        &self.hints
    }

    /// Values that other regions have and the own storage may not have yet.
    pub(crate) const fn ahead(&self) -> &AheadOfOwn {
        &self.ahead
    }

    /// When tags were last compared with other regions.
    pub(crate) const fn compared(&self) -> &ComparedKeys {
        &self.compared
    }

    /// Takes note of a change that another region made for this one.
    pub(crate) fn told(&self, changed: &Changed) {
        for (key, value) in forwarded_values(changed) {
            self.note_ahead(key, value);
        }
    }

    /// Takes note of the value of a tag that a client is shown from another region: later answers
    /// are not older, and the client's next change comes after it.
    pub(crate) fn show(&self, repository: &RepositoryName, tag: &Tag, value: &KnownTag) {
        let policy = self.members.policy();
        if policy.policy().is_replicated_here(self.own(), repository) {
            let key = FactKey::Tag(repository.clone(), tag.clone());
            self.note_ahead(key, AheadValue::shown(value.stamp.clone(), value.digest));
        }
    }

    pub(super) fn note_ahead(&self, key: FactKey, value: AheadValue) {
        let (region, repository) = (value.stamp.region.clone(), key.repository().clone());
        let noted = self.ahead.note(key, value);
        if noted != Noted::Known {
            self.owed.note_forwarded(region, repository);
        }
        if noted == Noted::InPlaceOfOthers {
            // Other regions are asked for what was forgotten.
            let unix = self.registry.unix_nanos();
            self.freshest.begin(self.clock.now(), unix);
        }
    }

    /// The highest clock of keys that this replica wrote, was told of or showed.
    pub(crate) fn known_clock(&self, keys: &[FactKey]) -> Option<u64> {
        let clocks = keys.iter().map(|key| {
            let written = match key {
                FactKey::Tag(repository, tag) => self.registry.known_tag(repository, tag),
                FactKey::Manifest(..) => None,
            };
            let written = written.map(|known| known.stamp.clock);
            written.max(self.ahead.known(key).map(|ahead| ahead.stamp.clock))
        });
        clocks.max().flatten()
    }

    /// Counts a read that was served by a region, or by none.
    pub(crate) fn count_read(&self, by: Option<&Arc<dyn Source>>, outcome: &'static str) {
        let by = by.map_or_else(|| self.own(), |source| source.region());
        self.replicator.counts().read(by, outcome);
    }

    /// Counts a change that was forwarded, or that no region could take.
    pub(crate) fn count_forwarded(&self, to: Option<&RegionName>) {
        self.replicator.counts().forwarded(to);
    }

    /// Hourly work: drops entries that a region has not fetched for long, and compares this
    /// replica's clock with the storage's.
    async fn do_hourly(&self, lease: &mut Lease) {
        self.clock_check.run(&self.registry).await;
        match self.registry.journal_regions().await {
            Ok(regions) if regions.is_empty() => {}
            Ok(regions) if lease.hold_or_take_over().await => {
                trim_journals(&self.registry, regions).await;
                lease.release().await;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "the journals could not be listed to drop old entries");
            }
        }
    }

    /// Ends the time in which tags are read from all regions, once they owe nothing from it.
    async fn end_freshest(&self) {
        let now = self.clock.now();
        if !self.freshest.may_end(now) {
            return;
        }
        let others = self.routes.load().others.clone();
        let states = others.iter().map(|other| async move {
            let state = timeout(STATE_TIMEOUT, other.state()).await;
            state.ok()?.ok()
        });
        let states = join_all(states).await;
        self.freshest.end_if_merged(self.own(), &states);
    }

    async fn look_up_whole(&self) {
        let (routes, mut is_whole) = (self.routes.load_full(), true);
        for source in &routes.others {
            let sweeper = Sweeper::new(
                Arc::clone(&self.replicator),
                Arc::clone(&self.members),
                source.region(),
                self.config.sweeps,
            );
            is_whole &= sweeper.is_whole().await.unwrap_or(false);
        }
        // A region that was added meanwhile is looked up by the caller that connected to it.
        if Arc::ptr_eq(&routes, &self.routes.load()) {
            self.is_whole.store(is_whole, Ordering::Relaxed);
        }
    }
}
