//! Checks of upload logs, from their first entry to their last, and of segments that no entry
//! names.

use core::pin::pin;
use std::collections::BTreeMap;

use flotilla_common::codec;
use futures_util::TryStreamExt;

use super::{Checker, FOREIGN_KEY, Problems};
use crate::layout;
use crate::record::{BlobRecord, Segment, TableLocation};
use crate::storage::{Key, StorageError, entries};
use crate::upload::id::Generation;
use crate::upload::log::{LogState, UploadLog};
use crate::upload::log_entry::{EntryKind, LogEntry};

/// An upload log that is read from its first entry.
#[derive(Default)]
struct LogReplay {
    problems: Vec<String>,
    /// The offset of the next entry.
    end: u64,
    segments: Vec<Segment>,
    outcome: UploadOutcome,
    /// Offset and segments of the last entry that listed all segments.
    base: (u64, Vec<Segment>),
}

#[derive(Default)]
enum UploadOutcome {
    #[default]
    Open,
    Finished(Box<LogEntry>),
    Cancelled,
}

impl LogReplay {
    /// Applies the entry at `offset`.
    fn apply(&mut self, offset: u64, entry: LogEntry) -> Result<(), &'static str> {
        if !matches!(self.outcome, UploadOutcome::Open) {
            return Err("there are log entries after the one that ended the upload");
        }
        if offset != self.end {
            return Err("a log entry does not begin at the end of the one before");
        }
        let base_segments = match entry.base {
            None => Vec::new(),
            Some(base) if base == self.base.0 => self.base.1.clone(),
            Some(_) => return Err("a log entry refers to a base entry that does not exist"),
        };
        let lists_all = entry.base.is_none();
        let state = UploadLog::after(offset, entry, &base_segments)
            .map_err(|_| "a log entry contradicts its offset or its base entry")?;
        match state {
            LogState::Open(log) => {
                self.end = log.end();
                self.segments = log.segments().to_vec();
                if lists_all {
                    self.base = (offset, self.segments.clone());
                }
            }
            LogState::Finished(entry) => {
                self.segments = entry.segments.clone();
                self.outcome = UploadOutcome::Finished(Box::new(entry));
            }
            LogState::Cancelled => self.outcome = UploadOutcome::Cancelled,
        }
        Ok(())
    }

    /// Whether the upload refers to the data object with this nonce.
    fn refers_to(&self, nonce: u128) -> bool {
        let table = match &self.outcome {
            UploadOutcome::Finished(entry) => match entry.kind {
                EntryKind::Finish {
                    table: TableLocation::Object { nonce },
                    ..
                } => Some(nonce),
                _ => None,
            },
            UploadOutcome::Cancelled => return false,
            UploadOutcome::Open => None,
        };
        table == Some(nonce) || self.segments.iter().any(|segment| segment.nonce == nonce)
    }
}

impl Checker {
    /// Lists the data objects of an upload, and of the blob that it became: sizes by nonce.
    pub(super) async fn segments(
        &self,
        upload: &Generation,
    ) -> Result<BTreeMap<u128, u64>, StorageError> {
        let mut sizes = BTreeMap::new();
        let mut listed = pin!(entries(&*self.storage, layout::segments(upload), None));
        while let Some(entry) = listed.try_next().await? {
            if let Ok(nonce) = u128::from_str_radix(entry.key.last_segment(), 16) {
                sizes.insert(nonce, entry.size);
            }
        }
        Ok(sizes)
    }

    async fn replay_log(&self, upload: &Generation) -> Result<LogReplay, StorageError> {
        let mut replay = LogReplay::default();
        let mut listed = pin!(entries(&*self.storage, layout::log_entries(upload), None));
        while let Some(entry) = listed.try_next().await? {
            let Some(object) = self.storage.read(&entry.key).await? else {
                continue;
            };
            let offset = offset_of(&entry.key);
            let applied = match (offset, codec::decode::<LogEntry>(&object.body)) {
                (Some(offset), Ok(entry)) => replay.apply(offset, entry).map_err(str::to_owned),
                (None, _) => Err(FOREIGN_KEY.to_owned()),
                (_, Err(error)) => Err(format!("{}: {error}", entry.key)),
            };
            replay.problems.extend(applied.err());
        }
        Ok(replay)
    }

    /// Checks the upload whose first log entry is `key`.
    pub(super) async fn check_upload(&self, key: &Key) -> Result<Problems, StorageError> {
        let Some(upload) = upload_of(key) else {
            return Ok(Problems::damage(FOREIGN_KEY));
        };
        let replay = self.replay_log(&upload).await?;
        let mut problems = Problems {
            damage: replay.problems,
            ..Problems::default()
        };
        match replay.outcome {
            UploadOutcome::Cancelled => {}
            UploadOutcome::Finished(entry) => {
                self.check_finish(&upload, &entry, &mut problems).await?;
            }
            UploadOutcome::Open => {
                let present = self.segments(&upload).await?;
                let lost = replay
                    .segments
                    .iter()
                    .filter(|segment| present.get(&segment.nonce) != Some(&segment.size));
                problems.damage.extend(lost.map(|segment| {
                    let key = layout::segment(&upload, segment.nonce);
                    format!("segment {key} is missing or has another size")
                }));
                problems.leftovers.push(format!(
                    "unfinished upload with {} bytes so far",
                    replay.end
                ));
            }
        }
        Ok(problems)
    }

    async fn check_finish(
        &self,
        upload: &Generation,
        entry: &LogEntry,
        problems: &mut Problems,
    ) -> Result<(), StorageError> {
        let Some(expected) = entry.record(0) else {
            return Ok(());
        };
        let key = layout::blob(&expected.facts.digest, upload);
        match self.storage.read(&key).await? {
            // The push was not acknowledged. If the client repeats it, the record is written.
            None => problems.leftovers.push(format!(
                "record {key} is not written: the push was interrupted"
            )),
            Some(object) => {
                let is_same = codec::decode::<BlobRecord>(&object.body).is_ok_and(|record| {
                    record.facts == expected.facts && record.segments == expected.segments
                });
                if !is_same {
                    let problem = format!("record {key} differs from the finish entry");
                    problems.damage.push(problem);
                }
            }
        }
        Ok(())
    }

    /// Checks the segments of the upload whose first data object is `key`.
    pub(super) async fn check_segments(&self, key: &Key) -> Result<Problems, StorageError> {
        let Some(upload) = upload_of(key) else {
            return Ok(Problems::damage(FOREIGN_KEY));
        };
        let present = self.segments(&upload).await?;
        let replay = self.replay_log(&upload).await?;
        let unreferenced = present
            .into_iter()
            .filter(|(nonce, _)| !replay.refers_to(*nonce));
        let leftovers = unreferenced.map(|(nonce, size)| {
            let key = layout::segment(&upload, nonce);
            format!("unreferenced segment {key} with {size} bytes")
        });
        Ok(Problems {
            leftovers: leftovers.collect(),
            ..Problems::default()
        })
    }
}

/// The upload of `upload/<id>/...` or `seg/<id>/...`.
fn upload_of(key: &Key) -> Option<Generation> {
    key.as_str().split('/').nth(1)?.parse().ok()
}

fn offset_of(key: &Key) -> Option<u64> {
    u64::from_str_radix(key.last_segment(), 16).ok()
}
