//! Fetching a chunk from a neighbour, and verifying everything that it sends.
//!
//! ```text
//! -> Ask {digest, chunk}
//! <- Parts {values}       must merge to the chunk's entry in the chunk table
//! <- 256 KiB              must have the first value; then it is written and readable
//! <- 256 KiB              ...
//! ```
//! A sealed blob without a table (one part at most) is checked against its digest before it is
//! written. Bytes that fail their check never leave this module. While a part is checked and
//! written, the next one is received, so a transfer has at most two parts in memory.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::grant::Grant;
use flotilla_common::hash_tree::{self, ChainingValue};
use flotilla_common::proof::Proof;
use flotilla_common::wire::peer::{Ask, Chunk, Refusal};
use flotilla_runtime::rate::Limiter;
use futures_util::future::try_join;
use quinn::{RecvStream, VarInt};
use tokio::time::timeout;

use super::frame_io::{self, FRAME_TIMEOUT, StreamError};
use super::peer_link::PeerLink;
use crate::store::{self, StoreError, StoredBlob};

/// Bytes that are received before the rate limiter is asked.
const RECEIVE_PIECE: usize = 64 << 10;
/// The longest answer before the bytes: the values of 16 parts, the most that a chunk has, and room
/// to spare.
const MAX_ANSWER_LEN: usize = 4096;

/// Why a chunk or an image was not received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the neighbour refused the request: {0}")]
    Refused(Refusal),
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("connection: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the bytes do not match their proof")]
    Corrupt,
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Fetches a chunk, verifies it part by part, and stores it. `on_progress` is called with the bytes
/// received so far; first with 0, when the neighbour has accepted the request.
pub(crate) async fn fetch_chunk(
    link: &PeerLink,
    blob: &Arc<StoredBlob>,
    chunk: u32,
    grant: Option<Grant>,
    limiter: &Limiter,
    mut on_progress: impl FnMut(u64),
) -> Result<(), FetchError> {
    let (mut send, mut receive) = link.connection().open_bi().await?;
    let ask = Chunk::Ask(Ask {
        digest: *blob.digest(),
        chunk,
        grant,
    });
    frame_io::write(&mut send, &ask).await?;
    // Fails only if the stream is closed already, which the next read reports.
    let _ = send.finish();
    let values = match frame_io::read(&mut receive, MAX_ANSWER_LEN).await? {
        Chunk::Refused(reason) => return Err(FetchError::Refused(reason)),
        Chunk::Parts(parts) => parts.values,
        Chunk::Ask(_) | Chunk::AskImage(_) | Chunk::Image(_) => {
            return Err(StreamError::Unexpected.into());
        }
    };
    on_progress(0);
    let received = match (blob.table(), blob.proof()) {
        (Some(table), _) => {
            if !table.verifies_parts(blob.geometry(), chunk, &values) {
                return Err(FetchError::Corrupt);
            }
            receive_parts(&mut receive, blob, chunk, &values, limiter, on_progress).await
        }
        (None, Proof::Sealed { .. }) => {
            receive_single_part(&mut receive, blob, limiter, on_progress).await
        }
        (None, Proof::DigestOnly { .. }) => {
            receive_unsealed_blob(&mut receive, blob, limiter, on_progress).await
        }
    };
    if received.is_err() {
        let _ = receive.stop(VarInt::from_u32(1));
    }
    received?;
    blob.mark_held(chunk, &values);
    Ok(())
}

/// Receives a chunk of a blob with a table. Each part is verified by its chaining value.
async fn receive_parts(
    receive: &mut RecvStream,
    blob: &Arc<StoredBlob>,
    chunk: u32,
    values: &[ChainingValue],
    limiter: &Limiter,
    mut on_progress: impl FnMut(u64),
) -> Result<(), FetchError> {
    let start = blob.geometry().chunk_range(chunk).start;
    let mut received: Option<ReceivedPart> = None;
    for (range, value) in blob.geometry().parts(chunk).zip(values) {
        let before = range.start - start;
        let length = range.end - range.start;
        let reading = async {
            let bytes =
                read_bytes(receive, length, limiter, |read| on_progress(before + read)).await?;
            Ok(bytes)
        };
        let bytes = match received.take() {
            Some(part) => try_join(reading, part.store(blob)).await?.0,
            None => reading.await?,
        };
        received = Some(ReceivedPart {
            start: range.start,
            value: *value,
            bytes,
        });
    }
    match received {
        Some(part) => part.store(blob).await,
        None => Ok(()),
    }
}

/// A received part, and the chaining value that it must have.
struct ReceivedPart {
    start: u64,
    value: ChainingValue,
    bytes: Bytes,
}

impl ReceivedPart {
    async fn store(self, blob: &Arc<StoredBlob>) -> Result<(), FetchError> {
        let Self {
            start,
            value,
            bytes,
        } = self;
        let is_valid = move |bytes: &[u8]| hash_tree::subtree_value(start, bytes) == value;
        if blob.verify_and_write(start, bytes, is_valid).await? {
            Ok(())
        } else {
            Err(FetchError::Corrupt)
        }
    }
}

/// Receives a sealed blob of one part at most, which is verified by its digest.
async fn receive_single_part(
    receive: &mut RecvStream,
    blob: &Arc<StoredBlob>,
    limiter: &Limiter,
    on_progress: impl FnMut(u64),
) -> Result<(), FetchError> {
    let bytes = read_bytes(receive, blob.geometry().size(), limiter, on_progress).await?;
    let digest = *blob.digest();
    let is_valid = move |bytes: &[u8]| digest.matches(bytes);
    if blob.verify_and_write(0, bytes, is_valid).await? {
        Ok(())
    } else {
        Err(FetchError::Corrupt)
    }
}

/// Receives a blob that only its digest proves. No byte is readable before all are hashed.
async fn receive_unsealed_blob(
    receive: &mut RecvStream,
    blob: &Arc<StoredBlob>,
    limiter: &Limiter,
    mut on_progress: impl FnMut(u64),
) -> Result<(), FetchError> {
    let mut download = blob.start_staged_download()?;
    for range in blob.geometry().parts(0) {
        let before = range.start;
        let length = range.end - range.start;
        let bytes = read_bytes(receive, length, limiter, |read| on_progress(before + read)).await?;
        download = download.write(bytes).await?;
    }
    if download.finish().await? {
        Ok(())
    } else {
        Err(FetchError::Corrupt)
    }
}

/// Reads exactly `length` bytes, in pieces within the rate limit.
async fn read_bytes(
    receive: &mut RecvStream,
    length: u64,
    limiter: &Limiter,
    mut on_progress: impl FnMut(u64),
) -> Result<Bytes, StreamError> {
    let length = usize::try_from(length).map_err(|_| StreamError::Unexpected)?;
    let mut bytes = store::take(length);
    while bytes.len() < length {
        let before = bytes.len();
        let until = (before + RECEIVE_PIECE).min(length);
        timeout(FRAME_TIMEOUT, read_until(receive, &mut bytes, until))
            .await
            .map_err(|_| StreamError::Timeout)??;
        limiter.take(until - before).await;
        on_progress(until as u64);
    }
    Ok(store::freeze(bytes))
}

/// Reads until `bytes` has the length `until`. Copies each byte once, from its packet into memory
/// that was not zeroed.
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
