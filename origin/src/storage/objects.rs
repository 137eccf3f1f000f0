//! Storage over the `object_store` crate: memory today, S3, GCS and Azure by the same code once they are switched on.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    UpdateVersion,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    ByteStream, Entry, Key, MAX_READ_LEN, Object, ObjectWriter, Page, Prefix, Storage, StorageError,
    StorageFuture, Version,
};

/// Bytes of a part: all of one object's are equal but the last, as some stores ask.
const PART_LEN: usize = 8 << 20;

/// The memory for parts that are being gathered or sent: a writer without a part waits, and so does its client.
#[derive(Clone, Debug)]
pub struct PartPool(Arc<Semaphore>);

impl PartPool {
    /// A pool of `bytes`, at least one part of 8 MiB.
    pub fn new(bytes: u64) -> Self {
        let parts = usize::try_from(bytes).unwrap_or(usize::MAX) / PART_LEN;
        Self(Arc::new(Semaphore::new(parts.clamp(1, Semaphore::MAX_PERMITS))))
    }
}

/// Any `object_store` that has conditional puts.
#[derive(Debug)]
pub struct ObjectStorage {
    store: Arc<dyn ObjectStore>,
    pool: PartPool,
}

impl ObjectStorage {
    /// Storage over `store`, its streamed writes bounded by `pool`.
    pub fn new(store: Arc<dyn ObjectStore>, pool: PartPool) -> Self {
        Self { store, pool }
    }

    async fn put(
        &self,
        action: &'static str,
        key: &Key,
        mode: PutMode,
        body: Bytes,
    ) -> Result<Version, StorageError> {
        let path = path_of(action, key)?;
        let put = self.store.put_opts(&path, body.into(), PutOptions::from(mode)).await;
        let result = put.map_err(|error| told(action, key, error))?;
        version_of(result.e_tag, result.version).ok_or_else(|| no_version(action, key))
    }
}

fn path_of(action: &'static str, key: &Key) -> Result<Path, StorageError> {
    Path::parse(key.as_str()).map_err(|error| StorageError::unavailable(action, key, error))
}

fn told(action: &'static str, key: &Key, error: object_store::Error) -> StorageError {
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
            let text = format!("{}\n{}", e_tag.unwrap_or_default(), generation.unwrap_or_default());
            Some(Version::new(text))
        }
    }
}

fn update_of(version: &Version) -> UpdateVersion {
    let (e_tag, generation) = version.as_str().split_once('\n').unwrap_or_default();
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    UpdateVersion { e_tag: some(e_tag), version: some(generation) }
}

fn no_version(action: &'static str, key: &Key) -> StorageError {
    StorageError::unavailable(action, key, "the storage names no version of the object")
}

impl Storage for ObjectStorage {
    fn create<'a>(&'a self, key: &'a Key, body: Bytes) -> StorageFuture<'a, Version> {
        self.put("create object", key, PutMode::Create, body).boxed()
    }

    fn swap<'a>(&'a self, key: &'a Key, seen: &'a Version, body: Bytes) -> StorageFuture<'a, Version> {
        self.put("swap object", key, PutMode::Update(update_of(seen)), body).boxed()
    }

    fn read<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Object>> {
        const ACTION: &str = "read object";
        async move {
            let result = match self.store.get(&path_of(ACTION, key)?).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                other => other.map_err(|error| told(ACTION, key, error))?,
            };
            if result.meta.size > MAX_READ_LEN {
                return Err(StorageError::unavailable(ACTION, key, "too long for a record"));
            }
            let version = version_of(result.meta.e_tag.clone(), result.meta.version.clone());
            let version = version.ok_or_else(|| no_version(ACTION, key))?;
            let body = result.bytes().await.map_err(|error| told(ACTION, key, error))?;
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
            let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
            let result = self.store.get_opts(&path_of(ACTION, key)?, options).await;
            let result = result.map_err(|error| told(ACTION, key, error))?;
            if result.range.end - result.range.start != wanted {
                return Err(StorageError::unavailable(ACTION, key, "shorter than its record says"));
            }
            let key = key.clone();
            Ok(result.into_stream().map_err(move |error| told(ACTION, &key, error)).boxed())
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
            let unavailable =
                |error: object_store::Error| StorageError::unavailable("list objects", prefix, error);
            let parsed = |text: &str| Path::parse(text).map_err(|error| unavailable(error.into()));
            let path = parsed(prefix.without_slash())?;
            let listing = match after {
                Some(after) => self.store.list_with_offset(Some(&path), &parsed(after.as_str())?),
                None => self.store.list(Some(&path)),
            };
            let mut found = listing.take(limit + 1).map_err(unavailable);
            let mut page = Page::default();
            while let Some(meta) = found.try_next().await? {
                // What is no key of ours was not put there by us.
                if let Ok(key) = Key::new(meta.location.as_ref()) {
                    page.entries.push(Entry { key, size: meta.size });
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
            let path = path_of("begin object", key)?;
            let writer: Box<dyn ObjectWriter> = Box::new(Writer {
                store: Arc::clone(&self.store),
                pool: self.pool.clone(),
                key: key.clone(),
                path,
                part: Part::default(),
                upload: None,
            });
            Ok(writer)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, ()> {
        async move {
            match self.store.delete(&path_of("delete object", key)?).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(told("delete object", key, error)),
            }
        }
        .boxed()
    }

    fn presigned_get<'a>(&'a self, _key: &'a Key, _valid_for: Duration) -> StorageFuture<'a, Option<String>> {
        async { Ok(None) }.boxed()
    }
}

/// A part that is being gathered; it holds its place in the pool from its first byte on.
#[derive(Default)]
struct Part {
    pieces: Vec<Bytes>,
    len: usize,
    permit: Option<OwnedSemaphorePermit>,
}

struct Writer {
    store: Arc<dyn ObjectStore>,
    pool: PartPool,
    key: Key,
    path: Path,
    part: Part,
    /// Begun only with the second part: what fits one part is one conditional put.
    upload: Option<Box<dyn MultipartUpload>>,
}

impl Writer {
    async fn take(&mut self, mut bytes: Bytes) -> Result<(), StorageError> {
        while !bytes.is_empty() {
            if self.part.len == PART_LEN {
                self.send_part().await?;
            }
            if self.part.permit.is_none() {
                let permit = Arc::clone(&self.pool.0).acquire_owned().await;
                self.part.permit = permit.ok();
            }
            let now = bytes.split_to(bytes.len().min(PART_LEN - self.part.len));
            self.part.len += now.len();
            self.part.pieces.push(now);
        }
        Ok(())
    }

    async fn send_part(&mut self) -> Result<(), StorageError> {
        let told = |error| told("write object", &self.key, error);
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.store.put_multipart(&self.path).await.map_err(told)?),
        };
        let part = core::mem::take(&mut self.part);
        upload.put_part(PutPayload::from_iter(part.pieces)).await.map_err(told)
    }

    async fn complete(mut self) -> Result<(), StorageError> {
        if self.upload.is_none() {
            let payload = PutPayload::from_iter(core::mem::take(&mut self.part.pieces));
            let put = self.store.put_opts(&self.path, payload, PutOptions::from(PutMode::Create)).await;
            return put.map(drop).map_err(|error| told("write object", &self.key, error));
        }
        if self.part.len > 0 {
            self.send_part().await?;
        }
        let told = |error| told("write object", &self.key, error);
        // No backend completes a multipart upload under a condition everywhere. The keys of streamed objects carry a
        // nonce and are written once, so this look only finds a broken generator of nonces.
        match self.store.head(&self.path).await {
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(told(error)),
            Ok(_) => {
                self.abort().await;
                return Err(StorageError::conflict("write object", &self.key));
            }
        }
        match &mut self.upload {
            Some(upload) => upload.complete().await.map(drop).map_err(told),
            None => Ok(()),
        }
    }

    async fn abort(&mut self) {
        if let Some(upload) = &mut self.upload
            && let Err(error) = upload.abort().await
        {
            tracing::debug!(key = %self.key, %error, "a multipart upload is left to the bucket's lifecycle rule");
        }
    }
}

impl ObjectWriter for Writer {
    fn write(&mut self, bytes: Bytes) -> StorageFuture<'_, ()> {
        self.take(bytes).boxed()
    }

    fn finish(self: Box<Self>) -> StorageFuture<'static, ()> {
        (*self).complete().boxed()
    }
}
