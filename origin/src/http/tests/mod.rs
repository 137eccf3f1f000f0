//! Tests of several handlers or parsers together.

mod proptests;
