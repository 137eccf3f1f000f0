//! Uploads over several HTTP requests, each of which may reach any replica.
//!
//! ```text
//! POST                    nothing is written: the id is signed
//! PATCH    segment -> data entry at the end of the log       lost: drop the segment, answer 416
//! PUT      [segment ->] finish entry at the end -> record -> membership
//! DELETE   cancel entry at the end
//! ```
//! The replica that made the last entry has the hashes in memory. Another replica reads that entry,
//! which the Location names, and the bytes after its last whole part. Memory may be lost or
//! outdated: the next append to the log detects that.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::{Digest, DigestHasher};
use flotilla_common::hash_tree::{ChunkTable, Tree};
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::BlobFacts;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::content::read_segments;
use super::upload_progress::{LocationHint, UploadProgress};
use super::upload_sessions::{UploadSession, UploadStatus};
use super::{Registry, RegistryError};
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{EMBEDDED_VALUES, Segment, TableLocation, decode, encode};
use crate::storage::StorageError;
use crate::upload::hash::Hashes;
use crate::upload::id::UploadTicket;
use crate::upload::log::{LogState, UploadLog};
use crate::upload::log_entry::{EntryKind, LogEntry};
use crate::upload::receive::{ReceiveLimits, Received, drop_segments, receive};

/// How often a cancel follows an upload log that grows concurrently.
const CANCEL_TRIES: u32 = 8;

/// The body of a request.
pub(crate) struct UploadBody {
    pub(crate) bytes: BoxStream<'static, Result<Bytes, String>>,
    /// Its length, if the client sent one.
    pub(crate) len: Option<u64>,
    /// The offset of its bytes within the upload, if the client sent one.
    pub(crate) offset: Option<u64>,
}

impl core::fmt::Debug for UploadBody {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("UploadBody")
            .field("len", &self.len)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Begins an upload. Nothing is written.
    pub(crate) fn begin_upload(
        &self,
        repository: &RepositoryName,
        hash_sha512: bool,
    ) -> (UploadTicket, UploadProgress) {
        let expires = self
            .clock
            .unix_seconds()
            .saturating_add(self.limits.upload_lifetime.as_secs());
        let ticket = self.signer.issue(repository, expires, hash_sha512);
        (ticket, UploadSession::new(ticket).progress(ticket.id))
    }

    /// Verifies the id of an upload.
    pub(crate) fn ticket(
        &self,
        repository: &RepositoryName,
        id: &str,
    ) -> Result<UploadTicket, RegistryError> {
        let ticket = self
            .signer
            .verify(repository, id, self.clock.unix_seconds());
        ticket.map_err(|_| RegistryError::UploadUnknown)
    }

    /// Appends a body to an upload.
    pub(crate) async fn append(
        &self,
        ticket: UploadTicket,
        hint: Option<LocationHint>,
        body: UploadBody,
    ) -> Result<UploadProgress, RegistryError> {
        let upload = self.upload(ticket, hint).await?;
        let session = self.at_offset(ticket, upload, body.offset).await?.open()?;
        let Received { segments, hashes } =
            self.receive(ticket, body, session.hashes.clone()).await?;
        if segments.is_empty() {
            return Ok(session.progress(ticket.id));
        }
        let entry = session
            .log
            .data_entry(&segments, hashes.midstates(), nonce());
        match self.append_entry(ticket, session.log.end(), &entry).await? {
            None => {
                let before = if entry.base.is_some() {
                    session.log.base_segments()
                } else {
                    &[]
                };
                let next = UploadLog::after(session.log.end(), entry, before);
                let Ok(LogState::Open(log)) = next else {
                    return Err(RegistryError::UploadUnknown);
                };
                let session = Arc::new(UploadSession { log, hashes });
                self.sessions.insert(ticket.id, Arc::clone(&session));
                Ok(session.progress(ticket.id))
            }
            Some(_) => {
                drop_segments(&*self.storage, &ticket.id, &segments).await;
                let session = self.latest(ticket, Some(session.log.end())).await?.open()?;
                Err(RegistryError::Offset(session.progress(ticket.id)))
            }
        }
    }

    /// Finishes an upload, possibly with last bytes. Idempotent.
    pub(crate) async fn finish(
        &self,
        repository: &RepositoryName,
        ticket: UploadTicket,
        hint: Option<LocationHint>,
        digest: Digest,
        body: UploadBody,
    ) -> Result<(), RegistryError> {
        let upload = self.upload(ticket, hint).await?;
        let session = match self.at_offset(ticket, upload, body.offset).await? {
            UploadStatus::Open(session) => session,
            UploadStatus::Finished(entry) => {
                return self.complete(repository, ticket, &entry, digest).await;
            }
            UploadStatus::Cancelled => return Err(RegistryError::UploadUnknown),
        };
        let Received { segments, hashes } =
            self.receive(ticket, body, session.hashes.clone()).await?;
        let (facts, table) = match self
            .identify(ticket, &session, &segments, hashes, digest)
            .await
        {
            Ok(identified) => identified,
            Err(error) => {
                // No log entry was written, so no other replica can refer to these segments.
                drop_segments(&*self.storage, &ticket.id, &segments).await;
                return Err(error);
            }
        };
        let entry = session.log.finish_entry(&segments, facts, table, nonce());
        let Some(winner) = self.append_entry(ticket, session.log.end(), &entry).await? else {
            self.sessions.invalidate(&ticket.id);
            return self.complete(repository, ticket, &entry, digest).await;
        };
        let mut mine = segments;
        mine.extend(table_object(&entry));
        drop_segments(&*self.storage, &ticket.id, &mine).await;
        match winner.kind {
            EntryKind::Finish { .. } => self.complete(repository, ticket, &winner, digest).await,
            EntryKind::Cancel => Err(RegistryError::UploadUnknown),
            EntryKind::Data { .. } => {
                let session = self.latest(ticket, Some(session.log.end())).await?.open()?;
                Err(RegistryError::Offset(session.progress(ticket.id)))
            }
        }
    }

    /// Cancels an upload.
    pub(crate) async fn cancel(
        &self,
        ticket: UploadTicket,
        hint: Option<LocationHint>,
    ) -> Result<(), RegistryError> {
        let mut upload = self.upload(ticket, hint).await?;
        for _ in 0..CANCEL_TRIES {
            let session = upload.open()?;
            let end = session.log.end();
            let won = self
                .append_entry(ticket, end, &session.log.cancel_entry(nonce()))
                .await?
                .is_none();
            self.sessions.invalidate(&ticket.id);
            if won {
                return Ok(());
            }
            upload = self.latest(ticket, Some(end)).await?;
        }
        Err(RegistryError::Contended)
    }

    /// The progress of an upload, read from storage.
    pub(crate) async fn progress(
        &self,
        ticket: UploadTicket,
        hint: Option<LocationHint>,
    ) -> Result<UploadProgress, RegistryError> {
        let upload = self
            .latest(ticket, hint.and_then(|hint| hint.last_entry))
            .await?;
        Ok(upload.open()?.progress(ticket.id))
    }

    async fn receive(
        &self,
        ticket: UploadTicket,
        body: UploadBody,
        hashes: Hashes,
    ) -> Result<Received, RegistryError> {
        let limits = ReceiveLimits {
            batches: self.batches.clone(),
            stall: self.limits.stall_timeout,
            segment_len: self.limits.segment_len.0,
            expected: body.len,
        };
        Ok(receive(&*self.storage, &ticket.id, body.bytes, hashes, &limits).await?)
    }

    /// Creates a log entry. Returns the entry of another request if that was created first.
    async fn append_entry(
        &self,
        ticket: UploadTicket,
        offset: u64,
        entry: &LogEntry,
    ) -> Result<Option<LogEntry>, RegistryError> {
        let key = layout::log_entry(&ticket.id, offset);
        match self
            .conditional_write(&key, None, encode(&key, entry)?.into())
            .await
        {
            Ok(WriteOutcome::Written) => Ok(None),
            Ok(WriteOutcome::Lost { present, .. }) => {
                self.sessions.invalidate(&ticket.id);
                let present =
                    present.ok_or_else(|| StorageError::missing("read upload log entry", &key))?;
                Ok(Some(decode(&key, &present.body)?))
            }
            Err(error) => {
                // The entry may exist or be created later, so its segments must stay.
                self.sessions.invalidate(&ticket.id);
                Err(error.into())
            }
        }
    }

    /// Checks the digest, and returns the facts and the chunk table for the record.
    async fn identify(
        &self,
        ticket: UploadTicket,
        session: &UploadSession,
        received: &[Segment],
        hashes: Hashes,
        digest: Digest,
    ) -> Result<(BlobFacts, TableLocation), RegistryError> {
        let (computed, tree) = hashes.finish(digest.algorithm());
        let computed = match computed {
            Some(computed) => computed,
            None => self.hash_again(ticket, session, received, digest).await?,
        };
        if computed != digest {
            let reason =
                format!("digest mismatch: the uploaded bytes have {computed}, not {digest}");
            return Err(RegistryError::DigestInvalid(reason));
        }
        let Tree {
            geometry,
            root,
            table,
        } = tree;
        let facts = BlobFacts {
            digest,
            size: geometry.size(),
            chunk_log2: geometry.chunk_log2(),
            root,
        };
        let table = match table {
            None => TableLocation::None,
            Some(table) if table.values().len() <= EMBEDDED_VALUES => {
                TableLocation::Embedded(table)
            }
            Some(table) => self.write_table(ticket, &table).await?,
        };
        Ok((facts, table))
    }

    /// Computes a digest whose algorithm the client did not announce, by reading all segments.
    async fn hash_again(
        &self,
        ticket: UploadTicket,
        session: &UploadSession,
        received: &[Segment],
        digest: Digest,
    ) -> Result<Digest, RegistryError> {
        let segments: Vec<_> = session
            .log
            .segments()
            .iter()
            .chain(received)
            .copied()
            .collect();
        let len = segments.iter().map(|segment| segment.size).sum();
        let mut bytes = read_segments(&self.storage, &ticket.id, &segments, 0..len).await?;
        let mut hasher = DigestHasher::new(digest.algorithm());
        while let Some(piece) = bytes.next().await {
            let piece = piece?;
            let update = move || {
                hasher.update(&piece);
                hasher
            };
            let hashed = tokio::task::spawn_blocking(update).await;
            hasher = hashed
                .map_err(|stopped| StorageError::unavailable("hash bytes", "upload", stopped))?;
        }
        Ok(hasher.finish())
    }

    async fn write_table(
        &self,
        ticket: UploadTicket,
        table: &ChunkTable,
    ) -> Result<TableLocation, RegistryError> {
        let nonce = nonce();
        let key = layout::segment(&ticket.id, nonce);
        let body = codec::encode(table)
            .map_err(|error| StorageError::unavailable("encode table", &key, error))?;
        self.storage.create(&key, body.into()).await?;
        Ok(TableLocation::Object { nonce })
    }

    /// Writes the record and the membership of a finish entry, which another request may have made.
    async fn complete(
        &self,
        repository: &RepositoryName,
        ticket: UploadTicket,
        entry: &LogEntry,
        digest: Digest,
    ) -> Result<(), RegistryError> {
        let record = entry.record(nonce()).ok_or(RegistryError::UploadUnknown)?;
        if record.facts.digest != digest {
            let reason = format!(
                "the upload was finished with another digest: {}",
                record.facts.digest
            );
            return Err(RegistryError::DigestInvalid(reason));
        }
        self.keep_record(&ticket.id, record).await?;
        self.add_membership(repository, &digest, &ticket.id).await
    }
}

/// The object of the chunk table of a finish entry, if there is one.
fn table_object(entry: &LogEntry) -> Option<Segment> {
    match entry.kind {
        EntryKind::Finish {
            table: TableLocation::Object { nonce },
            ..
        } => Some(Segment { nonce, size: 0 }),
        _ => None,
    }
}
