//! A request's id: in its answer and in every line of the log that is about it.
//!
//! A client or a proxy before us may have given one (`X-Request-Id`); it is kept if it is short and
//! plain, for it stands in our log.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::nonce::nonce;

/// The header, of requests and answers.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Bytes of an id that is kept.
const MAX_LEN: usize = 64;

/// Differs between processes.
static PROCESS: LazyLock<u32> = LazyLock::new(|| nonce() as u32);
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Letters, digits and `-_.:/+=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// The id that the request has, or a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        headers
            .get(HEADER)
            .filter(|id| is_plain(id.as_bytes()))
            .cloned()
            .map_or_else(Self::new, Self)
    }

    fn new() -> Self {
        let id = format!(
            "{:08x}{:08x}",
            *PROCESS,
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        // Hexadecimal digits make a header.
        Self(HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("none")))
    }

    pub(super) const fn value(&self) -> &HeaderValue {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().unwrap_or_default())
    }
}

fn is_plain(id: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    (1..=MAX_LEN).contains(&id.len()) && id.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(id: &str) -> String {
        let value = HeaderValue::from_str(id).expect("a header");
        RequestId::of(&HeaderMap::from_iter([(HEADER, value)])).to_string()
    }

    #[test]
    fn a_plain_id_is_kept_and_every_other_request_gets_its_own() {
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
