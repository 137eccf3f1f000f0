//! Uploads: signed ids, upload logs of create-only entries, and the streaming of request bodies
//! into segments.

pub(crate) mod hash;
pub(crate) mod id;
pub(crate) mod log;
pub(crate) mod log_entry;
pub(crate) mod receive;

#[cfg(test)]
mod tests;
