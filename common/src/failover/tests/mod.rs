//! Tests of the machine on a virtual clock.

mod proptests;
mod requests;
mod standing;
mod support;
