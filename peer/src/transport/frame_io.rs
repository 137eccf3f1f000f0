//! Reading and writing frames on QUIC streams, with limits on length and time.

use core::time::Duration;

use flotilla_common::codec::CodecError;
use flotilla_common::wire::frame::{HEADER_LEN, Header, Message};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};
use tokio::time::timeout;

/// Time limit for one frame, or for the next piece of a chunk.
pub(super) const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a stream was given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("read stream: {0}")]
    Read(#[from] ReadExactError),
    #[error("write stream: {0}")]
    Write(#[from] WriteError),
    #[error("the stream stalled for {} s", FRAME_TIMEOUT.as_secs())]
    Timeout,
    #[error("decode a neighbour's message: {0}")]
    Frame(#[from] CodecError),
    #[error("a neighbour's message has {0} bytes; the limit is {1}")]
    TooLong(usize, usize),
    #[error("unexpected message from a neighbour")]
    Unexpected,
}

/// Reads the next message; skips frames of unknown kinds.
pub(super) async fn read<M: Message>(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<M, StreamError> {
    timeout(FRAME_TIMEOUT, read_without_deadline(stream, limit))
        .await
        .map_err(|_| StreamError::Timeout)?
}

/// As [`read`], for streams that may be silent for a long time: [`FRAME_TIMEOUT`] applies only once
/// a frame has begun.
pub(super) async fn read_without_deadline<M: Message>(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<M, StreamError> {
    loop {
        let mut header = [0; HEADER_LEN];
        stream.read_exact(&mut header).await?;
        let header = Header::parse(header)?;
        if header.len > limit {
            return Err(StreamError::TooLong(header.len, limit));
        }
        let mut body = vec![0; header.len];
        timeout(FRAME_TIMEOUT, stream.read_exact(&mut body))
            .await
            .map_err(|_| StreamError::Timeout)??;
        if let Some(message) = M::decode(header.kind, &body)? {
            return Ok(message);
        }
    }
}

/// Writes one message.
pub(super) async fn write<M: Message>(
    stream: &mut SendStream,
    message: &M,
) -> Result<(), StreamError> {
    let frame = message.to_frame()?;
    timeout(FRAME_TIMEOUT, stream.write_all(&frame))
        .await
        .map_err(|_| StreamError::Timeout)??;
    Ok(())
}
