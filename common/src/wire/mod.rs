//! What the processes say to each other. Bodies go through [`crate::codec`]; a body never changes
//! within a version.

pub mod frame;
pub mod origin;
pub mod peer;
pub mod tracker;
