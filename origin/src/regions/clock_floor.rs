//! The least clock of a change's stamp, so that changes that a client makes one after the other
//! keep their order, whatever regions take them and however wrong their clocks may be.
//!
//! A failover sends the changes of one client to two regions whose clocks differ. The higher stamp
//! wins everywhere, so each stamp must exceed that of every change which the client may know of.

/// How much the wall clocks of two regions may differ, in nanoseconds: each may be wrong by a
/// minute.
const MAX_SKEW_NANOS: u64 = 120_000_000_000;

/// The clocks that the sender of a forwarded change knows, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SenderClocks {
    /// The highest of the change's keys, as far as the sender has seen them.
    pub(crate) known: Option<u64>,
    /// Its wall clock: another replica of its region may have stamped a key a moment ago.
    pub(crate) wall: u64,
}

/// What the stamp of a change must exceed, beside the present values of its keys. In nanoseconds
/// since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClockFloor {
    /// The highest clock of the keys that this replica wrote, was told or showed to a client.
    pub(crate) known: Option<u64>,
    /// The highest clock of the keys in regions that owe something.
    pub(crate) elsewhere: Option<u64>,
    /// Of the sender, if the change was forwarded.
    pub(crate) sender: Option<SenderClocks>,
}

impl ClockFloor {
    /// The clock that the stamp must exceed, if there is one, by this replica's clock `own`.
    ///
    /// A sender's wall clock that is too far ahead counts in part, or one wrong clock would stamp
    /// for all regions. What it knows of the keys counts in full: a stamp too far ahead is refused
    /// when the new one is made.
    pub(crate) fn above(&self, own: u64) -> Option<u64> {
        let wall = self
            .sender
            .map(|sender| sender.wall.min(own.saturating_add(MAX_SKEW_NANOS)));
        let sent = self.sender.and_then(|sender| sender.known);
        self.known.max(self.elsewhere).max(sent).max(wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clocks_count_as_far_as_they_may_be_wrong() {
        let above = |known, wall| {
            let sender = Some(SenderClocks { known, wall });
            ClockFloor {
                sender,
                ..ClockFloor::default()
            }
            .above(5)
        };
        assert_eq!(above(None, 7), Some(7));
        assert_eq!(above(None, u64::MAX), Some(MAX_SKEW_NANOS + 5));
        assert_eq!(above(Some(u64::MAX), 7), Some(u64::MAX));
        assert_eq!(ClockFloor::default().above(5), None);
    }
}
