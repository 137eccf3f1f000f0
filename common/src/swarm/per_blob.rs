//! A table with one entry per blob. Each sub-machine keeps what it knows about a blob in its own.

use super::io::BlobSlot;

/// Values indexed by [`BlobSlot`]; slots are small numbers, so the table is dense.
#[derive(Debug)]
pub(super) struct PerBlob<T>(Vec<Option<T>>);

impl<T> Default for PerBlob<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> PerBlob<T> {
    pub(super) fn get(&self, slot: BlobSlot) -> Option<&T> {
        self.0.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: BlobSlot) -> Option<&mut T> {
        self.0.get_mut(slot.0 as usize)?.as_mut()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    /// Sets the entry of a blob, in place of the one there was.
    pub(super) fn insert(&mut self, slot: BlobSlot, value: T) {
        let index = slot.0 as usize;
        if index >= self.0.len() {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some(value);
    }

    pub(super) fn remove(&mut self, slot: BlobSlot) {
        if let Some(entry) = self.0.get_mut(slot.0 as usize) {
            *entry = None;
        }
    }
}
