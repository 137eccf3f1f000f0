//! Errors in the format of the OCI distribution specification ("Error Codes"): a status, a code and
//! a message, as JSON.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::admission::Overload;
use crate::registry::{RegistryError, UploadProgress};
use crate::storage::StorageError;

/// The kind of an error. A 4xx carries a code of the specification; 503 and 507 carry codes of our
/// own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    Misdirected,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    RangeInvalid,
    RangeUnsatisfiable,
    RequestInvalid,
    Unsupported,
    NotFound,
    Timeout,
    StorageFull,
    TooMany,
    Unavailable,
}

impl Code {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid | Self::RangeInvalid | Self::Timeout => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::Denied | Self::Misdirected => "DENIED",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestTooLarge | Self::SizeInvalid | Self::RangeUnsatisfiable => "SIZE_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::RequestInvalid | Self::Unsupported | Self::NotFound => "UNSUPPORTED",
            Self::StorageFull => "STORAGE_FULL",
            Self::TooMany => "TOOMANYREQUESTS",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestBlobUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown
            | Self::NotFound => StatusCode::NOT_FOUND,
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid
            | Self::RequestInvalid => StatusCode::BAD_REQUEST,
            Self::ManifestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RangeInvalid | Self::RangeUnsatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// An error response.
#[derive(Debug)]
pub(super) struct ApiError {
    code: Code,
    message: String,
    headers: Vec<(header::HeaderName, String)>,
    /// The error of the storage, for the log.
    cause: Option<Arc<StorageError>>,
}

impl ApiError {
    pub(super) fn new(code: Code, message: impl core::fmt::Display) -> Self {
        let headers = match code {
            Code::TooMany | Code::Unavailable => vec![(header::RETRY_AFTER, "1".to_owned())],
            _ => Vec::new(),
        };
        Self {
            code,
            message: message.to_string(),
            headers,
            cause: None,
        }
    }

    #[must_use]
    pub(super) fn with(mut self, name: header::HeaderName, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Asks the client to come back after so many seconds.
    pub(super) fn with_retry_after(mut self, seconds: u32) -> Self {
        self.headers
            .retain(|(name, _)| *name != header::RETRY_AFTER);
        self.with(header::RETRY_AFTER, seconds.to_string())
    }

    pub(super) const fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// What went wrong, for operators.
    pub(super) fn describe_cause(&self) -> String {
        let cause = self.cause.as_ref().map(ToString::to_string);
        cause.unwrap_or_else(|| self.message.clone())
    }

    /// Whether the storage has no space for what was to be written.
    pub(super) fn is_storage_full(&self) -> bool {
        self.code == Code::StorageFull
    }

    /// The error of the storage, if that is the cause.
    pub(super) const fn cause(&self) -> Option<&Arc<StorageError>> {
        self.cause.as_ref()
    }

    /// Whether an object is missing in the storage that a record names.
    pub(super) fn is_lost_data(&self) -> bool {
        matches!(self.cause.as_deref(), Some(StorageError::Missing { .. }))
    }

    #[cfg(test)]
    pub(super) const fn code(&self) -> Code {
        self.code
    }

    /// Maps an error of the registry. `location` is the Location of the upload that it is about.
    pub(super) fn of(
        error: RegistryError,
        location: impl FnOnce(UploadProgress) -> String,
    ) -> Self {
        let code = match &error {
            RegistryError::BlobUnknown => Code::BlobUnknown,
            RegistryError::UploadUnknown => Code::BlobUploadUnknown,
            RegistryError::Offset(progress) => {
                let range = upload_range(progress.end);
                let location = location(*progress);
                let error = Self::new(Code::RangeInvalid, &error);
                return error
                    .with(header::RANGE, range)
                    .with(header::LOCATION, location);
            }
            RegistryError::DigestInvalid(_) => Code::DigestInvalid,
            RegistryError::SizeInvalid(_) => Code::SizeInvalid,
            RegistryError::UploadInvalid(_) => Code::BlobUploadInvalid,
            RegistryError::Stalled => Code::Timeout,
            RegistryError::NameUnknown => Code::NameUnknown,
            RegistryError::ManifestUnknown => Code::ManifestUnknown,
            RegistryError::ManifestInvalid(_) => Code::ManifestInvalid,
            RegistryError::ManifestBlobUnknown(_) => Code::ManifestBlobUnknown,
            RegistryError::Denied(_) => Code::Denied,
            RegistryError::Contended | RegistryError::StampAhead(_) => Code::Unavailable,
            RegistryError::Storage(error) => {
                let response = if matches!(**error, StorageError::Full { .. }) {
                    Self::new(
                        Code::StorageFull,
                        "the storage of the registry is full, and the change was not made; free space or enlarge the storage, then repeat the request",
                    )
                } else {
                    let message = "the storage is unavailable or failed; repeat the request";
                    Self::new(Code::Unavailable, message)
                };
                return Self {
                    cause: Some(Arc::clone(error)),
                    ..response
                };
            }
        };
        Self::new(code, error)
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let body =
            json!({"errors": [{"code": self.code.as_str(), "message": self.message}]}).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        response
    }
}

impl From<Overload> for ApiError {
    fn from(overload: Overload) -> Self {
        let message = match overload {
            Overload::RegionRequests => "too many requests of other regions at once",
            Overload::RegionQuestions => "too many questions of other regions' origins at once",
            Overload::RegionUploads => "too many uploads of other regions at once",
            Overload::Connections => "too many connections at once",
            Overload::Requests => "too many requests at once",
            Overload::Uploads => "too many uploads at once",
            Overload::Manifests => "too many manifests at once",
        };
        let message = format_args!("{message}; repeat the request later");
        match overload {
            Overload::Connections => Self::new(Code::Unavailable, message),
            _ => Self::new(Code::TooMany, message),
        }
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        // Only requests about an upload fail with an offset, and they pass its location to `of`.
        Self::of(error, |_| "/v2/".to_owned())
    }
}

/// The Range header of an upload: the bytes received, inclusive.
pub(super) fn upload_range(end: u64) -> String {
    format!("0-{}", end.saturating_sub(1))
}
