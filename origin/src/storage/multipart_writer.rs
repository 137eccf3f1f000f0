//! Writing one object to an object store: an object of at most one part is one conditional put, a
//! longer one is a multipart upload of equal parts, several of them in flight.
//!
//! ```text
//! bytes -> part of 5 MiB, in a buffer of the pool -> put_part, at most 5 in flight -+
//!                                                   put_part -----------------------+-> complete
//! ```
//! A part keeps its buffer until the store has accepted it, so the pool limits the memory of all
//! writers together. A full part can be sent without acquiring anything else, so every writer that
//! waits for a buffer gets one eventually: there is no deadlock. A writer that is dropped or fails
//! aborts its multipart upload; uploads that a crash leaves behind are for the bucket's lifecycle
//! rule.

use core::time::Duration;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::{Key, ObjectWriter, StorageError, StorageResult};
use crate::buffer_pool::{BufferPool, PooledBuffer};

/// Bytes of a part. All parts of an object but the last are equal, as some stores require; S3
/// accepts none smaller than 5 MiB.
const PART_LEN: usize = 5 << 20;
/// Parts of one object that are in flight at once.
const MAX_PARTS_IN_FLIGHT: usize = 5;
/// Multipart uploads that are completed at once. Some stores copy all bytes to complete an upload,
/// and time out when a burst completes many.
const MAX_COMPLETIONS: usize = 16;
/// A part is handed to the HTTP client in pieces of this length, because the client may copy them.
const PIECE_LEN: usize = 64 << 10;
/// How long an abort in the background may take.
const ABORT_TIMEOUT: Duration = Duration::from_secs(30);
const ACTION: &str = "write object";

/// The buffers for parts that are being filled or sent. A writer waits until a buffer is free, and
/// so does its client.
#[derive(Clone, Debug)]
pub struct PartPool {
    parts: BufferPool,
    /// Limits the uploads that are completed at once.
    completions: Arc<Semaphore>,
}

impl PartPool {
    /// A pool of `bytes`, but at least one part of 5 MiB.
    pub fn new(bytes: u64) -> Self {
        Self {
            parts: BufferPool::new(PART_LEN, bytes),
            completions: Arc::new(Semaphore::new(MAX_COMPLETIONS)),
        }
    }
}

/// A multipart upload that was begun, and its parts in flight.
struct Multipart {
    upload: Box<dyn MultipartUpload>,
    in_flight: JoinSet<object_store::Result<()>>,
}

pub(super) struct MultipartWriter {
    store: Arc<dyn ObjectStore>,
    /// The store keeps the buffers that are written to it, so it must get copies.
    keeps_buffers: bool,
    pool: PartPool,
    key: Key,
    path: Path,
    /// The part that is being filled.
    part: Option<PooledBuffer>,
    /// A buffer for the next part, if one was free before it was needed.
    spare: Option<PooledBuffer>,
    len: u64,
    /// Begun with the second part.
    multipart: Option<Multipart>,
}

impl MultipartWriter {
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        keeps_buffers: bool,
        pool: PartPool,
        key: Key,
        path: Path,
    ) -> Self {
        Self {
            store,
            keeps_buffers,
            pool,
            key,
            path,
            part: None,
            spare: None,
            len: 0,
            multipart: None,
        }
    }

    async fn append(&mut self, mut bytes: Bytes) -> StorageResult<()> {
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            let appended = self.open_part().await?.append(&bytes);
            bytes.advance(appended);
        }
        Ok(())
    }

    /// Takes the bytes of the part that is being filled.
    fn take_part(&mut self) -> Bytes {
        let part = self
            .part
            .take()
            .map(PooledBuffer::freeze)
            .unwrap_or_default();
        if self.keeps_buffers {
            Bytes::copy_from_slice(&part)
        } else {
            part
        }
    }

    fn part_len(&self) -> usize {
        self.part.as_ref().map_or(0, PooledBuffer::len)
    }

    /// The part to fill, which has free space. Waits for a buffer only while this writer holds
    /// none.
    async fn open_part(&mut self) -> StorageResult<&mut PooledBuffer> {
        if self.part_len() == PART_LEN {
            self.send_part().await?;
        }
        let part = match (self.part.take(), self.spare.take()) {
            (Some(part), spare) => {
                self.spare = spare;
                part
            }
            (None, Some(spare)) => spare,
            (None, None) => self.pool.parts.take().await,
        };
        Ok(self.part.insert(part))
    }

    async fn reserve_after(&mut self, pending: usize) -> StorageResult<usize> {
        if pending == 0 {
            self.open_part().await?;
        }
        let in_part = PART_LEN.saturating_sub(self.part_len() + pending);
        if in_part > 0 {
            return Ok(in_part);
        }
        if self.spare.is_none() {
            self.spare = self.pool.parts.try_take();
        }
        Ok(if self.spare.is_some() { PART_LEN } else { 0 })
    }

    /// Starts sending the current part, once fewer than [`MAX_PARTS_IN_FLIGHT`] are in flight.
    async fn send_part(&mut self) -> StorageResult<()> {
        let part = self.take_part();
        let multipart = match &mut self.multipart {
            Some(multipart) => multipart,
            none => {
                let begun = self.store.put_multipart(&self.path).await;
                none.insert(Multipart {
                    upload: begun.map_err(|error| map_error(&self.key, error))?,
                    in_flight: JoinSet::new(),
                })
            }
        };
        while multipart.in_flight.len() >= MAX_PARTS_IN_FLIGHT {
            part_outcome(&self.key, multipart.in_flight.join_next().await)?;
        }
        let sending = multipart.upload.put_part(payload(&part));
        multipart.in_flight.spawn(sending);
        Ok(())
    }

    async fn complete(mut self) -> StorageResult<()> {
        if self.multipart.is_none() {
            return self.put_whole().await;
        }
        if self.part_len() > 0 {
            self.send_part().await?;
        }
        let Some(multipart) = &mut self.multipart else {
            return Ok(());
        };
        while let Some(joined) = multipart.in_flight.join_next().await {
            part_outcome(&self.key, Some(joined))?;
        }
        // Acquiring fails only if the semaphore is closed, which never happens.
        let _permit = self.pool.completions.acquire().await.ok();
        // Not every backend can complete a multipart upload conditionally. Keys of streamed objects
        // carry a nonce and are written once, so this check only detects a broken nonce generator.
        if let Some(_present) = stored_len(&*self.store, &self.key, &self.path).await? {
            return Err(StorageError::conflict(ACTION, &self.key));
        }
        if let Err(error) = multipart.upload.complete().await {
            // If the first response was lost, the client library's retry finds no such upload.
            let stored = stored_len(&*self.store, &self.key, &self.path).await?;
            if stored != Some(self.len) {
                return Err(map_error(&self.key, error));
            }
        }
        self.multipart = None;
        Ok(())
    }

    /// Writes an object of at most one part, in one conditional put.
    async fn put_whole(&mut self) -> StorageResult<()> {
        let payload = payload(&self.take_part());
        let options = PutOptions::from(PutMode::Create);
        let put = self
            .store
            .put_opts(&self.path, payload.clone(), options)
            .await;
        match put {
            Ok(_) => Ok(()),
            Err(error) => match map_error(&self.key, error) {
                // The client library retries throttled requests, including ones that applied.
                StorageError::Conflict { .. }
                    if has_content(&*self.store, &self.key, &self.path, payload).await? =>
                {
                    Ok(())
                }
                error => Err(error),
            },
        }
    }
}

fn map_error(key: &Key, error: object_store::Error) -> StorageError {
    StorageError::from_object_store(ACTION, key, error)
}

fn payload(bytes: &Bytes) -> PutPayload {
    let starts = (0..bytes.len()).step_by(PIECE_LEN);
    starts
        .map(|start| bytes.slice(start..bytes.len().min(start + PIECE_LEN)))
        .collect()
}

/// Whether the object at `path` holds exactly `payload`.
async fn has_content(
    store: &dyn ObjectStore,
    key: &Key,
    path: &Path,
    payload: PutPayload,
) -> StorageResult<bool> {
    let read = async { store.get(path).await?.bytes().await };
    let present = read
        .await
        .map_err(|error| StorageError::from_object_store("read object back", key, error))?;
    Ok(present.len() == payload.content_length() && present == Bytes::from(payload))
}

fn part_outcome(
    key: &Key,
    joined: Option<Result<object_store::Result<()>, JoinError>>,
) -> StorageResult<()> {
    const ACTION: &str = "write part";
    match joined {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(error))) => Err(StorageError::from_object_store(ACTION, key, error)),
        Some(Err(stopped)) => Err(StorageError::unavailable(ACTION, key, stopped)),
    }
}

async fn stored_len(store: &dyn ObjectStore, key: &Key, path: &Path) -> StorageResult<Option<u64>> {
    match store.head(path).await {
        Ok(meta) => Ok(Some(meta.size)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(StorageError::from_object_store(
            "look up object",
            key,
            error,
        )),
    }
}

#[async_trait]
impl ObjectWriter for MultipartWriter {
    async fn reserve(&mut self, pending: usize) -> StorageResult<usize> {
        self.reserve_after(pending).await
    }

    async fn write(&mut self, bytes: Bytes) -> StorageResult<()> {
        self.append(bytes).await
    }

    async fn finish(self: Box<Self>) -> StorageResult<()> {
        (*self).complete().await
    }
}

impl Drop for MultipartWriter {
    fn drop(&mut self) {
        let Some(mut multipart) = self.multipart.take() else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let key = self.key.clone();
        runtime.spawn(async move {
            multipart.in_flight.shutdown().await;
            let aborted = tokio::time::timeout(ABORT_TIMEOUT, multipart.upload.abort()).await;
            let error = match aborted {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "timed out".to_owned(),
            };
            tracing::debug!(%key, error, "abort of multipart upload failed; its parts stay in the bucket");
        });
    }
}
