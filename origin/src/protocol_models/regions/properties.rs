//! The properties of the regions' buckets, and of the requests that were acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::FactKey;

use super::super::blob_collection::repository;
use super::super::explorer::Check;
use super::super::storage_model::ModelStorage;
use super::world::Region;
use crate::layout;
use crate::record::{
    BlobRecord, JournalRecord, ManifestRecord, ManifestState, MembershipRecord, Pointer,
    ReferrerValue, TagValue, decode,
};

/// The value of a key in one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) stamp: Stamp,
    /// Of a manifest; a tag is live or deleted.
    pub(super) state: ManifestState,
    /// The digest that a live tag names.
    pub(super) names: Option<Digest>,
}

/// All keys of a region.
pub(super) fn held(model: &ModelStorage, region: Region) -> BTreeMap<FactKey, Held> {
    let storage = region.storage(model);
    let mut held = BTreeMap::new();
    for (key, body) in storage.objects("rm/") {
        let record = ManifestRecord::of(&key, &body).expect("a manifest");
        let value = Held {
            stamp: record.stamp,
            state: record.state,
            names: None,
        };
        held.insert(layout::fact_key(&key).expect("a fact"), value);
    }
    for (key, body) in storage.objects("tag/") {
        let pointer = Pointer::<TagValue>::of(&key, &body).expect("a tag");
        let names = pointer.value.map(|value| value.digest);
        let state = match names {
            Some(_) => ManifestState::Live,
            None => ManifestState::Deleted,
        };
        let value = Held {
            stamp: pointer.stamp,
            state,
            names,
        };
        held.insert(layout::fact_key(&key).expect("a fact"), value);
    }
    held
}

/// All keys that one region owes another.
pub(super) fn owed(model: &ModelStorage, from: Region, to: Region) -> Vec<FactKey> {
    let storage = from.storage(model);
    let entries = storage.objects(layout::journal(&to.name()).as_str());
    let keys = entries.iter().flat_map(|(key, body)| {
        let record: JournalRecord = decode(key, body).expect("an entry");
        record.keys.into_iter().map(|(key, _)| key)
    });
    keys.collect()
}

/// Every key of `from` that is above the one of `to` is owed.
pub(super) fn differences_are_owed(
    model: &ModelStorage,
    from: Region,
    to: Region,
) -> Result<(), String> {
    let (present, owed) = (held(model, to), owed(model, from, to));
    for (key, value) in held(model, from) {
        let is_merged = present
            .get(&key)
            .is_some_and(|merged| merged.stamp >= value.stamp);
        if !is_merged && value.state != ManifestState::Evicted && !owed.contains(&key) {
            return Err(format!(
                "{key:?} of {from:?} is neither merged nor owed to {to:?}"
            ));
        }
    }
    Ok(())
}

/// All acknowledged changes are kept, and all regions are equal.
pub(super) fn agreed(requests: Requests, regions: &'static [Region]) -> Check {
    Box::new(move |model| {
        requests.are_kept(model, regions)?;
        regions_are_equal(model, regions)
    })
}

/// All regions have the same stamps and states.
pub(super) fn regions_are_equal(model: &ModelStorage, regions: &[Region]) -> Result<(), String> {
    for pair in regions.windows(2) {
        let [first, second] = [held(model, pair[0]), held(model, pair[1])];
        if first != second {
            let (a, b) = (pair[0], pair[1]);
            return Err(format!(
                "the regions differ: {a:?} {first:?}; {b:?} {second:?}"
            ));
        }
    }
    Ok(())
}

/// The state of a manifest in a region.
pub(super) fn manifest_state(
    model: &ModelStorage,
    region: Region,
    manifest: &[u8],
) -> Option<ManifestState> {
    let key = FactKey::Manifest(repository(), Digest::sha256(manifest));
    Some(held(model, region).get(&key)?.state)
}

/// Every live tag of a region names a manifest that is here with all its blobs.
pub(super) fn tags_are_whole(model: &ModelStorage, region: Region) -> Result<(), String> {
    for (key, value) in held(model, region) {
        if let Some(digest) = value.names {
            is_whole(model, region, &digest)
                .map_err(|missing| format!("{region:?} serves {key:?} without {missing}"))?;
        }
    }
    Ok(())
}

/// A manifest is here with all its blobs; the error is what is missing.
pub(super) fn is_whole(
    model: &ModelStorage,
    region: Region,
    digest: &Digest,
) -> Result<(), String> {
    let storage = region.storage(model);
    let key = layout::manifest(&repository(), digest);
    let body = storage.objects(key.as_str()).pop();
    let body = body.ok_or_else(|| "its manifest".to_owned())?.1;
    let record = ManifestRecord::of(&key, &body).expect("a manifest");
    let Some((_, bytes)) = record.content else {
        return Err("its manifest".to_owned());
    };
    for blob in Manifest::parse(&bytes).expect("a manifest").blobs() {
        let key = layout::membership(&repository(), &blob.digest);
        let body = storage.objects(key.as_str()).pop();
        let body = body.ok_or_else(|| "a blob".to_owned())?.1;
        let membership: MembershipRecord = decode(&key, &body).expect("a membership");
        let key = layout::blob(&blob.digest, &membership.generation);
        let body = storage.objects(key.as_str()).pop();
        let body = body.ok_or_else(|| "a blob".to_owned())?.1;
        let record: BlobRecord = decode(&key, &body).expect("a record");
        if !membership.state.is_served() || !record.state.is_served() {
            return Err("a blob".to_owned());
        }
    }
    Ok(())
}

/// A manifest is listed among the referrers of its subject exactly if it is there.
pub(super) fn referrer_agrees(
    model: &ModelStorage,
    region: Region,
    subject: &[u8],
    manifest: &[u8],
) -> Result<(), String> {
    let storage = region.storage(model);
    let (subject, digest) = (Digest::sha256(subject), Digest::sha256(manifest));
    let key = layout::referrer(&repository(), &subject, &digest);
    let entry = storage.objects(key.as_str()).pop();
    let is_listed = entry.is_some_and(|(key, body)| {
        let pointer = Pointer::<ReferrerValue>::of(&key, &body).expect("a referrer");
        pointer.value.is_some()
    });
    let is_there = manifest_state(model, region, manifest).is_some_and(ManifestState::is_served);
    match (is_there, is_listed) {
        (true, false) => Err(format!("a manifest of {region:?} is there and not listed")),
        (false, true) => Err(format!("a manifest of {region:?} is listed and not there")),
        _ => Ok(()),
    }
}

/// The requests of clients.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests(Arc<Mutex<Vec<Request>>>);

#[derive(Clone, Debug)]
struct Request {
    key: FactKey,
    /// `None` if it was not acknowledged.
    stamp: Option<Stamp>,
    is_delete: bool,
}

impl Requests {
    /// Notes a push; `None` if it was refused.
    pub(super) fn pushed(&self, key: FactKey, stamp: Option<Stamp>) {
        self.note(key, stamp, false);
    }

    /// Notes a delete; `None` if it was refused.
    pub(super) fn deleted(&self, key: FactKey, stamp: Option<Stamp>) {
        self.note(key, stamp, true);
    }

    fn note(&self, key: FactKey, stamp: Option<Stamp>, is_delete: bool) {
        let request = Request {
            key,
            stamp,
            is_delete,
        };
        self.0.lock().expect("no panic").push(request);
    }

    /// In all regions, each key holds the last acknowledged change, or a later one.
    pub(super) fn are_kept(&self, model: &ModelStorage, regions: &[Region]) -> Result<(), String> {
        let requests = self.0.lock().expect("no panic").clone();
        for region in regions {
            let held = held(model, *region);
            for request in &requests {
                let Request { key, stamp, .. } = request;
                let Some(stamp) = stamp else { continue };
                // A manifest may be another push's with the same bytes, and an earlier stamp.
                let is_tag = matches!(key, FactKey::Tag(..));
                let value = held.get(key);
                let is_as_new = value.is_some_and(|value| !is_tag || value.stamp >= *stamp);
                let is_live = value.is_some_and(|value| value.state.is_served());
                let later = |other: &Request| {
                    other.key == *key
                        && other.is_delete != request.is_delete
                        && other.stamp.as_ref().is_none_or(|other| other > stamp)
                };
                let is_kept = match request.is_delete {
                    false => is_as_new && (is_live || requests.iter().any(later)),
                    true => !is_live || requests.iter().any(later),
                };
                if !is_kept {
                    let what = if request.is_delete { "delete" } else { "push" };
                    return Err(format!(
                        "an acknowledged {what} of {key:?} is lost in {region:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}
