//! Checks the rows of a table against both deployments.

use bytes::Bytes;
use flotilla_common::digest::{Algorithm, Digest};
use futures_util::{StreamExt, stream};
use reqwest::Response;
use serde_json::Value;

use super::Deployment;
use super::bodies::body;
use super::table::{Expected, Row, Step, parse};
use crate::support::{INDEX, MANIFEST, Registry};

/// Rows that are checked concurrently.
const CONCURRENT_ROWS: usize = 8;

/// Checks all rows of a table against both deployments, and reports all that fail.
///
/// # Panics
/// If a row fails.
pub(super) async fn check(test: &str, table: &'static str) {
    for deployment in Deployment::start_all(test).await {
        let client = &deployment.client();
        let runs = parse(table)
            .into_iter()
            .enumerate()
            .map(|(index, row)| async move { row.run(client, &format!("row-{index}")).await });
        let outcomes: Vec<_> = stream::iter(runs)
            .buffer_unordered(CONCURRENT_ROWS)
            .collect()
            .await;
        let failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        assert!(
            failures.is_empty(),
            "{}: {} rows failed\n{}",
            deployment.name,
            failures.len(),
            failures.join("\n")
        );
    }
}

/// Variables of a row, by name.
type Variables = Vec<(&'static str, String)>;

impl Row {
    async fn run(self, client: &Registry, repo: &str) -> Result<(), String> {
        let Self {
            level,
            section,
            title,
            steps,
        } = self;
        let mut variables = vec![
            ("repo", repo.to_owned()),
            ("other", format!("{repo}/other")),
        ];
        for (index, step) in steps.iter().enumerate() {
            step.run(client, &mut variables).await.map_err(|failure| {
                format!(
                    "{section}: {level} {title}\n  step {index} ({} {}): {failure}",
                    step.method, step.path
                )
            })?;
        }
        Ok(())
    }
}

impl Step {
    async fn run(&self, client: &Registry, variables: &mut Variables) -> Result<(), String> {
        let path = fill(&self.path, variables);
        let mut request = client.request(self.method.clone(), &path);
        for (name, value) in &self.headers {
            request = request.header(*name, fill(value, variables));
        }
        if let Some(name) = self.body {
            request = request.body(body(name));
        }
        let response = request.send().await.map_err(|error| error.to_string())?;
        let head = Head::of(&response);
        let bytes = response.bytes().await.map_err(|error| error.to_string())?;
        for expected in &self.expected {
            expected
                .check(&head, &bytes, variables)
                .map_err(|failure| {
                    let start = &bytes[..bytes.len().min(400)];
                    format!(
                        "{failure}; status {}, {}",
                        head.status,
                        String::from_utf8_lossy(start)
                    )
                })?;
        }
        Ok(())
    }
}

struct Head {
    status: u16,
    headers: reqwest::header::HeaderMap,
}

impl Head {
    fn of(response: &Response) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Expected {
    fn check(&self, head: &Head, bytes: &Bytes, variables: &mut Variables) -> Result<(), String> {
        match self {
            Self::Status(status) => ensure(head.status == *status, || format!("not {status}")),
            Self::Header(name, value) => {
                let value = fill(value, variables);
                let found = head.header(name);
                ensure(found == Some(&*value), || {
                    format!("{name} is {found:?}, not {value:?}")
                })
            }
            Self::HasHeader(name) => {
                let is_present = head.header(name).is_some_and(|value| !value.is_empty());
                ensure(is_present, || format!("{name} is missing"))
            }
            Self::LacksHeader(name) => {
                ensure(head.header(name).is_none(), || format!("{name} is present"))
            }
            Self::KeepHeader { header, variable } => {
                let value = head
                    .header(header)
                    .ok_or_else(|| format!("{header} is missing"))?;
                variables.retain(|(known, _)| known != variable);
                variables.push((variable, value.to_owned()));
                Ok(())
            }
            Self::ErrorCode(code) => {
                let error = json(bytes)?;
                ensure(error["errors"][0]["code"] == *code, || {
                    format!("not {code}")
                })
            }
            Self::Body(name) => ensure(*bytes == body(name), || format!("not the bytes of {name}")),
            Self::BodyRange(name, range) => {
                ensure(*bytes == body(name).slice(range.clone()), || {
                    format!("not {range:?} of {name}")
                })
            }
            Self::Json { pointer, value } => {
                let document = json(bytes)?;
                let expected: Value = serde_json::from_str(&fill(value, variables)).unwrap();
                let found = document.pointer(pointer).unwrap_or(&Value::Null);
                ensure(*found == expected, || {
                    format!("{pointer} is {found}, not {expected}")
                })
            }
        }
    }
}

fn ensure(holds: bool, failure: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(failure()) }
}

fn json(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// Replaces the templates in a text by their values.
fn fill(text: &str, variables: &Variables) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, (name, after))) = rest
        .split_once('{')
        .and_then(|(before, after)| Some((before, after.split_once('}')?)))
    {
        // The braces of JSON are not templates.
        let Some(value) = value_of(name, variables) else {
            filled.push_str(&rest[..=before.len()]);
            rest = &rest[before.len() + 1..];
            continue;
        };
        filled.push_str(before);
        filled.push_str(&value);
        rest = after;
    }
    filled + rest
}

fn value_of(name: &str, variables: &Variables) -> Option<String> {
    let variable = |name: &str| {
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.clone())
    };
    if let Some(name) = name.strip_suffix('+') {
        let location = variable(name)?;
        let separator = if location.contains('?') { '&' } else { '?' };
        return Some(format!("{location}{separator}"));
    }
    if let Some(value) = variable(name) {
        return Some(value);
    }
    if let Some((text, count)) = name.split_once('*') {
        return Some(text.repeat(count.parse().ok()?));
    }
    match name {
        "manifest-type" => Some(MANIFEST.to_owned()),
        "index-type" => Some(INDEX.to_owned()),
        _ => body_property(name),
    }
}

/// A digest or the length of a body.
fn body_property(name: &str) -> Option<String> {
    let is_name_char = |char: char| char.is_ascii_alphanumeric() || ".-".contains(char);
    if name.is_empty() || !name.chars().all(is_name_char) {
        return None;
    }
    let (name, property) = name.split_once('.').unwrap_or((name, "sha256"));
    match property {
        "sha256" => Some(Digest::sha256(&body(name)).to_string()),
        "sha512" => Some(Digest::of(Algorithm::Sha512, &body(name)).to_string()),
        "len" => Some(body(name).len().to_string()),
        _ => None,
    }
}
