//! The keys of a policy's tables, and the form of their values in plain words. Forms are checked
//! here, because the errors of the TOML library name types of this program.

use toml::de::DeValue;

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A text in quotes.
    Text,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A whole number that is not negative.
    Number,
    /// A list of texts.
    Texts,
    /// An array of tables, whose entries are checked by themselves.
    Tables,
}

/// A key of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyForm {
    pub(super) name: &'static str,
    form: Form,
    /// What to write, with an example.
    expected: &'static str,
}

const fn key(name: &'static str, form: Form, expected: &'static str) -> KeyForm {
    KeyForm {
        name,
        form,
        expected,
    }
}

pub(super) const POLICY_KEYS: &[KeyForm] = &[
    key("region", Form::Tables, ""),
    key("repository", Form::Tables, ""),
];

pub(super) const REGION_KEYS: &[KeyForm] = &[
    key("name", Form::Text, "a name in quotes, such as \"eu-1\""),
    key(
        "url",
        Form::Text,
        "an address in quotes, such as \"https://origin.eu.example\"",
    ),
];

pub(super) const RULE_KEYS: &[KeyForm] = &[
    key(
        "match",
        Form::Text,
        "one pattern of repositories in quotes, such as \"team/**\"; repeat [[repository]] for more",
    ),
    key(
        "regions",
        Form::Texts,
        "a list of names of regions, such as [\"eu-1\", \"us-1\"]",
    ),
    key(
        "ack_regions",
        Form::Number,
        "a number of regions without quotes, from 1 to that of the regions that keep the repository, such as 2",
    ),
    key(
        "tag_reads",
        Form::OneOf(&["local", "freshest"]),
        "\"local\" or \"freshest\"",
    ),
    key(
        "home",
        Form::Text,
        "the name of one region in quotes, such as \"eu-1\"",
    ),
    key(
        "immutable",
        Form::Texts,
        "a list of patterns of tags, such as [\"v*\"]",
    ),
    key("quota", Form::Text, "a size in quotes, such as \"500GiB\""),
    key(
        "untagged",
        Form::Text,
        "\"keep\", or a period in quotes, such as \"30d\"",
    ),
    key("delay", Form::Text, "a period in quotes, such as \"24h\""),
    key("keep", Form::Tables, ""),
];

pub(super) const KEEP_KEYS: &[KeyForm] = &[
    key(
        "tags",
        Form::Texts,
        "a list of patterns of tags, such as [\"v*\"]",
    ),
    key(
        "last",
        Form::Number,
        "a number of tags without quotes, such as 10",
    ),
    key(
        "pushed_within",
        Form::Text,
        "a period in quotes, such as \"720h\"",
    ),
    key(
        "in_use_within",
        Form::Text,
        "a period in quotes, such as \"7d\"",
    ),
];

impl KeyForm {
    /// The fault in the form of a value, with its fix; `None` if the form is right.
    pub(super) fn fault(&self, value: &DeValue<'_>) -> Option<String> {
        let is_right = match (self.form, value) {
            (Form::Tables, _) | (Form::Text, DeValue::String(_)) => true,
            (Form::OneOf(texts), DeValue::String(text)) => texts.contains(&text.as_ref()),
            (Form::Number, DeValue::Integer(number)) => {
                u32::from_str_radix(number.as_str(), number.radix()).is_ok()
            }
            (Form::Texts, DeValue::Array(items)) => items
                .iter()
                .all(|item| matches!(item.get_ref(), DeValue::String(_))),
            _ => false,
        };
        let (name, expected) = (self.name, self.expected);
        (!is_right).then(|| format!("{name} must be {expected}; it is {}", described(value)))
    }
}

/// A value as an author of a policy calls it.
fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{text}\""),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => format!("the time {time}"),
        DeValue::Array(items) => {
            let other = items.iter().map(toml::Spanned::get_ref);
            let other = other
                .filter(|item| !matches!(item, DeValue::String(_)))
                .map(described)
                .next();
            other.map_or_else(
                || "a list".to_owned(),
                |other| format!("a list with {other}"),
            )
        }
        DeValue::Table(_) => "a table".to_owned(),
    }
}
