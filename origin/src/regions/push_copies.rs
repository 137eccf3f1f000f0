//! Copies that pushes wait for: a manifest names what only another region has.
//!
//! A copy goes on after its client has gone, so there are few at once, and a push that is repeated
//! joins the copy that its first attempt began.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use tokio::sync::watch;

/// Manifests whose parts are copied at once.
const MAX_COPIES: usize = 32;

/// What came of a copy: whether all parts are here, or why that is not known.
pub(crate) type Copied = Result<bool, String>;

type Key = (RepositoryName, Digest);

/// The copies that run.
#[derive(Clone, Debug, Default)]
pub(crate) struct PushCopies {
    running: Arc<Mutex<HashMap<Key, watch::Receiver<Option<Copied>>>>>,
}

/// A copy that the caller runs. Dropped unfinished, it tells those that wait that it stopped.
#[derive(Debug)]
pub(super) struct PushCopy {
    copies: PushCopies,
    key: Key,
    outcome: watch::Sender<Option<Copied>>,
}

/// A copy that runs.
#[derive(Debug)]
pub(super) struct RunningCopy(watch::Receiver<Option<Copied>>);

impl PushCopies {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<Option<Copied>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the copy of a manifest's parts; also returns it to the caller to run it if it does not
    /// run yet. `None` if too many run.
    pub(super) fn join(
        &self,
        repository: &RepositoryName,
        manifest: &Digest,
    ) -> Option<(RunningCopy, Option<PushCopy>)> {
        let key = (repository.clone(), *manifest);
        let mut running = self.lock();
        if let Some(outcome) = running.get(&key) {
            return Some((RunningCopy(outcome.clone()), None));
        }
        if running.len() >= MAX_COPIES {
            return None;
        }
        let (sender, outcome) = watch::channel(None);
        running.insert(key.clone(), outcome.clone());
        let copy = PushCopy {
            copies: self.clone(),
            key,
            outcome: sender,
        };
        Some((RunningCopy(outcome), Some(copy)))
    }
}

impl PushCopy {
    /// Tells those that wait.
    pub(super) fn finish(self, copied: Copied) {
        self.outcome.send_replace(Some(copied));
    }
}

impl Drop for PushCopy {
    fn drop(&mut self) {
        self.copies.lock().remove(&self.key);
    }
}

impl RunningCopy {
    /// Waits for the outcome.
    ///
    /// # Errors
    /// Why it is not known whether all parts are here.
    pub(super) async fn outcome(mut self) -> Copied {
        let outcome = self.0.wait_for(Option::is_some).await;
        match outcome.as_deref() {
            Ok(Some(copied)) => copied.clone(),
            Ok(None) | Err(_) => Err("the copy stopped".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: usize) -> Digest {
        Digest::sha256(&number.to_le_bytes())
    }

    #[tokio::test]
    async fn repeated_pushes_join_one_copy_and_there_are_few() {
        let copies = PushCopies::default();
        let repository = "app".parse().expect("a name");
        let (first, run) = copies.join(&repository, &digest(0)).expect("the first");
        let run = run.expect("it does not run yet");
        let (second, none) = copies.join(&repository, &digest(0)).expect("the same");
        assert!(none.is_none());
        let more: Vec<_> = (1..MAX_COPIES)
            .map(|number| copies.join(&repository, &digest(number)))
            .collect();
        assert!(more.iter().all(Option::is_some));
        assert!(copies.join(&repository, &digest(99)).is_none());
        run.finish(Ok(true));
        assert_eq!(first.outcome().await, Ok(true));
        assert_eq!(second.outcome().await, Ok(true));
        let (stopped, run) = copies.join(&repository, &digest(99)).expect("room");
        drop(run);
        assert!(stopped.outcome().await.is_err());
    }
}
