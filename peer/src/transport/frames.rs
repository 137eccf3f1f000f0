//! Frames on quinn streams: every length bounded, every wait bounded.

use core::time::Duration;

use flotilla_common::codec::CodecError;
use flotilla_common::wire::frame::{HEADER_LEN, Header, Message};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};
use tokio::time::timeout;

/// How long one frame, or the next piece of a chunk, may take.
pub(super) const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("read stream: {0}")]
    Read(#[from] ReadExactError),
    #[error("write stream: {0}")]
    Write(#[from] WriteError),
    #[error("the stream stood still")]
    Timeout,
    #[error("frame: {0}")]
    Frame(#[from] CodecError),
    #[error("a frame of {0} bytes where at most {1} make sense")]
    TooLong(usize, usize),
    #[error("an unexpected message")]
    Unexpected,
}

/// Reads frames until one of a known kind came.
pub(super) async fn read<M: Message>(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<M, StreamError> {
    timeout(FRAME_TIMEOUT, read_patiently(stream, limit))
        .await
        .map_err(|_| StreamError::Timeout)?
}

/// As [`read`], for a stream on which nothing may be said for a long time: only a frame that has
/// begun must come to its end in time.
pub(super) async fn read_patiently<M: Message>(
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
