//! The text of a policy: parsed strictly, with errors that name the line, the cause and the fix.

use core::fmt;
use std::collections::HashMap;
use std::ops::Range;

use flotilla_common::name::RegionName;
use flotilla_common::units::{ByteSize, Period};
use flotilla_runtime::suggest;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{KEEP_KEYS, KeyForm, POLICY_KEYS, REGION_KEYS, RULE_KEYS};
use super::{
    KeepRule, MAX_ITEMS, MAX_POLICY_LEN, MAX_REGIONS, MAX_RULES, Policy, Region, RegionUrl,
    RepositoryPattern, RepositoryRule, TagPattern, TagReads, Untagged,
};

/// A text is not a valid policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    /// The line, counted from 1, where there is one.
    pub line: Option<usize>,
    /// The cause and the fix.
    pub fault: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.fault)
    }
}

impl PolicyError {
    pub(super) fn new(fault: impl Into<String>) -> Self {
        Self {
            line: None,
            fault: fault.into(),
        }
    }
}

/// The text, as the TOML library reads it. What it requires of single values, their types check.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyText {
    #[serde(default)]
    region: Vec<Spanned<RegionText>>,
    #[serde(default)]
    repository: Vec<Spanned<RuleText>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegionText {
    name: Option<RegionName>,
    url: Option<RegionUrl>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    #[serde(rename = "match")]
    pattern: Option<RepositoryPattern>,
    regions: Option<Spanned<Vec<Spanned<RegionName>>>>,
    ack_regions: Option<Spanned<usize>>,
    #[serde(default)]
    tag_reads: TagReads,
    home: Option<Spanned<RegionName>>,
    immutable: Option<Spanned<Vec<TagPattern>>>,
    quota: Option<ByteSize>,
    #[serde(default)]
    untagged: Untagged,
    delay: Option<Period>,
    #[serde(default)]
    keep: Vec<Spanned<KeepRule>>,
}

impl Policy {
    /// Parses the text of a policy.
    ///
    /// # Errors
    /// The line, the cause and the fix.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > MAX_POLICY_LEN {
            return Err(PolicyError::new(format!(
                "the policy has {} bytes, over {MAX_POLICY_LEN}; let one rule match several repositories (team/**)",
                text.len()
            )));
        }
        let parser = Parser { text };
        let table = DeTable::parse(text).map_err(|error| parser.toml_error(&error))?;
        parser.check_keys(table.get_ref())?;
        let parsed = toml::from_str(text).map_err(|error| parser.toml_error(&error))?;
        parser.policy(parsed)
    }
}

/// Checks one text.
#[derive(Clone, Copy)]
struct Parser<'t> {
    text: &'t str,
}

impl Parser<'_> {
    fn line(self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn error(self, at: Range<usize>, fault: impl Into<String>) -> PolicyError {
        PolicyError {
            line: Some(self.line(at.start)),
            fault: fault.into(),
        }
    }

    /// An error of the TOML library, with the line that it is about.
    fn toml_error(self, error: &toml::de::Error) -> PolicyError {
        let message = error.message().replace('\n', "; ");
        let message = match message.as_str() {
            "duplicate key" => {
                "duplicate key; remove one, or begin another entry before it".to_owned()
            }
            // "string values must be quoted, expected literal string"
            _ => message.replace(", expected literal string", ", such as \"x\""),
        };
        let Some(span) = error.span() else {
            return PolicyError::new(message);
        };
        let line = self.line(span.start);
        let source = self.text.lines().nth(line - 1).unwrap_or_default().trim();
        self.error(span, format!("`{source}`: {message}"))
    }

    /// Checks all keys and the forms of their values, so that a misspelt key gets the nearest as a
    /// hint, and a wrong value an example.
    fn check_keys(self, table: &DeTable<'_>) -> Result<(), PolicyError> {
        self.check_table(table, "a policy", POLICY_KEYS)?;
        for (key, value) in table {
            let keys = match key.get_ref().as_ref() {
                "region" => REGION_KEYS,
                _ => RULE_KEYS,
            };
            let key = key.get_ref();
            for entry in self.tables(key, value)? {
                self.check_table(entry, &format!("[[{key}]]"), keys)?;
                if let Some(keep) = entry.get("keep") {
                    for entry in self.tables("repository.keep", keep)? {
                        self.check_table(entry, "[[repository.keep]]", KEEP_KEYS)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn check_table(
        self,
        table: &DeTable<'_>,
        place: &str,
        known: &[KeyForm],
    ) -> Result<(), PolicyError> {
        for (key, value) in table {
            let name: &str = key.get_ref();
            let Some(form) = known.iter().find(|known| known.name == name) else {
                let names: Vec<&str> = known.iter().map(|known| known.name).collect();
                let hint = suggest::hint(name, "keys", &names);
                let fault = format!("unknown key '{name}' of {place}; {hint}");
                return Err(self.error(key.span(), fault));
            };
            if let Some(fault) = form.fault(value.get_ref()) {
                return Err(self.error(key.span(), fault));
            }
        }
        Ok(())
    }

    /// The tables of an array of tables.
    fn tables<'v, 'i>(
        self,
        key: &str,
        value: &'v Spanned<DeValue<'i>>,
    ) -> Result<impl Iterator<Item = &'v DeTable<'i>>, PolicyError> {
        let fault = || format!("begin each entry with [[{key}]], in double brackets");
        let DeValue::Array(entries) = value.get_ref() else {
            return Err(self.error(value.span(), fault()));
        };
        if let Some(other) = entries
            .iter()
            .find(|entry| entry.get_ref().as_table().is_none())
        {
            return Err(self.error(other.span(), fault()));
        }
        Ok(entries
            .iter()
            .filter_map(|entry| entry.get_ref().as_table()))
    }

    fn policy(self, text: PolicyText) -> Result<Policy, PolicyError> {
        if text.region.is_empty() {
            return Err(PolicyError::new(
                "a policy needs at least one region: add [[region]] with name and url",
            ));
        }
        self.check_count(text.region.get(MAX_REGIONS), "regions", MAX_REGIONS)?;
        self.check_count(text.repository.get(MAX_RULES), "rules", MAX_RULES)?;
        let mut regions: Vec<Region> = Vec::with_capacity(text.region.len());
        for entry in text.region {
            let region = self.region(entry, &regions)?;
            regions.push(region);
        }
        let mut rules: Vec<RepositoryRule> = Vec::with_capacity(text.repository.len());
        let mut lines = HashMap::new();
        for entry in text.repository {
            let at = entry.span();
            let line = self.line(at.start);
            let rule = self.rule(entry, &regions)?;
            if let Some(last) = rules.last().filter(|last| last.pattern.is_all()) {
                let fault = format!(
                    "this rule never counts: the rule before it matches every repository (\"{}\"), and the first match \
                     counts; move that rule to the end",
                    last.pattern
                );
                return Err(self.error(at, fault));
            }
            if let Some(first) = lines.insert(rule.pattern.as_str().to_owned(), line) {
                let fault = format!(
                    "this rule never counts: the rule at line {first} has the same match (\"{}\"), and the first match \
                     counts; remove one",
                    rule.pattern
                );
                return Err(self.error(at, fault));
            }
            rules.push(rule);
        }
        Ok(Policy::new(regions, rules))
    }

    fn check_count<T>(
        self,
        beyond: Option<&Spanned<T>>,
        items: &str,
        limit: usize,
    ) -> Result<(), PolicyError> {
        beyond.map_or(Ok(()), |beyond| {
            let fault = format!("more than {limit} {items} are not supported");
            Err(self.error(beyond.span(), fault))
        })
    }

    fn region(self, entry: Spanned<RegionText>, others: &[Region]) -> Result<Region, PolicyError> {
        let at = entry.span();
        let RegionText { name, url } = entry.into_inner();
        let name = name
            .ok_or_else(|| self.error(at.clone(), "[[region]] has no name; add name = \"eu-1\""))?;
        let url = url.ok_or_else(|| {
            let fault = format!("region {name} has no url; add url = \"https://HOST:PORT\"");
            self.error(at.clone(), fault)
        })?;
        for other in others {
            if other.name == name {
                let fault = format!("region {name} is listed twice; remove one");
                return Err(self.error(at, fault));
            }
            if other.url == url {
                let fault = format!(
                    "regions {} and {name} have the same url; each region has an origin of its own",
                    other.name
                );
                return Err(self.error(at, fault));
            }
        }
        Ok(Region { name, url })
    }

    fn rule(
        self,
        entry: Spanned<RuleText>,
        regions: &[Region],
    ) -> Result<RepositoryRule, PolicyError> {
        let at = entry.span();
        let text = entry.into_inner();
        let pattern = text.pattern.ok_or_else(|| {
            self.error(at, "[[repository]] has no match; add match = \"team/**\"")
        })?;
        let own = self.rule_regions(text.regions, regions)?;
        if let Some(ack_regions) = &text.ack_regions {
            let (acks, limit) = (*ack_regions.get_ref(), own.len());
            if !(1..=limit).contains(&acks) {
                let fault = format!(
                    "ack_regions = {acks}: use 1 to {limit}, the number of regions that keep \"{pattern}\""
                );
                return Err(self.error(ack_regions.span(), fault));
            }
        }
        if let Some(home) = text
            .home
            .as_ref()
            .filter(|home| !own.contains(home.get_ref()))
        {
            let fault = format!(
                "home = \"{}\" is not among the regions that keep \"{pattern}\"; {}",
                home.get_ref(),
                suggest::hint(home.get_ref().as_str(), "regions", &names(&own))
            );
            return Err(self.error(home.span(), fault));
        }
        let immutable = self.items(text.immutable, "immutable")?;
        self.check_count(text.keep.get(MAX_ITEMS), "keep rules", MAX_ITEMS)?;
        let mut keep = Vec::with_capacity(text.keep.len());
        for entry in text.keep {
            keep.push(self.keep_rule(entry)?);
        }
        let defaults = RepositoryRule::default_for(pattern, own);
        Ok(RepositoryRule {
            ack_regions: text.ack_regions.map_or(1, Spanned::into_inner),
            tag_reads: text.tag_reads,
            home: text.home.map(Spanned::into_inner),
            immutable,
            quota: text.quota,
            untagged: text.untagged,
            delay: text.delay.unwrap_or(defaults.delay),
            keep,
            ..defaults
        })
    }

    /// The regions of a rule, in the order of the policy; all if it names none.
    fn rule_regions(
        self,
        named: Option<Spanned<Vec<Spanned<RegionName>>>>,
        regions: &[Region],
    ) -> Result<Vec<RegionName>, PolicyError> {
        let all: Vec<RegionName> = regions.iter().map(|region| region.name.clone()).collect();
        let Some(named) = named else {
            return Ok(all);
        };
        let at = named.span();
        let named = named.into_inner();
        if named.is_empty() {
            let fault = "regions = []: name at least one region, or leave the key out for all";
            return Err(self.error(at, fault));
        }
        for (number, name) in named.iter().enumerate() {
            if !all.contains(name.get_ref()) {
                let fault = format!(
                    "region \"{}\" has no [[region]] entry; {}",
                    name.get_ref(),
                    suggest::hint(name.get_ref().as_str(), "regions", &names(&all))
                );
                return Err(self.error(name.span(), fault));
            }
            if named[..number]
                .iter()
                .any(|other| other.get_ref() == name.get_ref())
            {
                let fault = format!("region \"{}\" is named twice; remove one", name.get_ref());
                return Err(self.error(name.span(), fault));
            }
        }
        let is_named = |region: &RegionName| named.iter().any(|name| name.get_ref() == region);
        Ok(all.into_iter().filter(is_named).collect())
    }

    fn items<T>(self, list: Option<Spanned<Vec<T>>>, key: &str) -> Result<Vec<T>, PolicyError> {
        let Some(list) = list else {
            return Ok(Vec::new());
        };
        if list.get_ref().len() > MAX_ITEMS {
            let fault = format!("{key} has more than {MAX_ITEMS} items; use wildcards");
            return Err(self.error(list.span(), fault));
        }
        Ok(list.into_inner())
    }

    fn keep_rule(self, entry: Spanned<KeepRule>) -> Result<KeepRule, PolicyError> {
        let at = entry.span();
        let rule = entry.into_inner();
        if rule.tags.len() > MAX_ITEMS {
            let fault = format!("tags has more than {MAX_ITEMS} items; use wildcards");
            return Err(self.error(at, fault));
        }
        if rule.last == Some(0) {
            let fault = "last = 0 keeps nothing: use 1 or more, or remove the keep rule";
            return Err(self.error(at, fault));
        }
        let has_condition = rule.last.is_some()
            || rule.pushed_within.is_some()
            || rule.in_use_within.is_some()
            || !rule.tags.is_empty();
        if !has_condition {
            let fault =
                "[[repository.keep]] is empty; add tags, last, pushed_within or in_use_within";
            return Err(self.error(at, fault));
        }
        Ok(rule)
    }
}

fn names(regions: &[RegionName]) -> Vec<&str> {
    regions.iter().map(RegionName::as_str).collect()
}
