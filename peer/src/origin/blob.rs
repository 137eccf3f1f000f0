//! Blob requests to an origin: the size of a blob, and ranges of its bytes.
//!
//! The range that an origin says it sends is checked here; a response that does not state its range
//! is an error. Requests never accept a content encoding, so the bytes are those of the blob.

use core::ops::Range;

use flotilla_common::digest::Digest;
use flotilla_common::failover::SourceId;
use flotilla_common::name::RepositoryName;
use flotilla_common::origin_region::OriginRegion;
use flotilla_runtime::http::range::parse_content_range;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};

use super::client::{OriginClient, content, content_of};
use super::error::OriginError;
use super::request::header;

/// An origin's response with a blob's bytes.
#[derive(Debug)]
pub(crate) struct OpenBlob {
    /// The origin that sends it.
    pub(crate) origin: SourceId,
    /// The response, of which only the head was read.
    pub(crate) response: Response,
    /// The bytes of the blob that it carries.
    pub(crate) range: Range<u64>,
    /// The size of the whole blob, in bytes.
    pub(crate) size: u64,
    /// Whether the response has status 206, which it may also have for the whole blob.
    pub(crate) is_partial: bool,
}

impl OriginClient {
    /// The size of a blob, in bytes.
    pub(crate) async fn blob_size(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<u64, OriginError> {
        let path = path(repository, digest);
        let size = self.ask(content(digest), async |origin| {
            let response = self.send(self.request(Method::HEAD, origin, &path)).await?;
            // reqwest's content_length() is that of the body, which a HEAD response lacks.
            length_of(&response).ok_or_else(no_length)
        });
        Ok(size.await?.1)
    }

    /// Opens what a `Range` header selects, or the whole blob, at the first origin that has it. An
    /// origin without support for ranges sends the whole blob.
    pub(crate) async fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: Option<&str>,
    ) -> Result<OpenBlob, OriginError> {
        let open = self.ask(content(digest), |origin| {
            self.open_at(origin, repository, digest, range)
        });
        Ok(open.await?.1)
    }

    /// As [`Self::open_blob`], but the origins of the region `first` are asked before the others, and
    /// a response that does not cover the range is an error. It may continue beyond the range.
    pub(crate) async fn open_exactly(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: &Range<u64>,
        first: Option<OriginRegion>,
    ) -> Result<OpenBlob, OriginError> {
        let header =
            (!range.is_empty()).then(|| format!("bytes={}-{}", range.start, range.end - 1));
        let header = header.as_deref();
        let open = self.ask(content_of(digest, first), async |origin| {
            let open = self.open_at(origin, repository, digest, header).await?;
            if open.range.start == range.start && open.range.end >= range.end {
                return Ok(open);
            }
            let sent = open.range;
            Err(OriginError::Unavailable(format!(
                "requested bytes {range:?}, but the response has {sent:?}"
            )))
        });
        Ok(open.await?.1)
    }

    /// As [`Self::open_blob`], at one origin.
    async fn open_at(
        &self,
        origin: SourceId,
        repository: &RepositoryName,
        digest: &Digest,
        range: Option<&str>,
    ) -> Result<OpenBlob, OriginError> {
        let mut request = self.request(Method::GET, origin, &path(repository, digest));
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let response = self.send(request).await?;
        let is_partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let (range, size) = if is_partial {
            header(&response, CONTENT_RANGE.as_str())
                .and_then(|range| parse_content_range(&range))
                .ok_or_else(|| {
                    OriginError::Unavailable("status 206 without a valid Content-Range".to_owned())
                })?
        } else {
            let size = length_of(&response).ok_or_else(no_length)?;
            (0..size, size)
        };
        Ok(OpenBlob {
            origin,
            response,
            range,
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
    OriginError::Unavailable("response without Content-Length".to_owned())
}
