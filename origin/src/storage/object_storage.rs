//! Storage over the `object_store` crate: the same code for memory, S3, GCS and Azure.
//!
//! The client library retries requests, so a conflict may be caused by the caller's own earlier
//! attempt. Where that is possible, the conflict says so.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::client::HttpClient;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    UpdateVersion,
};

use super::conditional_removal::{ConditionalRemoval, Precondition};
use super::error::is_object_missing;
use super::multipart_writer::{MultipartWriter, PartPool};
use super::sent_attempts::SentAttempts;
use super::whole_body::WholeBody;
use super::{
    ByteStream, Entry, Key, MAX_READ_LEN, Object, ObjectWriter, Page, Prefix, Storage,
    StorageError, StorageResult, StorageTime, Version,
};

/// The pauses before an object whose body was cut is read again. A storage that cuts bodies is to
/// fail several reads within the two seconds after which failures count as an outage.
const CUT_READ_PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(100)];

/// What tells the versions of an object apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VersionKind {
    /// The `ETag`: S3, Azure and memory.
    ETag,
    /// The generation number, which listings do not tell: GCS.
    Generation,
}

/// A client of an object store, and the prefix of our keys in its bucket.
#[derive(Clone, Debug)]
pub struct ObjectStoreClient {
    store: Arc<dyn ObjectStore>,
    signer: Option<Arc<dyn Signer>>,
    removal: Option<ConditionalRemoval>,
    versions: VersionKind,
    /// The store is memory of this process and keeps the buffers that are written to it.
    keeps_buffers: bool,
    prefix: Option<Prefix>,
}

impl ObjectStoreClient {
    /// A remote store, which can sign URLs and remove objects through `http`.
    pub(super) fn new(
        store: impl ObjectStore + Signer + Clone,
        http: Option<HttpClient>,
        precondition: Precondition,
    ) -> Self {
        let signer: Arc<dyn Signer> = Arc::new(store.clone());
        let removal =
            http.map(|http| ConditionalRemoval::new(Arc::clone(&signer), http, precondition));
        Self {
            store: Arc::new(store),
            signer: Some(signer),
            removal,
            versions: match precondition {
                Precondition::SignedIfMatch | Precondition::IfMatch => VersionKind::ETag,
                Precondition::SignedGeneration => VersionKind::Generation,
            },
            keeps_buffers: false,
            prefix: None,
        }
    }

    /// A store in the memory of this process, which cannot sign URLs.
    pub(super) fn in_memory(store: impl ObjectStore) -> Self {
        Self {
            store: Arc::new(store),
            signer: None,
            removal: None,
            versions: VersionKind::ETag,
            keeps_buffers: true,
            prefix: None,
        }
    }

    /// Places all keys under a prefix.
    pub(super) fn with_prefix(self, prefix: Option<Prefix>) -> Self {
        Self { prefix, ..self }
    }

    /// Whether requests cross a network, rather than reach memory of this process.
    const fn is_remote(&self) -> bool {
        self.signer.is_some()
    }

    fn prefix(&self) -> &str {
        self.prefix.as_ref().map_or("", Prefix::as_str)
    }

    fn parse(&self, text: &str) -> Result<Path, object_store::path::Error> {
        Path::parse(format!("{}{text}", self.prefix()))
    }

    fn path(&self, action: &'static str, key: &Key) -> StorageResult<Path> {
        self.parse(key.as_str())
            .map_err(|error| StorageError::unavailable(action, key, error))
    }

    /// The key of a path; `None` for a foreign object.
    fn key(&self, path: &Path) -> Option<Key> {
        Key::new(path.as_ref().strip_prefix(self.prefix())?).ok()
    }
}

/// Storage in any `object_store` that supports conditional puts.
#[derive(Debug)]
pub struct ObjectStorage {
    client: ObjectStoreClient,
    pool: PartPool,
}

impl ObjectStorage {
    /// Storage over `client`, whose streamed writes share the part buffers of `pool`.
    pub fn new(client: ObjectStoreClient, pool: PartPool) -> Self {
        Self { client, pool }
    }

    async fn put(
        &self,
        action: &'static str,
        key: &Key,
        mode: PutMode,
        body: Bytes,
    ) -> StorageResult<Version> {
        let path = self.client.path(action, key)?;
        let attempts = SentAttempts::default();
        let mut options = PutOptions::from(mode);
        options.extensions.insert(attempts.clone());
        let put = self.client.store.put_opts(&path, body.into(), options);
        let result = put.await.map_err(|error| {
            let mut error = StorageError::from_object_store(action, key, error);
            if let StorageError::Conflict {
                may_have_applied, ..
            } = &mut error
            {
                *may_have_applied = self.client.is_remote() && attempts.may_have_applied();
            }
            error
        })?;
        let versions = self.client.versions;
        versions
            .of(result.e_tag, result.version)
            .ok_or_else(|| no_version(action, key))
    }

    async fn read_once(&self, key: &Key) -> Result<Option<Object>, ReadFailure> {
        const ACTION: &str = "read object";
        let failed =
            |error| ReadFailure::Other(StorageError::from_object_store(ACTION, key, error));
        let path = self.client.path(ACTION, key).map_err(ReadFailure::Other)?;
        let whole = WholeBody::default();
        let mut options = GetOptions::default();
        options.extensions.insert(whole.clone());
        let result = match self.client.store.get_opts(&path, options).await {
            Err(error) if is_object_missing(&error) => return Ok(None),
            other => other.map_err(failed)?,
        };
        let size = result.meta.size;
        if size > MAX_READ_LEN {
            let problem =
                format!("object of {size} bytes exceeds the limit of {MAX_READ_LEN} bytes");
            let error = StorageError::unavailable(ACTION, key, problem);
            return Err(ReadFailure::Other(error));
        }
        let version = self
            .client
            .versions
            .of(result.meta.e_tag.clone(), result.meta.version.clone());
        let version = version.ok_or_else(|| ReadFailure::Other(no_version(ACTION, key)))?;
        let modified = modified_at(&result.meta);
        let body = result.bytes().await.map_err(failed)?;
        if body.len() as u64 != size {
            let error = whole.take_error();
            let error = error.unwrap_or_else(|| "the body ended early".to_owned());
            let problem = format!("after {} of {size} bytes: {error}", body.len());
            let error = StorageError::unavailable(ACTION, key, problem);
            return Err(ReadFailure::Cut(error));
        }
        Ok(Some(Object {
            body,
            version,
            modified: Some(modified),
        }))
    }
}

/// Why an object was not read.
enum ReadFailure {
    /// Its body broke or ended early.
    Cut(StorageError),
    Other(StorageError),
}

impl ReadFailure {
    fn into_inner(self) -> StorageError {
        match self {
            Self::Cut(error) | Self::Other(error) => error,
        }
    }
}

impl VersionKind {
    /// The version of an object with these attributes; `None` if they do not tell it.
    fn of(self, e_tag: Option<String>, generation: Option<String>) -> Option<Version> {
        let text = match self {
            Self::ETag => quoted(e_tag?),
            Self::Generation => generation?,
        };
        Some(Version::new(text))
    }

    /// The precondition "the object has this version".
    fn update(self, version: &Version) -> UpdateVersion {
        let text = Some(version.as_str().to_owned());
        match self {
            Self::ETag => UpdateVersion {
                e_tag: text,
                version: None,
            },
            Self::Generation => UpdateVersion {
                e_tag: None,
                version: text,
            },
        }
    }
}

/// An `ETag` as in headers (RFC 9110, section 8.8.3): listings of Azure leave the quotes out.
fn quoted(e_tag: String) -> String {
    if e_tag.ends_with('"') {
        e_tag
    } else {
        format!("\"{e_tag}\"")
    }
}

/// When the store wrote an object, by its own clock.
fn modified_at(meta: &ObjectMeta) -> StorageTime {
    let unix_ms = meta.last_modified.timestamp_millis();
    StorageTime::from_unix_ms(u64::try_from(unix_ms).unwrap_or_default())
}

fn no_version(action: &'static str, key: &Key) -> StorageError {
    StorageError::unavailable(
        action,
        key,
        "the storage returned no ETag and no generation for the object",
    )
}

#[async_trait]
impl Storage for ObjectStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        self.put("create object", key, PutMode::Create, body).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        let mode = PutMode::Update(self.client.versions.update(seen));
        self.put("swap object", key, mode, body).await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        for pause in CUT_READ_PAUSES {
            match self.read_once(key).await {
                Err(ReadFailure::Cut(_)) => tokio::time::sleep(pause).await,
                Err(ReadFailure::Other(error)) => return Err(error),
                Ok(read) => return Ok(read),
            }
        }
        self.read_once(key).await.map_err(ReadFailure::into_inner)
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        const ACTION: &str = "read bytes";
        if range.is_empty() {
            return Ok(futures_util::stream::empty().boxed());
        }
        let expected = range.end - range.start;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let path = self.client.path(ACTION, key)?;
        let result = self
            .client
            .store
            .get_opts(&path, options)
            .await
            .map_err(|error| StorageError::from_object_store(ACTION, key, error))?;
        if result.range.end - result.range.start != expected {
            let problem = "the object is shorter than its record says";
            return Err(StorageError::unavailable(ACTION, key, problem));
        }
        let key = key.clone();
        Ok(result
            .into_stream()
            .map_err(move |error| StorageError::from_object_store(ACTION, &key, error))
            .boxed())
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        let unavailable =
            |error: object_store::Error| StorageError::unavailable("list objects", prefix, error);
        let parse = |text: &str| {
            self.client
                .parse(text)
                .map_err(|error| unavailable(error.into()))
        };
        let path = parse(prefix.without_slash())?;
        let store = &self.client.store;
        let listing = match after {
            Some(after) => store.list_with_offset(Some(&path), &parse(after.as_str())?),
            None => store.list(Some(&path)),
        };
        let mut objects = listing.take(limit + 1).map_err(unavailable);
        let mut page = Page::default();
        while let Some(meta) = objects.try_next().await? {
            // Foreign objects are skipped.
            if let Some(key) = self.client.key(&meta.location) {
                page.entries.push(Entry {
                    key,
                    size: meta.size,
                    modified: Some(modified_at(&meta)),
                    version: self.client.versions.of(meta.e_tag, meta.version),
                });
            }
        }
        page.more = page.entries.len() > limit;
        page.entries.truncate(limit);
        Ok(page)
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        let path = self.client.path("begin object", key)?;
        Ok(Box::new(MultipartWriter::new(
            Arc::clone(&self.client.store),
            self.client.keeps_buffers,
            self.pool.clone(),
            key.clone(),
            path,
        )))
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        const ACTION: &str = "delete object";
        let path = self.client.path(ACTION, key)?;
        match self.client.store.delete(&path).await {
            Ok(()) => Ok(()),
            Err(error) if is_object_missing(&error) => Ok(()),
            Err(error) => Err(StorageError::from_object_store(ACTION, key, error)),
        }
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        const ACTION: &str = "remove object";
        let Some(removal) = &self.client.removal else {
            return Err(StorageError::unsupported(ACTION, key));
        };
        let send = |key: Key, seen: Version| async move {
            let path = self.client.path(ACTION, &key)?;
            removal.send(&key, &path, &seen).await
        };
        if removal.is_honoured(self, send).await? {
            send(key.clone(), seen.clone()).await
        } else {
            Err(StorageError::unsupported(ACTION, key))
        }
    }

    fn is_remote(&self) -> bool {
        true
    }

    async fn presigned_get(&self, key: &Key, valid_for: Duration) -> StorageResult<Option<String>> {
        const ACTION: &str = "sign URL";
        let Some(signer) = &self.client.signer else {
            return Ok(None);
        };
        let path = self.client.path(ACTION, key)?;
        let url = signer.signed_url(http::Method::GET, &path, valid_for).await;
        url.map(|url| Some(url.into()))
            .map_err(|error| StorageError::from_object_store(ACTION, key, error))
    }
}
