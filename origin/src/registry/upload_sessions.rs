//! Finds an upload: in memory, by the log entry that a Location names, or by listing its log.
//!
//! Memory and Locations may be outdated. The next append to the log detects that and looks the
//! upload up again, here.

use std::sync::Arc;

use bytes::BytesMut;
use flotilla_common::chunk::PART_SIZE;
use futures_util::TryStreamExt;

use super::content::read_segments;
use super::upload_progress::{LocationHint, UploadProgress};
use super::{Registry, RegistryError};
use crate::layout;
use crate::record::{Segment, decode};
use crate::storage::{Key, Object, PAGE_LEN, StorageError};
use crate::upload::hash::Hashes;
use crate::upload::id::{Generation, UploadTicket};
use crate::upload::log::{LogState, UploadLog};
use crate::upload::log_entry::{EntryKind, LogEntry};

/// An open upload in memory.
#[derive(Clone, Debug)]
pub(super) struct UploadSession {
    pub(super) log: UploadLog,
    pub(super) hashes: Hashes,
}

impl UploadSession {
    pub(super) fn new(ticket: UploadTicket) -> Self {
        Self {
            log: UploadLog::default(),
            hashes: Hashes::new(ticket.hash_sha512),
        }
    }

    pub(super) fn weight(&self) -> usize {
        // Hashers of fixed size, and a chaining value for each part: some thousands at most.
        4096 + size_of_val(self.log.segments())
            + 32 * (self.log.end() / PART_SIZE).min(4096) as usize
    }

    pub(super) fn progress(&self, upload: Generation) -> UploadProgress {
        UploadProgress {
            upload,
            end: self.log.end(),
            hint: LocationHint {
                last_entry: self.log.last_offset(),
            },
        }
    }
}

/// The state of an upload.
pub(super) enum UploadStatus {
    Open(Arc<UploadSession>),
    Finished(Box<LogEntry>),
    Cancelled,
}

impl UploadStatus {
    pub(super) fn open(self) -> Result<Arc<UploadSession>, RegistryError> {
        match self {
            Self::Open(session) => Ok(session),
            Self::Finished(_) | Self::Cancelled => Err(RegistryError::UploadUnknown),
        }
    }
}

impl Registry {
    /// The upload by memory or by the hint of the request; it may have progressed since.
    pub(super) async fn upload(
        &self,
        ticket: UploadTicket,
        hint: Option<LocationHint>,
    ) -> Result<UploadStatus, RegistryError> {
        let session = self.sessions.get(&ticket.id);
        if let Some(session) = session
            && hint.is_none_or(|hint| hint.last_entry <= session.log.last_offset())
        {
            return Ok(UploadStatus::Open(session));
        }
        match hint {
            Some(LocationHint { last_entry: None }) => {
                Ok(UploadStatus::Open(Arc::new(UploadSession::new(ticket))))
            }
            Some(LocationHint {
                last_entry: Some(offset),
            }) => {
                let key = layout::log_entry(&ticket.id, offset);
                match self.storage.read(&key).await? {
                    Some(object) => self.follow(ticket, offset, &key, &object).await,
                    None => self.latest(ticket, None).await,
                }
            }
            None => self.latest(ticket, None).await,
        }
    }

    /// The upload, read from storage if it does not end at the offset of the request.
    pub(super) async fn at_offset(
        &self,
        ticket: UploadTicket,
        upload: UploadStatus,
        offset: Option<u64>,
    ) -> Result<UploadStatus, RegistryError> {
        let (Some(offset), UploadStatus::Open(session)) = (offset, &upload) else {
            return Ok(upload);
        };
        if session.log.end() == offset {
            return Ok(upload);
        }
        let upload = self.latest(ticket, session.log.last_offset()).await?;
        match &upload {
            UploadStatus::Open(session) if session.log.end() != offset => {
                Err(RegistryError::Offset(session.progress(ticket.id)))
            }
            _ => Ok(upload),
        }
    }

    /// The upload by its last entry in storage, at or after offset `from`.
    pub(super) async fn latest(
        &self,
        ticket: UploadTicket,
        from: Option<u64>,
    ) -> Result<UploadStatus, RegistryError> {
        let prefix = layout::log_entries(&ticket.id);
        // A listing starts after a key, here the one before `from`.
        let mut after = from
            .and_then(|from| from.checked_sub(1))
            .map(|before| layout::log_entry(&ticket.id, before));
        let mut last = None;
        loop {
            let page = self.storage.list(&prefix, after.as_ref(), PAGE_LEN).await?;
            last = page
                .entries
                .into_iter()
                .next_back()
                .map(|entry| entry.key)
                .or(last);
            if !page.more {
                break;
            }
            after.clone_from(&last);
        }
        let Some(key) = last else {
            return Ok(UploadStatus::Open(Arc::new(UploadSession::new(ticket))));
        };
        let offset = u64::from_str_radix(key.last_segment(), 16);
        let offset =
            offset.map_err(|error| StorageError::unavailable("list upload log", &key, error))?;
        let object = self
            .storage
            .read(&key)
            .await?
            .ok_or(RegistryError::UploadUnknown)?;
        self.follow(ticket, offset, &key, &object).await
    }

    /// Restores the upload from a log entry.
    async fn follow(
        &self,
        ticket: UploadTicket,
        offset: u64,
        key: &Key,
        object: &Object,
    ) -> Result<UploadStatus, RegistryError> {
        let mut entry: LogEntry = decode(key, &object.body)?;
        let before = match entry.base {
            Some(base) => self.base_segments(ticket, base).await?,
            None => Vec::new(),
        };
        let midstates = match &mut entry.kind {
            EntryKind::Data { midstates } => Some(midstates.clone()),
            EntryKind::Finish { .. } | EntryKind::Cancel => None,
        };
        let invalid_entry = |error| StorageError::unavailable("resume upload", key, error);
        let log = match UploadLog::after(offset, entry, &before).map_err(invalid_entry)? {
            LogState::Open(log) => log,
            LogState::Finished(entry) => return Ok(UploadStatus::Finished(Box::new(entry))),
            LogState::Cancelled => return Ok(UploadStatus::Cancelled),
        };
        let Some(midstates) = midstates else {
            return Err(RegistryError::UploadUnknown);
        };
        let tail = midstates.covered()..log.end();
        if tail
            .end
            .checked_sub(tail.start)
            .is_none_or(|len| len > PART_SIZE)
        {
            return Err(StorageError::unavailable(
                "resume upload",
                key,
                "the hash states do not match the log",
            )
            .into());
        }
        let tail = read_segments(&self.storage, &ticket.id, log.segments(), tail).await?;
        let tail = tail.try_fold(BytesMut::new(), |mut bytes, piece| async move {
            bytes.extend_from_slice(&piece);
            Ok(bytes)
        });
        let hashes = Hashes::resume(midstates, &tail.await?);
        let hashes =
            hashes.map_err(|error| StorageError::unavailable("resume upload", key, error))?;
        let session = Arc::new(UploadSession { log, hashes });
        self.sessions.insert(ticket.id, Arc::clone(&session));
        Ok(UploadStatus::Open(session))
    }

    async fn base_segments(
        &self,
        ticket: UploadTicket,
        offset: u64,
    ) -> Result<Vec<Segment>, RegistryError> {
        let key = layout::log_entry(&ticket.id, offset);
        let object = self
            .storage
            .read(&key)
            .await?
            .ok_or_else(|| StorageError::missing("read upload log entry", &key))?;
        let entry: LogEntry = decode(&key, &object.body)?;
        Ok(entry.segments)
    }
}
