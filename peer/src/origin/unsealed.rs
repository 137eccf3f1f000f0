//! Downloads of a blob without chunk proofs from an origin. A download continues at the offset at
//! which the last one ended, and goes to the end of the blob.
//!
//! The blob may have any size, so it is written part by part; the runtime reads it as it is
//! written.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotilla_common::chunk::PART_SIZE;
use flotilla_common::name::RepositoryName;
use flotilla_common::swarm::OriginSlot;
use flotilla_runtime::rate::Limiter;

use super::blob::OpenBlob;
use super::client::OriginClient;
use super::error::{OriginError, OriginFetchError};
use super::http_client::explain;
use crate::store::StoredBlob;

/// Downloads the rest of a blob from one origin into the store. `progress` is called with the
/// number of bytes that are stored, first with 0 when the response begins.
pub(super) async fn fetch(
    origins: &OriginClient,
    origin: OriginSlot,
    repository: &RepositoryName,
    blob: &Arc<StoredBlob>,
    limit: &Limiter,
    mut progress: impl FnMut(u64),
) -> Result<(), OriginFetchError> {
    let size = blob.geometry().size();
    let mut download = blob.start_direct_download().await;
    if download.position() < size {
        let range = format!("bytes={}-", download.position());
        let open = origins
            .open_at(origin, repository, blob.digest(), Some(&range))
            .await?;
        let mut body = PartReader::new(open, download.position(), size)?;
        progress(0);
        while let Some(part) = body.next_part().await? {
            let length = part.len();
            download = download.write(part).await?;
            progress(download.position());
            limit.take(length).await;
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
    async fn next_part(&mut self) -> Result<Option<Bytes>, OriginError> {
        let length = self.left.min(PART_SIZE) as usize;
        if length == 0 {
            return Ok(None);
        }
        while self.buffer.len() < length {
            let piece = self.open.response.chunk().await;
            let piece = piece.map_err(|error| OriginError::Unavailable(explain(&error)))?;
            let piece =
                piece.ok_or_else(|| OriginError::Unavailable("response ended early".to_owned()))?;
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            self.buffer.extend_from_slice(&piece[skipped as usize..]);
        }
        self.left -= length as u64;
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}
