//! The state of an upload log, and the next entry to create. A pure state machine.
//!
//! ```text
//! key      upload/<id>/0        .../end of the first     .../end of the second
//! entry    data 0..a            data a..b                finish, cancel or data: the first to create the key
//! ```
//! PATCH, PUT and DELETE all create the key at `end`, so exactly one of them wins there. A request
//! that loses reads the winner's entry and follows it.

use super::hash::Midstates;
use super::log_entry::{EntryKind, LogEntry};
use crate::record::{Segment, TableLocation};
use flotilla_common::seal::BlobFacts;

/// Every 64th entry is a base entry, which repeats all segments. So two reads are enough to know
/// all segments of a log of any length.
const ENTRIES_PER_BASE: u32 = 64;

/// The log of an upload that is open, as far as this replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UploadLog {
    /// The offset of the last entry; `None` before the first.
    last_offset: Option<u64>,
    end: u64,
    entries: u32,
    /// The offset of the last base entry, and its number of segments.
    base: Option<(u64, usize)>,
    segments: Vec<Segment>,
}

/// The state of an upload after an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogState {
    /// The upload is open.
    Open(UploadLog),
    /// This entry finished the upload.
    Finished(LogEntry),
    /// The upload was cancelled.
    Cancelled,
}

/// An entry contradicts its offset or its base entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid upload log entry: it contradicts its offset or its base entry")]
pub(crate) struct InvalidEntry;

impl UploadLog {
    /// The offset of the next entry: the number of bytes so far.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// The offset of the last entry; `None` before the first.
    pub(crate) const fn last_offset(&self) -> Option<u64> {
        self.last_offset
    }

    /// All segments of the upload, in order.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segments of the base entry, which the next entry need not repeat.
    pub(crate) fn base_segments(&self) -> &[Segment] {
        &self.segments[..self.base.map_or(0, |(_, count)| count)]
    }

    /// The entry that appends `arrived`.
    pub(crate) fn data_entry(
        &self,
        arrived: &[Segment],
        midstates: Midstates,
        nonce: u128,
    ) -> LogEntry {
        let repeats_all = self.entries > 0 && self.entries.is_multiple_of(ENTRIES_PER_BASE);
        let (base, known) = match self.base {
            Some((offset, count)) if !repeats_all => (Some(offset), count),
            _ => (None, 0),
        };
        let segments = self.segments[known..]
            .iter()
            .chain(arrived)
            .copied()
            .collect();
        self.entry(
            EntryKind::Data { midstates },
            arrived,
            base,
            segments,
            nonce,
        )
    }

    /// The entry that finishes the upload, after appending `arrived`.
    pub(crate) fn finish_entry(
        &self,
        arrived: &[Segment],
        facts: BlobFacts,
        table: TableLocation,
        nonce: u128,
    ) -> LogEntry {
        let segments = self.segments.iter().chain(arrived).copied().collect();
        self.entry(
            EntryKind::Finish { facts, table },
            arrived,
            None,
            segments,
            nonce,
        )
    }

    /// The entry that cancels the upload.
    pub(crate) fn cancel_entry(&self, nonce: u128) -> LogEntry {
        self.entry(EntryKind::Cancel, &[], None, Vec::new(), nonce)
    }

    fn entry(
        &self,
        kind: EntryKind,
        arrived: &[Segment],
        base: Option<u64>,
        segments: Vec<Segment>,
        nonce: u128,
    ) -> LogEntry {
        let end = self.end + arrived.iter().map(|segment| segment.size).sum::<u64>();
        LogEntry {
            kind,
            end,
            index: self.entries,
            base,
            segments,
            nonce,
        }
    }

    /// The state of the upload after the entry at `offset`. `base_segments` are the segments of its
    /// base entry, if it has one.
    pub(crate) fn after(
        offset: u64,
        entry: LogEntry,
        base_segments: &[Segment],
    ) -> Result<LogState, InvalidEntry> {
        match entry.kind {
            EntryKind::Finish { .. } => return Ok(LogState::Finished(entry)),
            EntryKind::Cancel => return Ok(LogState::Cancelled),
            EntryKind::Data { .. } => {}
        }
        let segments: Vec<_> = base_segments
            .iter()
            .copied()
            .chain(entry.segments)
            .collect();
        let bytes = segments
            .iter()
            .try_fold(0_u64, |sum, segment| sum.checked_add(segment.size));
        if entry.end <= offset || bytes != Some(entry.end) {
            return Err(InvalidEntry);
        }
        let entries = entry.index.checked_add(1).ok_or(InvalidEntry)?;
        let is_base =
            entry.index > 0 && entry.base.is_none() && entry.index.is_multiple_of(ENTRIES_PER_BASE);
        let base = if is_base {
            Some((offset, segments.len()))
        } else {
            entry.base.map(|base| (base, base_segments.len()))
        };
        Ok(LogState::Open(Self {
            last_offset: Some(offset),
            end: entry.end,
            entries,
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

    /// Reads a log from its last entry and the base entry of that, as a replica does that has no
    /// state of it.
    fn read_back(entries: &BTreeMap<u64, LogEntry>) -> LogState {
        let (offset, entry) = entries.last_key_value().expect("an entry");
        let base_segments = entry
            .base
            .map(|base| entries[&base].segments.clone())
            .unwrap_or_default();
        UploadLog::after(*offset, entry.clone(), &base_segments).expect("own entry")
    }

    #[test]
    fn two_reads_recover_a_log_of_any_length() {
        let mut entries = BTreeMap::new();
        let mut log = UploadLog::default();
        for index in 0_u32..300 {
            let segment = Segment {
                nonce: u128::from(index),
                size: 1 + u64::from(index % 7),
            };
            let entry = log.data_entry(&[segment], midstates(), 0);
            assert!(
                entry.segments.len() <= if index % 64 == 0 { 300 } else { 64 },
                "entry {index}"
            );
            entries.insert(log.end(), entry);
            let LogState::Open(next) = read_back(&entries) else {
                panic!("the upload is open")
            };
            assert_eq!(next.segments().len() as u32, index + 1);
            assert_eq!(next.segments().last(), Some(&segment));
            log = next;
        }
    }

    #[test]
    fn patch_finish_and_cancel_claim_one_key() {
        let segment = Segment { nonce: 1, size: 5 };
        let entry = UploadLog::default().data_entry(&[segment], midstates(), 2);
        let Ok(LogState::Open(log)) = UploadLog::after(0, entry, &[]) else {
            panic!("the upload is open")
        };
        assert_eq!((log.end(), log.last_offset()), (5, Some(0)));
        assert_eq!(
            UploadLog::after(5, log.cancel_entry(3), &[]),
            Ok(LogState::Cancelled)
        );
        assert_eq!(log.cancel_entry(3).end, 5);
    }

    #[test]
    fn invalid_entries_are_rejected() {
        let empty = UploadLog::default().data_entry(&[], midstates(), 0);
        assert_eq!(
            UploadLog::after(0, empty, &[]),
            Err(InvalidEntry),
            "a data entry without bytes would make the log endless"
        );
        let segment = Segment { nonce: 1, size: 5 };
        let entry = UploadLog::default().data_entry(&[segment], midstates(), 0);
        assert_eq!(
            UploadLog::after(0, entry.clone(), &[segment]),
            Err(InvalidEntry),
            "a segment is listed twice"
        );
        let overflow = LogEntry {
            segments: vec![
                Segment {
                    nonce: 0,
                    size: u64::MAX
                };
                2
            ],
            ..entry
        };
        assert_eq!(UploadLog::after(0, overflow, &[]), Err(InvalidEntry));
    }
}
