//! Whether an origin uses a storage.

use core::pin::pin;
use core::time::Duration;
use std::collections::HashMap;

use futures_util::TryStreamExt;

use super::RepairError;
use crate::layout;
use crate::storage::{Key, Storage, Version, entries};

/// Longer than the time from one renewal of a lease to the next, and a slow call of the storage.
const LOOK_FOR: Duration = Duration::from_secs(15);

/// Looks at the leases of a storage for 15 s. While the policy lists other regions, a replica holds
/// some of them and renews each every 10 s. Without leases it returns at once: an origin of a
/// single region has none, and is not noticed.
///
/// # Errors
/// [`RepairError::InUse`]; the storage's.
pub async fn wait_until_unused(storage: &dyn Storage) -> Result<(), RepairError> {
    let before = leases(storage).await?;
    if before.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(LOOK_FOR).await;
    for (key, version) in leases(storage).await? {
        if before.get(&key) != Some(&version) {
            return Err(RepairError::InUse(key.to_string()));
        }
    }
    Ok(())
}

async fn leases(storage: &dyn Storage) -> Result<HashMap<Key, Version>, RepairError> {
    let mut leases = HashMap::new();
    let mut listed = pin!(entries(storage, layout::leases(), None));
    while let Some(entry) = listed.try_next().await? {
        if let Some(object) = storage.read(&entry.key).await? {
            leases.insert(entry.key, object.version);
        }
    }
    Ok(leases)
}

#[cfg(test)]
mod tests {
    use flotilla_runtime::clock::Clock;

    use super::*;
    use crate::regions::lease::Lease;
    use crate::storage::open;

    #[tokio::test(start_paused = true)]
    async fn replicas_that_renew_leases_are_noticed() {
        let storage = open("memory:///", 0).expect("storage");
        let mut lease = Lease::new(storage.clone(), Clock::tokio(), "follow-us-1");
        assert!(lease.hold().await.expect("no faults"));
        let kept = tokio::spawn(async move { lease.keep().await });
        let looked = wait_until_unused(&*storage).await;
        assert!(matches!(looked, Err(RepairError::InUse(key)) if key.contains("follow-us-1")));
        kept.abort();
        assert!(wait_until_unused(&*storage).await.is_ok(), "it is stopped");
    }
}
