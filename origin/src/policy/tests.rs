#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use core::time::Duration;

use super::*;

/// Two regions; repositories of `rules` follow.
fn with_rules(rules: &str) -> String {
    format!(
        r#"
[[region]]
name = "eu-1"
url = "https://origin.eu.example"
[[region]]
name = "us-1"
url = "https://origin.us.example"
{rules}"#
    )
}

fn policy(rules: &str) -> Policy {
    Policy::parse(&with_rules(rules)).unwrap()
}

fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

const FULL: &str = r#"
[[repository]]
match = "team/**"
regions = ["us-1", "eu-1"]
ack_regions = 2
tag_reads = "freshest"
home = "eu-1"
immutable = ["v*"]
quota = "500GiB"
untagged = "30d"
delay = "36h"
[[repository.keep]]
tags = ["v*"]
last = 10
pushed_within = "720h"
[[repository.keep]]
in_use_within = "7d"
"#;

#[test]
fn every_key_is_parsed() {
    let policy = policy(FULL);
    let names: Vec<_> = policy
        .regions()
        .iter()
        .map(|region| region.name.as_str())
        .collect();
    assert_eq!(names, ["eu-1", "us-1"]);
    let rule = policy.rule_for(&repository("team/app"));
    let days = |days: u64| Period(Duration::from_hours(24 * days));
    let keep = |rule: &KeepRule| {
        (
            rule.tags.len(),
            rule.last,
            rule.pushed_within,
            rule.in_use_within,
        )
    };
    assert_eq!(rule.pattern.as_str(), "team/**");
    assert_eq!(
        rule.regions,
        [region("eu-1"), region("us-1")],
        "in the order of the policy"
    );
    assert_eq!((rule.ack_regions, rule.tag_reads), (2, TagReads::Freshest));
    assert_eq!(rule.home, Some(region("eu-1")));
    assert!(rule.is_immutable(&"v1".parse().unwrap()) && !rule.is_immutable(&"x".parse().unwrap()));
    assert_eq!(rule.quota, Some(ByteSize(500 << 30)));
    assert_eq!(rule.untagged, Untagged::After(days(30)));
    assert_eq!(rule.delay, Period(Duration::from_hours(36)));
    assert_eq!(
        rule.keep.iter().map(keep).collect::<Vec<_>>(),
        [
            (1, Some(10), Some(days(30)), None),
            (0, None, None, Some(days(7)))
        ]
    );
}

#[test]
fn defaults_keep_everything_everywhere() {
    let policy = policy("[[repository]]\nmatch = \"team/**\"\nuntagged = \"keep\"");
    for name in ["team/app", "elsewhere"] {
        let rule = policy.rule_for(&repository(name));
        assert_eq!(rule.regions, [region("eu-1"), region("us-1")]);
        assert_eq!((rule.ack_regions, rule.tag_reads), (1, TagReads::Local));
        assert_eq!((&rule.home, rule.untagged), (&None, Untagged::Keep));
        assert_eq!(rule.delay, Period(Duration::from_hours(24)));
        assert!(rule.keep.is_empty() && rule.immutable.is_empty() && rule.quota.is_none());
    }
    let others: Vec<_> = policy
        .others(&region("eu-1"))
        .map(|region| region.url.as_str().to_owned())
        .collect();
    assert_eq!(others, ["https://origin.us.example"]);

    let none = Policy::none();
    assert!(!none.exists() && policy.exists());
    assert!(none.is_replicated_here(&region("eu-1"), &repository("a")));
    assert_eq!(none.others(&region("eu-1")).count(), 0);
}

#[test]
fn first_matching_rule_counts() {
    let rules = r#"
[[repository]]
match = "team/secret"
regions = ["eu-1"]
[[repository]]
match = "*/cache-*"
regions = ["us-1"]
[[repository]]
match = "team/**"
ack_regions = 2
[[repository]]
match = "**"
tag_reads = "freshest"
"#;
    let policy = policy(rules);
    let rule_of = |name| policy.rule_for(&repository(name)).pattern.to_string();
    assert_eq!(rule_of("team/secret"), "team/secret");
    assert_eq!(rule_of("team/cache-x"), "*/cache-*");
    assert_eq!(rule_of("team/app"), "team/**");
    assert_eq!(rule_of("team"), "**");
    let keeps = |own: &str, name| policy.is_replicated_here(&region(own), &repository(name));
    assert!(keeps("eu-1", "team/secret") && !keeps("us-1", "team/secret"));
    assert!(!keeps("eu-1", "team/cache-x") && keeps("us-1", "team/cache-x"));
}

/// Each text with its line and what the error must say.
#[test]
fn errors_name_line_cause_and_fix() {
    let rule = |keys: &str| with_rules(&format!("[[repository]]\nmatch = \"team/**\"\n{keys}"));
    let region = |keys: &str| format!("# first\n[[region]]\n{keys}\n");
    let mut wrong = Vec::new();
    for (text, line, parts) in [
        (
            String::new(),
            None,
            &["at least one region", "[[region]]"][..],
        ),
        (
            region("name = \"eu-1\""),
            Some(2),
            &["eu-1 has no url", "url = "],
        ),
        (
            region("url = \"https://a\""),
            Some(2),
            &["no name", "name = "],
        ),
        (
            region("name = \"EU_1\""),
            Some(3),
            &["EU_1", "1 to 63 of a-z"],
        ),
        (
            region("name = \"eu-1\"\nurl = \"http://a\""),
            Some(4),
            &["http://a", "by TLS", "https://HOST"],
        ),
        (
            region("nmae = \"eu-1\""),
            Some(3),
            &["'nmae' of [[region]]", "did you mean 'name'?"],
        ),
        (
            "[region]\nname = \"eu-1\"".to_owned(),
            Some(1),
            &["[[region]]", "double brackets"],
        ),
        (
            "[[regoin]]\n".to_owned(),
            Some(1),
            &["'regoin' of a policy", "did you mean 'region'?"],
        ),
        ("[[region]\n".to_owned(), Some(1), &["`[[region]`"]),
        (
            with_rules("[[region]]\nname = \"eu-1\"\nurl = \"https://b\""),
            Some(8),
            &["eu-1 is listed twice"],
        ),
        (
            with_rules("[[region]]\nname = \"ap-1\"\nurl = \"https://origin.US.example/\""),
            Some(8),
            &["us-1 and ap-1 have the same url"],
        ),
        (
            with_rules("[[repository]]\nregions = [\"eu-1\"]"),
            Some(8),
            &["no match", "match = "],
        ),
        (
            with_rules("[[repository]]\nmatch = \"Team/*\""),
            Some(9),
            &["Team/*", "path components"],
        ),
        (
            rule("regoin = \"eu-1\""),
            Some(10),
            &["'regoin'", "did you mean 'regions'?"],
        ),
        (
            rule("retention = 1"),
            Some(10),
            &["'retention'", "valid keys are: match, regions"],
        ),
        (
            rule("regions = \"eu-1\""),
            Some(10),
            &[
                "regions must be a list",
                "[\"eu-1\", \"us-1\"]",
                "the text \"eu-1\"",
            ],
        ),
        (rule("regions = []"), Some(10), &["at least one region"]),
        (
            rule("regions = [\n  \"eu-1\",\n  \"us-2\",\n]"),
            Some(12),
            &["\"us-2\" has no [[region]]", "did you mean 'us-1'?"],
        ),
        (
            rule("regions = [\"eu-1\", \"eu-1\"]"),
            Some(10),
            &["\"eu-1\" is named twice"],
        ),
        (
            rule("ack_regions = 0"),
            Some(10),
            &["ack_regions = 0", "use 1 to 2"],
        ),
        (
            rule("regions = [\"eu-1\"]\nack_regions = 2"),
            Some(11),
            &["ack_regions = 2", "use 1 to 1"],
        ),
        (
            rule("ack_regions = \"all\""),
            Some(10),
            &[
                "ack_regions must be a number of regions",
                "such as 2",
                "the text \"all\"",
            ],
        ),
        (
            rule("tag_reads = \"fresh\""),
            Some(10),
            &[
                "tag_reads must be \"local\" or \"freshest\"",
                "the text \"fresh\"",
            ],
        ),
        (
            rule("home = \"us-2\""),
            Some(10),
            &["home = \"us-2\"", "did you mean 'us-1'?"],
        ),
        (
            rule("regions = [\"eu-1\"]\nhome = \"us-1\""),
            Some(11),
            &["home = \"us-1\" is not among the regions that keep \"team/**\""],
        ),
        (
            rule("immutable = [\"v/*\"]"),
            Some(10),
            &["v/*", "tag pattern"],
        ),
        (
            rule("quota = \"500 Gigs\""),
            Some(10),
            &["500 Gigs", "64MiB"],
        ),
        (
            rule("untagged = \"30\""),
            Some(10),
            &["'30'", "30d", "\"keep\""],
        ),
        (
            rule("delay = 24"),
            Some(10),
            &[
                "delay must be a period in quotes, such as \"24h\"",
                "the number 24",
            ],
        ),
        (
            rule("ack_regions = -1"),
            Some(10),
            &["ack_regions must be a number", "the number -1"],
        ),
        (
            rule("ack_regions = 1.5"),
            Some(10),
            &["ack_regions must be a number", "the number 1.5"],
        ),
        (
            rule("match = [\"a\", \"b\"]").replace("match = \"team/**\"\n", ""),
            Some(9),
            &[
                "match must be one pattern",
                "repeat [[repository]]",
                "a list",
            ],
        ),
        (
            rule("match = \"b\""),
            Some(10),
            &["duplicate key; remove one"],
        ),
        (
            rule("delay = 24h"),
            Some(10),
            &["`delay = 24h`", "string values must be quoted, such as"],
        ),
        (
            rule("immutable = true"),
            Some(10),
            &["immutable must be a list of patterns", "it is true"],
        ),
        (
            rule("regions = [\"eu-1\", 2]"),
            Some(10),
            &["regions must be a list", "a list with the number 2"],
        ),
        (
            rule("quota = 500"),
            Some(10),
            &["quota must be a size in quotes", "\"500GiB\""],
        ),
        (
            rule("home = [\"eu-1\"]"),
            Some(10),
            &["home must be the name of one region", "a list"],
        ),
        (
            rule("[[repository.keep]]\nlast = \"10\""),
            Some(11),
            &["last must be a number of tags without quotes"],
        ),
        (
            rule("[[repository.keep]]\ntags = \"v*\""),
            Some(11),
            &["tags must be a list", "[\"v*\"]"],
        ),
        (
            "region = [\"eu-1\"]\n".to_owned(),
            Some(1),
            &["[[region]]", "double brackets"],
        ),
        (
            rule("[repository.keep]\nlast = 1"),
            Some(10),
            &["[[repository.keep]]", "double"],
        ),
        (rule("[[repository.keep]]"), Some(10), &["is empty"]),
        (
            rule("[[repository.keep]]\nlast = 0"),
            Some(10),
            &["last = 0 keeps nothing"],
        ),
        (
            rule("[[repository.keep]]\nlats = 1"),
            Some(11),
            &["'lats'", "did you mean 'last'?"],
        ),
        (
            rule("[[repository]]\nmatch = \"team/**\""),
            Some(10),
            &["never counts", "line 8 has the same match"],
        ),
        (
            with_rules("[[repository]]\nmatch = \"**\"\n[[repository]]\nmatch = \"a\""),
            Some(10),
            &["never counts", "matches every repository", "to the end"],
        ),
    ] {
        let error = Policy::parse(&text).expect_err(&text);
        let message = error.to_string();
        let lacks = parts.iter().find(|part| !message.contains(**part));
        if error.line != line || lacks.is_some() || message.contains('\n') {
            wrong.push(format!("{message}\n  expected line {line:?} and {parts:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn size_is_bounded() {
    let long = format!("# {}\n{}", "x".repeat(MAX_POLICY_LEN), with_rules(""));
    assert!(
        Policy::parse(&long)
            .unwrap_err()
            .fault
            .contains("over 1048576")
    );
    let regions = |count: usize| -> String {
        let entry = |n| format!("[[region]]\nname = \"r-{n}\"\nurl = \"https://r-{n}.example\"\n");
        (0..count).map(entry).collect()
    };
    assert!(Policy::parse(&regions(MAX_REGIONS)).is_ok());
    let error = Policy::parse(&regions(MAX_REGIONS + 1)).unwrap_err();
    assert!(
        error.fault.contains("more than 32 regions") && error.line == Some(97),
        "{error}"
    );
    let rules = |count: usize| -> String {
        (0..count)
            .map(|n| format!("[[repository]]\nmatch = \"team/app-{n}\"\n"))
            .collect()
    };
    let most = policy(&rules(MAX_RULES));
    assert_eq!(
        most.rule_for(&repository("team/app-9999")).pattern.as_str(),
        "team/app-9999"
    );
    let error = Policy::parse(&with_rules(&rules(MAX_RULES + 1))).unwrap_err();
    assert!(error.fault.contains("more than 10000 rules"), "{error}");
}

/// Stored hashes are compared by later versions, so the hash itself must never change.
#[test]
fn selection_hash_follows_the_selected_repositories() {
    let rule = |pattern: &str, regions: &str| {
        format!("[[repository]]\nmatch = \"{pattern}\"\nregions = [{regions}]\n")
    };
    let hash = |rules: &str, own: &str| policy(rules).selection_hash(&region(own));
    let both = rule("team/**", "\"eu-1\", \"us-1\"");
    let eu = rule("team/**", "\"eu-1\"");
    assert_ne!(
        hash(&both, "us-1"),
        hash(&eu, "us-1"),
        "us-1 was narrowed out"
    );
    assert_eq!(
        hash(&both, "eu-1"),
        hash(&eu, "eu-1"),
        "eu-1 keeps the same"
    );
    assert_eq!(
        hash(&both, "eu-1"),
        hash("", "eu-1"),
        "the default rule selects the same"
    );
    let tuned = format!("{eu}ack_regions = 1\ntag_reads = \"freshest\"\nquota = \"1GiB\"\n");
    assert_eq!(hash(&eu, "us-1"), hash(&tuned, "us-1"));
    let exception = rule("team/app", "\"us-1\"");
    assert_ne!(hash(&format!("{exception}{eu}"), "us-1"), hash(&eu, "us-1"));
    assert_ne!(
        hash(&format!("{exception}{eu}"), "us-1"),
        hash(
            &rule("team/**", "\"eu-1\"").replace("team/**", "team/ap"),
            "us-1"
        )
    );
    assert_ne!(
        hash("", "eu-1"),
        hash("", "ap-1"),
        "ap-1 is not in the policy"
    );
    assert_eq!(
        Policy::none().selection_hash(&region("eu-1")),
        hash("", "eu-1")
    );
    assert_eq!(hash(&eu, "us-1"), 11_147_232_767_421_662_100);
}

#[test]
fn changes_are_described() {
    let old = policy(FULL);
    assert!(changes(&old, &old).is_empty());
    let text = with_rules(FULL)
        .replace("ack_regions = 2", "ack_regions = 1")
        .replace("home = \"eu-1\"", "")
        .replace("origin.us", "origin.usa");
    let new = Policy::parse(&format!("{text}[[repository]]\nmatch = \"new/*\"")).unwrap();
    let lines = changes(&old, &new);
    assert_eq!(
        lines,
        [
            "region us-1: url https://origin.us.example -> https://origin.usa.example",
            "rule team/**: ack_regions 2 -> 1",
            "rule team/**: home \"eu-1\" -> null",
            "rule new/*: added",
        ]
    );
    let lines = changes(&new, &policy("[[repository]]\nmatch = \"new/*\""));
    assert!(
        lines.contains(&"rule team/**: removed".to_owned()),
        "{lines:?}"
    );
    let (a, b) = (
        "[[repository]]\nmatch = \"a\"\n",
        "[[repository]]\nmatch = \"b\"\n",
    );
    let lines = changes(&policy(&format!("{a}{b}")), &policy(&format!("{b}{a}")));
    assert!(
        lines.len() == 1 && lines[0].contains("another order"),
        "{lines:?}"
    );
    let lines = changes(&Policy::none(), &policy(""));
    assert_eq!(lines[0], "region eu-1: added, https://origin.eu.example");
}

#[test]
fn region_cannot_be_renamed() {
    let old = policy("");
    let renamed = with_rules("").replace("us-1", "us-east-1");
    let error = check_replacement(&old, &Policy::parse(&renamed).unwrap()).unwrap_err();
    assert!(
        error.fault.contains("region us-1 would become us-east-1"),
        "{error}"
    );
    let moved = with_rules("").replace("origin.us", "elsewhere");
    assert_eq!(
        check_replacement(&old, &Policy::parse(&moved).unwrap()),
        Ok(())
    );
    let replaced = renamed.replace("origin.us", "elsewhere");
    assert_eq!(
        check_replacement(&old, &Policy::parse(&replaced).unwrap()),
        Ok(())
    );
}

#[test]
fn policy_has_a_json_form() {
    let json = serde_json::to_value(policy(FULL)).unwrap();
    assert_eq!(json["region"][1]["url"], "https://origin.us.example");
    let rule = &json["repository"][0];
    assert_eq!(
        (&rule["match"], &rule["untagged"]),
        (&"team/**".into(), &"30d".into())
    );
    assert_eq!(rule["keep"][0]["pushed_within"], "30d");
}
