//! One object on its way into an object store: what fits one part is one conditional put, what is
//! longer is a multipart upload of equal parts, several of them under way at once.
//!
//! ```text
//! bytes -> part of 5 MiB, in a block of the pool -> put_part, at most 5 at once -+
//!                                                  put_part --------------------+-> complete
//! ```
//! The block goes with the part until the store has it: the pool bounds the memory of all writers
//! together. A part that is full needs nobody to be sent, so whoever waits for a part gets one in
//! the end. A writer that is dropped, or that fails, aborts its multipart upload; what a crash
//! leaves is for the bucket's lifecycle rule.

use core::time::Duration;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::objects::told;
use super::{Key, ObjectWriter, StorageError, StorageFuture};
use crate::buffer_pool::{BufferPool, PooledBuffer};

/// Bytes of a part: all of one object's are equal but the last, as some stores ask. S3 takes no
/// smaller ones.
const PART_LEN: usize = 5 << 20;
/// Parts of one object that are under way at once.
const PARTS_AT_ONCE: usize = 5;
/// Multipart uploads that are completed at once: with all of a burst at once, a store that copies
/// bytes for it answers none in time.
const COMPLETING_AT_ONCE: usize = 16;
/// Bytes of a part that are handed to the HTTP client at once, which may copy them.
const PIECE_LEN: usize = 64 << 10;
/// How long an abort may take, behind everybody's back.
const ABORT_TIMEOUT: Duration = Duration::from_secs(30);
const ACTION: &str = "write object";

/// The memory for parts that are being gathered or sent: a writer without a part waits, and so does
/// its client.
#[derive(Clone, Debug)]
pub struct PartPool {
    parts: BufferPool,
    /// Uploads that are put together at once: all bytes of them may be copied for it.
    completing: Arc<Semaphore>,
}

impl PartPool {
    /// A pool of `bytes`, at least one part of 5 MiB.
    pub fn new(bytes: u64) -> Self {
        Self {
            parts: BufferPool::new(PART_LEN, bytes),
            completing: Arc::new(Semaphore::new(COMPLETING_AT_ONCE)),
        }
    }
}

/// A multipart upload, begun only with the second part.
struct Upload {
    multipart: Box<dyn MultipartUpload>,
    under_way: JoinSet<object_store::Result<()>>,
}

pub(super) struct Writer {
    store: Arc<dyn ObjectStore>,
    /// The store keeps the bytes that it is given, so it must not get the pool's.
    keeps_bytes: bool,
    pool: PartPool,
    key: Key,
    path: Path,
    /// The part that is being gathered.
    part: Option<PooledBuffer>,
    /// For the next part, if there was one to be had before it was needed.
    spare: Option<PooledBuffer>,
    len: u64,
    upload: Option<Upload>,
}

impl Writer {
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        keeps_bytes: bool,
        pool: PartPool,
        key: Key,
        path: Path,
    ) -> Self {
        Self {
            store,
            keeps_bytes,
            pool,
            key,
            path,
            part: None,
            spare: None,
            len: 0,
            upload: None,
        }
    }

    async fn take(&mut self, mut bytes: Bytes) -> Result<(), StorageError> {
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            let now = self.part().await?.append(&bytes);
            bytes.advance(now);
        }
        Ok(())
    }

    /// Takes the part that is being gathered.
    fn gathered(&mut self) -> Bytes {
        let part = self
            .part
            .take()
            .map(PooledBuffer::freeze)
            .unwrap_or_default();
        if self.keeps_bytes {
            Bytes::copy_from_slice(&part)
        } else {
            part
        }
    }

    fn part_len(&self) -> usize {
        self.part.as_ref().map_or(0, PooledBuffer::len)
    }

    /// A part that is not full. Waits for one without holding another that waits for bytes.
    async fn part(&mut self) -> Result<&mut PooledBuffer, StorageError> {
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

    async fn room_after(&mut self, pending: usize) -> Result<usize, StorageError> {
        if pending == 0 {
            self.part().await?;
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

    /// Sets the gathered part on its way, once fewer than [`PARTS_AT_ONCE`] are.
    async fn send_part(&mut self) -> Result<(), StorageError> {
        let gathered = self.gathered();
        let told = |error| told(ACTION, &self.key, error);
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => {
                let multipart = self.store.put_multipart(&self.path).await.map_err(told)?;
                none.insert(Upload {
                    multipart,
                    under_way: JoinSet::new(),
                })
            }
        };
        while upload.under_way.len() >= PARTS_AT_ONCE {
            arrived(&self.key, upload.under_way.join_next().await)?;
        }
        let part = upload.multipart.put_part(payload(&gathered));
        upload.under_way.spawn(part);
        Ok(())
    }

    async fn complete(mut self) -> Result<(), StorageError> {
        if self.upload.is_none() {
            return self.put_whole().await;
        }
        if self.part_len() > 0 {
            self.send_part().await?;
        }
        let Some(upload) = &mut self.upload else {
            return Ok(());
        };
        while let Some(joined) = upload.under_way.join_next().await {
            arrived(&self.key, Some(joined))?;
        }
        // The pool is never closed.
        let _turn = self.pool.completing.acquire().await.ok();
        // No backend completes a multipart upload under a condition everywhere. The keys of
        // streamed objects carry a nonce and are written once, so this look only finds a broken
        // generator of nonces.
        if let Some(_present) = stored_len(&*self.store, &self.key, &self.path).await? {
            return Err(StorageError::conflict(ACTION, &self.key));
        }
        if let Err(error) = upload.multipart.complete().await {
            // A repeated request whose first answer was lost meets an upload that is no more.
            let stored = stored_len(&*self.store, &self.key, &self.path).await?;
            if stored != Some(self.len) {
                return Err(told(ACTION, &self.key, error));
            }
        }
        self.upload = None;
        Ok(())
    }

    /// What fits one part, in one conditional put.
    async fn put_whole(&mut self) -> Result<(), StorageError> {
        let payload = payload(&self.gathered());
        let put = self
            .store
            .put_opts(
                &self.path,
                payload.clone(),
                PutOptions::from(PutMode::Create),
            )
            .await;
        match put {
            Ok(_) => Ok(()),
            Err(error) => match told(ACTION, &self.key, error) {
                // The client library repeats what was throttled, also if it had applied.
                StorageError::Conflict { .. }
                    if is_there(&*self.store, &self.key, &self.path, payload).await? =>
                {
                    Ok(())
                }
                error => Err(error),
            },
        }
    }
}

/// Bytes in pieces.
fn payload(bytes: &Bytes) -> PutPayload {
    let starts = (0..bytes.len()).step_by(PIECE_LEN);
    starts
        .map(|start| bytes.slice(start..bytes.len().min(start + PIECE_LEN)))
        .collect()
}

async fn is_there(
    store: &dyn ObjectStore,
    key: &Key,
    path: &Path,
    payload: PutPayload,
) -> Result<bool, StorageError> {
    let read = async { store.get(path).await?.bytes().await };
    let present = read
        .await
        .map_err(|error| told("read object back", key, error))?;
    Ok(present.len() == payload.content_length() && present == Bytes::from(payload))
}

fn arrived(
    key: &Key,
    joined: Option<Result<object_store::Result<()>, JoinError>>,
) -> Result<(), StorageError> {
    match joined {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(error))) => Err(told("write part", key, error)),
        Some(Err(stopped)) => Err(StorageError::unavailable("write part", key, stopped)),
    }
}

async fn stored_len(
    store: &dyn ObjectStore,
    key: &Key,
    path: &Path,
) -> Result<Option<u64>, StorageError> {
    match store.head(path).await {
        Ok(meta) => Ok(Some(meta.size)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(told("look for object", key, error)),
    }
}

impl ObjectWriter for Writer {
    fn room(&mut self, pending: usize) -> StorageFuture<'_, usize> {
        self.room_after(pending).boxed()
    }

    fn write(&mut self, bytes: Bytes) -> StorageFuture<'_, ()> {
        self.take(bytes).boxed()
    }

    fn finish(self: Box<Self>) -> StorageFuture<'static, ()> {
        (*self).complete().boxed()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Some(Upload {
            mut multipart,
            mut under_way,
        }) = self.upload.take()
        else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let key = self.key.clone();
        runtime.spawn(async move {
            under_way.shutdown().await;
            match tokio::time::timeout(ABORT_TIMEOUT, multipart.abort()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%key, %error, "a multipart upload is left behind"),
                Err(_) => tracing::debug!(%key, "a multipart upload is left behind: no answer to its abort"),
            }
        });
    }
}
