//! peer
mod store;
