//! Whether two regions have the same value of a key, and which of them is behind. Pure.

use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{Fact, FactHead};

/// How the values of a key differ. The two sides are the region that checks and another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// The checking region has an older value, or none.
    OwnBehind(&'static str),
    /// The other region has an older value, or none.
    OtherBehind(&'static str),
    /// Two values with one stamp: merging does not help.
    Conflict,
}

/// Compares the values of a key. Eviction is regional, and tombstones are removed in each region by
/// its own storage's clock: neither is a difference.
pub(super) fn difference(own: &Fact, other: &Fact) -> Option<Difference> {
    if !is_live(&own.head) && !is_live(&other.head) {
        return None;
    }
    let (own_stamp, other_stamp) = (own.stamp(), other.stamp());
    let is_evicted = |head: &FactHead| matches!(head, FactHead::Evicted { .. });
    if (is_evicted(&own.head) && own_stamp >= other_stamp)
        || (is_evicted(&other.head) && other_stamp >= own_stamp)
    {
        return None;
    }
    if own_stamp == other_stamp {
        return (own != other).then_some(Difference::Conflict);
    }
    Some(if own_stamp < other_stamp {
        Difference::OwnBehind(behind(own_stamp, &other.head))
    } else {
        Difference::OtherBehind(behind(other_stamp, &own.head))
    })
}

/// Whether a client gets the value.
pub(super) const fn is_live(head: &FactHead) -> bool {
    matches!(
        head,
        FactHead::Manifest { .. }
            | FactHead::Tag {
                digest: Some(_),
                ..
            }
    )
}

/// How the older value is wrong.
const fn behind(older: Option<&Stamp>, newer: &FactHead) -> &'static str {
    match (older, is_live(newer)) {
        (None, _) => "is missing",
        (Some(_), true) => "has an older value",
        (Some(_), false) => "is not deleted",
    }
}

#[cfg(test)]
mod tests {
    use flotilla_common::digest::Digest;

    use super::*;

    fn stamp(clock: u64) -> Stamp {
        Stamp {
            clock,
            region: "eu-1".parse().expect("a label"),
        }
    }

    fn manifest(clock: u64) -> Fact {
        Fact {
            head: FactHead::Manifest {
                stamp: stamp(clock),
                media_type: "m".to_owned(),
                len: 1,
            },
            bytes: vec![1],
        }
    }

    fn evicted(clock: u64) -> Fact {
        Fact::without_bytes(FactHead::Evicted {
            stamp: stamp(clock),
        })
    }

    fn deleted(clock: u64) -> Fact {
        Fact::without_bytes(FactHead::DeletedManifest {
            stamp: stamp(clock),
            subject: None,
        })
    }

    fn tag(clock: u64, content: &[u8]) -> Fact {
        Fact::without_bytes(FactHead::Tag {
            stamp: stamp(clock),
            digest: Some(Digest::sha256(content)),
        })
    }

    fn absent() -> Fact {
        Fact::without_bytes(FactHead::Absent)
    }

    #[test]
    fn older_value_is_behind_in_both_directions() {
        for (old, new, text) in [
            (absent(), manifest(5), "is missing"),
            (absent(), tag(5, b"a"), "is missing"),
            (tag(4, b"a"), tag(5, b"b"), "has an older value"),
            (manifest(4), deleted(5), "is not deleted"),
            (deleted(4), manifest(5), "has an older value"),
            (evicted(4), manifest(5), "has an older value"),
            (tag(4, b"a"), tag(5, b"a"), "has an older value"),
        ] {
            assert_eq!(
                difference(&old, &new),
                Some(Difference::OwnBehind(text)),
                "{old:?} {new:?}"
            );
            assert_eq!(
                difference(&new, &old),
                Some(Difference::OtherBehind(text)),
                "{new:?} {old:?}"
            );
        }
    }

    #[test]
    fn regional_states_are_no_differences() {
        for (one, other) in [
            (absent(), absent()),
            (absent(), deleted(5)),
            (absent(), evicted(5)),
            (deleted(4), deleted(5)),
            (manifest(5), manifest(5)),
            (evicted(5), manifest(5)),
            (evicted(6), manifest(5)),
        ] {
            assert_eq!(difference(&one, &other), None, "{one:?} {other:?}");
            assert_eq!(difference(&other, &one), None, "{other:?} {one:?}");
        }
    }

    #[test]
    fn one_stamp_with_two_values_is_a_conflict() {
        let found = difference(&tag(5, b"a"), &tag(5, b"b"));
        assert_eq!(found, Some(Difference::Conflict));
        let found = difference(&manifest(5), &deleted(5));
        assert_eq!(found, Some(Difference::Conflict));
    }
}
