//! Serving chunks to neighbours: one stream per chunk, refused at once when the machine says so.

use core::time::Duration;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::chunk::PART_SIZE;
use flotilla_common::digest::Digest;
use flotilla_common::tree::Value;
use flotilla_common::wire::peer::{Ask, Chunk, Parts, Refusal};
use flotilla_runtime::rate::Limiter;
use futures_util::future::try_join;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use super::frames::{self, FRAME_TIMEOUT, StreamError};
use super::tuning;
use crate::store::{StoreError, StoredBlob};

/// Bytes taken from the upload cap and handed to the connection at once.
const SIP: usize = 32 << 10;
/// A question with a grant for a manifest of very many layers.
const MAX_ASK_LEN: usize = 256 << 10;
/// How long the last bytes of a chunk may wait for the neighbour's acknowledgement.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(10);

/// What happens to a chunk on its way out. Nothing, in a fleet: this is where a test makes a peer
/// lie.
pub trait Outbound: fmt::Debug + Send + Sync {
    /// The values of a chunk's parts as they are sent.
    fn values(&self, blob: &Digest, chunk: u32, values: Vec<Value>) -> Vec<Value> {
        let _ = (blob, chunk);
        values
    }

    /// The bytes at `offset` of the blob as they are sent; as many as came.
    fn bytes(&self, blob: &Digest, offset: u64, bytes: Bytes) -> Bytes {
        let _ = (blob, offset);
        bytes
    }
}

/// Sends everything as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faithful;

impl Outbound for Faithful {}

/// Why a chunk was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the chunk is gone")]
    Gone,
}

/// Reads a neighbour's question.
pub(super) async fn read_ask(receive: &mut RecvStream) -> Result<Chunk, StreamError> {
    frames::read(receive, MAX_ASK_LEN).await
}

/// One question that waits for its answer. Dropped without one, the neighbour sees its stream end.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) ask: Ask,
    send: SendStream,
    connection: Connection,
}

impl Question {
    pub(super) const fn new(ask: Ask, send: SendStream, connection: Connection) -> Self {
        Self {
            ask,
            send,
            connection,
        }
    }

    /// Says no.
    pub(crate) async fn refuse(mut self, why: Refusal) -> Result<(), StreamError> {
        frames::write(&mut self.send, &Chunk::Refused(why)).await?;
        let _ = self.send.finish();
        Ok(())
    }

    /// Sends the chunk. `progress` is told the bytes sent so far.
    pub(crate) async fn serve(
        mut self,
        blob: &StoredBlob,
        cap: &Limiter,
        outbound: &Arc<dyn Outbound>,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, ServeError> {
        let (digest, chunk) = (self.ask.digest, self.ask.chunk);
        let held = match blob.chunk(chunk).await {
            Ok(Some(held)) => held,
            Ok(None) => {
                self.refuse(Refusal::Gone).await?;
                return Err(ServeError::Gone);
            }
            Err(error) => {
                self.refuse(Refusal::Gone).await?;
                return Err(error.into());
            }
        };
        let values = outbound.values(&digest, chunk, held.values);
        frames::write(&mut self.send, &Chunk::Parts(Parts { values })).await?;
        let end = held.range.end;
        let part_at = |at: u64| at..(at + PART_SIZE).min(end);
        let mut at = held.range.start;
        let mut bytes = blob.read(part_at(at)).await?;
        while at < end {
            let sending = self.send_part(outbound.bytes(&digest, at, bytes), cap, |sent| {
                progress(at - held.range.start + sent);
            });
            let next = part_at(at).end;
            // The next part is read while this one is sent.
            let reading = async { Ok(blob.read(part_at(next)).await?) };
            bytes = try_join(sending, reading).await?.1;
            at = next;
        }
        let _ = self.send.finish();
        // The slot is free when the last byte has arrived, not when it was queued here.
        let _ = timeout(FAREWELL_TIMEOUT, self.send.stopped()).await;
        Ok(held.range.end - held.range.start)
    }

    async fn send_part(
        &mut self,
        bytes: Bytes,
        cap: &Limiter,
        mut progress: impl FnMut(u64),
    ) -> Result<(), ServeError> {
        for offset in (0..bytes.len()).step_by(SIP) {
            let sip = bytes.slice(offset..(offset + SIP).min(bytes.len()));
            cap.take(sip.len()).await;
            tuning::bound_sending(&self.connection);
            let sent = offset + sip.len();
            self.send_bytes(sip).await?;
            progress(sent as u64);
        }
        Ok(())
    }

    async fn send_bytes(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let written = timeout(FRAME_TIMEOUT, self.send.write_chunk(bytes)).await;
        if written.is_err() {
            let _ = self.send.reset(VarInt::from_u32(1));
        }
        Ok(written.map_err(|_| StreamError::Timeout)??)
    }
}
