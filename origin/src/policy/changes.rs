//! What changes when a policy replaces another.

use std::collections::HashMap;

use flotilla_common::name::RegionName;
use serde_json::Value;

use super::{Policy, PolicyError, RepositoryRule};

/// Describes each difference between two policies in a line; empty if they are equal.
pub fn changes(old: &Policy, new: &Policy) -> Vec<String> {
    let mut lines = Vec::new();
    for region in new.regions() {
        match old.region(&region.name) {
            None => lines.push(format!("region {}: added, {}", region.name, region.url)),
            Some(before) if before.url != region.url => {
                lines.push(format!(
                    "region {}: url {} -> {}",
                    region.name, before.url, region.url
                ));
            }
            Some(_) => {}
        }
    }
    for region in removed(old, new) {
        lines.push(format!(
            "region {region}: removed; the other regions copy no more changes to it. It returns only with an empty storage"
        ));
    }
    let (old_rules, new_rules) = (by_pattern(old), by_pattern(new));
    for rule in new.rules() {
        match old_rules.get(rule.pattern.as_str()) {
            None => lines.push(format!("rule {}: added", rule.pattern)),
            Some(before) => lines.extend(rule_changes(before, rule)),
        }
    }
    for rule in old.rules() {
        if !new_rules.contains_key(rule.pattern.as_str()) {
            lines.push(format!("rule {}: removed", rule.pattern));
        }
    }
    let old_order = kept_patterns(old, &new_rules);
    if !old_order.eq(kept_patterns(new, &old_rules)) {
        lines.push("rules: another order, and the first match counts".to_owned());
    }
    lines
}

/// Checks that `new` may replace `old`.
///
/// # Errors
/// A region is renamed: its name is in what it has written.
pub fn check_replacement(old: &Policy, new: &Policy) -> Result<(), PolicyError> {
    for gone in removed(old, new) {
        let url = old.region(gone).map(|region| &region.url);
        let renamed = new.regions().iter().find(|region| Some(&region.url) == url);
        if let Some(renamed) = renamed {
            return Err(PolicyError::new(format!(
                "region {gone} would become {}, with the same url; a region cannot be renamed, because its name is in what \
                 it has written. Keep the name {gone}; or set up {} with a storage and a url of its own",
                renamed.name, renamed.name
            )));
        }
    }
    Ok(())
}

fn removed<'p>(old: &'p Policy, new: &'p Policy) -> impl Iterator<Item = &'p RegionName> {
    let names = old.regions().iter().map(|region| &region.name);
    names.filter(|name| new.region(name).is_none())
}

type RulesByPattern<'p> = HashMap<&'p str, &'p RepositoryRule>;

fn by_pattern(policy: &Policy) -> RulesByPattern<'_> {
    let rules = policy.rules().iter();
    rules.map(|rule| (rule.pattern.as_str(), rule)).collect()
}

/// The patterns of the rules of `policy` that `others` has, too, in the order of the policy.
fn kept_patterns<'p>(
    policy: &'p Policy,
    others: &RulesByPattern<'_>,
) -> impl Iterator<Item = &'p str> {
    let patterns = policy.rules().iter().map(|rule| rule.pattern.as_str());
    patterns.filter(|pattern| others.contains_key(pattern))
}

/// A line for each key that has another value.
fn rule_changes(before: &RepositoryRule, after: &RepositoryRule) -> Vec<String> {
    let keys = |rule: &RepositoryRule| match serde_json::to_value(rule) {
        Ok(Value::Object(keys)) => keys,
        // Rules have only text keys and encode as objects.
        _ => serde_json::Map::new(),
    };
    let (old, new) = (keys(before), keys(after));
    let differing = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(*value));
    differing
        .map(|(key, value)| {
            let old = old.get(key).unwrap_or(&Value::Null);
            format!("rule {}: {key} {old} -> {value}", after.pattern)
        })
        .collect()
}
