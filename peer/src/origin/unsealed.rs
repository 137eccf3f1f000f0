//! Downloads of a blob without chunk proofs from an origin. A download continues at the offset at
//! which the last one ended, and goes to the end of the blob.
//!
//! The blob may have any size, so it is written part by part; the runtime reads it as it is
//! written.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotilla_common::chunk::PART_SIZE;
use flotilla_common::name::RepositoryName;
use flotilla_runtime::rate::Limiter;

use super::blob::OpenBlob;
use super::chunk::ChunkProgress;
use super::client::{OriginClient, content};
use super::error::{OriginError, OriginFetchError};
use crate::store::StoredBlob;

/// Downloads the rest of a blob from the origins into the store. The progress is the number of
/// bytes that are stored.
pub(super) async fn fetch(
    origins: &OriginClient,
    repository: &RepositoryName,
    blob: &Arc<StoredBlob>,
    limit: &Limiter,
    mut progress: impl FnMut(ChunkProgress),
) -> Result<(), OriginFetchError> {
    let size = blob.geometry().size();
    let mut download = blob.start_direct_download().await?;
    let mut attempts = origins.attempts();
    while download.position() < size {
        let range = format!("bytes={}-", download.position());
        let open = origins.open_blob(repository, blob.digest(), Some(&range));
        let open = open.await?;
        let origin = open.origin;
        progress(ChunkProgress::Begun(origin));
        let mut body = PartReader::new(open, download.position(), size);
        let broken = loop {
            let part = match &mut body {
                Ok(body) => body.next_part(origins).await,
                Err(error) => Err(error.clone()),
            };
            match part {
                Ok(Some(part)) => {
                    let length = part.len();
                    download = download.write(part).await?;
                    progress(ChunkProgress::Received(download.position()));
                    limit.take(length).await;
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = broken {
            origins.report_broken(origin, content(blob.digest()), &error);
            attempts -= 1;
            if attempts == 0 {
                return Err(error.into());
            }
        }
    }
    if download.finish()? {
        Ok(())
    } else {
        Err(OriginFetchError::Corrupt)
    }
}

/// Splits a response into parts of `PART_SIZE` bytes; the last one may be shorter.
struct PartReader {
    open: OpenBlob,
    /// Bytes to skip at the start of a response that begins before the requested offset.
    skip: u64,
    /// Bytes up to the end of the blob.
    left: u64,
    buffer: BytesMut,
}

impl PartReader {
    fn new(open: OpenBlob, at: u64, size: u64) -> Result<Self, OriginError> {
        if open.size != size {
            let got = open.size;
            let message = format!("blob size mismatch: the manifest says {size}, the origin {got}");
            return Err(OriginError::Unavailable(message));
        }
        let skip = at
            .checked_sub(open.range.start)
            .filter(|_| open.range.end == size);
        let skip = skip.ok_or_else(|| {
            OriginError::Unavailable("response has another range than requested".to_owned())
        })?;
        Ok(Self {
            open,
            skip,
            left: size - at,
            buffer: BytesMut::new(),
        })
    }

    /// The next part; `None` after the last one.
    async fn next_part(&mut self, origins: &OriginClient) -> Result<Option<Bytes>, OriginError> {
        let length = self.left.min(PART_SIZE) as usize;
        if length == 0 {
            return Ok(None);
        }
        while self.buffer.len() < length {
            let piece = origins.next_piece(self.open.origin, &mut self.open.response);
            let piece = piece
                .await?
                .ok_or_else(|| OriginError::Unavailable("response ended early".to_owned()))?;
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            self.buffer.extend_from_slice(&piece[skipped as usize..]);
        }
        self.left -= length as u64;
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}
