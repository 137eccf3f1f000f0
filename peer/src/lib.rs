//! peer
mod origin;
mod store;
pub mod transport;
