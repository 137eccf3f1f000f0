//! The wire messages between processes. [`crate::codec`] encodes their bodies, which never change
//! within a version.

pub mod frame;
pub mod origin;
pub mod peer;
pub mod region;
pub mod region_list;
pub mod tracker;
