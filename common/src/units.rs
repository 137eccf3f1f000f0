//! Sizes, rates and periods in their human-readable form: `64MiB`, `50Mbit`, `30d`.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not a size, a rate or a period.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error(
        "'{0}' is not a valid size: use a number and B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, for example 64MiB"
    )]
    Size(String),
    /// Not a rate.
    #[error(
        "'{0}' is not a valid rate: use a number and bit, kbit, Mbit or Gbit (per second), for example 50Mbit"
    )]
    Rate(String),
    /// Not a period.
    #[error("'{0}' is not a valid period: use a whole number and s, m, h or d, for example 30d")]
    Period(String),
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// A number of bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitRate(pub u64);

/// A period in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

const RATE_UNITS: [(&str, u64); 4] = [
    ("kbit", 1_000),
    ("Mbit", 1_000_000),
    ("Gbit", 1_000_000_000),
    ("bit", 1),
];

/// Seconds in each unit, ascending.
const PERIOD_UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];

impl BitRate {
    /// Bytes per second.
    pub fn bytes_per_second(self) -> f64 {
        self.0 as f64 / 8.0
    }

    /// The time that `bytes` take at this rate; at a rate of zero, for ever.
    pub fn time_for(self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 8_000_000_000).checked_div(u128::from(self.0));
        Duration::from_nanos(
            nanos
                .and_then(|nanos| u64::try_from(nanos).ok())
                .unwrap_or(u64::MAX),
        )
    }
}

/// Splits a number from its unit; a bare number counts in the base unit.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)))
        .unwrap_or((text, 1));
    let number = number.trim_end();
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number
        .parse::<f64>()
        .ok()
        .filter(|value| value.is_finite() && *value >= 0.0)?;
    let product = value * factor as f64;
    // The printed form of the largest number rounds up to just above it; the conversion saturates.
    (product <= u64::MAX as f64).then_some(product as u64)
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZE_UNITS)
            .map(Self)
            .ok_or_else(|| UnitError::Size(text.to_owned()))
    }
}

impl FromStr for BitRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &RATE_UNITS)
            .filter(|rate| *rate > 0)
            .map(Self)
            .ok_or_else(|| UnitError::Rate(text.to_owned()))
    }
}

/// A bare number has no unit and is refused.
impl FromStr for Period {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let seconds = PERIOD_UNITS.iter().find_map(|(unit, factor)| {
            let number = text.strip_suffix(unit)?.trim_end();
            number.parse::<u64>().ok()?.checked_mul(*factor)
        });
        let seconds = seconds.ok_or_else(|| UnitError::Period(text.to_owned()))?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

/// Prints exactly, in the largest unit that gives a whole number; parts of seconds are left out.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let exact = PERIOD_UNITS
            .iter()
            .rev()
            .find(|(_, factor)| seconds >= *factor && seconds.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => write!(f, "{}{unit}", seconds / factor),
            None => write!(f, "{seconds}s"),
        }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Prints in the largest of `units` (ascending) that `value` reaches, with one decimal unless
/// whole.
fn print(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)], base: &str) -> fmt::Result {
    match units.iter().rev().find(|(_, factor)| value >= *factor) {
        Some((unit, factor)) if value.is_multiple_of(*factor) => {
            write!(f, "{}{unit}", value / factor)
        }
        Some((unit, factor)) => write!(f, "{:.1}{unit}", value as f64 / *factor as f64),
        None => write!(f, "{value}{base}"),
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &SIZE_UNITS[..4], "B")
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &RATE_UNITS[..3], "bit")
    }
}

/// Codecs of a unit: printed exactly, read from a text with a unit or from a bare number.
macro_rules! unit_serde {
    ($name:ident, $units:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($units)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_u64<E: de::Error>(self, value: u64) -> Result<$name, E> {
                        Ok($name(value))
                    }

                    fn visit_i64<E: de::Error>(self, value: i64) -> Result<$name, E> {
                        u64::try_from(value).map($name).map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

unit_serde!(ByteSize, "a size such as \"64MiB\" or a number of bytes");
unit_serde!(
    BitRate,
    "a rate such as \"50Mbit\" or a number of bits per second"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_sizes_and_rates() {
        assert_eq!("64MiB".parse(), Ok(ByteSize(64 << 20)));
        assert_eq!("1.5 GiB".parse(), Ok(ByteSize(3 << 29)));
        assert_eq!("17".parse(), Ok(ByteSize(17)));
        assert_eq!("1GB".parse(), Ok(ByteSize(1_000_000_000)));
        assert_eq!("50Mbit".parse(), Ok(BitRate(50_000_000)));
        assert!("50Mbyte".parse::<BitRate>().is_err());
        assert!("0bit".parse::<BitRate>().is_err());
        assert!("-1MiB".parse::<ByteSize>().is_err());
        assert!("99999999999TiB".parse::<ByteSize>().is_err());
        assert_eq!(ByteSize(64 << 20).to_string(), "64MiB");
        assert_eq!(BitRate(2_500_000).to_string(), "2.5Mbit");
        assert_eq!(ByteSize(12).to_string(), "12B");
        assert_eq!(
            ByteSize(u64::MAX).to_string().parse(),
            Ok(ByteSize(u64::MAX))
        );
    }

    #[test]
    fn parse_and_print_periods() {
        let period = |seconds| Period(Duration::from_secs(seconds));
        for (text, parsed) in [
            ("30d", period(30 * 86_400)),
            ("36h", period(36 * 3_600)),
            ("90s", period(90)),
            ("5m", period(300)),
            ("0s", period(0)),
        ] {
            assert_eq!(text.parse(), Ok(parsed));
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!(
            "720h".parse::<Period>().map(|period| period.to_string()),
            Ok("30d".to_owned())
        );
        for text in [
            "",
            "d",
            "30",
            "1.5h",
            "-1d",
            "30 days",
            "999999999999999999d",
        ] {
            let error = text.parse::<Period>().map_err(|error| error.to_string());
            assert!(error.is_err_and(|error| error.contains("30d")), "{text}");
        }
    }

    #[test]
    fn time_at_a_rate() {
        assert_eq!(BitRate(8_000).time_for(1_000), Duration::from_secs(1));
        assert_eq!(
            BitRate(1).time_for(u64::MAX),
            Duration::from_nanos(u64::MAX)
        );
    }
}
