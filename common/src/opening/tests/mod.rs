#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod blob_reads;
mod image_seeks;
mod openings;
mod support;
