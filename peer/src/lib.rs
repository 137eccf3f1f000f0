//! peer
mod store;
pub mod transport;
