//! Tests of the machine on a virtual clock.

mod chosen_region;
mod proptests;
mod requests;
mod standing;
mod support;
