//! Asking a neighbour for a chunk, and believing nothing of what it sends.
//!
//! ```text
//! -> Ask {digest, chunk}
//! <- Parts {values}       they must merge to the chunk's entry in the table, or the neighbour lies
//! <- 256 KiB              must have the first value; then it is written and may be emitted
//! <- 256 KiB              ...
//! ```
//! A blob without a table (one part at most) is checked against its digest before anything is
//! written. Bytes that fail their check never leave this function. While a part is checked and
//! written, the next one is received: a transfer has two parts in memory at most.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::grant::Grant;
use flotilla_common::proof::Proof;
use flotilla_common::tree::{self, Value};
use flotilla_common::wire::peer::{Ask, Chunk, Refusal};
use flotilla_runtime::rate::Limiter;
use futures_util::future::try_join;
use quinn::{RecvStream, VarInt};
use tokio::time::timeout;

use super::frames::{self, FRAME_TIMEOUT, StreamError};
use super::link::Link;
use crate::store::{self, StoreError, StoredBlob};

/// Bytes taken from the download cap at once.
const SIP: usize = 64 << 10;
/// Values of 16 parts, the most that a chunk has, with room to spare.
const MAX_ANSWER_LEN: usize = 4096;

/// Why no chunk came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("refused: {0:?}")]
    Refused(Refusal),
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("connection: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the bytes are not what their proof says")]
    Corrupt,
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Fetches one chunk, verifies it part by part, and puts it into the store. `progress` is told the
/// bytes received so far, first of all 0 when the neighbour has accepted.
pub(crate) async fn fetch_chunk(
    link: &Link,
    blob: &Arc<StoredBlob>,
    chunk: u32,
    grant: Option<Grant>,
    cap: &Limiter,
    mut progress: impl FnMut(u64),
) -> Result<(), FetchError> {
    let (mut send, mut receive) = link.connection().open_bi().await?;
    let ask = Chunk::Ask(Ask {
        digest: *blob.digest(),
        chunk,
        grant,
    });
    frames::write(&mut send, &ask).await?;
    // The connection carries on without this stream whether or not it still stands.
    let _ = send.finish();
    let values = match frames::read(&mut receive, MAX_ANSWER_LEN).await? {
        Chunk::Refused(refusal) => return Err(FetchError::Refused(refusal)),
        Chunk::Parts(parts) => parts.values,
        Chunk::Ask(_) | Chunk::AskImage(_) | Chunk::Image(_) => {
            return Err(StreamError::Unexpected.into());
        }
    };
    progress(0);
    let received = match (blob.table(), blob.proof()) {
        (Some(table), _) => {
            if !table.verifies_parts(blob.geometry(), chunk, &values) {
                return Err(FetchError::Corrupt);
            }
            by_parts(&mut receive, blob, chunk, &values, cap, progress).await
        }
        (None, Proof::Sealed { .. }) => by_digest(&mut receive, blob, cap, progress).await,
        (None, Proof::DigestOnly { .. }) => as_a_whole(&mut receive, blob, cap, progress).await,
    };
    if received.is_err() {
        let _ = receive.stop(VarInt::from_u32(1));
    }
    received?;
    blob.hold(chunk, &values);
    Ok(())
}

async fn by_parts(
    receive: &mut RecvStream,
    blob: &Arc<StoredBlob>,
    chunk: u32,
    values: &[Value],
    cap: &Limiter,
    mut progress: impl FnMut(u64),
) -> Result<(), FetchError> {
    let start = blob.geometry().chunk_range(chunk).start;
    let mut arrived: Option<Part> = None;
    for (range, value) in blob.geometry().parts(chunk).zip(values) {
        let before = range.start - start;
        let length = range.end - range.start;
        let reading =
            async { Ok(read_part(receive, length, cap, |got| progress(before + got)).await?) };
        let bytes = match arrived.take() {
            Some(part) => try_join(reading, part.store(blob)).await?.0,
            None => reading.await?,
        };
        arrived = Some(Part {
            start: range.start,
            value: *value,
            bytes,
        });
    }
    match arrived {
        Some(part) => part.store(blob).await,
        None => Ok(()),
    }
}

/// A part that has arrived, and the value that it must have.
struct Part {
    start: u64,
    value: Value,
    bytes: Bytes,
}

impl Part {
    async fn store(self, blob: &Arc<StoredBlob>) -> Result<(), FetchError> {
        let Self {
            start,
            value,
            bytes,
        } = self;
        let is_right = move |bytes: &[u8]| tree::subtree_value(start, bytes) == value;
        if blob.write_checked(start, bytes, is_right).await? {
            Ok(())
        } else {
            Err(FetchError::Corrupt)
        }
    }
}

/// A sealed blob of one part at most: its digest is its check.
async fn by_digest(
    receive: &mut RecvStream,
    blob: &Arc<StoredBlob>,
    cap: &Limiter,
    progress: impl FnMut(u64),
) -> Result<(), FetchError> {
    let bytes = read_part(receive, blob.geometry().size(), cap, progress).await?;
    let digest = *blob.digest();
    let is_right = move |bytes: &[u8]| digest.matches(bytes);
    if blob.write_checked(0, bytes, is_right).await? {
        Ok(())
    } else {
        Err(FetchError::Corrupt)
    }
}

/// A blob that nothing proves but its digest: nobody may have a byte of it before all of it was
/// hashed.
async fn as_a_whole(
    receive: &mut RecvStream,
    blob: &Arc<StoredBlob>,
    cap: &Limiter,
    mut progress: impl FnMut(u64),
) -> Result<(), FetchError> {
    let mut aside = blob.aside()?;
    for range in blob.geometry().parts(0) {
        let before = range.start;
        let bytes = read_part(receive, range.end - range.start, cap, |got| {
            progress(before + got)
        })
        .await?;
        aside = aside.push(bytes).await?;
    }
    if aside.finish().await? {
        Ok(())
    } else {
        Err(FetchError::Corrupt)
    }
}

/// Exactly `length` bytes, in sips under the cap.
async fn read_part(
    receive: &mut RecvStream,
    length: u64,
    cap: &Limiter,
    mut progress: impl FnMut(u64),
) -> Result<Bytes, StreamError> {
    let length = usize::try_from(length).map_err(|_| StreamError::Unexpected)?;
    let mut bytes = store::take(length);
    while bytes.len() < length {
        let until = (bytes.len() + SIP).min(length);
        let before = bytes.len();
        timeout(FRAME_TIMEOUT, read_until(receive, &mut bytes, until))
            .await
            .map_err(|_| StreamError::Timeout)??;
        cap.take(until - before).await;
        progress(until as u64);
    }
    Ok(store::freeze(bytes))
}

/// Reads on until there are `until` bytes: each is copied once, out of its packet, into memory that
/// was not zeroed.
async fn read_until(
    receive: &mut RecvStream,
    bytes: &mut Vec<u8>,
    until: usize,
) -> Result<(), StreamError> {
    while bytes.len() < until {
        let read = receive.read_chunk(until - bytes.len(), true).await;
        let chunk = read.map_err(quinn::ReadExactError::ReadError)?;
        let chunk = chunk.ok_or(quinn::ReadExactError::FinishedEarly(bytes.len()))?;
        bytes.extend_from_slice(&chunk.bytes);
    }
    Ok(())
}
