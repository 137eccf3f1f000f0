//! What all replicas of a bucket agree on, in one object of it: the format's version and the times
//! of collection.
//!
//! A replica refuses to start with others: a replica with a shorter horizon would remove what one
//! with a longer horizon still relies on. The object is JSON, since it is what an operator looks at
//! first.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use flotilla_common::hex;

use crate::layout;
use crate::nonce::random_bytes;
use crate::storage::{Storage, StorageError};

/// The version of the key layout and of all encodings.
const VERSION: u32 = 1;

/// The times of collection (`docs/origin.md`, "Blobs and collection").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizons {
    /// H: no request and no storage call outlives it; tombstones and finished uploads stay that
    /// long. Default 48 h.
    pub horizon: Duration,
    /// W: how long a blob stays condemned before it may die; longer than L. Default 24 h.
    pub condemned: Duration,
    /// L: how long a liveness that was read counts. Default 5 min.
    pub liveness: Duration,
}

impl Default for Horizons {
    fn default() -> Self {
        Self {
            horizon: Duration::from_hours(48),
            condemned: Duration::from_hours(24),
            liveness: Duration::from_mins(5),
        }
    }
}

/// The bucket's agreement, as read.
#[derive(Clone, Debug)]
pub(crate) struct Format {
    pub(crate) horizons: Horizons,
    /// What signs upload ids: known to all replicas, to nobody else.
    pub(crate) upload_secret: [u8; 32],
}

/// The object's JSON. Seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    format: u32,
    horizon_s: u64,
    condemned_s: u64,
    liveness_s: u64,
    upload_secret: String,
}

/// Why a bucket is not ours to serve.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// There is an object, but not one of ours.
    #[error("read the storage's format object: {0}")]
    Malformed(String),
    /// Written by other software.
    #[error("the storage has format version {0}, this build has {VERSION}")]
    Version(u32),
    /// Other times.
    #[error(
        "the storage was set up with {stored}, this replica is configured with {configured}; use the same"
    )]
    Horizons {
        /// What the object says.
        stored: String,
        /// What the configuration says.
        configured: String,
    },
    /// W must be longer than L.
    #[error("the time condemned ({0:?}) must be longer than the time a liveness counts ({1:?})")]
    Order(Duration, Duration),
}

/// Reads the bucket's format object, or writes it if this replica is the first.
///
/// # Errors
/// [`FormatError`] if the storage fails or is set up for others.
pub(crate) async fn agree(
    storage: &dyn Storage,
    horizons: Horizons,
) -> Result<Format, FormatError> {
    if horizons.condemned <= horizons.liveness {
        return Err(FormatError::Order(horizons.condemned, horizons.liveness));
    }
    let key = layout::format();
    if let Some(object) = storage.read(&key).await? {
        return check(&object.body, horizons);
    }
    let first = Stored {
        format: VERSION,
        horizon_s: horizons.horizon.as_secs(),
        condemned_s: horizons.condemned.as_secs(),
        liveness_s: horizons.liveness.as_secs(),
        upload_secret: hex::encode(&random_bytes::<32>()),
    };
    let body = serde_json::to_vec_pretty(&first)
        .map_err(|error| FormatError::Malformed(error.to_string()))?;
    match storage.create(&key, body.into()).await {
        Ok(_) | Err(StorageError::Conflict { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // Whoever wrote it: what is there now stays.
    let object = storage
        .read(&key)
        .await?
        .ok_or_else(|| FormatError::Malformed("it vanished".to_owned()))?;
    check(&object.body, horizons)
}

/// What is wrong with the bucket's format object, whatever its times are; `None` if nothing is.
///
/// # Errors
/// [`StorageError`] if the storage cannot be read.
pub(crate) async fn problem(storage: &dyn Storage) -> Result<Option<String>, StorageError> {
    let Some(object) = storage.read(&layout::format()).await? else {
        return Ok(Some(
            "it is not there: no origin has started here".to_owned(),
        ));
    };
    let stored: Result<Stored, _> = serde_json::from_slice(&object.body);
    Ok(match stored {
        Err(error) => Some(error.to_string()),
        Ok(stored) if stored.format != VERSION => {
            Some(FormatError::Version(stored.format).to_string())
        }
        Ok(_) => None,
    })
}

fn check(body: &[u8], horizons: Horizons) -> Result<Format, FormatError> {
    let malformed = |error: serde_json::Error| FormatError::Malformed(error.to_string());
    let version: serde_json::Value = serde_json::from_slice(body).map_err(malformed)?;
    match version.get("format").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(other) => {
            return Err(FormatError::Version(
                u32::try_from(other).unwrap_or(u32::MAX),
            ));
        }
        None => return Err(FormatError::Malformed("no version".to_owned())),
    }
    let stored: Stored = serde_json::from_slice(body).map_err(malformed)?;
    let wanted = (
        horizons.horizon.as_secs(),
        horizons.condemned.as_secs(),
        horizons.liveness.as_secs(),
    );
    let found = (stored.horizon_s, stored.condemned_s, stored.liveness_s);
    if wanted != found {
        let told = |(h, w, l)| format!("horizon {h} s, condemned {w} s, liveness {l} s");
        return Err(FormatError::Horizons {
            stored: told(found),
            configured: told(wanted),
        });
    }
    let secret = hex::decode_exact(&stored.upload_secret);
    let upload_secret =
        secret.ok_or_else(|| FormatError::Malformed("malformed upload_secret".to_owned()))?;
    Ok(Format {
        horizons,
        upload_secret,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::storage::open;

    #[tokio::test]
    async fn the_first_replica_decides_and_others_agree_or_refuse() {
        let storage = open("memory:///", 0).unwrap();
        let first = agree(&*storage, Horizons::default()).await.unwrap();
        let second = agree(&*storage, Horizons::default()).await.unwrap();
        assert_eq!(first.upload_secret, second.upload_secret);
        let hasty = Horizons {
            horizon: Duration::from_hours(1),
            ..Horizons::default()
        };
        let error = agree(&*storage, hasty).await.unwrap_err();
        assert!(error.to_string().contains("horizon 172800 s"), "{error}");
        let reversed = Horizons {
            liveness: Duration::from_hours(24),
            ..Horizons::default()
        };
        assert!(matches!(
            agree(&*storage, reversed).await,
            Err(FormatError::Order(..))
        ));
    }

    #[test]
    fn another_format_is_refused() {
        let check = |text: &str| check(text.as_bytes(), Horizons::default()).unwrap_err();
        assert!(matches!(check(r#"{"format":2}"#), FormatError::Version(2)));
        assert!(matches!(check("{}"), FormatError::Malformed(_)));
        assert!(matches!(check("no"), FormatError::Malformed(_)));
    }
}
