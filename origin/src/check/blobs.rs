//! Records of blobs with their segments, and repositories' claims to them.

use flotilla_common::codec;
use flotilla_common::digest::{Digest, DigestHasher};
use flotilla_common::tree::{ChunkTable, TreeHasher};
use futures_util::TryStreamExt;

use super::{Checker, Look, NO_KEY, in_repository};
use crate::layout;
use crate::record::{BlobRecord, MembershipRecord, State, TableAt};
use crate::registry::read_segments;
use crate::storage::{Key, StorageError};
use crate::upload::id::Generation;

/// Generations of one digest that are looked at.
const GENERATIONS: usize = 100;

impl Checker {
    pub(super) async fn look_at_claim(&self, key: &Key) -> Result<Look, StorageError> {
        let Some((_, digest)) = in_repository::<Digest>(key) else {
            return Ok(Look::damage(NO_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Look::default());
        };
        let claim: MembershipRecord = match codec::decode(&object.body) {
            Ok(claim) => claim,
            Err(error) => return Ok(Look::damage(error)),
        };
        if claim.state == State::Dead || self.is_served(&digest, &claim.generation).await? {
            return Ok(Look::default());
        }
        // Whoever asks for it finds another generation.
        let page = self
            .storage
            .list(&layout::generations(&digest), None, GENERATIONS)
            .await?;
        for entry in page.entries {
            let Ok(generation) = entry.key.last_segment().parse() else {
                continue;
            };
            if self.is_served(&digest, &generation).await? {
                return Ok(Look::default());
            }
        }
        Ok(Look::damage("no record of the blob is left"))
    }

    pub(super) async fn is_served(
        &self,
        digest: &Digest,
        generation: &Generation,
    ) -> Result<bool, StorageError> {
        let Some(object) = self.storage.read(&layout::blob(digest, generation)).await? else {
            return Ok(false);
        };
        // A record that cannot be read is told where the record is looked at.
        let record = codec::decode::<BlobRecord>(&object.body);
        Ok(record.map_or(true, |record| record.state.is_served()))
    }

    pub(super) async fn look_at_blob(&self, key: &Key) -> Result<Look, StorageError> {
        let Some((digest, generation)) = parse(key) else {
            return Ok(Look::damage(NO_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Look::default());
        };
        let record: BlobRecord = match codec::decode(&object.body) {
            Ok(record) => record,
            Err(error) => return Ok(Look::damage(error)),
        };
        if record.state == State::Dead {
            return Ok(Look::default());
        }
        let mut look = Look {
            damage: self.record_problems(&digest, &generation, &record).await?,
            ..Look::default()
        };
        if look.damage.is_empty() && self.deep {
            look.hashed_bytes = record.facts.size;
            look.damage
                .extend(self.bytes_problem(&generation, &record).await?);
        }
        Ok(look)
    }

    async fn record_problems(
        &self,
        digest: &Digest,
        generation: &Generation,
        record: &BlobRecord,
    ) -> Result<Vec<String>, StorageError> {
        let mut problems = Vec::new();
        if record.facts.digest != *digest {
            problems.push(format!("it is the record of {}", record.facts.digest));
        }
        let bytes = record
            .segments
            .iter()
            .try_fold(0_u64, |sum, segment| sum.checked_add(segment.size));
        if bytes != Some(record.facts.size) {
            problems.push(format!(
                "its segments do not have the {} bytes of the blob",
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
        if !self.table_proves(generation, record).await? {
            problems.push("its chunk table is missing or does not lead to the root".to_owned());
        }
        Ok(problems)
    }

    async fn table_proves(
        &self,
        generation: &Generation,
        record: &BlobRecord,
    ) -> Result<bool, StorageError> {
        let Some(geometry) = record.facts.geometry() else {
            return Ok(false);
        };
        let proves = |table: &ChunkTable| table.proves(&geometry, &record.facts.root);
        Ok(match &record.table {
            TableAt::Nowhere => geometry.is_single_chunk(),
            TableAt::Here(table) => proves(table),
            TableAt::Object { nonce } => match self
                .storage
                .read(&layout::segment(generation, *nonce))
                .await?
            {
                Some(object) => codec::decode(&object.body).is_ok_and(|table| proves(&table)),
                None => false,
            },
        })
    }

    /// Reads all bytes, and compares them with the digest and with the root of the tree.
    async fn bytes_problem(
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
            return Ok(Some(format!("its bytes have the digest {computed}")));
        }
        let root = tree.finish().root;
        Ok((root != facts.root).then(|| "its bytes do not have the root of its record".to_owned()))
    }
}

/// The digest and the generation of `blob/<digest>/<generation>`.
fn parse(key: &Key) -> Option<(Digest, Generation)> {
    let (digest, generation) = key.as_str().strip_prefix("blob/")?.split_once('/')?;
    Some((digest.parse().ok()?, generation.parse().ok()?))
}
