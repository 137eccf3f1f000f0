//! Checks of blob records with their segments, and of the memberships of blobs in repositories.

use flotilla_common::codec;
use flotilla_common::digest::{Digest, DigestHasher};
use flotilla_common::hash_tree::{ChunkTable, TreeHasher};
use futures_util::TryStreamExt;

use super::{Checker, FOREIGN_KEY, Problems, parse_repository_key};
use crate::layout;
use crate::record::{BlobRecord, MembershipRecord, RecordState, TableLocation};
use crate::registry::read_segments;
use crate::storage::{Key, StorageError};
use crate::upload::id::Generation;

/// Generations of one digest that are checked.
const MAX_GENERATIONS: usize = 100;

impl Checker {
    pub(super) async fn check_membership(&self, key: &Key) -> Result<Problems, StorageError> {
        let Some((_, digest)) = parse_repository_key::<Digest>(key) else {
            return Ok(Problems::damage(FOREIGN_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Problems::default());
        };
        let membership: MembershipRecord = match codec::decode(&object.body) {
            Ok(membership) => membership,
            Err(error) => return Ok(Problems::damage(error)),
        };
        if membership.state == RecordState::Dead
            || self.is_served(&digest, &membership.generation).await?
        {
            return Ok(Problems::default());
        }
        // A pull uses any other generation.
        let page = self
            .storage
            .list(&layout::generations(&digest), None, MAX_GENERATIONS)
            .await?;
        for entry in page.entries {
            let Ok(generation) = entry.key.last_segment().parse() else {
                continue;
            };
            if self.is_served(&digest, &generation).await? {
                return Ok(Problems::default());
            }
        }
        Ok(Problems::damage("the blob has no live record"))
    }

    pub(super) async fn is_served(
        &self,
        digest: &Digest,
        generation: &Generation,
    ) -> Result<bool, StorageError> {
        let Some(object) = self.storage.read(&layout::blob(digest, generation)).await? else {
            return Ok(false);
        };
        // An invalid record is reported when the record itself is checked.
        let record = codec::decode::<BlobRecord>(&object.body);
        Ok(record.map_or(true, |record| record.state.is_served()))
    }

    pub(super) async fn check_blob(&self, key: &Key) -> Result<Problems, StorageError> {
        let Some((digest, generation)) = parse_blob_key(key) else {
            return Ok(Problems::damage(FOREIGN_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Problems::default());
        };
        let record: BlobRecord = match codec::decode(&object.body) {
            Ok(record) => record,
            Err(error) => return Ok(Problems::damage(error)),
        };
        if record.state == RecordState::Dead {
            return Ok(Problems::default());
        }
        let mut problems = Problems {
            damage: self.record_problems(&digest, &generation, &record).await?,
            ..Problems::default()
        };
        if problems.damage.is_empty() && self.deep {
            problems.hashed_bytes = record.facts.size;
            problems
                .damage
                .extend(self.content_problem(&generation, &record).await?);
        }
        Ok(problems)
    }

    async fn record_problems(
        &self,
        digest: &Digest,
        generation: &Generation,
        record: &BlobRecord,
    ) -> Result<Vec<String>, StorageError> {
        let mut problems = Vec::new();
        if record.facts.digest != *digest {
            problems.push(format!("the record belongs to {}", record.facts.digest));
        }
        let bytes = record
            .segments
            .iter()
            .try_fold(0_u64, |sum, segment| sum.checked_add(segment.size));
        if bytes != Some(record.facts.size) {
            problems.push(format!(
                "the sizes of its segments do not add up to {} bytes",
                record.facts.size
            ));
        }
        let present = self.segments(generation).await?;
        for segment in &record.segments {
            match present.get(&segment.nonce) {
                Some(size) if *size == segment.size => {}
                Some(size) => problems.push(format!(
                    "segment {} has {size} bytes, not {}",
                    layout::segment(generation, segment.nonce),
                    segment.size
                )),
                None => problems.push(format!(
                    "segment {} is missing",
                    layout::segment(generation, segment.nonce)
                )),
            }
        }
        if !self.has_valid_table(generation, record).await? {
            problems.push("its chunk table is missing or does not match its root".to_owned());
        }
        Ok(problems)
    }

    async fn has_valid_table(
        &self,
        generation: &Generation,
        record: &BlobRecord,
    ) -> Result<bool, StorageError> {
        let Some(geometry) = record.facts.geometry() else {
            return Ok(false);
        };
        let is_valid = |table: &ChunkTable| table.proves(&geometry, &record.facts.root);
        Ok(match &record.table {
            TableLocation::None => geometry.is_single_chunk(),
            TableLocation::Embedded(table) => is_valid(table),
            TableLocation::Object { nonce } => match self
                .storage
                .read(&layout::segment(generation, *nonce))
                .await?
            {
                Some(object) => codec::decode(&object.body).is_ok_and(|table| is_valid(&table)),
                None => false,
            },
        })
    }

    /// Hashes all bytes, and compares them with the digest and the root of the tree.
    async fn content_problem(
        &self,
        generation: &Generation,
        record: &BlobRecord,
    ) -> Result<Option<String>, StorageError> {
        let facts = &record.facts;
        let bytes =
            read_segments(&self.storage, generation, &record.segments, 0..facts.size).await?;
        let hashers = (
            DigestHasher::new(facts.digest.algorithm()),
            TreeHasher::new(),
        );
        let hashed = bytes.try_fold(hashers, |(mut digest, mut tree), piece| async move {
            digest.update(&piece);
            tree.update(&piece);
            Ok((digest, tree))
        });
        let (digest, tree) = hashed.await?;
        let computed = digest.finish();
        if computed != facts.digest {
            return Ok(Some(format!("its content has the digest {computed}")));
        }
        let root = tree.finish().root;
        Ok((root != facts.root)
            .then(|| "its content does not match the root in its record".to_owned()))
    }
}

/// Parses `blob/<digest>/<generation>`.
fn parse_blob_key(key: &Key) -> Option<(Digest, Generation)> {
    let (digest, generation) = key.as_str().strip_prefix("blob/")?.split_once('/')?;
    Some((digest.parse().ok()?, generation.parse().ok()?))
}
