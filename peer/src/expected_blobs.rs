//! The blobs of images that are being opened. A request for such a blob waits until the store has
//! its proof.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_common::digest::Digest;
use tokio::sync::Notify;

/// Maximum number of blobs that are expected at a time. Requests for further ones do not wait.
const MAX_EXPECTED: usize = 4096;

/// The blobs, with the number of openings that expect each of them.
#[derive(Debug, Default)]
pub(crate) struct ExpectedBlobs {
    openings: Mutex<HashMap<Digest, u32>>,
    changed: Notify,
}

/// The blobs that one opening expects, until this is dropped.
#[derive(Debug)]
pub(crate) struct Expectation {
    of: Arc<ExpectedBlobs>,
    digests: Vec<Digest>,
}

impl ExpectedBlobs {
    /// Expects blobs.
    pub(crate) fn expect(self: &Arc<Self>, digests: impl Iterator<Item = Digest>) -> Expectation {
        let mut openings = self.lock();
        let mut expected = Vec::new();
        for digest in digests {
            if openings.len() < MAX_EXPECTED || openings.contains_key(&digest) {
                *openings.entry(digest).or_default() += 1;
                expected.push(digest);
            }
        }
        Expectation {
            of: Arc::clone(self),
            digests: expected,
        }
    }

    /// Whether a blob is expected.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    /// To be called when the store has another blob.
    pub(crate) fn on_stored(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until `decide` returns something. It is asked again whenever the store has another
    /// blob, or one is not expected any more.
    pub(crate) async fn wait_for<T>(&self, decide: impl Fn(&Self) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            if let Some(decided) = decide(self) {
                return decided;
            }
            changed.await;
        }
    }

    /// One opening less expects these blobs.
    fn forget(&self, digests: &[Digest]) {
        let mut openings = self.lock();
        for digest in digests {
            if let Some(count) = openings.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    openings.remove(digest);
                }
            }
        }
        drop(openings);
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, u32>> {
        // The map is whole after each change.
        self.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expectation {
    /// A blob is not expected any more.
    pub(crate) fn forget(&mut self, digest: &Digest) {
        if let Some(at) = self.digests.iter().position(|it| it == digest) {
            self.digests.swap_remove(at);
            self.of.forget(&[*digest]);
        }
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        self.of.forget(&self.digests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: u32) -> Digest {
        Digest::sha256(&name.to_be_bytes())
    }

    #[test]
    fn blob_is_expected_until_the_last_opening_ends() {
        let expected = Arc::<ExpectedBlobs>::default();
        let mut one = expected.expect([digest(1), digest(2)].into_iter());
        let other = expected.expect([digest(2)].into_iter());
        one.forget(&digest(1));
        assert!(!expected.contains(&digest(1)));
        drop(one);
        assert!(expected.contains(&digest(2)));
        drop(other);
        assert!(!expected.contains(&digest(2)));
    }

    #[test]
    fn number_of_expected_blobs_is_bounded() {
        let expected = Arc::<ExpectedBlobs>::default();
        let all = expected.expect((0..5000).map(digest));
        let again = expected.expect([digest(0), digest(4999)].into_iter());
        assert_eq!(all.digests.len(), MAX_EXPECTED);
        assert_eq!(again.digests, [digest(0)]);
    }

    #[tokio::test]
    async fn waiting_request_learns_that_a_blob_is_not_expected_any_more() {
        let expected = Arc::<ExpectedBlobs>::default();
        let opening = expected.expect([digest(1)].into_iter());
        let waiting = expected.wait_for(|expected| (!expected.contains(&digest(1))).then_some(()));
        let ends = async {
            expected.on_stored();
            tokio::task::yield_now().await;
            drop(opening);
        };
        tokio::join!(waiting, ends);
    }
}
