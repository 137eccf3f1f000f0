//! The `Range` header of a blob request (RFC 9110, section 14): what part of the bytes a reader
//! asks for.
//!
//! Only single ranges are served as such: a header with several ranges, another unit or a syntax
//! error is ignored, as the RFC allows, and the whole body is the answer. An open-ended range is
//! never shortened: containerd compares the length that it was promised with what it asked for.

use core::ops::Range;

/// What a request's `Range` header asks of a body of known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// No usable header: the whole body, status 200.
    Whole,
    /// One satisfiable range of bytes, status 206.
    Part(Range<u64>),
    /// A range that begins behind the end, status 416.
    Unsatisfiable,
}

impl Wanted {
    /// Reads `header` against a body of `size` bytes.
    pub(crate) fn parse(header: Option<&str>, size: u64) -> Self {
        let Some(spec) = header.and_then(single_spec) else {
            return Self::Whole;
        };
        // An empty body has no byte to begin at; the whole of it is the more useful answer.
        if size == 0 {
            return Self::Whole;
        }
        match spec {
            Spec::From(first) if first >= size => Self::Unsatisfiable,
            Spec::From(first) => Self::Part(first..size),
            Spec::Between(first, _) if first >= size => Self::Unsatisfiable,
            Spec::Between(first, last) => Self::Part(first..last.saturating_add(1).min(size)),
            Spec::Suffix(0) => Self::Unsatisfiable,
            Spec::Suffix(length) => Self::Part(size.saturating_sub(length)..size),
        }
    }
}

/// The header as an origin may be asked, if it is a usable one.
pub(crate) fn forwarded(header: Option<&str>) -> Option<String> {
    Some(match single_spec(header?)? {
        Spec::From(first) => format!("bytes={first}-"),
        Spec::Between(first, last) => format!("bytes={first}-{last}"),
        Spec::Suffix(length) => format!("bytes=-{length}"),
    })
}

enum Spec {
    From(u64),
    Between(u64, u64),
    Suffix(u64),
}

fn single_spec(header: &str) -> Option<Spec> {
    let (unit, spec) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || spec.contains(',') {
        return None;
    }
    let (first, last) = spec.trim().split_once('-')?;
    match (first.is_empty(), last.is_empty()) {
        (false, true) => Some(Spec::From(number(first)?)),
        (true, false) => Some(Spec::Suffix(number(last)?)),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Spec::Between(first, last))
        }
        (true, true) => None,
    }
}

/// Digits only: `parse` alone would accept a leading plus sign.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_headers() {
        let whole = Wanted::Whole;
        let part = Wanted::Part;
        let none = Wanted::Unsatisfiable;
        for (header, wanted) in [
            (None, whole.clone()),
            (Some("bytes=0-"), part(0..1000)),
            (Some("bytes=0-0"), part(0..1)),
            (Some("bytes=999-"), part(999..1000)),
            (Some("bytes=1000-"), none.clone()),
            (Some("bytes=200-299"), part(200..300)),
            (Some("bytes=200-5000"), part(200..1000)),
            (Some("bytes=200-18446744073709551615"), part(200..1000)),
            (Some("bytes=-1"), part(999..1000)),
            (Some("bytes=-5000"), part(0..1000)),
            (Some("bytes=-0"), none.clone()),
            (Some("BYTES=1-2"), part(1..3)),
            (Some("bytes=5-4"), whole.clone()),
            (Some("bytes=0-1,3-4"), whole.clone()),
            (Some("bytes=-"), whole.clone()),
            (Some("bytes=+1-"), whole.clone()),
            (Some("bytes=99999999999999999999-"), whole.clone()),
            (Some("lines=0-"), whole.clone()),
            (Some("garbage"), whole.clone()),
        ] {
            assert_eq!(Wanted::parse(header, 1000), wanted, "{header:?}");
        }
    }

    #[test]
    fn only_a_usable_header_is_handed_on() {
        assert_eq!(forwarded(Some("bytes=5-")).as_deref(), Some("bytes=5-"));
        assert_eq!(forwarded(Some("BYTES=5-9")).as_deref(), Some("bytes=5-9"));
        assert_eq!(forwarded(Some("bytes=-9")).as_deref(), Some("bytes=-9"));
        assert_eq!(forwarded(Some("bytes=0-1,3-4")), None);
        assert_eq!(forwarded(None), None);
    }

    #[test]
    fn an_empty_body_is_always_whole() {
        assert_eq!(Wanted::parse(Some("bytes=0-"), 0), Wanted::Whole);
    }
}
