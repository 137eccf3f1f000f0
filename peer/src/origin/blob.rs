//! Opening a blob at an origin: its size, and a range of its bytes.
//!
//! What an origin says about the range that it sends is checked here; an answer whose place in the
//! blob is not known is none. Content-Encoding is never asked for, so the bytes are the blob's own.

use core::ops::Range;

use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use flotilla_common::swarm::OriginSlot;
use flotilla_runtime::http::range::{parse_content_range, parse_unsatisfied_range};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};

use super::{OriginError, Origins, header, send};

/// A blob's body as an origin opened it.
#[derive(Debug)]
pub(crate) struct OpenBlob {
    /// The answer, of which only the head was read.
    pub(crate) response: Response,
    /// Which bytes of the blob it has.
    pub(crate) part: Range<u64>,
    /// Bytes of the whole blob.
    pub(crate) size: u64,
    /// The answer says that it is a part, though it may be all.
    pub(crate) is_partial: bool,
}

impl Origins {
    /// The size of a blob.
    pub(crate) async fn blob_size(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<u64, OriginError> {
        let path = path(repository, digest);
        self.first(|origin| {
            let request = self.request(Method::HEAD, origin, &path);
            async move {
                let response = send(request).await?;
                // reqwest takes the body's length from the body, and a HEAD's answer has none.
                length_of(&response).ok_or_else(no_length)
            }
        })
        .await
    }

    /// Opens what a `Range` header asks for, or all, at the first origin that gives it. An origin
    /// that knows no ranges sends all.
    pub(crate) async fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: Option<&str>,
    ) -> Result<OpenBlob, OriginError> {
        self.first(|origin| self.open_at(origin, repository, digest, range))
            .await
    }

    /// [`Self::open_blob`] for these bytes and no others.
    pub(crate) async fn open_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: &Range<u64>,
    ) -> Result<OpenBlob, OriginError> {
        self.first(|origin| self.open_part_at(origin, repository, digest, part))
            .await
    }

    /// Opens a range of a blob at one origin. The body may go on behind the end of the range.
    pub(super) async fn open_part_at(
        &self,
        origin: OriginSlot,
        repository: &RepositoryName,
        digest: &Digest,
        part: &Range<u64>,
    ) -> Result<OpenBlob, OriginError> {
        let range = (!part.is_empty()).then(|| format!("bytes={}-{}", part.start, part.end - 1));
        let open = self
            .open_at(origin, repository, digest, range.as_deref())
            .await?;
        if open.part.start == part.start && open.part.end >= part.end {
            Ok(open)
        } else {
            let got = open.part;
            Err(OriginError::Unavailable(format!(
                "sent bytes {got:?} where {part:?} were asked for"
            )))
        }
    }

    /// [`Self::open_blob`] at one origin.
    pub(super) async fn open_at(
        &self,
        origin: OriginSlot,
        repository: &RepositoryName,
        digest: &Digest,
        range: Option<&str>,
    ) -> Result<OpenBlob, OriginError> {
        let mut request = self.request(Method::GET, origin, &path(repository, digest));
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let response = send(request).await?;
        let is_partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let (part, size) = if is_partial {
            header(&response, CONTENT_RANGE.as_str())
                .and_then(|range| parse_content_range(&range))
                .ok_or_else(|| {
                    OriginError::Unavailable("sent a part and does not say which".to_owned())
                })?
        } else {
            let size = length_of(&response).ok_or_else(no_length)?;
            (0..size, size)
        };
        Ok(OpenBlob {
            response,
            part,
            size,
            is_partial,
        })
    }
}

fn path(repository: &RepositoryName, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

fn length_of(response: &Response) -> Option<u64> {
    header(response, CONTENT_LENGTH.as_str())?.parse().ok()
}

fn no_length() -> OriginError {
    OriginError::Unavailable("sent no length for a blob".to_owned())
}

/// The size of the blob, which a response with status 416 states.
pub(super) fn size_of_unsatisfied(response: &Response) -> Option<u64> {
    parse_unsatisfied_range(&header(response, CONTENT_RANGE.as_str())?)
}
