//! The `format` object of a bucket: the version of the format, the identity of the bucket, and the
//! times of collection, on which all replicas agree.
//!
//! A replica with other times refuses to start: a shorter horizon would delete objects on which a
//! replica with a longer one relies. The object is JSON, since operators read it first.
//!
//! Only [`renew`] ever changes it: a storage that was restored from an old copy gets another id.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use flotilla_common::hex;
use flotilla_common::storage_id::{StorageId, StorageIdError};

use crate::layout;
use crate::nonce::random_bytes;
use crate::storage::{Storage, StorageError, Version};

/// The version of the key layout and of all encodings.
const VERSION: u32 = 2;
/// Earlier ids of a storage that are kept; other regions remember those that they knew.
const MAX_REPLACED: usize = 64;

/// The times of collection (`docs/origin.md`, "Times").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizons {
    /// H, the horizon: no request and no storage call lasts longer. Tombstones and finished uploads
    /// are kept for it. Default 48 h.
    pub horizon: Duration,
    /// W: how long a blob stays condemned before the collector may kill it; longer than L. Default
    /// 24 h.
    pub condemned: Duration,
    /// L: how long a blob that was read as live counts as live. Default 5 min.
    pub liveness: Duration,
    /// How long tombstones of manifests, tags and referrers are kept at least, for regions that
    /// have not seen them; longer than H. Regions may differ. Default 30 days.
    pub tombstones: Duration,
}

impl Default for Horizons {
    fn default() -> Self {
        Self {
            horizon: Duration::from_hours(48),
            condemned: Duration::from_hours(24),
            liveness: Duration::from_mins(5),
            tombstones: Duration::from_hours(30 * 24),
        }
    }
}

/// The contents of the `format` object.
#[derive(Clone, Debug)]
pub(crate) struct Format {
    pub(crate) horizons: Horizons,
    /// The identity of this bucket.
    pub(crate) storage_id: StorageId,
    /// The ids that it had before, and that no origin may use any more.
    pub(crate) replaced: Vec<StorageId>,
    /// Known to all that may read the bucket. With the region's seal key it makes the keys of
    /// upload ids and of replica messages.
    pub(crate) upload_secret: [u8; 32],
}

/// The JSON of the object. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FormatObject {
    format: u32,
    horizon_s: u64,
    condemned_s: u64,
    liveness_s: u64,
    tombstones_s: u64,
    storage_id: String,
    upload_secret: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    replaced: Vec<String>,
}

/// Why this replica cannot serve a bucket.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The object is not valid.
    #[error("read the format object of the storage: {0}")]
    Malformed(String),
    /// The bucket was set up by another version of the origin.
    #[error(
        "the storage has format version {0}, but this build supports only {VERSION}, and there is no \
         migration between them; use a build for that version, or an empty bucket or prefix"
    )]
    Version(u32),
    /// The bucket was set up with other times.
    #[error(
        "the storage was set up with {stored}, but this replica is configured with {configured}; \
         set the former"
    )]
    Horizons {
        /// The times in the object.
        stored: String,
        /// The times in the configuration.
        configured: String,
    },
    /// W must be longer than L.
    #[error("condemned ({0:?}) must be longer than liveness ({1:?})")]
    Order(Duration, Duration),
    /// The time of tombstones must be longer than H.
    #[error("tombstones ({0:?}) must be longer than horizon ({1:?})")]
    Tombstones(Duration, Duration),
}

/// Reads the bucket's format object, or writes it if this replica is the first.
///
/// # Errors
/// [`FormatError`] if the storage fails or was set up differently.
pub(crate) async fn read_or_create(
    storage: &dyn Storage,
    horizons: Horizons,
) -> Result<Format, FormatError> {
    if horizons.condemned <= horizons.liveness {
        return Err(FormatError::Order(horizons.condemned, horizons.liveness));
    }
    if horizons.tombstones <= horizons.horizon {
        return Err(FormatError::Tombstones(
            horizons.tombstones,
            horizons.horizon,
        ));
    }
    let key = layout::format();
    if let Some(object) = storage.read(&key).await? {
        return check(&object.body, horizons);
    }
    let first = FormatObject {
        format: VERSION,
        horizon_s: horizons.horizon.as_secs(),
        condemned_s: horizons.condemned.as_secs(),
        liveness_s: horizons.liveness.as_secs(),
        tombstones_s: horizons.tombstones.as_secs(),
        storage_id: StorageId::from_bytes(random_bytes()).to_string(),
        upload_secret: hex::encode(&random_bytes::<32>()),
        replaced: Vec::new(),
    };
    let body = serde_json::to_vec_pretty(&first)
        .map_err(|error| FormatError::Malformed(error.to_string()))?;
    match storage.create(&key, body.into()).await {
        Ok(_) | Err(StorageError::Conflict { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // No other replica changes it, whichever wrote it.
    let object = storage
        .read(&key)
        .await?
        .ok_or_else(|| FormatError::Malformed("it was deleted during start".to_owned()))?;
    check(&object.body, horizons)
}

/// Describes what is wrong with the `format` object of a bucket; `None` if it is valid. Its times
/// are not checked.
///
/// # Errors
/// [`StorageError`] if the storage cannot be read.
pub(crate) async fn describe_problem(
    storage: &dyn Storage,
) -> Result<Option<String>, StorageError> {
    let Some(object) = storage.read(&layout::format()).await? else {
        return Ok(Some(
            "it does not exist: no origin has started on this storage".to_owned(),
        ));
    };
    let stored: Result<FormatObject, _> = serde_json::from_slice(&object.body);
    Ok(match stored {
        Err(error) => Some(error.to_string()),
        Ok(stored) if stored.format != VERSION => {
            Some(FormatError::Version(stored.format).to_string())
        }
        Ok(_) => None,
    })
}

/// The id of a bucket whose `format` object is valid; `None` if it is not.
///
/// # Errors
/// [`StorageError`] if the storage cannot be read.
pub(crate) async fn read_storage_id(
    storage: &dyn Storage,
) -> Result<Option<StorageId>, StorageError> {
    let object = storage.read(&layout::format()).await?;
    Ok(object.and_then(|object| storage_id_of(&object.body)))
}

/// The id in a `format` object; `None` if the object is not valid.
pub(crate) fn storage_id_of(body: &[u8]) -> Option<StorageId> {
    let stored: FormatObject = serde_json::from_slice(body).ok()?;
    stored.storage_id.parse().ok()
}

/// The ids of a storage, and how long it keeps what.
#[derive(Clone, Debug)]
pub(crate) struct StorageIdentity {
    pub(crate) storage_id: StorageId,
    pub(crate) replaced: Vec<StorageId>,
    pub(crate) horizon: Duration,
    pub(crate) tombstones: Duration,
    object: FormatObject,
    version: Version,
}

/// Reads the identity of a storage, whatever its times are.
///
/// # Errors
/// [`FormatError`] if there is no valid `format` object.
pub(crate) async fn read_identity(storage: &dyn Storage) -> Result<StorageIdentity, FormatError> {
    let object = storage.read(&layout::format()).await?.ok_or_else(|| {
        FormatError::Malformed("it does not exist: no origin has started on this storage".into())
    })?;
    let stored = parse(&object.body)?;
    let (storage_id, replaced) = ids(&stored)?;
    Ok(StorageIdentity {
        storage_id,
        replaced,
        horizon: Duration::from_secs(stored.horizon_s),
        tombstones: Duration::from_secs(stored.tombstones_s),
        object: stored,
        version: object.version,
    })
}

/// Gives a storage another id, and another secret, so that uploads and replicas from before are
/// refused. Returns the new id.
///
/// # Errors
/// [`StorageError::Conflict`] if the object has changed since `present` was read.
pub(crate) async fn renew(
    storage: &dyn Storage,
    present: &StorageIdentity,
) -> Result<StorageId, FormatError> {
    let storage_id = StorageId::from_bytes(random_bytes());
    let mut next = present.object.clone();
    next.replaced.push(next.storage_id);
    let surplus = next.replaced.len().saturating_sub(MAX_REPLACED);
    next.replaced.drain(..surplus);
    next.storage_id = storage_id.to_string();
    next.upload_secret = hex::encode(&random_bytes::<32>());
    let body = serde_json::to_vec_pretty(&next)
        .map_err(|error| FormatError::Malformed(error.to_string()))?;
    storage
        .swap(&layout::format(), &present.version, body.into())
        .await?;
    Ok(storage_id)
}

fn ids(stored: &FormatObject) -> Result<(StorageId, Vec<StorageId>), FormatError> {
    let malformed = |error: StorageIdError| FormatError::Malformed(error.to_string());
    let storage_id = stored.storage_id.parse().map_err(malformed)?;
    let replaced = stored.replaced.iter().map(|id| id.parse());
    let replaced: Result<_, _> = replaced.collect();
    Ok((storage_id, replaced.map_err(malformed)?))
}

fn parse(body: &[u8]) -> Result<FormatObject, FormatError> {
    let malformed = |error: serde_json::Error| FormatError::Malformed(error.to_string());
    let version: serde_json::Value = serde_json::from_slice(body).map_err(malformed)?;
    match version.get("format").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(other) => {
            return Err(FormatError::Version(
                u32::try_from(other).unwrap_or(u32::MAX),
            ));
        }
        None => return Err(FormatError::Malformed("it has no version".to_owned())),
    }
    serde_json::from_slice(body).map_err(malformed)
}

fn check(body: &[u8], horizons: Horizons) -> Result<Format, FormatError> {
    let stored = parse(body)?;
    let configured = (
        horizons.horizon.as_secs(),
        horizons.condemned.as_secs(),
        horizons.liveness.as_secs(),
        horizons.tombstones.as_secs(),
    );
    let in_object = (
        stored.horizon_s,
        stored.condemned_s,
        stored.liveness_s,
        stored.tombstones_s,
    );
    if configured != in_object {
        let describe = |(h, w, l, t)| {
            format!("horizon {h} s, condemned {w} s, liveness {l} s, tombstones {t} s")
        };
        return Err(FormatError::Horizons {
            stored: describe(in_object),
            configured: describe(configured),
        });
    }
    let secret = hex::decode_exact(&stored.upload_secret);
    let upload_secret = secret.ok_or_else(|| {
        FormatError::Malformed("upload_secret is not 32 bytes in hexadecimal".to_owned())
    })?;
    let (storage_id, replaced) = ids(&stored)?;
    Ok(Format {
        horizons,
        storage_id,
        replaced,
        upload_secret,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::storage::open;

    #[tokio::test]
    async fn later_replicas_must_agree_with_the_first() {
        let storage = open("memory:///", 0).unwrap();
        let first = read_or_create(&*storage, Horizons::default())
            .await
            .unwrap();
        let second = read_or_create(&*storage, Horizons::default())
            .await
            .unwrap();
        assert_eq!(first.upload_secret, second.upload_secret);
        assert_eq!(first.storage_id, second.storage_id);
        let shorter = Horizons {
            horizon: Duration::from_hours(1),
            ..Horizons::default()
        };
        let error = read_or_create(&*storage, shorter).await.unwrap_err();
        assert!(error.to_string().contains("horizon 172800 s"), "{error}");
        let reversed = Horizons {
            liveness: Duration::from_hours(24),
            ..Horizons::default()
        };
        assert!(matches!(
            read_or_create(&*storage, reversed).await,
            Err(FormatError::Order(..))
        ));
        let short_tombstones = Horizons {
            tombstones: Duration::from_hours(48),
            ..Horizons::default()
        };
        assert!(matches!(
            read_or_create(&*storage, short_tombstones).await,
            Err(FormatError::Tombstones(..))
        ));
    }

    #[test]
    fn other_formats_are_refused() {
        let check = |text: &str| check(text.as_bytes(), Horizons::default()).unwrap_err();
        let first = check(r#"{"format":1,"horizon_s":172800}"#).to_string();
        assert!(first.contains("no migration"), "{first}");
        assert!(matches!(check("{}"), FormatError::Malformed(_)));
        assert!(matches!(check("no"), FormatError::Malformed(_)));
    }
}
