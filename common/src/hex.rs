//! Lower-case hexadecimal, the only spelling that OCI digests allow.

/// Encodes `bytes` as lower-case hexadecimal.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Decodes exactly `N` bytes of lower-case hexadecimal; `None` for anything else.
pub fn decode_exact<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip_and_errors() {
        assert_eq!(encode(&[0x0f, 0xa0]), "0fa0");
        assert_eq!(decode_exact::<2>("0fa0"), Some([0x0f, 0xa0]));
        assert_eq!(
            decode_exact::<2>("0FA0"),
            None,
            "upper case is not canonical"
        );
        assert_eq!(decode_exact::<2>("0fa"), None);
        assert_eq!(decode_exact::<2>("0fg0"), None);
    }
}
