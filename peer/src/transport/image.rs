//! Images handed on between peers: a manifest and the proofs of its blobs, in one frame each way.

use flotilla_common::digest::Digest;
use flotilla_common::grant::Grant;
use flotilla_common::wire::frame::MAX_BODY_LEN;
use flotilla_common::wire::peer::{AskImage, Chunk, HANDS_ON, Image, Refusal};
use quinn::SendStream;

use super::fetch::FetchError;
use super::frames::{self, StreamError};
use super::link::Link;

/// One neighbour's question for an image. Dropped without an answer, the neighbour sees its stream
/// end.
#[derive(Debug)]
pub(crate) struct ImageQuestion {
    pub(crate) ask: AskImage,
    send: SendStream,
}

impl ImageQuestion {
    pub(super) const fn new(ask: AskImage, send: SendStream) -> Self {
        Self { ask, send }
    }

    /// Answers with the image, or with why not.
    pub(crate) async fn answer(
        mut self,
        answer: Result<Image, Refusal>,
    ) -> Result<(), StreamError> {
        let message = match answer {
            Ok(image) => Chunk::Image(image),
            Err(why) => Chunk::Refused(why),
        };
        frames::write(&mut self.send, &message).await?;
        let _ = self.send.finish();
        Ok(())
    }
}

/// Whether the neighbour answers such questions at all.
pub(crate) fn hands_on(link: &Link) -> bool {
    link.features() & HANDS_ON != 0
}

/// Asks a neighbour for an image. What comes is the manifest with this digest; the proofs are still
/// to be checked.
pub(crate) async fn ask_image(
    link: &Link,
    manifest: Digest,
    grant: Option<Grant>,
) -> Result<Image, FetchError> {
    let (mut send, mut receive) = link.connection().open_bi().await?;
    frames::write(&mut send, &Chunk::AskImage(AskImage { manifest, grant })).await?;
    // The connection carries on without this stream whether or not it still stands.
    let _ = send.finish();
    match frames::read(&mut receive, MAX_BODY_LEN).await? {
        Chunk::Refused(refusal) => Err(FetchError::Refused(refusal)),
        Chunk::Image(image) if manifest.matches(&image.manifest) => Ok(image),
        Chunk::Image(_) => Err(FetchError::Corrupt),
        Chunk::Ask(_) | Chunk::Parts(_) | Chunk::AskImage(_) => Err(StreamError::Unexpected.into()),
    }
}
