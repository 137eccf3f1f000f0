//! Dense ids: drivers give digests and names a slot, and machines index their tables by slots.
//!
//! A machine never sees a digest, a name or an address. Its driver interns them at the edge and
//! releases a slot when the machine says that it forgot it.

use std::collections::BTreeMap;

/// An index into a machine's tables.
pub trait Slot: Copy + Ord {
    /// The slot at `index`.
    fn at(index: u32) -> Self;
    /// The slot's index.
    fn index(self) -> u32;
}

/// Maps values to slots, both ways. A released slot is reused, the last released one first.
#[derive(Clone, Debug)]
pub struct Interner<T, S> {
    slots: BTreeMap<T, S>,
    values: Vec<Option<T>>,
    released: Vec<S>,
}

impl<T, S> Default for Interner<T, S> {
    fn default() -> Self {
        Self {
            slots: BTreeMap::new(),
            values: Vec::new(),
            released: Vec::new(),
        }
    }
}

impl<T: Ord + Clone, S: Slot> Interner<T, S> {
    /// The slot of `value`, a new one if it has none.
    pub fn intern(&mut self, value: &T) -> S {
        if let Some(slot) = self.slots.get(value) {
            return *slot;
        }
        let slot = self.released.pop().unwrap_or_else(|| {
            self.values.push(None);
            S::at(self.values.len() as u32 - 1)
        });
        self.values[slot.index() as usize] = Some(value.clone());
        self.slots.insert(value.clone(), slot);
        slot
    }

    /// The slot of `value`, if it has one.
    pub fn slot(&self, value: &T) -> Option<S> {
        self.slots.get(value).copied()
    }

    /// The value in `slot`, if the slot is in use.
    pub fn value(&self, slot: S) -> Option<&T> {
        self.values.get(slot.index() as usize)?.as_ref()
    }

    /// Frees the slot and returns its value; `None` if it was free already.
    pub fn release(&mut self, slot: S) -> Option<T> {
        let value = self.values.get_mut(slot.index() as usize)?.take()?;
        self.slots.remove(&value);
        self.released.push(slot);
        Some(value)
    }

    /// Number of slots in use.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no slot is in use.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// An interner that counts the uses of each value: the last use that ends frees the slot.
#[derive(Clone, Debug)]
pub struct CountedInterner<T, S> {
    interner: Interner<T, S>,
    /// By slot.
    uses: Vec<u32>,
}

impl<T, S> Default for CountedInterner<T, S> {
    fn default() -> Self {
        Self {
            interner: Interner::default(),
            uses: Vec::new(),
        }
    }
}

impl<T: Ord + Clone, S: Slot> CountedInterner<T, S> {
    /// The slot of `value`, with one more use.
    pub fn acquire(&mut self, value: &T) -> S {
        let slot = self.interner.intern(value);
        let index = slot.index() as usize;
        if self.uses.len() <= index {
            self.uses.resize(index + 1, 0);
        }
        self.uses[index] += 1;
        slot
    }

    /// Ends one use of `value`. Does nothing for a value without a slot.
    pub fn release(&mut self, value: &T) {
        let Some(slot) = self.interner.slot(value) else {
            return;
        };
        let uses = &mut self.uses[slot.index() as usize];
        *uses -= 1;
        if *uses == 0 {
            self.interner.release(slot);
        }
    }

    /// The slot of `value`, if it is in use.
    pub fn slot(&self, value: &T) -> Option<S> {
        self.interner.slot(value)
    }

    /// The value in a slot, if the slot is in use.
    pub fn value(&self, slot: S) -> Option<&T> {
        self.interner.value(slot)
    }

    /// Number of values in use.
    pub fn len(&self) -> usize {
        self.interner.len()
    }

    /// Whether no value is in use.
    pub fn is_empty(&self) -> bool {
        self.interner.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::tracker::PeerSlot;

    #[test]
    fn slot_is_freed_with_its_last_use() {
        let mut names = CountedInterner::<&str, PeerSlot>::default();
        let one = names.acquire(&"one");
        assert_eq!(names.acquire(&"one"), one);
        names.release(&"one");
        assert_eq!(names.slot(&"one"), Some(one));
        names.release(&"one");
        names.release(&"one");
        assert_eq!((names.slot(&"one"), names.len()), (None, 0));
        assert_eq!(names.acquire(&"two"), one);
        assert!(!names.is_empty());
    }

    #[test]
    fn released_slot_is_reused() {
        let mut names = Interner::<&str, PeerSlot>::default();
        let one = names.intern(&"one");
        let two = names.intern(&"two");
        assert_ne!(one, two);
        assert_eq!(names.intern(&"one"), one);
        assert_eq!(names.release(one), Some("one"));
        assert_eq!(names.release(one), None);
        assert_eq!(names.slot(&"one"), None);
        assert_eq!(names.intern(&"three"), one);
        assert_eq!(names.value(one).unwrap(), &"three");
        assert_eq!(names.len(), 2);
    }
}
