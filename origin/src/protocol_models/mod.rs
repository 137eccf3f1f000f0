//! Model checking of the storage protocols: exhaustive search over the orders of their storage
//! calls, with lost responses, writes that apply late or twice, and crashes.
//!
//! The code that is explored is the code that ships. Actors call it on a
//! [`storage_model::ModelStorage`], whose calls wait until the [`explorer`] chooses one. The
//! explorer replays a scenario from its start for each sequence of choices, so a scenario must be
//! deterministic: the same choices lead to the same calls. Each rule of a protocol also has a
//! broken variant, an actor that violates the rule; the explorer must find a trace that fails with
//! it.

mod blob_collection;
mod caches;
mod conditional_writes;
mod deletes;
mod explorer;
mod memberships;
mod regions;
mod replica_leases;
mod storage_model;
mod uploads;
