//! The two headers that name ranges: `Range` of a pull (RFC 9110, 14.2) and `Content-Range` of an
//! upload's chunk.

use core::ops::Range;

/// What a pull asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All: no range, several, or one that is none.
    All,
    /// These bytes, at least one.
    Part(Range<u64>),
    /// Bytes that are not there, or a range that ends before it begins.
    Beyond,
}

/// Reads a `Range` header against a size.
pub(super) fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let spec = header.and_then(|header| header.trim().strip_prefix("bytes="));
    let Some((first, last)) = spec.and_then(|spec| spec.trim().split_once('-')) else {
        return Wanted::All;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than a u64 has are a number all the same.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (Some(first), _) if last.is_empty() => part(first, size, size),
        (Some(first), Some(last)) if first <= last => part(first, last.saturating_add(1), size),
        (Some(_), Some(_)) => Wanted::Beyond,
        (None, Some(count)) if first.is_empty() => part(size.saturating_sub(count), size, size),
        _ => Wanted::All,
    }
}

fn part(start: u64, end: u64, size: u64) -> Wanted {
    let range = start..end.min(size);
    if range.is_empty() {
        Wanted::Beyond
    } else {
        Wanted::Part(range)
    }
}

/// Reads a chunk's `Content-Range`: `START-END`, inclusive, as the distribution specification has
/// it, or the same as RFC 9110 has it. `None` if it is neither.
pub(super) fn chunk(header: &str) -> Option<Range<u64>> {
    let header = header.trim();
    let spec = header.strip_prefix("bytes ").unwrap_or(header);
    let spec = spec.split_once('/').map_or(spec, |(spec, _)| spec);
    let (first, last) = spec.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let end = last.checked_add(1)?;
    (first <= last).then_some(first..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_pull() {
        for (header, expected) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=2-", Wanted::Part(2..10)),
            ("bytes=2-4", Wanted::Part(2..5)),
            ("bytes=2-400", Wanted::Part(2..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-300", Wanted::Part(0..10)),
            ("bytes=9-99999999999999999999999", Wanted::Part(9..10)),
            ("bytes=10-", Wanted::Beyond),
            ("bytes=10-12", Wanted::Beyond),
            ("bytes=-0", Wanted::Beyond),
            ("bytes=4-2", Wanted::Beyond),
            ("bytes=0-1,3-4", Wanted::All),
            ("bytes=x-", Wanted::All),
            ("bytes=-", Wanted::All),
            ("bytes=+1-2", Wanted::All),
            ("chars=1-2", Wanted::All),
            ("", Wanted::All),
        ] {
            assert_eq!(wanted(Some(header), 10), expected, "{header}");
        }
        assert_eq!(wanted(None, 10), Wanted::All);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Beyond);
    }

    #[test]
    fn ranges_of_a_chunk() {
        assert_eq!(chunk("0-1023"), Some(0..1024));
        assert_eq!(chunk("bytes 5-9/*"), Some(5..10));
        for bad in ["", "5", "9-5", "-5", "5-", "a-b", "0-18446744073709551615"] {
            assert_eq!(chunk(bad), None, "{bad}");
        }
    }
}
