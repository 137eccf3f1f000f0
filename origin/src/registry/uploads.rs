//! Uploads over HTTP requests, each of which may land on any replica.
//!
//! ```text
//! POST                    nothing is written: the id is signed
//! PATCH    segment -> datan entry at the end so far            lost: drop the segment, 416
//! PUT      [segment ->] finish entry at the end -> record -> claim
//! DELETE   cancel entry at the end
//! ```
//! A replica that made the last entry has the hashes in memory; another one reads that entry, which
//! the Location names, and the bytes after its last whole part. All that memory holds may be lost
//! or out of date: claims find out.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::codec;
use flotilla_common::digest::{Digest, DigestHasher};
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::BlobFacts;
use flotilla_common::tree::{ChunkTable, Tree};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::content::read_segments;
use super::sessions::{Session, Upload};
use super::{Registry, RegistryError};
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{EMBEDDED_VALUES, Segment, TableAt, decode, encode};
use crate::storage::StorageError;
use crate::upload::hash::Hashes;
use crate::upload::id::{Generation, UploadTicket};
use crate::upload::log::{LogState, UploadLog};
use crate::upload::log_entry::{EntryKind, LogEntry};
use crate::upload::receive::{ReceiveLimits, Received, drop_segments, receive};

/// How often a cancel follows an upload log that grows concurrently.
const CANCEL_TRIES: u32 = 8;

/// A request's body.
pub(crate) struct Body {
    pub(crate) bytes: BoxStream<'static, Result<Bytes, String>>,
    /// Its length, as far as the client said.
    pub(crate) len: Option<u64>,
    /// Where its bytes begin within the upload, if the client said.
    pub(crate) offset: Option<u64>,
}

impl core::fmt::Debug for Body {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Body")
            .field("len", &self.len)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// What a Location says of its upload: the offset of its last entry when it was written, none for no
/// entry yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Known {
    pub(crate) last: Option<u64>,
}

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Which one.
    pub(crate) upload: Generation,
    /// Bytes so far.
    pub(crate) end: u64,
    /// For the Location.
    pub(crate) known: Known,
}

impl Registry {
    /// A new upload. Nothing is written.
    pub(crate) fn begin_upload(
        &self,
        repository: &RepositoryName,
        hash_sha512: bool,
    ) -> (UploadTicket, Progress) {
        let expires = self
            .clock
            .unix_seconds()
            .saturating_add(self.limits.upload_lifetime.as_secs());
        let ticket = self.signer.issue(repository, expires, hash_sha512);
        (ticket, Session::new(ticket).progress(ticket.id))
    }

    /// The upload that a request names.
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

    /// Adds a body to an upload.
    pub(crate) async fn append(
        &self,
        ticket: UploadTicket,
        known: Option<Known>,
        body: Body,
    ) -> Result<Progress, RegistryError> {
        let upload = self.upload(ticket, known).await?;
        let session = self.expecting(ticket, upload, body.offset).await?.open()?;
        let Received { segments, hashes } =
            self.receive(ticket, body, session.hashes.clone()).await?;
        if segments.is_empty() {
            return Ok(session.progress(ticket.id));
        }
        let entry = session
            .log
            .data_entry(&segments, hashes.midstates(), nonce());
        match self.claim_offset(ticket, session.log.end(), &entry).await? {
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
                let session = Arc::new(Session { log, hashes });
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

    /// Finishes an upload, perhaps with last bytes. Repeated, it gives the same answer.
    pub(crate) async fn finish(
        &self,
        repository: &RepositoryName,
        ticket: UploadTicket,
        known: Option<Known>,
        digest: Digest,
        body: Body,
    ) -> Result<(), RegistryError> {
        let upload = self.upload(ticket, known).await?;
        let session = match self.expecting(ticket, upload, body.offset).await? {
            Upload::Open(session) => session,
            Upload::Finished(entry) => {
                return self.complete(repository, ticket, &entry, digest).await;
            }
            Upload::Cancelled => return Err(RegistryError::UploadUnknown),
        };
        let Received { segments, hashes } =
            self.receive(ticket, body, session.hashes.clone()).await?;
        let (facts, table) = match self
            .identify(ticket, &session, &segments, hashes, digest)
            .await
        {
            Ok(identified) => identified,
            Err(error) => {
                // No entry was tried, so nobody can know these segments.
                drop_segments(&*self.storage, &ticket.id, &segments).await;
                return Err(error);
            }
        };
        let entry = session.log.finish_entry(&segments, facts, table, nonce());
        let Some(winner) = self.claim_offset(ticket, session.log.end(), &entry).await? else {
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

    /// Gives an upload up.
    pub(crate) async fn cancel(
        &self,
        ticket: UploadTicket,
        known: Option<Known>,
    ) -> Result<(), RegistryError> {
        let mut upload = self.upload(ticket, known).await?;
        for _ in 0..CANCEL_TRIES {
            let session = upload.open()?;
            let end = session.log.end();
            let won = self
                .claim_offset(ticket, end, &session.log.cancel_entry(nonce()))
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

    /// How far an upload is, looked up in storage.
    pub(crate) async fn progress(
        &self,
        ticket: UploadTicket,
        known: Option<Known>,
    ) -> Result<Progress, RegistryError> {
        let upload = self
            .latest(ticket, known.and_then(|known| known.last))
            .await?;
        Ok(upload.open()?.progress(ticket.id))
    }

    async fn receive(
        &self,
        ticket: UploadTicket,
        body: Body,
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

    /// Creates an entry. `None` if it is there, otherwise the one that is.
    async fn claim_offset(
        &self,
        ticket: UploadTicket,
        offset: u64,
        entry: &LogEntry,
    ) -> Result<Option<LogEntry>, RegistryError> {
        let key = layout::log_entry(&ticket.id, offset);
        match self
            .write_if_unchanged(&key, None, encode(&key, entry)?.into())
            .await
        {
            Ok(WriteOutcome::Written) => Ok(None),
            Ok(WriteOutcome::Lost(present)) => {
                self.sessions.invalidate(&ticket.id);
                let present =
                    present.ok_or_else(|| StorageError::missing("read upload log entry", &key))?;
                Ok(Some(decode(&key, &present.body)?))
            }
            Err(error) => {
                // The entry may be there or come later: its segments stay.
                self.sessions.invalidate(&ticket.id);
                Err(error.into())
            }
        }
    }

    /// Checks the digest, and tells what the record will say.
    async fn identify(
        &self,
        ticket: UploadTicket,
        session: &Session,
        arrived: &[Segment],
        hashes: Hashes,
        digest: Digest,
    ) -> Result<(BlobFacts, TableAt), RegistryError> {
        let (computed, tree) = hashes.finish(digest.algorithm());
        let computed = match computed {
            Some(computed) => computed,
            None => self.hash_again(ticket, session, arrived, digest).await?,
        };
        if computed != digest {
            let reason = format!("the bytes have the digest {computed}, not {digest}");
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
            None => TableAt::Nowhere,
            Some(table) if table.values().len() <= EMBEDDED_VALUES => TableAt::Here(table),
            Some(table) => self.write_table(ticket, &table).await?,
        };
        Ok((facts, table))
    }

    /// The digest under an algorithm that the client did not announce: the segments are read once
    /// more.
    async fn hash_again(
        &self,
        ticket: UploadTicket,
        session: &Session,
        arrived: &[Segment],
        digest: Digest,
    ) -> Result<Digest, RegistryError> {
        let segments: Vec<_> = session
            .log
            .segments()
            .iter()
            .chain(arrived)
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
    ) -> Result<TableAt, RegistryError> {
        let nonce = nonce();
        let key = layout::segment(&ticket.id, nonce);
        let body = codec::encode(table)
            .map_err(|error| StorageError::unavailable("encode table", &key, error))?;
        self.storage.create(&key, body.into()).await?;
        Ok(TableAt::Object { nonce })
    }

    /// The record and the claim of a finish entry, which may be another's.
    async fn complete(
        &self,
        repository: &RepositoryName,
        ticket: UploadTicket,
        entry: &LogEntry,
        digest: Digest,
    ) -> Result<(), RegistryError> {
        let record = entry.record(nonce()).ok_or(RegistryError::UploadUnknown)?;
        if record.facts.digest != digest {
            let reason = format!("the upload was finished as {}", record.facts.digest);
            return Err(RegistryError::DigestInvalid(reason));
        }
        self.keep_record(&ticket.id, record).await?;
        self.add_membership(repository, &digest, &ticket.id).await
    }
}

/// The object of a finish entry's table, if it has one.
fn table_object(entry: &LogEntry) -> Option<Segment> {
    match entry.kind {
        EntryKind::Finish {
            table: TableAt::Object { nonce },
            ..
        } => Some(Segment { nonce, size: 0 }),
        _ => None,
    }
}
