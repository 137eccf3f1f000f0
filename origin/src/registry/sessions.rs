//! Finding an upload: in memory, by the entry that a Location names, or by listing its entries.
//!
//! What memory or a Location says may be out of date. That is found out by the next claim, which
//! then looks here again.

use std::sync::Arc;

use bytes::BytesMut;
use flotilla_common::chunk::PART_SIZE;
use futures_util::TryStreamExt;

use super::content::read_segments;
use super::uploads::{Known, Progress};
use super::{Registry, RegistryError};
use crate::layout;
use crate::record::{Segment, decode};
use crate::storage::{Key, Object, StorageError};
use crate::upload::hash::Hashes;
use crate::upload::id::{Generation, UploadTicket};
use crate::upload::log::{LogState, UploadLog};
use crate::upload::log_entry::{EntryKind, LogEntry};

/// Links that one page of a listing shows.
const ENTRIES_PER_PAGE: usize = 1000;

/// An open upload in memory.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) log: UploadLog,
    pub(super) hashes: Hashes,
}

impl Session {
    pub(super) fn new(ticket: UploadTicket) -> Self {
        Self {
            log: UploadLog::default(),
            hashes: Hashes::new(ticket.hash_sha512),
        }
    }

    pub(super) fn weight(&self) -> usize {
        // Hashers of fixed size, and a value for each unit of the tree: some thousands at most.
        4096 + size_of_val(self.log.segments())
            + 32 * (self.log.end() / PART_SIZE).min(4096) as usize
    }

    pub(super) fn progress(&self, upload: Generation) -> Progress {
        Progress {
            upload,
            end: self.log.end(),
            known: Known {
                last: self.log.last_offset(),
            },
        }
    }
}

/// An upload, wherever it is.
pub(super) enum Upload {
    Open(Arc<Session>),
    Finished(Box<LogEntry>),
    Cancelled,
}

impl Upload {
    pub(super) fn open(self) -> Result<Arc<Session>, RegistryError> {
        match self {
            Self::Open(session) => Ok(session),
            Self::Finished(_) | Self::Cancelled => Err(RegistryError::UploadUnknown),
        }
    }
}

impl Registry {
    /// The upload as this replica or the request's Location knows it; it may be further by now.
    pub(super) async fn upload(
        &self,
        ticket: UploadTicket,
        known: Option<Known>,
    ) -> Result<Upload, RegistryError> {
        let session = self.sessions.get(&ticket.id);
        if let Some(session) = session
            && known.is_none_or(|known| known.last <= session.log.last_offset())
        {
            return Ok(Upload::Open(session));
        }
        match known {
            Some(Known { last: None }) => Ok(Upload::Open(Arc::new(Session::new(ticket)))),
            Some(Known { last: Some(offset) }) => {
                let key = layout::log_entry(&ticket.id, offset);
                match self.storage.read(&key).await? {
                    Some(object) => self.follow(ticket, offset, &key, &object).await,
                    None => self.latest(ticket, None).await,
                }
            }
            None => self.latest(ticket, None).await,
        }
    }

    /// The upload, looked up once more if it is not where the request's bytes begin.
    pub(super) async fn expecting(
        &self,
        ticket: UploadTicket,
        upload: Upload,
        offset: Option<u64>,
    ) -> Result<Upload, RegistryError> {
        let (Some(offset), Upload::Open(session)) = (offset, &upload) else {
            return Ok(upload);
        };
        if session.log.end() == offset {
            return Ok(upload);
        }
        let upload = self.latest(ticket, session.log.last_offset()).await?;
        match &upload {
            Upload::Open(session) if session.log.end() != offset => {
                Err(RegistryError::Offset(session.progress(ticket.id)))
            }
            _ => Ok(upload),
        }
    }

    /// The upload by the last of its entries in storage, at or after the entry at `from`.
    pub(super) async fn latest(
        &self,
        ticket: UploadTicket,
        from: Option<u64>,
    ) -> Result<Upload, RegistryError> {
        let prefix = layout::log_entries(&ticket.id);
        // A listing begins after a key: the one before the first that is looked for.
        let mut after = from
            .and_then(|from| from.checked_sub(1))
            .map(|before| layout::log_entry(&ticket.id, before));
        let mut last = None;
        loop {
            let page = self
                .storage
                .list(&prefix, after.as_ref(), ENTRIES_PER_PAGE)
                .await?;
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
            return Ok(Upload::Open(Arc::new(Session::new(ticket))));
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

    /// The upload after an entry.
    async fn follow(
        &self,
        ticket: UploadTicket,
        offset: u64,
        key: &Key,
        object: &Object,
    ) -> Result<Upload, RegistryError> {
        let mut entry: LogEntry = decode(key, &object.body)?;
        let before = match entry.base {
            Some(base) => self.base_segments(ticket, base).await?,
            None => Vec::new(),
        };
        let midstates = match &mut entry.kind {
            EntryKind::Data { midstates } => Some(midstates.clone()),
            EntryKind::Finish { .. } | EntryKind::Cancel => None,
        };
        let invalid_entry = |error| StorageError::unavailable("follow upload", key, error);
        let log = match UploadLog::after(offset, entry, &before).map_err(invalid_entry)? {
            LogState::Open(log) => log,
            LogState::Finished(entry) => return Ok(Upload::Finished(Box::new(entry))),
            LogState::Cancelled => return Ok(Upload::Cancelled),
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
                "follow upload",
                key,
                "midstates of other bytes",
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
            hashes.map_err(|error| StorageError::unavailable("follow upload", key, error))?;
        let session = Arc::new(Session { log, hashes });
        self.sessions.insert(ticket.id, Arc::clone(&session));
        Ok(Upload::Open(session))
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
