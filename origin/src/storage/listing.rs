//! Listings that go on from page to page.

use futures_util::stream::{self, Stream, TryStreamExt};

use super::{Entry, Key, PAGE_LEN, Prefix, Storage, StorageError};

/// All entries under a prefix after the key `after`, in the order of storage.
pub(crate) fn entries(
    storage: &dyn Storage,
    prefix: Prefix,
    after: Option<Key>,
) -> impl Stream<Item = Result<Entry, StorageError>> {
    let pages = stream::try_unfold(
        (prefix, after, true),
        move |(prefix, after, more)| async move {
            if !more {
                return Ok(None);
            }
            let page = storage.list(&prefix, after.as_ref(), PAGE_LEN).await?;
            let last = page.entries.last().map(|entry| entry.key.clone());
            let more = page.more && last.is_some();
            let entries = stream::iter(page.entries.into_iter().map(Ok));
            Ok::<_, StorageError>(Some((entries, (prefix, last.or(after), more))))
        },
    );
    pages.try_flatten()
}
