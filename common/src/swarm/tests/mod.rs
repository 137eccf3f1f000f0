//! Tests of the whole machine, by subject.

mod claims;
mod dialing;
mod downloads;
mod leases;
mod origins;
mod picker;
mod proptests;
mod reachability;
mod regions;
mod stall_reasons;
mod support;
mod unresponsive;
mod uploads;
