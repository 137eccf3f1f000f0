//! One key of a scenario with several values, as `--vary` takes it.

use core::fmt;
use core::str::FromStr;

use toml::{Table, Value};

/// Most values of a variation.
const MAX_VALUES: usize = 100;

/// A key and its values, such as `machine.slots=2,3,4` or `peers.up=100Mbit,1Gbit`.
#[derive(Clone, Debug, PartialEq)]
pub struct Variation {
    key: String,
    values: Vec<Value>,
}

/// Why a text is not a variation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a key of the scenario with its table and values, such as machine.slots=2,3,4")]
pub struct VariationError;

impl Variation {
    /// The scenario's table with each of the values, and a name that says which.
    pub(crate) fn apply(&self, table: &Table) -> Vec<Table> {
        self.values
            .iter()
            .map(|value| {
                let mut varied = table.clone();
                if let Some(Value::String(name)) = varied.get_mut("name") {
                    let text = value.as_str().map_or(value.to_string(), str::to_owned);
                    let varied = VariedName {
                        scenario: name,
                        key: &self.key,
                        value: &text,
                    };
                    *name = varied.to_string();
                }
                set(&mut varied, &self.key, value.clone());
                varied
            })
            .collect()
    }
}

/// The name of a scenario with one of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VariedName<'a> {
    /// The name of the scenario as written.
    pub(crate) scenario: &'a str,
    pub(crate) key: &'a str,
    pub(crate) value: &'a str,
}

impl<'a> VariedName<'a> {
    /// The parts of such a name; `None` for any other name.
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let (scenario, varied) = name.rsplit_once(", ")?;
        let (key, value) = varied.split_once(" = ")?;
        Some(Self {
            scenario,
            key,
            value,
        })
    }
}

impl fmt::Display for VariedName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} = {}", self.scenario, self.key, self.value)
    }
}

/// Sets a key, which may name tables; those that are missing are added.
fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = table
                .entry(first)
                .or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

impl FromStr for Variation {
    type Err = VariationError;

    fn from_str(text: &str) -> Result<Self, VariationError> {
        let (key, values) = text.split_once('=').ok_or(VariationError)?;
        let is_word = |word: &str| {
            let is_allowed = |char: char| char.is_ascii_alphanumeric() || char == '_';
            !word.is_empty() && word.chars().all(is_allowed)
        };
        let values: Vec<Value> = values.split(',').map(|text| value(text.trim())).collect();
        let has_values = values.iter().all(|value| value.as_str() != Some(""));
        if key.split('.').all(is_word) && has_values && values.len() <= MAX_VALUES {
            let key = key.to_owned();
            Ok(Self { key, values })
        } else {
            Err(VariationError)
        }
    }
}

/// A value as in TOML; strings need no quotes.
fn value(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>();
    let value = parsed.ok().and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn values_replace_the_key_one_by_one() {
        let variation: Variation = "peers.up=50Mbit, 1Gbit".parse().unwrap();
        let table: Table = "name = 'a'\n[peers]\nup = '1Mbit'".parse().unwrap();
        let varied = variation.apply(&table);
        let ups = varied.iter().map(|table| table["peers"]["up"].as_str());
        assert_eq!(ups.collect::<Vec<_>>(), [Some("50Mbit"), Some("1Gbit")]);
        let name = varied[0]["name"].as_str().unwrap();
        assert_eq!(name, "a, peers.up = 50Mbit");
        let parts = VariedName::parse(name).unwrap();
        assert_eq!(
            (parts.scenario, parts.key, parts.value),
            ("a", "peers.up", "50Mbit")
        );
        assert_eq!(VariedName::parse("a"), None);
    }

    #[test]
    fn missing_tables_are_added_and_numbers_stay_numbers() {
        let variation: Variation = "machine.slots=2,3".parse().unwrap();
        let table: Table = "name = 'a'".parse().unwrap();
        let slots = variation.apply(&table)[1]["machine"]["slots"].clone();
        assert_eq!(slots, Value::Integer(3));
    }

    #[test]
    fn other_texts_are_errors() {
        for text in ["", "slots", "machine.=2", "=2", "machine.slots=", "a b=1"] {
            assert!(text.parse::<Variation>().is_err(), "{text}");
        }
    }
}
