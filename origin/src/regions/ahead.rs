//! Values that other regions have and this region's storage may not have yet: of changes that were
//! forwarded, and of tags that clients were shown from elsewhere. No later answer of this replica
//! is older, and no later change gets a lower stamp.
//!
//! A value stays until the own storage has one that is as new, for a day at most. If there is no
//! room, the oldest are forgotten, and the caller makes up for it by asking the other regions.

use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::digest::Digest;
use flotilla_common::stamp::Stamp;
use flotilla_common::time::Time;
use flotilla_common::wire::region::FactKey;
use tokio::time::timeout;

use super::members::Members;
use crate::registry::{KnownTag, Registry};
use crate::replicas::Changed;

/// Values that are remembered, and for how long: longer than outages are expected.
const MAX_VALUES: usize = 10_000;
const KEPT_FOR: Duration = Duration::from_hours(24);
/// How long the own storage may take to say whether it has a value that is as new.
const OWN_TIMEOUT: Duration = Duration::from_millis(1500);

/// A value in another region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AheadValue {
    pub(crate) stamp: Stamp,
    /// The manifest that a tag names, or that a key is about; `None` if it was deleted.
    pub(crate) digest: Option<Digest>,
    /// Whether it is a change that this region forwarded and acknowledged.
    pub(crate) is_acknowledged: bool,
}

impl AheadValue {
    pub(crate) const fn is_deleted(&self) -> bool {
        self.digest.is_none()
    }

    /// A value that a client is shown: of a tag, or the delete of a manifest.
    pub(super) const fn shown(stamp: Stamp, digest: Option<Digest>) -> Self {
        Self {
            stamp,
            digest,
            is_acknowledged: false,
        }
    }
}

impl From<AheadValue> for KnownTag {
    fn from(value: AheadValue) -> Self {
        Self::new(value.stamp, value.digest)
    }
}

/// What a forwarded change wrote in the other region.
pub(super) fn forwarded_values(changed: &Changed) -> Vec<(FactKey, AheadValue)> {
    let value = |stamp: &Stamp, digest| AheadValue {
        stamp: stamp.clone(),
        digest,
        is_acknowledged: true,
    };
    match changed {
        Changed::ForwardedTag {
            repository,
            tag,
            stamp,
            digest,
        } => {
            let key = FactKey::Tag(repository.clone(), tag.clone());
            // A tag is moved after its manifest was written.
            let manifest = digest.map(|digest| FactKey::Manifest(repository.clone(), digest));
            let keys = core::iter::once(key).chain(manifest);
            keys.map(|key| (key, value(stamp, *digest))).collect()
        }
        Changed::ForwardedManifest {
            repository,
            digest,
            stamp,
            is_deleted,
        } => {
            let key = FactKey::Manifest(repository.clone(), *digest);
            let live = (!is_deleted).then_some(*digest);
            vec![(key, value(stamp, live))]
        }
        Changed::Tag(..) | Changed::Manifest(..) | Changed::Blob(..) => Vec::new(),
    }
}

/// The values that one replica knows, compared with its own storage.
#[derive(Debug)]
pub(crate) struct AheadOfOwn {
    values: AheadValues,
    registry: Arc<Registry>,
    members: Arc<Members>,
}

impl AheadOfOwn {
    pub(super) fn new(registry: Arc<Registry>, members: Arc<Members>) -> Self {
        Self {
            values: AheadValues::default(),
            registry,
            members,
        }
    }

    /// Keeps a value, unless one that is as new is kept.
    pub(super) fn note(&self, key: FactKey, value: AheadValue) -> Noted {
        self.values.note(self.registry.now(), key, value)
    }

    /// The value that is kept of a key, whatever the own storage has by now.
    pub(crate) fn known(&self, key: &FactKey) -> Option<AheadValue> {
        self.values.get(self.registry.now(), key)
    }

    /// Whether no value is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The value that is kept of a key, if there are any.
    pub(super) fn known_of(&self, key: impl FnOnce() -> FactKey) -> Option<AheadValue> {
        if self.values.is_empty() {
            return None;
        }
        self.known(&key())
    }

    /// The value that is kept of a key, if the own storage does not say that it has one which is
    /// as new.
    pub(crate) async fn beyond_own(&self, key: &FactKey) -> Option<BeyondOwn> {
        let value = self.known(key)?;
        // A region that was removed has taken with it what it alone had.
        let policy = self.members.policy();
        let rule = policy.policy().rule_for(key.repository());
        let is_left = !rule.includes(&value.stamp.region);
        if !is_left {
            let own = timeout(OWN_TIMEOUT, self.registry.fact(key)).await;
            let own = own.ok().and_then(Result::ok);
            let is_sure = own.is_some();
            if own.is_none_or(|own| own.stamp() < Some(&value.stamp)) {
                return Some(BeyondOwn { value, is_sure });
            }
        }
        // Memory may have what the own storage had before.
        self.registry.invalidate(match key.clone() {
            FactKey::Tag(repository, tag) => Changed::Tag(repository, tag),
            FactKey::Manifest(repository, digest) => Changed::Manifest(repository, digest),
        });
        self.values.forget(key, &value.stamp);
        None
    }

    /// The forwarded delete of a manifest that the own storage may still have. An own storage that
    /// is not to be asked may have a later value.
    pub(super) async fn delete_beyond_own(
        &self,
        key: &FactKey,
        asks_own: bool,
    ) -> Option<BeyondOwn> {
        let value = self.known(key).filter(AheadValue::is_deleted)?;
        if !asks_own {
            let is_sure = false;
            return Some(BeyondOwn { value, is_sure });
        }
        let beyond = self.beyond_own(key).await;
        beyond.filter(|beyond| beyond.value.is_deleted())
    }
}

/// A value that the own storage does not say to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BeyondOwn {
    pub(crate) value: AheadValue,
    /// Whether the own storage answered: what it has is older.
    pub(crate) is_sure: bool,
}

/// What became of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    New,
    /// One that is as new is kept.
    Known,
    /// It is new, and others had to be forgotten for it.
    InPlaceOfOthers,
}

#[derive(Debug)]
struct Kept {
    value: AheadValue,
    until: Time,
}

/// The values, by key.
#[derive(Debug, Default)]
struct AheadValues {
    values: Mutex<HashMap<FactKey, Kept>>,
    /// Their number, so that reads pass without the lock while there are none.
    len: AtomicUsize,
}

impl AheadValues {
    /// Keeps a value, unless one that is as new is kept.
    fn note(&self, now: Time, key: FactKey, value: AheadValue) -> Noted {
        let mut values = self.lock();
        let mut kept = Kept {
            value,
            until: now + KEPT_FOR,
        };
        if let Some(present) = values.get_mut(&key).filter(|present| present.until > now) {
            if present.value.stamp < kept.value.stamp {
                *present = kept;
                return Noted::New;
            }
            if present.value.stamp == kept.value.stamp {
                kept.value.is_acknowledged |= present.value.is_acknowledged;
                *present = kept;
            }
            return Noted::Known;
        }
        let has_room = values.len() < MAX_VALUES || make_room(&mut values, now);
        values.insert(key, kept);
        self.len.store(values.len(), Ordering::Release);
        match has_room {
            true => Noted::New,
            false => Noted::InPlaceOfOthers,
        }
    }

    /// The value that is kept of a key.
    fn get(&self, now: Time, key: &FactKey) -> Option<AheadValue> {
        if self.is_empty() {
            return None;
        }
        let values = self.lock();
        let kept = values.get(key).filter(|kept| kept.until > now)?;
        Some(kept.value.clone())
    }

    /// Whether no value is kept.
    fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// Forgets the value of a key, unless a later one than `stamp` has come.
    fn forget(&self, key: &FactKey, stamp: &Stamp) {
        let mut values = self.lock();
        if values
            .get(key)
            .is_some_and(|kept| kept.value.stamp <= *stamp)
        {
            values.remove(key);
            self.len.store(values.len(), Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FactKey, Kept>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes values whose time has passed; without any, the oldest eighth. Returns whether none had
/// to be removed before its time.
fn make_room(values: &mut HashMap<FactKey, Kept>, now: Time) -> bool {
    values.retain(|_, kept| kept.until > now);
    if values.len() < MAX_VALUES {
        return true;
    }
    let mut times: Vec<Time> = values.values().map(|kept| kept.until).collect();
    let (_, oldest, _) = times.select_nth_unstable(MAX_VALUES / 8);
    let oldest = *oldest;
    values.retain(|_, kept| kept.until > oldest);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str) -> FactKey {
        let tag = name.parse().expect("a tag");
        FactKey::Tag("app".parse().expect("a name"), tag)
    }

    fn value(clock: u64) -> AheadValue {
        AheadValue {
            stamp: Stamp {
                clock,
                region: "us-1".parse().expect("a name"),
            },
            digest: None,
            is_acknowledged: false,
        }
    }

    #[test]
    fn highest_stamp_stays_until_it_is_reached() {
        let (values, now) = (AheadValues::default(), Time::ZERO);
        assert!(values.is_empty());
        for clock in [5, 7, 6] {
            let noted = values.note(now, tag("v1"), value(clock));
            assert_eq!(noted == Noted::Known, clock == 6);
        }
        assert_eq!(values.get(now, &tag("v1")), Some(value(7)));
        values.forget(&tag("v1"), &value(6).stamp);
        assert_eq!(values.get(now, &tag("v1")), Some(value(7)));
        assert_eq!(values.get(now + KEPT_FOR, &tag("v1")), None);
        values.forget(&tag("v1"), &value(7).stamp);
        assert!(values.is_empty());
    }

    #[test]
    fn acknowledged_change_stays_acknowledged_when_it_is_shown() {
        let (values, now) = (AheadValues::default(), Time::ZERO);
        let acknowledged = AheadValue {
            is_acknowledged: true,
            ..value(5)
        };
        values.note(now, tag("v1"), acknowledged.clone());
        values.note(now, tag("v1"), value(5));
        assert_eq!(values.get(now, &tag("v1")), Some(acknowledged));
        values.note(now, tag("v1"), value(6));
        assert_eq!(values.get(now, &tag("v1")), Some(value(6)));
    }

    #[test]
    fn forgetting_for_want_of_room_is_told() {
        let values = AheadValues::default();
        let at = |number: usize| Time::ZERO + Duration::from_millis(number as u64);
        let note =
            |now, name: String, clock| values.note(now, tag(&format!("v{name}")), value(clock));
        for number in 0..MAX_VALUES {
            assert_eq!(note(at(number), number.to_string(), 1), Noted::New);
        }
        let now = at(MAX_VALUES);
        assert_eq!(note(now, "1".to_owned(), 2), Noted::New, "it has a place");
        assert_eq!(note(now, "-new".to_owned(), 1), Noted::InPlaceOfOthers);
        assert_eq!(values.get(now, &tag("v0")), None);
        assert_eq!(values.get(now, &tag("v-new")), Some(value(1)));
        assert_eq!(note(now, "-newer".to_owned(), 1), Noted::New);
        // A day later all may go without harm.
        for number in 0..MAX_VALUES {
            let noted = note(now + KEPT_FOR, format!("-later-{number}"), 1);
            assert_eq!(noted, Noted::New, "{number}");
        }
    }
}
