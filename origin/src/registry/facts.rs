//! The present values of replicated keys, read past the caches: what another region merges.

use bytes::Bytes;
use flotilla_common::wire::region::{
    FACTS_LEN, Fact, FactHead, FactKey, FactKind, KeysPage, MAX_KEYS,
};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Registry, RegistryError};
use crate::layout;
use crate::record::{ManifestRecord, ManifestState, Pointer, TagValue};
use crate::storage::{Key, Storage, StorageError};

/// Keys read concurrently.
const READS_AT_ONCE: usize = 16;

impl Registry {
    /// The values of the first keys, in their order: at least one, and no more after
    /// [`FACTS_LEN`] bytes of manifests.
    pub(crate) async fn facts(&self, keys: &[FactKey]) -> Result<Vec<Fact>, RegistryError> {
        let reads = stream::iter(keys.to_vec()).map(|key| async move { self.fact(&key).await });
        let mut reads = reads.buffered(READS_AT_ONCE);
        let mut facts = Vec::with_capacity(keys.len());
        let mut len = 0;
        while len < FACTS_LEN
            && let Some(fact) = reads.try_next().await?
        {
            len += fact.bytes.len();
            facts.push(fact);
        }
        Ok(facts)
    }

    /// The value of one key.
    pub(crate) async fn fact(&self, fact: &FactKey) -> Result<Fact, RegistryError> {
        Ok(read_fact(&*self.storage, fact).await?)
    }

    /// At most `limit` keys of a kind after `after`, in the order of storage. Tombstones are
    /// included.
    pub(crate) async fn fact_keys(
        &self,
        kind: FactKind,
        after: Option<&FactKey>,
        limit: usize,
    ) -> Result<KeysPage, RegistryError> {
        Ok(list_fact_keys(&*self.storage, kind, after, limit).await?)
    }
}

/// The value of a key in a bucket.
pub(crate) async fn read_fact(storage: &dyn Storage, fact: &FactKey) -> Result<Fact, StorageError> {
    let key = layout::fact(fact);
    let Some(object) = storage.read(&key).await? else {
        return Ok(Fact::without_bytes(FactHead::Absent));
    };
    match fact {
        FactKey::Manifest(..) => manifest_fact(&key, &object.body),
        FactKey::Tag(..) => {
            let pointer = Pointer::<TagValue>::of(&key, &object.body)?;
            Ok(Fact::without_bytes(FactHead::Tag {
                stamp: pointer.stamp,
                digest: pointer.value.map(|value| value.digest),
            }))
        }
    }
}

/// A page of the keys of a kind in a bucket; see [`Registry::fact_keys`].
pub(crate) async fn list_fact_keys(
    storage: &dyn Storage,
    kind: FactKind,
    after: Option<&FactKey>,
    limit: usize,
) -> Result<KeysPage, StorageError> {
    let mut after = after.map(layout::fact);
    let prefix = layout::facts(kind);
    let limit = limit.clamp(1, MAX_KEYS);
    loop {
        let page = storage.list(&prefix, after.as_ref(), limit).await?;
        let keys = page.entries.iter();
        let keys: Vec<FactKey> = keys
            .filter_map(|entry| layout::fact_key(&entry.key))
            .collect();
        // A caller asks for the keys after the last one, so a page of foreign objects is passed by.
        let last = page.entries.last().map(|entry| entry.key.clone());
        if !keys.is_empty() || !page.more || last.is_none() {
            return Ok(KeysPage {
                keys,
                more: page.more && last.is_some(),
            });
        }
        after = last;
    }
}

fn manifest_fact(key: &Key, body: &Bytes) -> Result<Fact, StorageError> {
    let record = ManifestRecord::of(key, body)?;
    let stamp = record.stamp;
    let head = match (record.state, record.content) {
        (_, Some((media_type, bytes))) => {
            let len = u32::try_from(bytes.len())
                .map_err(|error| StorageError::unavailable("read manifest", key, error))?;
            let head = FactHead::Manifest {
                stamp,
                media_type,
                len,
            };
            let bytes = bytes.to_vec();
            return Ok(Fact { head, bytes });
        }
        (ManifestState::Deleted, None) => FactHead::DeletedManifest {
            stamp,
            subject: record.subject,
        },
        (_, None) => FactHead::Evicted { stamp },
    };
    Ok(Fact::without_bytes(head))
}
