//! Between the origins of two regions: what a region is owed, and the facts of its keys.
//!
//! ```text
//! follower ── state ──▶ source     its storage, its clock, what it owes to each region
//!          ── journal ─▶           the entries that are owed to the caller
//!          ── facts ───▶           the present values of some keys
//!          ── GET /v2/… ─▶         bytes of blobs, from the source's own storage
//!          ── done ────▶           the entries whose keys the follower has merged
//!          ── keys ────▶           a page of all keys, for a sweep
//! source   ── take ────▶ follower  copy these keys now
//! ```
//! Every request is a POST of a [`codec`](crate::codec) body, except `state`, which is a GET. The
//! client's certificate names its region, and the entries that it may read and drop are its own.

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::digest::Digest;
use crate::name::{RegionName, RepositoryName, Tag};
use crate::stamp::Stamp;
use crate::storage_id::StorageId;

/// The prefix of all paths here.
pub const REGION_PREFIX: &str = "/flotilla/v1/region/";
/// GET: a [`RegionState`].
pub const STATE_PATH: &str = "/flotilla/v1/region/state";
/// POST [`JournalRequest`]: a [`JournalPage`].
pub const JOURNAL_PATH: &str = "/flotilla/v1/region/journal";
/// POST [`DoneRequest`]: no content.
pub const DONE_PATH: &str = "/flotilla/v1/region/done";
/// POST [`FactsRequest`]: a [`FactsAnswer`] and manifest bytes, see [`encode_facts`].
pub const FACTS_PATH: &str = "/flotilla/v1/region/facts";
/// POST [`KeysRequest`]: a [`KeysPage`].
pub const KEYS_PATH: &str = "/flotilla/v1/region/keys";
/// POST [`TakeRequest`]: a [`TakeAnswer`].
pub const TAKE_PATH: &str = "/flotilla/v1/region/take";

/// Header of requests between origins: the storage id of the sender's region.
pub const FROM_STORAGE_HEADER: &str = "flotilla-from-storage";
/// Header of requests between origins: the storage id that the sender knows the receiver's region
/// by. A receiver with another storage, or that knows another storage of the sender, answers 421.
pub const TO_STORAGE_HEADER: &str = "flotilla-to-storage";

/// Maximum keys in one [`FactsRequest`].
pub const MAX_FACTS: usize = 64;
/// Maximum entries in one [`JournalPage`]: ten pages of a storage listing.
pub const MAX_ENTRIES: usize = 9_990;
/// Maximum keys in one [`KeysPage`] and one [`TakeRequest`].
pub const MAX_KEYS: usize = 999;
/// Bytes of manifests after which a [`FactsAnswer`] ends; the caller asks again for the rest.
pub const FACTS_LEN: usize = 8 << 20;

/// A key that regions replicate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum FactKey {
    /// A manifest of a repository. Its referrer entry follows it.
    Manifest(RepositoryName, Digest),
    /// A tag of a repository.
    Tag(RepositoryName, Tag),
}

impl FactKey {
    /// The repository.
    pub const fn repository(&self) -> &RepositoryName {
        match self {
            Self::Manifest(repository, _) | Self::Tag(repository, _) => repository,
        }
    }
}

/// The kind of keys that a sweep walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum FactKind {
    /// Manifests.
    Manifests,
    /// Tags.
    Tags,
}

/// The present value of a key in a region, read past its caches.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FactHead {
    /// The key was never written, or its tombstone was removed.
    Absent,
    /// A live manifest; its bytes follow the answer.
    Manifest {
        /// Of the last change.
        stamp: Stamp,
        /// The Content-Type with which it was pushed.
        media_type: String,
        /// Bytes of the manifest.
        len: u32,
    },
    /// A manifest that the region has evicted. Eviction is regional.
    Evicted {
        /// Of the last change before the eviction.
        stamp: Stamp,
    },
    /// A deleted manifest.
    DeletedManifest {
        /// Of the delete.
        stamp: Stamp,
        /// The manifest to which it referred.
        subject: Option<Digest>,
    },
    /// A tag; `None` is a deleted one.
    Tag {
        /// Of the last change.
        stamp: Stamp,
        /// The manifest that it names.
        digest: Option<Digest>,
    },
}

/// Identifies an entry of a journal. Entries are ordered by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct EntryId {
    /// The writer's wall clock when it created the entry, in nanoseconds since 1970. Never a stamp.
    pub created: u64,
    /// Distinguishes entries of one instant.
    pub nonce: u128,
}

/// One entry: the keys that a request was about to write, each with the stamp that it saw there.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OwedEntry {
    /// Its key in the journal.
    pub id: EntryId,
    /// The keys. A key is merged when its stamp is above the one seen.
    pub keys: Vec<(FactKey, Option<Stamp>)>,
}

/// Whether a region can use its storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StorageStanding {
    /// It answers.
    Usable,
    /// It is out, or the region returns to it in steps.
    Out,
}

/// What a region owes another.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OwedTo {
    /// The other region.
    pub region: RegionName,
    /// Entries, up to [`MAX_ENTRIES`].
    pub entries: u32,
    /// The clock of the oldest entry.
    pub oldest: Option<u64>,
    /// Identifies the sweep that the other region owes because its journal was trimmed.
    pub sweep: Option<u128>,
}

/// The answer to `state`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RegionState {
    /// The name.
    pub region: RegionName,
    /// Identifies the bucket.
    pub storage_id: StorageId,
    /// The ids that the bucket had before it was renewed, oldest first. A region that is known by
    /// one of them is the same region, on a storage that was restored from an old copy.
    pub replaced: Vec<StorageId>,
    /// The wall clock, in nanoseconds since 1970.
    pub clock: u64,
    /// Whether its storage can be used.
    pub standing: StorageStanding,
    /// Whether it has all that the other regions had when it joined.
    pub is_whole: bool,
    /// What it owes. A region that is not listed is owed an unknown amount: the storage did not
    /// answer.
    pub owed: Vec<OwedTo>,
}

/// Asks for the entries that are owed to the caller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct JournalRequest {
    /// Only entries after this one.
    pub after: Option<EntryId>,
    /// Maximum entries, at most [`MAX_ENTRIES`].
    pub limit: u32,
}

/// Some entries that are owed to the caller, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct JournalPage {
    /// The entries.
    pub entries: Vec<OwedEntry>,
    /// Whether there are more after the last.
    pub more: bool,
    /// How long ago the listing began, in milliseconds.
    pub age_ms: u64,
    /// Identifies the sweep that is owed because entries were trimmed; read after the listing.
    pub sweep: Option<u128>,
}

/// Drops entries that the caller has merged.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DoneRequest {
    /// The entries.
    pub entries: Vec<EntryId>,
    /// The sweep that the caller has ended.
    pub sweep: Option<u128>,
}

/// Asks for the values of at most [`MAX_FACTS`] keys.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FactsRequest {
    /// The keys.
    pub keys: Vec<FactKey>,
}

/// The values of the first keys of a request, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FactsAnswer {
    /// In the order of the request.
    pub facts: Vec<FactHead>,
}

/// Asks for a page of all keys of one kind, tombstones too.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KeysRequest {
    /// The kind.
    pub kind: FactKind,
    /// Only keys after this one.
    pub after: Option<FactKey>,
    /// Maximum keys, at most [`MAX_KEYS`].
    pub limit: u32,
}

/// A page of keys, in storage order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct KeysPage {
    /// The keys.
    pub keys: Vec<FactKey>,
    /// Whether there are more after the last.
    pub more: bool,
}

/// Asks the receiver to copy keys from the sender.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TakeRequest {
    /// The keys, at most [`MAX_KEYS`].
    pub keys: Vec<FactKey>,
    /// Blobs that will be named soon, with the repository that has them.
    pub blobs: Vec<(RepositoryName, Digest)>,
    /// Whether the sender waits until the keys are merged.
    pub wait: bool,
}

/// The answer to [`TakeRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TakeAnswer {
    /// Whether all keys are merged. `false` if they are only queued, or left out by the receiver's
    /// policy.
    pub merged: bool,
}

/// A value of a key, with the bytes of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The value.
    pub head: FactHead,
    /// The bytes of a live manifest; empty otherwise.
    pub bytes: Vec<u8>,
}

impl Fact {
    /// A value without bytes.
    pub const fn without_bytes(head: FactHead) -> Self {
        Self {
            head,
            bytes: Vec::new(),
        }
    }

    /// The stamp of the last change; `None` if the key is absent.
    pub const fn stamp(&self) -> Option<&Stamp> {
        match &self.head {
            FactHead::Absent => None,
            FactHead::Manifest { stamp, .. }
            | FactHead::Evicted { stamp }
            | FactHead::DeletedManifest { stamp, .. }
            | FactHead::Tag { stamp, .. } => Some(stamp),
        }
    }
}

/// Encodes the answer to `facts`: the length of the encoded [`FactsAnswer`] in four bytes
/// (little-endian), the answer, and the bytes of its manifests one after the other. Facts after
/// [`FACTS_LEN`] bytes are left out, but never the first.
///
/// # Errors
/// [`CodecError`] if the heads are too long.
pub fn encode_facts(facts: &[Fact]) -> Result<Vec<u8>, CodecError> {
    let mut len = 0;
    let fits = |fact: &&Fact| {
        let is_first = len == 0;
        len += fact.bytes.len().max(1);
        is_first || len <= FACTS_LEN
    };
    let facts: Vec<&Fact> = facts.iter().take_while(fits).collect();
    let answer = FactsAnswer {
        facts: facts.iter().map(|fact| fact.head.clone()).collect(),
    };
    let head = codec::encode(&answer)?;
    let mut body = (head.len() as u32).to_le_bytes().to_vec();
    body.extend_from_slice(&head);
    for fact in facts {
        body.extend_from_slice(&fact.bytes);
    }
    Ok(body)
}

/// Decodes the answer to `facts`.
///
/// # Errors
/// [`CodecError`] if lengths and bytes do not agree.
pub fn decode_facts(body: &[u8]) -> Result<Vec<Fact>, CodecError> {
    let torn = || CodecError::Malformed("the facts are truncated".to_owned());
    let (len, rest) = body.split_first_chunk::<4>().ok_or_else(torn)?;
    let len = u32::from_le_bytes(*len) as usize;
    let head = rest.get(..len).ok_or_else(torn)?;
    let mut rest = &rest[len..];
    let answer: FactsAnswer = codec::decode(head)?;
    let mut facts = Vec::with_capacity(answer.facts.len());
    for head in answer.facts {
        let len = match &head {
            FactHead::Manifest { len, .. } => *len as usize,
            _ => 0,
        };
        let (bytes, after) = rest.split_at_checked(len).ok_or_else(torn)?;
        rest = after;
        facts.push(Fact {
            head,
            bytes: bytes.to_vec(),
        });
    }
    if rest.is_empty() {
        Ok(facts)
    } else {
        Err(CodecError::Malformed(format!(
            "{} bytes follow the facts",
            rest.len()
        )))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(len: usize) -> Fact {
        let stamp = Stamp {
            clock: 7,
            region: "eu-1".parse().expect("a label"),
        };
        Fact {
            head: FactHead::Manifest {
                stamp,
                media_type: "m".to_owned(),
                len: len as u32,
            },
            bytes: vec![1; len],
        }
    }

    #[test]
    fn facts_round_trip_and_end_at_the_limit() {
        let facts = vec![
            manifest(3),
            Fact::without_bytes(FactHead::Absent),
            manifest(0),
        ];
        let body = encode_facts(&facts).expect("encodes");
        assert_eq!(decode_facts(&body).expect("own bytes"), facts);
        let large = vec![manifest(FACTS_LEN + 1), manifest(1)];
        let body = encode_facts(&large).expect("encodes");
        assert_eq!(decode_facts(&body).expect("own bytes"), large[..1]);
        let torn = &body[..body.len() - 1];
        assert!(decode_facts(torn).is_err());
        assert!(decode_facts(&[&body[..], &[0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn decoders_do_not_panic(body: Vec<u8>) {
            let _ = decode_facts(&body);
            let mut body = body;
            body.insert(0, codec::VERSION);
            let _ = codec::decode::<RegionState>(&body);
            let _ = codec::decode::<JournalPage>(&body);
            let _ = codec::decode::<TakeRequest>(&body);
        }
    }
}
