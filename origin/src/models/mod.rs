//! The storage protocols, driven through every order of their storage calls, through answers that
//! are lost, writes that come late or twice, and crashes.
//!
//! What is explored is the shipped code: actors call it on a [`model::Model`] of storage, whose
//! calls wait until the [`explorer`] decides. It replays a scenario from its start for each
//! sequence of decisions, so a scenario must do the same things for the same decisions. Beside each
//! protocol stand the traces that its rules prevent: with the rule taken out, by an actor that
//! breaks it, the explorer must find one.

mod blobs;
mod caches;
mod deletes;
mod explorer;
mod model;
mod settling;
mod uploads;
