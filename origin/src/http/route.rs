//! Routing: one pure function from a path to a resource, since names of repositories contain
//! slashes.
//!
//! A path is parsed from its end: the last segments determine the kind, and everything before them
//! is the name. So a repository may be called `blobs/uploads` or `manifests/tags`.

use flotilla_common::digest::Digest;
use flotilla_common::name::{Reference, RepositoryName};
use flotilla_common::wire::{origin, region, region_list};
use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::{ApiError, Code};
use crate::metrics::{MANIFEST, REGION};
use crate::registry::RegistryError;

/// The resource that a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Ping,
    Blob {
        repository: RepositoryName,
        digest: Digest,
    },
    Uploads {
        repository: RepositoryName,
    },
    Upload {
        repository: RepositoryName,
        id: String,
    },
    Manifest {
        repository: RepositoryName,
        reference: Reference,
    },
    Tags {
        repository: RepositoryName,
    },
    Referrers {
        repository: RepositoryName,
        subject: Digest,
    },
    Closure,
    Keys,
    Region(RegionEndpoint),
    Regions,
    Health,
    Ready,
}

/// An endpoint for origins of other regions (`flotilla_common::wire::region`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegionEndpoint {
    State,
    Journal,
    Done,
    Facts,
    Keys,
    Take,
}

impl RegionEndpoint {
    /// Whether other regions find out by it whether this one is there and what it owes them, rather
    /// than serve a client by it.
    pub(super) const fn is_question(self) -> bool {
        matches!(self, Self::State | Self::Journal | Self::Done)
    }
}

impl Route {
    /// The label in metrics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Blob { .. } => "blob",
            Self::Uploads { .. } | Self::Upload { .. } => "upload",
            Self::Manifest { .. } => MANIFEST,
            Self::Tags { .. } => "tags",
            Self::Referrers { .. } => "referrers",
            Self::Closure => "closure",
            Self::Keys => "keys",
            Self::Region(_) => REGION,
            Self::Regions => "regions",
            Self::Health | Self::Ready => "admin",
        }
    }
}

/// Parses the path of a request line.
pub(super) fn route(method: &Method, path: &str) -> Result<Route, ApiError> {
    match path {
        "/v2" | "/v2/" => return Ok(Route::Ping),
        origin::CLOSURE_PATH => return Ok(Route::Closure),
        origin::KEYS_PATH => return Ok(Route::Keys),
        region::STATE_PATH => return Ok(Route::Region(RegionEndpoint::State)),
        region::JOURNAL_PATH => return Ok(Route::Region(RegionEndpoint::Journal)),
        region::DONE_PATH => return Ok(Route::Region(RegionEndpoint::Done)),
        region::FACTS_PATH => return Ok(Route::Region(RegionEndpoint::Facts)),
        region::KEYS_PATH => return Ok(Route::Region(RegionEndpoint::Keys)),
        region::TAKE_PATH => return Ok(Route::Region(RegionEndpoint::Take)),
        region_list::REGIONS_PATH => return Ok(Route::Regions),
        "/healthz" => return Ok(Route::Health),
        "/readyz" => return Ok(Route::Ready),
        _ => {}
    }
    if !has_valid_escapes(path) {
        return Err(not_found());
    }
    let path = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| not_found())?;
    let rest = path.strip_prefix("/v2/").ok_or_else(not_found)?;
    let (before, last) = rest.rsplit_once('/').ok_or_else(not_found)?;
    let (name, kind) = before.rsplit_once('/').ok_or_else(not_found)?;
    match (kind, last) {
        ("tags", "list") => Ok(Route::Tags {
            repository: repository(name)?,
        }),
        ("blobs", "uploads") => Ok(Route::Uploads {
            repository: repository(name)?,
        }),
        ("blobs", text) => Ok(Route::Blob {
            repository: repository(name)?,
            digest: digest(text)?,
        }),
        ("manifests", text) => Ok(Route::Manifest {
            repository: repository(name)?,
            reference: reference(method, text)?,
        }),
        ("referrers", text) => Ok(Route::Referrers {
            repository: repository(name)?,
            subject: digest(text)?,
        }),
        ("uploads", id) => {
            let repository = repository(name.strip_suffix("/blobs").ok_or_else(not_found)?)?;
            if id.is_empty() {
                Ok(Route::Uploads { repository })
            } else if !is_upload_id(id) {
                Err(RegistryError::UploadUnknown.into())
            } else {
                Ok(Route::Upload {
                    repository,
                    id: id.to_owned(),
                })
            }
        }
        _ => Err(not_found()),
    }
}

/// Whether text has the form of an upload's id: `[REGION.]HEX`.
fn is_upload_id(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    text.bytes().all(is_allowed)
}

fn not_found() -> ApiError {
    ApiError::new(Code::NotFound, "no such resource")
}

fn repository(text: &str) -> Result<RepositoryName, ApiError> {
    text.parse()
        .map_err(|error| ApiError::new(Code::NameInvalid, error))
}

pub(super) fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse()
        .map_err(|error| ApiError::new(Code::DigestInvalid, error))
}

/// Parses a tag or a digest. An invalid tag is unknown, except in a PUT.
fn reference(method: &Method, text: &str) -> Result<Reference, ApiError> {
    if text.contains(':') {
        return digest(text).map(Reference::Digest);
    }
    text.parse().map_err(|error| {
        let code = if method == Method::PUT {
            Code::ManifestInvalid
        } else {
            Code::ManifestUnknown
        };
        ApiError::new(code, error)
    })
}

/// The characters of a parameter's value that are encoded: all but the unreserved ones of RFC 3986
/// and the delimiters of media types, digests and names.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':');

/// Percent-encodes text as the value of a parameter.
pub(super) fn encode_parameter(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// Whether each `%` is followed by two hexadecimal digits. `percent_decode_str` would leave any
/// other `%` as it is.
fn has_valid_escapes(path: &str) -> bool {
    path.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes().first_chunk::<2>();
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// The first value of a parameter of a query, decoded; `None` where it is not given.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    parameters(query, name).next()
}

/// All values of a parameter of a query, decoded. Bytes that are not UTF-8 become replacement
/// characters, which no digest, name or number contains.
pub(super) fn parameters<'a>(
    query: Option<&'a str>,
    name: &'a str,
) -> impl Iterator<Item = String> + 'a {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .filter_map(move |(key, value)| (key == name).then(|| value.into_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Describes the route of a GET.
    fn describe(path: &str) -> String {
        match route(&Method::GET, &path.replace("HEX", HEX)) {
            Ok(Route::Blob { repository, .. }) => format!("blob of {repository}"),
            Ok(Route::Uploads { repository }) => format!("uploads of {repository}"),
            Ok(Route::Upload { repository, id }) => format!("upload {id} of {repository}"),
            Ok(Route::Manifest {
                repository,
                reference: Reference::Tag(tag),
            }) => {
                format!("{tag} of {repository}")
            }
            Ok(Route::Manifest { repository, .. }) => format!("manifest of {repository}"),
            Ok(Route::Tags { repository }) => format!("tags of {repository}"),
            Ok(Route::Referrers { repository, .. }) => format!("referrers of {repository}"),
            Ok(other) => other.name().to_owned(),
            Err(error) => error.code().as_str().to_owned(),
        }
    }

    #[test]
    fn paths_are_routed() {
        for (path, expected) in [
            ("/v2/", "ping"),
            ("/flotilla/v1/region/state", "region"),
            ("/flotilla/v1/region/take", "region"),
            ("/flotilla/v1/region/other", "UNSUPPORTED"),
            ("/v2", "ping"),
            ("/flotilla/v1/regions", "regions"),
            ("/healthz", "admin"),
            ("/v2/app/blobs/sha256:HEX", "blob of app"),
            ("/v2/app/blobs/sha256%3AHEX", "blob of app"),
            ("/v2/a/b/c/blobs/uploads/", "uploads of a/b/c"),
            ("/v2/a/b/c/blobs/uploads", "uploads of a/b/c"),
            ("/v2/app/blobs/uploads/00ff", "upload 00ff of app"),
            ("/v2/app/blobs/uploads/us-1.00ff", "upload us-1.00ff of app"),
            (
                "/v2/app/blobs/uploads/us-1.x\\..\\..\\flotilla",
                "BLOB_UPLOAD_UNKNOWN",
            ),
            (
                "/v2/app/blobs/uploads/us-1.x%5c..%5cflotilla",
                "BLOB_UPLOAD_UNKNOWN",
            ),
            ("/v2/app/manifests/v1.0", "v1.0 of app"),
            ("/v2/app/manifests/sha256:HEX", "manifest of app"),
            ("/v2/app/tags/list", "tags of app"),
            ("/v2/app/referrers/sha256:HEX", "referrers of app"),
            ("/v2/blobs/uploads/manifests/list", "list of blobs/uploads"),
            ("/v2/tags/list/tags/list", "tags of tags/list"),
            ("/v2/manifests/blobs/uploads/x", "upload x of manifests"),
            ("/v2/app/blobs/sha256:00", "DIGEST_INVALID"),
            ("/v2/app/blobs/nonsense", "DIGEST_INVALID"),
            ("/v2/app/manifests/sha256:zz", "DIGEST_INVALID"),
            ("/v2/app/manifests/.INVALID", "MANIFEST_UNKNOWN"),
            ("/v2/App/manifests/v1", "NAME_INVALID"),
            ("/v2/a..b/tags/list", "NAME_INVALID"),
            ("/v2//tags/list", "NAME_INVALID"),
            ("/v2/app/uploads/x", "UNSUPPORTED"),
            ("/v2/app", "UNSUPPORTED"),
            ("/v2/app/%zz", "UNSUPPORTED"),
            ("/v2/app/%ff/manifests/v1", "UNSUPPORTED"),
            ("/", "UNSUPPORTED"),
            ("/v1/x", "UNSUPPORTED"),
        ] {
            assert_eq!(describe(path), expected, "{path}");
        }
        assert_eq!(
            route(&Method::PUT, "/v2/app/manifests/.x")
                .unwrap_err()
                .code(),
            Code::ManifestInvalid
        );
    }

    #[test]
    fn parameters_are_found_and_decoded() {
        let query = Some("mount=sha256%3Aab&from=a%2Fb&empty&n=5");
        assert_eq!(parameter(query, "mount").as_deref(), Some("sha256:ab"));
        assert_eq!(parameter(query, "from").as_deref(), Some("a/b"));
        assert_eq!(parameter(query, "empty").as_deref(), Some(""));
        assert_eq!(parameter(query, "fro"), None);
        assert_eq!(parameter(None, "n"), None);
    }

    proptest! {
        #[test]
        fn parameters_round_trip(text in "\\PC{0,30}") {
            let query = format!("a={}&b=x", encode_parameter(&text));
            assert_eq!(parameter(Some(&query), "a"), Some(text));
        }

        #[test]
        fn any_path_is_handled(path in "/v2/[ -~]{0,60}") {
            let _ = route(&Method::GET, &path);
        }
    }
}
