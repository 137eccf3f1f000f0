//! Serving chunks to neighbours: one stream per chunk. A refusal is sent at once.

use core::time::Duration;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::chunk::PART_SIZE;
use flotilla_common::digest::Digest;
use flotilla_common::hash_tree::ChainingValue;
use flotilla_common::wire::peer::{Ask, Chunk, Parts, Refusal};
use flotilla_runtime::rate::Limiter;
use futures_util::future::try_join;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use super::frame_io::{self, FRAME_TIMEOUT, StreamError};
use super::tuning;
use crate::store::{StoreError, StoredBlob};

/// Bytes that are handed to the connection at once, after the rate limiter has admitted them.
const SEND_PIECE: usize = 32 << 10;
/// The longest request, with a grant for a manifest of very many layers.
const MAX_REQUEST_LEN: usize = 256 << 10;
/// How long to wait for the neighbour's acknowledgement of a chunk's last bytes.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Changes chunks before they are sent. Tests use it to make a peer send wrong bytes; production
/// uses [`Unaltered`].
pub trait ChunkInterceptor: fmt::Debug + Send + Sync {
    /// The chaining values of a chunk's parts to send.
    fn values(&self, blob: &Digest, chunk: u32, values: Vec<ChainingValue>) -> Vec<ChainingValue> {
        let _ = (blob, chunk);
        values
    }

    /// The bytes to send for those at `offset` of the blob; the length must not change.
    fn bytes(&self, blob: &Digest, offset: u64, bytes: Bytes) -> Bytes {
        let _ = (blob, offset);
        bytes
    }
}

/// Sends every chunk as it is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unaltered;

impl ChunkInterceptor for Unaltered {}

/// Why a chunk was not sent completely.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the chunk is no longer held")]
    Gone,
}

/// Reads the request on a stream that a neighbour opened.
pub(super) async fn read_request(receive: &mut RecvStream) -> Result<Chunk, StreamError> {
    frame_io::read(receive, MAX_REQUEST_LEN).await
}

/// A neighbour's request for a chunk. If it is dropped without an answer, the neighbour sees the
/// stream end.
#[derive(Debug)]
pub(crate) struct ChunkRequest {
    pub(crate) ask: Ask,
    send: SendStream,
    connection: Connection,
}

impl ChunkRequest {
    pub(super) const fn new(ask: Ask, send: SendStream, connection: Connection) -> Self {
        Self {
            ask,
            send,
            connection,
        }
    }

    pub(crate) async fn refuse(mut self, reason: Refusal) -> Result<(), StreamError> {
        frame_io::write(&mut self.send, &Chunk::Refused(reason)).await?;
        let _ = self.send.finish();
        Ok(())
    }

    /// Sends the chunk, and calls `on_progress` with the bytes sent so far.
    pub(crate) async fn serve(
        mut self,
        blob: &StoredBlob,
        limiter: &Limiter,
        interceptor: &Arc<dyn ChunkInterceptor>,
        mut on_progress: impl FnMut(u64),
    ) -> Result<u64, ServeError> {
        let (digest, chunk) = (self.ask.digest, self.ask.chunk);
        let held = match blob.chunk(chunk).await {
            Ok(Some(held)) => held,
            Ok(None) => {
                self.refuse(Refusal::Gone).await?;
                return Err(ServeError::Gone);
            }
            Err(error @ StoreError::OutOfFiles { .. }) => {
                self.refuse(Refusal::Busy).await?;
                return Err(error.into());
            }
            Err(error) => {
                self.refuse(Refusal::Gone).await?;
                return Err(error.into());
            }
        };
        let values = interceptor.values(&digest, chunk, held.values);
        frame_io::write(&mut self.send, &Chunk::Parts(Parts { values })).await?;
        let end = held.range.end;
        let part_at = |offset: u64| offset..(offset + PART_SIZE).min(end);
        let mut offset = held.range.start;
        let mut bytes = blob.read(part_at(offset)).await?;
        while offset < end {
            let sending =
                self.send_part(interceptor.bytes(&digest, offset, bytes), limiter, |sent| {
                    on_progress(offset - held.range.start + sent)
                });
            let next = part_at(offset).end;
            // Read the next part while this one is sent.
            let reading = async { Ok(blob.read(part_at(next)).await?) };
            bytes = try_join(sending, reading).await?.1;
            offset = next;
        }
        let _ = self.send.finish();
        // The upload slot stays taken until the last byte has arrived, not only until it is queued.
        let _ = timeout(ACKNOWLEDGEMENT_TIMEOUT, self.send.stopped()).await;
        Ok(held.range.end - held.range.start)
    }

    async fn send_part(
        &mut self,
        bytes: Bytes,
        limiter: &Limiter,
        mut on_progress: impl FnMut(u64),
    ) -> Result<(), ServeError> {
        for offset in (0..bytes.len()).step_by(SEND_PIECE) {
            let piece = bytes.slice(offset..(offset + SEND_PIECE).min(bytes.len()));
            limiter.take(piece.len()).await;
            tuning::limit_send_buffer(&self.connection);
            let sent = offset + piece.len();
            self.send_piece(piece).await?;
            on_progress(sent as u64);
        }
        Ok(())
    }

    async fn send_piece(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let written = timeout(FRAME_TIMEOUT, self.send.write_chunk(bytes)).await;
        if written.is_err() {
            let _ = self.send.reset(VarInt::from_u32(1));
        }
        Ok(written.map_err(|_| StreamError::Timeout)??)
    }
}
