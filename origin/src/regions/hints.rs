//! Asks other regions to copy what was just pushed here, and waits for them where the policy says
//! that a push is acknowledged by more than one region.

use core::time::Duration;
use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::wire::region::{FactKey, TakeRequest};
use flotilla_runtime::shutdown::Shutdown;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::source::Source;
use super::take::wait_limit;

/// Hints on their way; more are dropped, and the follower finds the entries by itself.
const MAX_HINTS: usize = 32;
/// For a hint that is not waited for.
const HINT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends hints.
#[derive(Debug)]
pub(crate) struct Hints {
    permits: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl Hints {
    pub(crate) fn new(shutdown: Shutdown) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_HINTS)),
            shutdown,
        }
    }

    /// Tells regions of changed keys, and of blobs that a manifest will name soon. Returns at once.
    pub(crate) fn send(
        &self,
        sources: Vec<Arc<dyn Source>>,
        keys: Vec<FactKey>,
        blobs: Vec<(RepositoryName, Digest)>,
    ) {
        for source in sources {
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                return;
            };
            let request = TakeRequest {
                keys: keys.clone(),
                blobs: blobs.clone(),
                wait: false,
            };
            self.shutdown.spawn(async move {
                let _permit = permit;
                if !matches!(timeout(HINT_TIMEOUT, source.take(request)).await, Ok(Ok(_))) {
                    tracing::debug!(region = %source.region(), "a region did not take a hint; it follows the journal");
                }
            });
        }
    }

    /// Returns once `needed` of the regions have merged the keys.
    ///
    /// # Errors
    /// The regions that have not, after a minute and the time that `bytes` take.
    pub(crate) async fn wait(
        &self,
        sources: Vec<Arc<dyn Source>>,
        keys: Vec<FactKey>,
        needed: usize,
        bytes: u64,
    ) -> Result<(), Vec<RegionName>> {
        let mut missing: Vec<RegionName> = sources
            .iter()
            .map(|source| source.region().clone())
            .collect();
        let mut asked: FuturesUnordered<_> = sources
            .into_iter()
            .map(|source| {
                let request = TakeRequest {
                    keys: keys.clone(),
                    blobs: Vec::new(),
                    wait: true,
                };
                async move {
                    let taken = source.take(request).await;
                    (source.region().clone(), taken)
                }
            })
            .collect();
        let mut merged = 0;
        let all = async {
            while merged < needed {
                let Some((region, taken)) = asked.next().await else {
                    return;
                };
                match taken {
                    Ok(answer) if answer.merged => {
                        merged += 1;
                        missing.retain(|known| *known != region);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, "a region did not acknowledge a push");
                    }
                }
            }
        };
        let _in_time = timeout(wait_limit(bytes), all).await;
        if merged >= needed {
            Ok(())
        } else {
            Err(missing)
        }
    }
}
