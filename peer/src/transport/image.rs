//! Images between peers: a manifest and the proofs of its blobs, in one frame each way.

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::wire::frame::MAX_BODY_LEN;
use flotilla_common::wire::peer::{AskImage, Chunk, ImageBundle, Refusal};
use quinn::SendStream;

use super::fetch::FetchError;
use super::frame_io::{self, StreamError};
use super::peer_link::PeerLink;

/// A neighbour's request for an image. If it is dropped without an answer, the neighbour sees the
/// stream end.
#[derive(Debug)]
pub(crate) struct ImageRequest {
    pub(crate) ask: AskImage,
    send: SendStream,
}

impl ImageRequest {
    pub(super) const fn new(ask: AskImage, send: SendStream) -> Self {
        Self { ask, send }
    }

    /// Answers with the image, or with the reason for refusing it.
    pub(crate) async fn answer(
        mut self,
        answer: Result<ImageBundle, Refusal>,
    ) -> Result<(), StreamError> {
        let message = match answer {
            Ok(image) => Chunk::Image(image),
            Err(reason) => Chunk::Refused(reason),
        };
        frame_io::write(&mut self.send, &message).await?;
        let _ = self.send.finish();
        Ok(())
    }
}

/// Requests an image from a neighbour. The manifest is checked against its digest; the caller
/// checks the proofs.
pub(crate) async fn request_image(
    link: &PeerLink,
    manifest: Digest,
    grant: Option<Grant>,
) -> Result<ImageBundle, FetchError> {
    let (mut send, mut receive) = link.connection().open_bi().await?;
    frame_io::write(&mut send, &Chunk::AskImage(AskImage { manifest, grant })).await?;
    // Fails only if the stream is closed already, which the next read reports.
    let _ = send.finish();
    match frame_io::read(&mut receive, MAX_BODY_LEN).await? {
        Chunk::Refused(reason) => Err(FetchError::Refused(reason)),
        Chunk::Image(image) if manifest.matches(&image.manifest) => Ok(image),
        Chunk::Image(_) => Err(FetchError::Corrupt),
        Chunk::Ask(_) | Chunk::Parts(_) | Chunk::AskImage(_) => Err(StreamError::Unexpected.into()),
    }
}
