//! Storage over the `object_store` crate: memory, S3, GCS and Azure by the same code.
//!
//! What a store answers with "it is there already" may be one's own write, repeated by the client
//! library: whoever calls reads the key back before it decides anything, here as everywhere.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion,
};

use super::object_writer::{PartPool, Writer};
use super::{
    ByteStream, Entry, Key, MAX_READ_LEN, Object, ObjectWriter, Page, Prefix, Storage,
    StorageError, StorageFuture, Version,
};

/// A client of an object store, and where in it our keys are.
#[derive(Clone, Debug)]
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    signer: Option<Arc<dyn Signer>>,
    /// It is of this process, and keeps the bytes that it is given.
    keeps_bytes: bool,
    prefix: Option<Prefix>,
}

impl Remote {
    /// A store that signs URLs.
    pub(super) fn new(store: impl ObjectStore + Signer + Clone) -> Self {
        Self {
            store: Arc::new(store.clone()),
            signer: Some(Arc::new(store)),
            keeps_bytes: false,
            prefix: None,
        }
    }

    /// A store of this process.
    pub(super) fn unsigned(store: impl ObjectStore) -> Self {
        Self {
            store: Arc::new(store),
            signer: None,
            keeps_bytes: true,
            prefix: None,
        }
    }

    /// The same, with all keys under a prefix.
    pub(super) fn under(self, prefix: Option<Prefix>) -> Self {
        Self { prefix, ..self }
    }

    fn prefix(&self) -> &str {
        self.prefix.as_ref().map_or("", Prefix::as_str)
    }

    fn parse(&self, text: &str) -> Result<Path, object_store::path::Error> {
        Path::parse(format!("{}{text}", self.prefix()))
    }

    fn path(&self, action: &'static str, key: &Key) -> Result<Path, StorageError> {
        self.parse(key.as_str())
            .map_err(|error| StorageError::unavailable(action, key, error))
    }

    /// The key at a path; none if it is not one of ours.
    fn key(&self, path: &Path) -> Option<Key> {
        Key::new(path.as_ref().strip_prefix(self.prefix())?).ok()
    }
}

/// Any `object_store` that has conditional puts.
#[derive(Debug)]
pub struct ObjectStorage {
    remote: Remote,
    pool: PartPool,
}

impl ObjectStorage {
    /// Storage over `remote`, its streamed writes bounded by `pool`.
    pub fn new(remote: Remote, pool: PartPool) -> Self {
        Self { remote, pool }
    }

    async fn put(
        &self,
        action: &'static str,
        key: &Key,
        mode: PutMode,
        body: Bytes,
    ) -> Result<Version, StorageError> {
        let path = self.remote.path(action, key)?;
        let put = self
            .remote
            .store
            .put_opts(&path, body.into(), PutOptions::from(mode))
            .await;
        let result = put.map_err(|error| told(action, key, error))?;
        version_of(result.e_tag, result.version).ok_or_else(|| no_version(action, key))
    }
}

pub(super) fn told(action: &'static str, key: &Key, error: object_store::Error) -> StorageError {
    match error {
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            StorageError::conflict(action, key)
        }
        object_store::Error::NotFound { .. } => StorageError::missing(action, key),
        error => StorageError::unavailable(action, key, error),
    }
}

/// An ETag, and where a store counts generations also those, in one text.
fn version_of(e_tag: Option<String>, generation: Option<String>) -> Option<Version> {
    match (e_tag, generation) {
        (None, None) => None,
        (e_tag, generation) => {
            let text = format!(
                "{}\n{}",
                e_tag.unwrap_or_default(),
                generation.unwrap_or_default()
            );
            Some(Version::new(text))
        }
    }
}

fn update_of(version: &Version) -> UpdateVersion {
    let (e_tag, generation) = version.as_str().split_once('\n').unwrap_or_default();
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    UpdateVersion {
        e_tag: some(e_tag),
        version: some(generation),
    }
}

fn no_version(action: &'static str, key: &Key) -> StorageError {
    StorageError::unavailable(action, key, "the storage names no version of the object")
}

impl Storage for ObjectStorage {
    fn create<'a>(&'a self, key: &'a Key, body: Bytes) -> StorageFuture<'a, Version> {
        self.put("create object", key, PutMode::Create, body)
            .boxed()
    }

    fn swap<'a>(
        &'a self,
        key: &'a Key,
        seen: &'a Version,
        body: Bytes,
    ) -> StorageFuture<'a, Version> {
        self.put("swap object", key, PutMode::Update(update_of(seen)), body)
            .boxed()
    }

    fn read<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Object>> {
        const ACTION: &str = "read object";
        async move {
            let result = match self.remote.store.get(&self.remote.path(ACTION, key)?).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                other => other.map_err(|error| told(ACTION, key, error))?,
            };
            if result.meta.size > MAX_READ_LEN {
                return Err(StorageError::unavailable(
                    ACTION,
                    key,
                    "too long for a record",
                ));
            }
            let version = version_of(result.meta.e_tag.clone(), result.meta.version.clone());
            let version = version.ok_or_else(|| no_version(ACTION, key))?;
            let body = result
                .bytes()
                .await
                .map_err(|error| told(ACTION, key, error))?;
            Ok(Some(Object { body, version }))
        }
        .boxed()
    }

    fn read_range<'a>(&'a self, key: &'a Key, range: Range<u64>) -> StorageFuture<'a, ByteStream> {
        const ACTION: &str = "read bytes";
        async move {
            if range.is_empty() {
                return Ok(futures_util::stream::empty().boxed());
            }
            let wanted = range.end - range.start;
            let options = GetOptions {
                range: Some(GetRange::Bounded(range)),
                ..GetOptions::default()
            };
            let result = self
                .remote
                .store
                .get_opts(&self.remote.path(ACTION, key)?, options)
                .await;
            let result = result.map_err(|error| told(ACTION, key, error))?;
            if result.range.end - result.range.start != wanted {
                return Err(StorageError::unavailable(
                    ACTION,
                    key,
                    "shorter than its record says",
                ));
            }
            let key = key.clone();
            Ok(result
                .into_stream()
                .map_err(move |error| told(ACTION, &key, error))
                .boxed())
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> StorageFuture<'a, Page> {
        async move {
            let unavailable = |error: object_store::Error| {
                StorageError::unavailable("list objects", prefix, error)
            };
            let parsed = |text: &str| {
                self.remote
                    .parse(text)
                    .map_err(|error| unavailable(error.into()))
            };
            let path = parsed(prefix.without_slash())?;
            let listing = match after {
                Some(after) => self
                    .remote
                    .store
                    .list_with_offset(Some(&path), &parsed(after.as_str())?),
                None => self.remote.store.list(Some(&path)),
            };
            let mut found = listing.take(limit + 1).map_err(unavailable);
            let mut page = Page::default();
            while let Some(meta) = found.try_next().await? {
                // What is no key of ours was not put there by us.
                if let Some(key) = self.remote.key(&meta.location) {
                    page.entries.push(Entry {
                        key,
                        size: meta.size,
                    });
                }
            }
            page.more = page.entries.len() > limit;
            page.entries.truncate(limit);
            Ok(page)
        }
        .boxed()
    }

    fn write<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Box<dyn ObjectWriter>> {
        async move {
            let path = self.remote.path("begin object", key)?;
            let store = Arc::clone(&self.remote.store);
            let writer: Box<dyn ObjectWriter> = Box::new(Writer::new(
                store,
                self.remote.keeps_bytes,
                self.pool.clone(),
                key.clone(),
                path,
            ));
            Ok(writer)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, ()> {
        const ACTION: &str = "delete object";
        async move {
            match self
                .remote
                .store
                .delete(&self.remote.path(ACTION, key)?)
                .await
            {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(told(ACTION, key, error)),
            }
        }
        .boxed()
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn presigned_get<'a>(
        &'a self,
        key: &'a Key,
        valid_for: Duration,
    ) -> StorageFuture<'a, Option<String>> {
        const ACTION: &str = "sign URL";
        async move {
            let Some(signer) = &self.remote.signer else {
                return Ok(None);
            };
            let path = self.remote.path(ACTION, key)?;
            let url = signer.signed_url(http::Method::GET, &path, valid_for).await;
            url.map(|url| Some(url.into()))
                .map_err(|error| told(ACTION, key, error))
        }
        .boxed()
    }
}
