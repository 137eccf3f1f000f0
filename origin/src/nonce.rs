//! Fresh nonces: what makes two writes of the same content two different writes.

use rand::TryRng;
use rand::rngs::SysRng;

/// 128 bits from the operating system, asked for each time: a process that was cloned from a
/// snapshot must not repeat the nonces of its twin.
pub(crate) fn nonce() -> u128 {
    u128::from_le_bytes(random_bytes())
}

/// Bytes from the operating system's generator.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= 256) }
    let mut bytes = [0; N];
    SysRng
        .try_fill_bytes(&mut bytes)
        .expect("getrandom(2) gives up to 256 bytes without fail once the system has started");
    bytes
}
