//! The id of a request, in its response and in every log line about it.
//!
//! An id from a client or a proxy (`X-Request-Id`) is kept if it is short and consists of harmless
//! characters, since it is written to the log.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::nonce::nonce;

/// The header, in requests and responses.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum bytes of an id from a request.
const MAX_LEN: usize = 64;

/// Distinguishes the ids of this process from those of others.
static PROCESS: LazyLock<u32> = LazyLock::new(|| nonce() as u32);
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Letters, digits and `-_.:/+=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HttpRequestId(HeaderValue);

impl HttpRequestId {
    /// The id in the request, if it is valid, or a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        headers
            .get(HEADER)
            .filter(|id| is_valid(id.as_bytes()))
            .cloned()
            .map_or_else(Self::new, Self)
    }

    fn new() -> Self {
        let id = format!(
            "{:08x}{:08x}",
            *PROCESS,
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        // Hexadecimal digits are valid in a header.
        Self(HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("none")))
    }

    pub(super) const fn value(&self) -> &HeaderValue {
        &self.0
    }
}

impl fmt::Display for HttpRequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().unwrap_or_default())
    }
}

fn is_valid(id: &[u8]) -> bool {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    (1..=MAX_LEN).contains(&id.len()) && id.iter().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: &str) -> String {
        let value = HeaderValue::from_str(id).expect("a header");
        HttpRequestId::of(&HeaderMap::from_iter([(HEADER, value)])).to_string()
    }

    #[test]
    fn valid_ids_are_kept_and_others_replaced() {
        assert_eq!(of("edge-7/0a1b"), "edge-7/0a1b");
        let own = [
            of(""),
            of("with space"),
            of(&"x".repeat(65)),
            of("\"quoted\""),
        ];
        assert!(own.iter().all(|id| id.len() == 16));
        assert!(
            own.iter()
                .enumerate()
                .all(|(at, id)| !own[..at].contains(id))
        );
    }
}
