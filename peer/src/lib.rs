//! peer
mod origin;
mod store;
mod tracker_client;
pub mod transport;
