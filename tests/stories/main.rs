//! End-to-end tests: what users see, with real listeners, third-party clients, and faults.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod burst;
mod commands;
mod container_runtimes;
mod containerd_v1;
mod corrupt_peer;
mod disk_faults;
mod draining;
mod errors;
mod harness;
mod invalid_configurations;
mod killed_services;
mod metrics;
mod mirror_failures;
mod origin_outages;
mod origin_policy;
mod origin_regions;
mod origin_suspended;
mod push_clients;
mod pushes_in_outages;
mod region_joins;
mod region_loss;
mod region_outages;
mod runtimes_in_outages;
mod stopped_services;
mod suspended_peer;
mod system_calls;
mod systemd_units;
mod tracker_outages;
mod up_regions;
mod upstream;
mod wrong_clocks;
