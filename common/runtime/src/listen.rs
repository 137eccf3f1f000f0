//! Why an address cannot be listened on, and what to do about it.

use std::io::{Error, ErrorKind};

/// What to do about an `error` of listening, to be written behind it; nothing if the error says it
/// all.
pub fn listen_hint(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "; another process listens there, and `ss -ltunp` names it",
        ErrorKind::AddrNotAvailable => {
            "; it is no address of this machine, and 0.0.0.0 is all of them"
        }
        ErrorKind::PermissionDenied => "; ports below 1024 need rights that services do not have",
        _ => "",
    }
}
