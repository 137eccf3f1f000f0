//! The probe that every replica runs before it serves: it checks that the storage supports the
//! operations that the protocols need.

use core::time::Duration;
use std::borrow::Cow;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::join_all;

use super::{Key, OpenError, Prefix, Storage, StorageError, StorageResult, Version};
use crate::nonce::nonce;

/// The fix for a storage that does not keep its promises.
const USE_ANOTHER_STORAGE: &str = "use a storage that honours If-None-Match and If-Match on every \
    write; see docs/operations.md";
/// The fix for a storage that checks a precondition before it writes, not while it writes.
const USE_ATOMIC_STORAGE: &str = "use a storage that checks preconditions atomically with the write, \
    as S3, GCS and Azure do: with this one, two replicas would overwrite each other's tags; see \
    docs/operations.md";
/// The fix for a storage that cannot be reached.
const CHECK_ACCESS: &str = "check that the storage can be reached and that the credentials may read, \
    write, list and delete; see docs/operations.md";

/// Concurrent writes of one key by the probe. Exactly one of them may succeed.
const RIVALS: u8 = 8;

/// Tries each operation that the protocols need, on keys of its own. This detects storage that
/// ignores preconditions, or checks them before it writes, before such storage loses a tag.
///
/// # Errors
/// [`OpenError::Probe`] with the step that failed.
pub async fn probe(storage: &dyn Storage) -> Result<(), OpenError> {
    let key = |text: String| Key::new(text).map_err(|error| probe_error("name a key", error));
    let (single, contested) = (
        key(format!("probe/{:032x}", nonce()))?,
        key(format!("probe/{:032x}", nonce()))?,
    );
    let outcome = async {
        probe_key(storage, &single).await?;
        probe_rivals(storage, &contested).await
    };
    let outcome = outcome.await;
    for key in [single, contested] {
        let removed = storage.delete(&key).await;
        if outcome.is_ok() {
            removed.map_err(|error| probe_error("delete an object", error))?;
        }
    }
    outcome
}

/// Lets several writers create a key at once, then swap one version of it at once.
async fn probe_rivals(storage: &dyn Storage, key: &Key) -> Result<(), OpenError> {
    let body = |kind: u8, rival: u8| Bytes::from(vec![kind, rival]);
    let creates = (0..RIVALS).map(|rival| storage.create(key, body(b'c', rival)));
    let outcomes = join_all(creates).await;
    let version = one_winner("create an object at once", storage, key, b'c', outcomes).await?;
    let swaps = (0..RIVALS).map(|rival| storage.swap(key, &version, body(b's', rival)));
    let outcomes = join_all(swaps).await;
    one_winner("swap a version at once", storage, key, b's', outcomes).await?;
    Ok(())
}

/// Checks that exactly one of concurrent writes succeeded, and that its body is there. Returns the
/// version that is there.
async fn one_winner(
    step: &'static str,
    storage: &dyn Storage,
    key: &Key,
    kind: u8,
    outcomes: Vec<StorageResult<Version>>,
) -> Result<Version, OpenError> {
    let mut won = Vec::new();
    let mut unknown = Vec::new();
    for (rival, outcome) in (0..RIVALS).zip(outcomes) {
        match outcome {
            Ok(_) => won.push(rival),
            Err(StorageError::Conflict {
                may_have_applied, ..
            }) => {
                if may_have_applied {
                    unknown.push(rival);
                }
            }
            Err(error) => return Err(probe_error(step, error)),
        }
    }
    let read = storage.read(key).await;
    let present = read.map_err(|error| probe_error(step, error))?;
    let winner = present.as_ref().and_then(|object| match *object.body {
        [found, rival] if found == kind => Some(rival),
        _ => None,
    });
    let is_atomic = match (won.as_slice(), winner) {
        ([only], Some(winner)) => *only == winner,
        // The response of the winner was lost, and it was refused when it was sent again.
        ([], Some(winner)) => unknown.contains(&winner),
        _ => false,
    };
    match present {
        Some(object) if is_atomic => Ok(object.version),
        _ => Err(OpenError::Probe {
            step,
            source: format!(
                "{} of {RIVALS} concurrent writers succeeded, and not exactly one",
                won.len()
            )
            .into(),
            fix: USE_ATOMIC_STORAGE.into(),
        }),
    }
}

async fn probe_key(storage: &dyn Storage, key: &Key) -> Result<(), OpenError> {
    let body = |text: &'static str| Bytes::from_static(text.as_bytes());
    let created = storage.create(key, body("first")).await;
    let first = created.map_err(|error| probe_error("create an object", error))?;
    expect_conflict(
        "create an object that exists",
        storage.create(key, body("second")).await,
    )?;
    let swapped = storage.swap(key, &first, body("second")).await;
    swapped.map_err(|error| probe_error("swap an object", error))?;
    expect_conflict(
        "swap an object by an old version",
        storage.swap(key, &first, body("third")).await,
    )?;
    let read = storage
        .read(key)
        .await
        .map_err(|error| probe_error("read an object", error))?;
    if read.is_none_or(|object| object.body != body("second")) {
        return Err(unsupported(
            "read an object",
            "the body is not the one written last",
        ));
    }
    let range = storage.read_range(key, 1..4).await;
    let range: Vec<Bytes> = async { range?.try_collect().await }
        .await
        .map_err(|error| probe_error("read a range", error))?;
    if range.concat() != b"eco" {
        return Err(unsupported(
            "read a range",
            "the bytes are not those of the requested range",
        ));
    }
    let prefix = Prefix::new("probe/").map_err(|error| probe_error("name a prefix", error))?;
    storage
        .list(&prefix, None, 1)
        .await
        .map_err(|error| probe_error("list objects", error))?;
    match storage.remove(key, &first).await {
        Err(StorageError::Conflict { .. }) => Ok(()),
        Err(StorageError::Unsupported { .. }) => {
            tracing::info!(
                "this storage cannot remove an object on a condition; tombstones are kept for ever"
            );
            Ok(())
        }
        Err(error) => Err(probe_error("remove an object by an old version", error)),
        Ok(()) => Err(unsupported(
            "remove an object by an old version",
            "the storage ignored the precondition of the removal",
        )),
    }
}

/// Checks that the storage can sign URLs; the error is the reason why it cannot.
pub(crate) async fn probe_signing(storage: &dyn Storage) -> Result<(), String> {
    let key = Key::new("probe/signed").map_err(|error| error.to_string())?;
    match storage.presigned_get(&key, Duration::from_secs(1)).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("this storage cannot sign URLs".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn expect_conflict(step: &'static str, outcome: StorageResult<Version>) -> Result<(), OpenError> {
    match outcome {
        Err(StorageError::Conflict { .. }) => Ok(()),
        Err(error) => Err(probe_error(step, error)),
        Ok(_) => Err(unsupported(
            step,
            "the storage ignored the precondition of the write",
        )),
    }
}

fn unsupported(step: &'static str, problem: &'static str) -> OpenError {
    OpenError::Probe {
        step,
        source: problem.into(),
        fix: USE_ANOTHER_STORAGE.into(),
    }
}

fn probe_error(
    step: &'static str,
    source: impl Into<Box<dyn core::error::Error + Send + Sync>>,
) -> OpenError {
    let source = source.into();
    let fix =
        missing_credentials(&source.to_string()).map_or(Cow::Borrowed(CHECK_ACCESS), Cow::Owned);
    OpenError::Probe { step, source, fix }
}

/// Providers' clients that find no credentials ask the machine's metadata service. Each path of
/// such a service, with the variables that were not set.
const METADATA_PATHS: [(&str, &str); 3] = [
    (
        "/latest/api/token",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (
        "/computeMetadata/",
        "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    ),
    (
        "/metadata/identity/",
        "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    ),
];

/// A fix for a storage error that was caused by missing credentials; `None` for any other error.
///
/// Without credentials, the providers' clients ask the machine's metadata service, and their error
/// names only its address.
pub fn missing_credentials(error: &str) -> Option<String> {
    let (_, variables) = METADATA_PATHS
        .iter()
        .find(|(path, _)| error.contains(path))?;
    Some(format!(
        "set {variables}: without them this machine's metadata service was asked for a role and gave \
         none; see docs/operations.md"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_credentials_are_named() {
        let error = "Error performing PUT http://169.254.169.254/latest/api/token in 4 ms - connection refused";
        let message = probe_error("create an object", error).to_string();
        assert!(
            message.contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            "{message}"
        );
        let message = probe_error("create an object", "403 Forbidden").to_string();
        assert!(
            message.contains("check that the storage can be reached"),
            "{message}"
        );
    }
}
