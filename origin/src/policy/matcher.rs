//! Patterns of repository names and tags.
//!
//! | pattern | matches |
//! |---|---|
//! | `team/app` | that repository |
//! | `team/*` | `team/app`, not `team/app/debug` and not `team` |
//! | `team/app-*` | `*` also stands for a part of a component: `team/app-web` |
//! | `team/**` | `team/app` and `team/app/debug`, not `team` |
//! | `**` | every repository |
//!
//! In a pattern of tags, `*` stands for any characters, none included.

use core::fmt;
use core::str::FromStr;

use flotilla_common::name::RepositoryName;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The maximum length of a pattern in bytes: that of a repository name.
const MAX_PATTERN_LEN: usize = 255;

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a pattern of repositories.
    #[error(
        "\"{0}\" is not a repository pattern: use path components of a-z, 0-9, '.', '_', '-' separated by '/'; \
         '*' stands for one component or a part of one, '**' for one or more components"
    )]
    Repository(String),
    /// Not a pattern of tags.
    #[error(
        "\"{0}\" is not a tag pattern: use letters, digits, '_', '.' and '-'; '*' stands for any characters"
    )]
    Tag(String),
}

/// A step of a pattern over `T`: components of a name, or bytes of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step<T> {
    /// Any number of items, none included.
    Many,
    /// One item.
    One(T),
}

/// A component of a repository pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Component {
    Any,
    Bytes(Box<[Step<u8>]>),
}

impl Component {
    fn matches(&self, component: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Bytes(steps) => matches_bytes(steps, component),
        }
    }
}

/// A pattern of repository names.
#[derive(Clone, PartialEq, Eq)]
pub struct RepositoryPattern {
    text: Box<str>,
    steps: Box<[Step<Component>]>,
}

impl RepositoryPattern {
    /// The pattern that matches every repository: `**`.
    pub fn all() -> Self {
        Self {
            text: "**".into(),
            steps: Box::new([Step::One(Component::Any), Step::Many]),
        }
    }

    /// Whether it matches a repository.
    pub fn matches(&self, repository: &RepositoryName) -> bool {
        let mut components: [&str; MAX_COMPONENTS] = [""; MAX_COMPONENTS];
        let mut count = 0;
        for (slot, component) in components.iter_mut().zip(repository.as_str().split('/')) {
            *slot = component;
            count += 1;
        }
        matches(&self.steps, &components[..count], |component, text| {
            component.matches(text)
        })
    }

    /// Whether it matches every repository.
    pub fn is_all(&self) -> bool {
        self.steps == Self::all().steps
    }

    /// The first component, if it has no wildcard: no other name's first component matches.
    pub(super) fn first_literal(&self) -> Option<&str> {
        let first = self.text.split('/').next()?;
        (!first.contains('*')).then_some(first)
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The maximum number of components of a repository name of 255 bytes.
const MAX_COMPONENTS: usize = 128;

impl FromStr for RepositoryPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let error = || PatternError::Repository(text.to_owned());
        if text.len() > MAX_PATTERN_LEN {
            return Err(error());
        }
        let mut steps = Vec::new();
        for component in text.split('/') {
            match component {
                "" => return Err(error()),
                "**" => steps.extend([Step::One(Component::Any), Step::Many]),
                "*" => steps.push(Step::One(Component::Any)),
                _ => {
                    let is_allowed = |byte: u8| {
                        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
                    };
                    let steps_of = byte_steps(component, is_allowed).ok_or_else(error)?;
                    steps.push(Step::One(Component::Bytes(steps_of)));
                }
            }
        }
        Ok(Self {
            text: text.into(),
            steps: steps.into(),
        })
    }
}

/// A pattern of tags.
#[derive(Clone, PartialEq, Eq)]
pub struct TagPattern {
    text: Box<str>,
    steps: Box<[Step<u8>]>,
}

impl TagPattern {
    /// Whether it matches a tag.
    pub fn matches(&self, tag: &str) -> bool {
        matches_bytes(&self.steps, tag)
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for TagPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let steps = byte_steps(text, is_allowed)
            .filter(|steps| !steps.is_empty() && text.len() <= MAX_PATTERN_LEN);
        let steps = steps.ok_or_else(|| PatternError::Tag(text.to_owned()))?;
        Ok(Self {
            text: text.into(),
            steps,
        })
    }
}

/// The steps of a text with single `*`s; `None` for a character that is not allowed, and for `**`.
fn byte_steps(text: &str, is_allowed: impl Fn(u8) -> bool) -> Option<Box<[Step<u8>]>> {
    if text.contains("**") {
        return None;
    }
    let step = |byte| match byte {
        b'*' => Some(Step::Many),
        byte if is_allowed(byte) => Some(Step::One(byte)),
        _ => None,
    };
    text.bytes().map(step).collect()
}

fn matches_bytes(steps: &[Step<u8>], text: &str) -> bool {
    matches(steps, text.as_bytes(), |step, byte| step == byte)
}

/// Whether the steps match all items. On a mismatch, only the last `Many` takes one more item: the
/// time is bounded by the product of both lengths.
fn matches<S, T>(steps: &[Step<S>], items: &[T], matches_one: impl Fn(&S, &T) -> bool) -> bool {
    let (mut step, mut item) = (0, 0);
    // After the last `Many`: its next step, and the first item that it does not take.
    let mut last_many = None;
    while item < items.len() {
        match steps.get(step) {
            Some(Step::Many) => {
                step += 1;
                last_many = Some((step, item));
            }
            Some(Step::One(one)) if matches_one(one, &items[item]) => {
                step += 1;
                item += 1;
            }
            _ => {
                let Some((next_step, taken_to)) = last_many else {
                    return false;
                };
                last_many = Some((next_step, taken_to + 1));
                (step, item) = (next_step, taken_to + 1);
            }
        }
    }
    steps[step..].iter().all(|step| matches!(step, Step::Many))
}

/// Text form and codecs of a pattern.
macro_rules! pattern_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

pattern_text!(RepositoryPattern);
pattern_text!(TagPattern);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use proptest::prelude::*;

    use super::*;

    fn is_match(pattern: &str, name: &str) -> bool {
        let pattern: RepositoryPattern = pattern.parse().unwrap();
        pattern.matches(&name.parse().unwrap())
    }

    #[test]
    fn wildcards_of_repositories() {
        for (pattern, matching, others) in [
            (
                "team/app",
                &["team/app"][..],
                &["team/app/x", "team", "team/apps"][..],
            ),
            (
                "team/*",
                &["team/app", "team/b"],
                &["team", "team/app/x", "teams/app"],
            ),
            ("*/app", &["team/app"], &["app", "a/b/app"]),
            (
                "team/app-*",
                &["team/app-web"],
                &["team/app", "team/app-web/x"],
            ),
            ("a*b*c", &["abc", "axbxc", "abbcc"], &["ab", "a/b/c", "acb"]),
            ("team/**", &["team/a", "team/a/b/c"], &["team", "teams/a"]),
            ("**", &["a", "a/b/c"], &[]),
            ("**/base", &["a/base", "a/b/base"], &["base", "a/base/x"]),
            (
                "a/**/b/**/c",
                &["a/x/b/y/c", "a/x/b/b/y/c"],
                &["a/b/y/c", "a/x/b/c"],
            ),
            ("*", &["a"], &["a/b"]),
        ] {
            for name in matching {
                assert!(is_match(pattern, name), "{pattern} should match {name}");
            }
            for name in others {
                assert!(
                    !is_match(pattern, name),
                    "{pattern} should not match {name}"
                );
            }
        }
        assert!("**".parse::<RepositoryPattern>().unwrap().is_all());
        assert!(!"**/*".parse::<RepositoryPattern>().unwrap().is_all());
    }

    #[test]
    fn wildcards_of_tags() {
        let is_match = |pattern: &str, tag| pattern.parse::<TagPattern>().unwrap().matches(tag);
        assert!(is_match("v*", "v1.2") && is_match("v*", "v") && !is_match("v*", "latest"));
        assert!(is_match("*", "x") && is_match("*-rc*", "v1-rc2") && !is_match("*-rc", "v1-rc2"));
    }

    #[test]
    fn invalid_patterns_are_refused() {
        for text in [
            "", "/", "a/", "a//b", "Team/*", "a/***", "a/b**", "a b", "a:b", "é",
        ] {
            let error = text.parse::<RepositoryPattern>().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{text}\"")), "{error}");
        }
        assert!("a".repeat(256).parse::<RepositoryPattern>().is_err());
        for text in ["", "a/b", "v**", "v:1", "v 1"] {
            assert!(text.parse::<TagPattern>().is_err(), "{text}");
        }
    }

    /// The definition of a component pattern, one character at a time.
    fn component_reference(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => {
                (0..=text.len()).any(|taken| component_reference(rest, &text[taken..]))
            }
            Some((byte, rest)) => text
                .split_first()
                .is_some_and(|(first, others)| first == byte && component_reference(rest, others)),
        }
    }

    /// The definition of a repository pattern, one component at a time.
    fn reference(pattern: &[&str], name: &[&str]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((&"**", rest)) => (1..=name.len()).any(|taken| reference(rest, &name[taken..])),
            Some((component, rest)) => name.split_first().is_some_and(|(first, others)| {
                component_reference(component.as_bytes(), first.as_bytes())
                    && reference(rest, others)
            }),
        }
    }

    proptest! {
        #[test]
        fn repository_patterns_match_their_definition(
            pattern in "([ab]{1,2}|a?\\*b?|\\*\\*)(/([ab]{1,2}|a?\\*b?|\\*\\*)){0,4}",
            name in "[ab]{1,3}(/[ab]{1,3}){0,5}",
        ) {
            let components: Vec<_> = name.split('/').collect();
            let expected = reference(&pattern.split('/').collect::<Vec<_>>(), &components);
            prop_assert_eq!(is_match(&pattern, &name), expected);
        }

        #[test]
        fn tag_patterns_match_their_definition(pattern in "(\\*?[ab]{1,2}){1,4}\\*?", tag in "[ab]{1,12}") {
            let parsed: TagPattern = pattern.parse().unwrap();
            let expected = component_reference(pattern.as_bytes(), tag.as_bytes());
            prop_assert_eq!(parsed.matches(&tag), expected);
        }

        /// Every name is a pattern that matches itself and nothing else.
        #[test]
        fn names_match_themselves(
            name in "[a-z0-9]{1,20}((__|[._/]|-{1,2})[a-z0-9]{1,20}){0,10}",
            other in "[a-z0-9]{1,20}((__|[._/]|-{1,2})[a-z0-9]{1,20}){0,10}",
        ) {
            prop_assert!(is_match(&name, &name));
            prop_assert_eq!(is_match(&name, &other), name == other);
            prop_assert!(is_match("**", &name));
        }
    }
}
