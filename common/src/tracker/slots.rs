//! Dense ids of the tracker's machine, in place of digests and names.

use bincode::{Decode, Encode};

use crate::interner::Slot;

macro_rules! slots {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
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
    /// A blob, and its swarm.
    BlobSlot;
    /// A peer.
    PeerSlot;
    /// A zone. Zones are named within their region: the same name in two regions is two slots.
    ZoneSlot;
    /// A region.
    RegionSlot;
}
