//! Hints for errors of binding an address.

use std::io::{Error, ErrorKind};

/// A hint at the fix for an `error` of binding, to be appended to it; empty if the error says
/// enough.
pub fn listen_hint(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "; another process listens on this address; `ss -ltunp` shows it",
        ErrorKind::AddrNotAvailable => {
            "; this machine does not have the address; 0.0.0.0 means all of its addresses"
        }
        ErrorKind::PermissionDenied => "; ports below 1024 need privileges (CAP_NET_BIND_SERVICE)",
        _ => "",
    }
}
