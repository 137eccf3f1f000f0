//! Dense ids: what the tracker's machine uses instead of digests and names.
//!
//! The driver interns at the edge and releases a slot when the machine says that it forgot it; the
//! machine itself never sees a digest, a name or an address.

use std::collections::BTreeMap;

/// An index into the tracker's tables.
pub trait Slot: Copy + Ord {
    /// The slot at `index`.
    fn at(index: u32) -> Self;
    /// The slot's index.
    fn index(self) -> u32;
}

macro_rules! slots {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl Slot for $name {
            fn at(index: u32) -> Self {
                Self(index)
            }

            fn index(self) -> u32 {
                self.0
            }
        }
    )*};
}

slots! {
    /// A blob, which is to say its swarm.
    BlobSlot;
    /// A peer.
    PeerSlot;
    /// A zone. Zones are named within their region: the same name in two regions is two slots.
    ZoneSlot;
    /// A region.
    RegionSlot;
}

/// Gives each value a slot and takes slots back; what was released last is given first.
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

    /// The value in `slot`, if it is taken.
    pub fn value(&self, slot: S) -> Option<&T> {
        self.values.get(slot.index() as usize)?.as_ref()
    }

    /// Takes the slot back and returns what was in it; nothing if it was free.
    pub fn release(&mut self, slot: S) -> Option<T> {
        let value = self.values.get_mut(slot.index() as usize)?.take()?;
        self.slots.remove(&value);
        self.released.push(slot);
        Some(value)
    }

    /// How many slots are taken.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no slot is taken.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_released_slot_is_used_again() {
        let mut names = Interner::<&str, PeerSlot>::default();
        let (one, two) = (names.intern(&"one"), names.intern(&"two"));
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
