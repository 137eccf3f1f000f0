//! A blob that only its digest proves, from an origin: from where the last attempt ended to its
//! end.
//!
//! It may be of any size: what comes is written part by part, and read by the runtime as it is
//! written.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotilla_common::chunk::PART_SIZE;
use flotilla_common::name::RepositoryName;
use flotilla_common::swarm::OriginSlot;
use flotilla_runtime::rate::Limiter;

use super::{OpenBlob, OriginError, OriginFetchError, Origins, client};
use crate::store::StoredBlob;

/// Fetches the whole blob from one origin into the store. `progress` is told the bytes that are
/// there, first of all 0 when the answer has begun.
pub(super) async fn fetch(
    origins: &Origins,
    origin: OriginSlot,
    repository: &RepositoryName,
    blob: &Arc<StoredBlob>,
    cap: &Limiter,
    mut progress: impl FnMut(u64),
) -> Result<(), OriginFetchError> {
    let size = blob.geometry().size();
    let mut direct = blob.direct().await;
    if direct.at() < size {
        let range = format!("bytes={}-", direct.at());
        let open = origins
            .open_at(origin, repository, blob.digest(), Some(&range))
            .await?;
        let mut body = InOrder::new(open, direct.at(), size)?;
        progress(0);
        while let Some(part) = body.next_part().await? {
            let length = part.len();
            direct = direct.push(part).await?;
            progress(direct.at());
            cap.take(length).await;
        }
    }
    if direct.finish()? {
        Ok(())
    } else {
        Err(OriginFetchError::Corrupt)
    }
}

/// A body as parts: whole ones, and a last one.
struct InOrder {
    open: OpenBlob,
    /// Bytes to be left out, at the beginning of an answer that has more than was asked for.
    skip: u64,
    left: u64,
    buffer: BytesMut,
}

impl InOrder {
    fn new(open: OpenBlob, at: u64, size: u64) -> Result<Self, OriginError> {
        if open.size != size {
            let says = open.size;
            let message = format!("has {says} bytes of a blob that has {size} by its manifest");
            return Err(OriginError::Unavailable(message));
        }
        let skip = at
            .checked_sub(open.part.start)
            .filter(|_| open.part.end == size);
        let skip = skip.ok_or_else(|| OriginError::Unavailable("sent another range".to_owned()))?;
        Ok(Self {
            open,
            skip,
            left: size - at,
            buffer: BytesMut::new(),
        })
    }

    /// The next part; nothing after the last.
    async fn next_part(&mut self) -> Result<Option<Bytes>, OriginError> {
        // Parts are as long as their buffer: less than a part is left at the end only.
        let length = self.left.min(PART_SIZE) as usize;
        if length == 0 {
            return Ok(None);
        }
        while self.buffer.len() < length {
            let piece = self.open.response.chunk().await;
            let piece = piece.map_err(|error| OriginError::Unavailable(client::explain(&error)))?;
            let piece = piece.ok_or_else(|| OriginError::Unavailable("broke off".to_owned()))?;
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            self.buffer.extend_from_slice(&piece[skipped as usize..]);
        }
        self.left -= length as u64;
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}
