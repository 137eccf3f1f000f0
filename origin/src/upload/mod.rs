//! Uploads: signed ids, chains of create-only links, and the hashing of bytes as they arrive.

pub(crate) mod chain;
pub(crate) mod hash;
pub(crate) mod id;
pub(crate) mod link;
pub(crate) mod receive;

#[cfg(test)]
mod any_bytes;
