//! What is known of an upload's chain, and the next link that may be claimed: a pure machine.
//!
//! ```text
//! key      upload/<id>/0        .../end of the first     .../end of the second
//! link     data 0..a            data a..b                finish | cancel | data, whoever creates the key
//! ```
//! Every claim is made at `end`, so exactly one of a PATCH, a finish and a cancel wins there. A
//! claim that loses reads the winner's link and follows it.

use super::hash::Midstates;
use super::link::{Act, Link};
use crate::record::{Segment, TableAt};
use flotilla_common::seal::BlobFacts;

/// Every so many links, one repeats all segments: so a chain of any length is known after two
/// reads.
const LINKS_PER_BASE: u32 = 64;

/// An upload that is still open, as far as a replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The offset of the last link; none before the first.
    last: Option<u64>,
    end: u64,
    links: u32,
    /// The last link that repeated all segments, and how many those were.
    base: Option<(u64, usize)>,
    segments: Vec<Segment>,
}

/// Where a link leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The upload goes on.
    Open(Chain),
    /// The upload is finished by this link.
    Finished(Link),
    /// The upload was given up.
    Cancelled,
}

/// A link that does not fit where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the upload's link does not fit its place")]
pub(crate) struct Misfit;

impl Chain {
    /// The offset that the next link claims: the number of bytes so far.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// The offset of the last link.
    pub(crate) const fn last(&self) -> Option<u64> {
        self.last
    }

    /// All segments, in order.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segments of the base: those that the next link need not repeat.
    pub(crate) fn base_segments(&self) -> &[Segment] {
        &self.segments[..self.base.map_or(0, |(_, count)| count)]
    }

    /// The link of bytes that arrived.
    pub(crate) fn data(&self, arrived: &[Segment], midstates: Midstates, nonce: u128) -> Link {
        let repeats_all = self.links > 0 && self.links.is_multiple_of(LINKS_PER_BASE);
        let (base, known) = match self.base {
            Some((offset, count)) if !repeats_all => (Some(offset), count),
            _ => (None, 0),
        };
        let segments = self.segments[known..]
            .iter()
            .chain(arrived)
            .copied()
            .collect();
        self.link(Act::Data { midstates }, arrived, base, segments, nonce)
    }

    /// The link that finishes the upload, perhaps with last bytes.
    pub(crate) fn finish(
        &self,
        arrived: &[Segment],
        facts: BlobFacts,
        table: TableAt,
        nonce: u128,
    ) -> Link {
        let segments = self.segments.iter().chain(arrived).copied().collect();
        self.link(Act::Finish { facts, table }, arrived, None, segments, nonce)
    }

    /// The link that gives the upload up.
    pub(crate) fn cancel(&self, nonce: u128) -> Link {
        self.link(Act::Cancel, &[], None, Vec::new(), nonce)
    }

    fn link(
        &self,
        act: Act,
        arrived: &[Segment],
        base: Option<u64>,
        segments: Vec<Segment>,
        nonce: u128,
    ) -> Link {
        let end = self.end + arrived.iter().map(|segment| segment.size).sum::<u64>();
        Link {
            act,
            end,
            index: self.links,
            base,
            segments,
            nonce,
        }
    }

    /// Where the link at `offset` leads. `before` are the segments of its base, if it names one.
    pub(crate) fn after(offset: u64, link: Link, before: &[Segment]) -> Result<Next, Misfit> {
        match link.act {
            Act::Finish { .. } => return Ok(Next::Finished(link)),
            Act::Cancel => return Ok(Next::Cancelled),
            Act::Data { .. } => {}
        }
        let segments: Vec<_> = before.iter().copied().chain(link.segments).collect();
        let bytes = segments
            .iter()
            .try_fold(0_u64, |sum, segment| sum.checked_add(segment.size));
        if link.end <= offset || bytes != Some(link.end) {
            return Err(Misfit);
        }
        let links = link.index.checked_add(1).ok_or(Misfit)?;
        let repeated_all =
            link.index > 0 && link.base.is_none() && link.index.is_multiple_of(LINKS_PER_BASE);
        let base = if repeated_all {
            Some((offset, segments.len()))
        } else {
            link.base.map(|base| (base, before.len()))
        };
        Ok(Next::Open(Self {
            last: Some(offset),
            end: link.end,
            links,
            base,
            segments,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::upload::hash::Hashes;

    fn midstates() -> Midstates {
        Hashes::new(false).midstates()
    }

    /// A chain read back from its last link, and the base of that, as a replica does that never saw
    /// it.
    fn read_back(links: &BTreeMap<u64, Link>) -> Next {
        let (offset, link) = links.last_key_value().expect("a link");
        let before = link
            .base
            .map(|base| links[&base].segments.clone())
            .unwrap_or_default();
        Chain::after(*offset, link.clone(), &before).expect("own link")
    }

    #[test]
    fn any_replica_takes_up_a_chain_of_any_length_after_two_reads() {
        let mut links = BTreeMap::new();
        let mut chain = Chain::default();
        for index in 0_u32..300 {
            let segment = Segment {
                nonce: u128::from(index),
                size: 1 + u64::from(index % 7),
            };
            let link = chain.data(&[segment], midstates(), 0);
            assert!(
                link.segments.len() <= if index % 64 == 0 { 300 } else { 64 },
                "link {index}"
            );
            links.insert(chain.end(), link);
            let Next::Open(next) = read_back(&links) else {
                panic!("it is open")
            };
            assert_eq!(next.segments().len() as u32, index + 1);
            assert_eq!(next.segments().last(), Some(&segment));
            chain = next;
        }
    }

    #[test]
    fn patch_finish_and_cancel_claim_one_key() {
        let segment = Segment { nonce: 1, size: 5 };
        let link = Chain::default().data(&[segment], midstates(), 2);
        let Ok(Next::Open(chain)) = Chain::after(0, link, &[]) else {
            panic!("it is open")
        };
        assert_eq!((chain.end(), chain.last()), (5, Some(0)));
        assert_eq!(Chain::after(5, chain.cancel(3), &[]), Ok(Next::Cancelled));
        assert_eq!(chain.cancel(3).end, 5);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_refused() {
        let empty = Chain::default().data(&[], midstates(), 0);
        assert_eq!(
            Chain::after(0, empty, &[]),
            Err(Misfit),
            "a chain that stands still would never end"
        );
        let segment = Segment { nonce: 1, size: 5 };
        let link = Chain::default().data(&[segment], midstates(), 0);
        assert_eq!(
            Chain::after(0, link.clone(), &[segment]),
            Err(Misfit),
            "segments twice"
        );
        let huge = Link {
            segments: vec![
                Segment {
                    nonce: 0,
                    size: u64::MAX
                };
                2
            ],
            ..link
        };
        assert_eq!(Chain::after(0, huge, &[]), Err(Misfit));
    }
}
