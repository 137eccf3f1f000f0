//! Byte ranges in HTTP headers: `Range` of a request, `Content-Range` of a response (RFC 9110,
//! section 14) and of an upload's chunk (OCI distribution specification).
//!
//! Only single ranges are served as such. A header with several ranges, another unit or a syntax
//! error is ignored, as the RFC allows, and the response has the whole body. A range whose last
//! position is before its first one is refused with 416 (section 15.5.17), as the conformance
//! program of the distribution specification demands. An open-ended range is never shortened:
//! containerd compares the length that it gets with the length that it requested.

use core::ops::Range;

/// The bytes that a request selects from a body of known size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestedRange {
    /// No usable `Range` header: the whole body, status 200.
    Whole,
    /// These bytes, at least one, all within the body: status 206.
    Part(Range<u64>),
    /// A range that selects none of the bytes: status 416.
    Unsatisfiable,
}

impl RequestedRange {
    /// Applies the `Range` header `header` to a body of `size` bytes.
    pub fn parse(header: Option<&str>, size: u64) -> Self {
        let (start, end) = match header.and_then(RangeSpec::parse) {
            None => return Self::Whole,
            Some(RangeSpec::Open { first }) => (first, size),
            Some(RangeSpec::Closed { first, last }) => (first, last.saturating_add(1).min(size)),
            Some(RangeSpec::Suffix { len: 0 }) => return Self::Unsatisfiable,
            // All of an empty body, which no `Content-Range` can express.
            Some(RangeSpec::Suffix { .. }) if size == 0 => return Self::Whole,
            Some(RangeSpec::Suffix { len }) => (size.saturating_sub(len), size),
        };
        if start < end {
            Self::Part(start..end)
        } else {
            Self::Unsatisfiable
        }
    }
}

/// Normalizes a `Range` header for a request to another server. `None` for a header that
/// [`RequestedRange::parse`] ignores.
pub fn normalize_range(header: &str) -> Option<String> {
    Some(match RangeSpec::parse(header)? {
        RangeSpec::Open { first } => format!("bytes={first}-"),
        RangeSpec::Closed { first, last } => format!("bytes={first}-{last}"),
        RangeSpec::Suffix { len } => format!("bytes=-{len}"),
    })
}

/// Formats the `Content-Range` of a response with status 206. `range` must not be empty.
pub fn content_range(range: &Range<u64>, size: u64) -> String {
    format!(
        "bytes {}-{}/{size}",
        range.start,
        range.end.saturating_sub(1)
    )
}

/// Formats the `Content-Range` of a response with status 416.
pub fn unsatisfied_range(size: u64) -> String {
    format!("bytes */{size}")
}

/// Parses the `Content-Range` of a response with status 206: the range, and the size of the whole
/// body. `None` if it is malformed, contradicts itself or leaves the size open.
pub fn parse_content_range(header: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = header.strip_prefix("bytes ")?.split_once('/')?;
    let range = inclusive(range)?;
    let size = digits(size)?.parse().ok()?;
    (range.end <= size).then_some((range, size))
}

/// Parses the `Content-Range` of a response with status 416: the size of the whole body.
pub fn parse_unsatisfied_range(header: &str) -> Option<u64> {
    digits(header.strip_prefix("bytes */")?)?.parse().ok()
}

/// Parses the `Content-Range` of an upload's chunk: `START-END`, inclusive, as the distribution
/// specification has it, or `bytes START-END/SIZE` as RFC 9110 has it. `None` for anything else.
pub fn parse_upload_range(header: &str) -> Option<Range<u64>> {
    let header = header.trim();
    let range = header.strip_prefix("bytes ").unwrap_or(header);
    inclusive(range.split_once('/').map_or(range, |(range, _)| range))
}

/// A `ranges-specifier` of one range, before the size of the body is known.
enum RangeSpec {
    Open { first: u64 },
    Closed { first: u64, last: u64 },
    Suffix { len: u64 },
}

impl RangeSpec {
    fn parse(header: &str) -> Option<Self> {
        let (unit, ranges) = header.split_once('=')?;
        // Names of range units are case-insensitive (section 14.1).
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = ranges.trim().split_once('-')?;
        match (first.is_empty(), last.is_empty()) {
            (false, true) => Some(Self::Open {
                first: position(first)?,
            }),
            (true, false) => Some(Self::Suffix {
                len: position(last)?,
            }),
            (false, false) => {
                let first = position(first)?;
                let last = position(last)?;
                Some(Self::Closed { first, last })
            }
            (true, true) => None,
        }
    }
}

/// Parses a position. One that no `u64` holds lies behind the end of every body, and is valid.
fn position(text: &str) -> Option<u64> {
    Some(digits(text)?.parse().unwrap_or(u64::MAX))
}

/// Parses `FIRST-LAST` of a `Content-Range`, where a position has to fit into a `u64`.
fn inclusive(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.split_once('-')?;
    let first: u64 = digits(first.trim())?.parse().ok()?;
    let last: u64 = digits(last.trim())?.parse().ok()?;
    let end = last.checked_add(1)?;
    (first <= last).then_some(first..end)
}

/// Returns a text of digits only: `parse` alone accepts a leading plus sign.
fn digits(text: &str) -> Option<&str> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::RequestedRange::{Part, Unsatisfiable, Whole};
    use super::*;

    #[test]
    fn range_headers() {
        for (header, expected) in [
            ("bytes=0-", Part(0..1000)),
            ("bytes=0-0", Part(0..1)),
            ("bytes=2-4", Part(2..5)),
            ("bytes=200-299", Part(200..300)),
            ("bytes=200-5000", Part(200..1000)),
            ("bytes=200-18446744073709551615", Part(200..1000)),
            ("bytes=9-99999999999999999999999", Part(9..1000)),
            ("bytes=999-", Part(999..1000)),
            ("bytes=1000-", Unsatisfiable),
            ("bytes=1000-1002", Unsatisfiable),
            ("bytes=99999999999999999999-", Unsatisfiable),
            ("bytes=-1", Part(999..1000)),
            ("bytes=-5000", Part(0..1000)),
            ("bytes=-0", Unsatisfiable),
            ("BYTES=1-2", Part(1..3)),
            (" bytes=1-2 ", Part(1..3)),
            ("bytes=5-4", Unsatisfiable),
            ("bytes=0-1,3-4", Whole),
            ("bytes=0-,3-4", Whole),
            ("bytes=x-", Whole),
            ("bytes=-", Whole),
            ("bytes=+1-", Whole),
            ("bytes=+1-2", Whole),
            ("chars=1-2", Whole),
            ("lines=0-", Whole),
            ("garbage", Whole),
            ("", Whole),
        ] {
            assert_eq!(
                RequestedRange::parse(Some(header), 1000),
                expected,
                "{header}"
            );
        }
        assert_eq!(RequestedRange::parse(None, 1000), Whole);
    }

    #[test]
    fn range_headers_of_an_empty_body() {
        for (header, expected) in [
            ("bytes=0-", Unsatisfiable),
            ("bytes=0-0", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=-5", Whole),
            ("bytes=0-1,3-4", Whole),
        ] {
            assert_eq!(RequestedRange::parse(Some(header), 0), expected, "{header}");
        }
    }

    #[test]
    fn normalized_range_headers() {
        assert_eq!(normalize_range("bytes=5-").as_deref(), Some("bytes=5-"));
        assert_eq!(normalize_range("BYTES=5-9").as_deref(), Some("bytes=5-9"));
        assert_eq!(normalize_range("bytes=-9").as_deref(), Some("bytes=-9"));
        assert_eq!(normalize_range("bytes=0-1,3-4"), None);
    }

    #[test]
    fn content_ranges_of_responses() {
        assert_eq!(parse_content_range("bytes 0-9/100"), Some((0..10, 100)));
        assert_eq!(parse_content_range("bytes 99-99/100"), Some((99..100, 100)));
        for wrong in [
            "bytes 0-9/*",
            "bytes 5-4/100",
            "bytes 0-100/100",
            "0-9/100",
            "bytes */100",
            "",
        ] {
            assert_eq!(parse_content_range(wrong), None, "{wrong}");
        }
        let written = content_range(&(5..10), 100);
        assert_eq!(parse_content_range(&written), Some((5..10, 100)));
        assert_eq!(parse_unsatisfied_range(&unsatisfied_range(7)), Some(7));
        assert_eq!(parse_unsatisfied_range("bytes 0-9/100"), None);
    }

    #[test]
    fn content_ranges_of_upload_chunks() {
        assert_eq!(parse_upload_range("0-1023"), Some(0..1024));
        assert_eq!(parse_upload_range("bytes 5-9/*"), Some(5..10));
        for bad in ["", "5", "9-5", "-5", "5-", "a-b", "0-18446744073709551615"] {
            assert_eq!(parse_upload_range(bad), None, "{bad}");
        }
    }
}
