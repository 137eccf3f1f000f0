//! How many slots the transfers in one direction take. They are counted again only when the number
//! may have changed, because most requests find all slots taken.

use crate::time::Time;

/// The slots taken at the time of the count, and until the next transfer is nearly done or late.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotCount {
    busy: u32,
    late: u32,
    changes_at: Time,
    /// The number of slots at the time of the count.
    slots: u32,
}

impl Default for SlotCount {
    /// A count that is not valid at any time.
    fn default() -> Self {
        Self {
            busy: 0,
            late: 0,
            changes_at: Time::ZERO,
            slots: 0,
        }
    }
}

impl SlotCount {
    /// No transfers, with so many slots.
    pub(super) fn empty(slots: u32) -> Self {
        Self {
            busy: 0,
            late: 0,
            changes_at: Time::MAX,
            slots,
        }
    }

    /// Whether the count holds at `now`, which is not before it was made, and for so many slots, if
    /// no transfer has changed since.
    pub(super) fn is_valid(&self, now: Time, slots: u32) -> bool {
        now < self.changes_at && self.slots == slots
    }

    /// Counts a transfer that takes a slot until `free_at`.
    pub(super) fn add(&mut self, now: Time, free_at: Time) {
        if free_at > now {
            self.busy += 1;
            self.change_by(free_at);
        }
    }

    /// Counts a transfer that takes a slot until it is late, at `late_at`.
    pub(super) fn add_unanswered(&mut self, now: Time, late_at: Time) {
        if late_at > now {
            self.busy += 1;
            self.change_by(late_at);
        } else {
            self.late += 1;
        }
    }

    /// The number may change at `at`.
    pub(super) fn change_by(&mut self, at: Time) {
        self.changes_at = self.changes_at.min(at);
    }

    /// Transfers that are neither nearly done nor late.
    pub(super) fn busy(&self) -> u32 {
        self.busy
    }

    /// Transfers that are late.
    pub(super) fn late(&self) -> u32 {
        self.late
    }

    /// When the number changes if no transfer does; [`Time::MAX`] for never.
    pub(super) fn changes_at(&self) -> Time {
        self.changes_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_holds_until_the_first_change() {
        let ms = |millis: u64| Time::from_nanos(millis * 1_000_000);
        let mut count = SlotCount::empty(3);
        assert!(count.is_valid(ms(1000), 3));
        count.add(ms(10), ms(10));
        count.add(ms(10), ms(30));
        count.add(ms(10), Time::MAX);
        count.add_unanswered(ms(10), ms(20));
        count.add_unanswered(ms(10), ms(5));
        assert_eq!((count.busy(), count.late()), (3, 1));
        assert!(count.is_valid(ms(19), 3));
        assert!(!count.is_valid(ms(19), 4));
        assert!(!count.is_valid(ms(20), 3));
        assert!(!SlotCount::default().is_valid(Time::ZERO, 0));
    }
}
