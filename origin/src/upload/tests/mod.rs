//! Tests of the module as a whole.

mod decode_proptests;
