//! One row for each thing that the specification asks of a registry: what is sent, what must come
//! back.
//!
//! Paths, headers and JSON are templates: `{repo}` and `{other}` are two repositories of the row's
//! own, `{layer}` is the digest of the body of that name, `{layer.sha512}` and `{layer.len}` its
//! other facts, and whatever was kept from an answer stands under its own name; `{upload+}` is a
//! kept Location that takes another parameter.

use bytes::Bytes;
use flotilla_common::digest::{Algorithm, Digest};
use futures_util::{StreamExt, stream};
use reqwest::{Method, Response};
use serde_json::Value;

use super::SetUp;
use super::bodies::body;
use crate::support::Registry;

/// Rows that run at once.
const AT_ONCE: usize = 8;

/// How much the specification insists.
#[derive(Clone, Copy, Debug)]
pub(super) enum Level {
    Must,
    Should,
    /// Left open; this is what we do.
    May,
}

/// One thing that the specification asks for.
pub(super) struct Row {
    level: Level,
    section: &'static str,
    says: &'static str,
    steps: Vec<Step>,
}

struct Step {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Option<&'static str>,
    expected: Vec<Expected>,
}

enum Expected {
    Status(u16),
    Header(&'static str, String),
    Has(&'static str),
    Lacks(&'static str),
    Keep(&'static str, &'static str),
    Code(&'static str),
    Body(&'static str),
    Part(&'static str, core::ops::Range<usize>),
    Json(&'static str, Value),
}

pub(super) fn must(section: &'static str, says: &'static str) -> Row {
    Row {
        level: Level::Must,
        section,
        says,
        steps: Vec::new(),
    }
}

pub(super) fn should(section: &'static str, says: &'static str) -> Row {
    Row {
        level: Level::Should,
        ..must(section, says)
    }
}

pub(super) fn may(section: &'static str, says: &'static str) -> Row {
    Row {
        level: Level::May,
        ..must(section, says)
    }
}

impl Row {
    fn step(mut self, method: Method, path: impl Into<String>) -> Self {
        self.steps.push(Step {
            method,
            path: path.into(),
            headers: Vec::new(),
            body: None,
            expected: Vec::new(),
        });
        self
    }

    pub(super) fn get(self, path: impl Into<String>) -> Self {
        self.step(Method::GET, path)
    }

    pub(super) fn head(self, path: impl Into<String>) -> Self {
        self.step(Method::HEAD, path)
    }

    pub(super) fn post(self, path: impl Into<String>) -> Self {
        self.step(Method::POST, path)
    }

    pub(super) fn patch(self, path: impl Into<String>) -> Self {
        self.step(Method::PATCH, path)
    }

    pub(super) fn put(self, path: impl Into<String>) -> Self {
        self.step(Method::PUT, path)
    }

    pub(super) fn delete(self, path: impl Into<String>) -> Self {
        self.step(Method::DELETE, path)
    }

    fn last(&mut self) -> &mut Step {
        self.steps.last_mut().expect("a row begins with a request")
    }

    fn expect(mut self, expected: Expected) -> Self {
        self.last().expected.push(expected);
        self
    }

    /// Sends a header.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.last().headers.push((name, value.into()));
        self
    }

    /// Sends the body of this name.
    pub(super) fn sends(mut self, name: &'static str) -> Self {
        self.last().body = Some(name);
        self
    }

    pub(super) fn gives(self, status: u16) -> Self {
        self.expect(Expected::Status(status))
    }

    pub(super) fn header(self, name: &'static str, value: impl Into<String>) -> Self {
        self.expect(Expected::Header(name, value.into()))
    }

    pub(super) fn has(self, name: &'static str) -> Self {
        self.expect(Expected::Has(name))
    }

    pub(super) fn lacks(self, name: &'static str) -> Self {
        self.expect(Expected::Lacks(name))
    }

    /// Keeps a header of the answer under a name of its own.
    pub(super) fn keep(self, header: &'static str, name: &'static str) -> Self {
        self.expect(Expected::Keep(header, name))
    }

    /// The first code of an error.
    pub(super) fn code(self, code: &'static str) -> Self {
        self.expect(Expected::Code(code))
    }

    /// The answer's body is the one of this name.
    pub(super) fn is(self, name: &'static str) -> Self {
        self.expect(Expected::Body(name))
    }

    /// The answer's body is a part of the one of this name.
    pub(super) fn part(self, name: &'static str, range: core::ops::Range<usize>) -> Self {
        self.expect(Expected::Part(name, range))
    }

    /// What is at a JSON pointer; null for nothing.
    pub(super) fn json(self, pointer: &'static str, value: impl Into<Value>) -> Self {
        self.expect(Expected::Json(pointer, value.into()))
    }

    /// The repository has the blob of this name.
    pub(super) fn given_blob(self, name: &'static str) -> Self {
        self.post(format!("/v2/{{repo}}/blobs/uploads/?digest={{{name}}}"))
            .sends(name)
            .gives(201)
    }

    /// The repository has the image, under this tag, with its blobs.
    pub(super) fn given_image(self, tag: &str) -> Self {
        let pushed = self.given_blob("config").given_blob("layer");
        pushed.put_manifest(tag, "image").gives(201)
    }

    /// An upload was begun; its Location is kept as `upload`.
    pub(super) fn given_upload(self) -> Self {
        self.post("/v2/{repo}/blobs/uploads/")
            .gives(202)
            .keep("location", "upload")
    }

    /// A PUT of the manifest of this name, with its media type.
    pub(super) fn put_manifest(self, reference: &str, name: &'static str) -> Self {
        let media_type: Option<String> = serde_json::from_slice::<Value>(&body(name))
            .ok()
            .and_then(|manifest| Some(manifest["mediaType"].as_str()?.to_owned()));
        let put = self
            .put(format!("/v2/{{repo}}/manifests/{reference}"))
            .sends(name);
        put.with(
            "content-type",
            media_type.as_deref().unwrap_or(crate::support::MANIFEST),
        )
    }

    async fn run(self, client: &Registry, repo: &str) -> Result<(), String> {
        let mut kept = vec![
            ("repo", repo.to_owned()),
            ("other", format!("{repo}/other")),
        ];
        for (index, step) in self.steps.iter().enumerate() {
            step.run(client, &mut kept).await.map_err(|reason| {
                let Self {
                    level,
                    section,
                    says,
                    ..
                } = &self;
                format!(
                    "{section}: {level:?}: {says}\n  step {index} ({} {}): {reason}",
                    step.method, step.path
                )
            })?;
        }
        Ok(())
    }
}

type Kept = Vec<(&'static str, String)>;

impl Step {
    async fn run(&self, client: &Registry, kept: &mut Kept) -> Result<(), String> {
        let mut request = client.request(self.method.clone(), &filled(&self.path, kept));
        for (name, value) in &self.headers {
            request = request.header(*name, filled(value, kept));
        }
        if let Some(name) = self.body {
            request = request.body(body(name));
        }
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let head = Head::of(&answer);
        let bytes = answer.bytes().await.map_err(|error| error.to_string())?;
        for expected in &self.expected {
            expected.check(&head, &bytes, kept).map_err(|reason| {
                let start = &bytes[..bytes.len().min(400)];
                format!(
                    "{reason}; status {}, {}",
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
    fn of(answer: &Response) -> Self {
        Self {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Expected {
    fn check(&self, head: &Head, bytes: &Bytes, kept: &mut Kept) -> Result<(), String> {
        let wrong = |what: String| Err(what);
        match self {
            Self::Status(status) if head.status != *status => wrong(format!("not {status}")),
            Self::Header(name, value) => {
                let value = filled(value, kept);
                match head.header(name) {
                    Some(found) if found == value => Ok(()),
                    found => wrong(format!("{name} is {found:?}, not {value:?}")),
                }
            }
            Self::Has(name) if head.header(name).is_none_or(str::is_empty) => {
                wrong(format!("{name} is missing"))
            }
            Self::Lacks(name) if head.header(name).is_some() => wrong(format!("{name} is there")),
            Self::Keep(header, name) => {
                let value = head
                    .header(header)
                    .ok_or_else(|| format!("{header} is missing"))?;
                kept.retain(|(known, _)| known != name);
                kept.push((name, value.to_owned()));
                Ok(())
            }
            Self::Code(code) => {
                let answer: Value =
                    serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
                if answer["errors"][0]["code"] == *code {
                    Ok(())
                } else {
                    wrong(format!("not {code}"))
                }
            }
            Self::Body(name) if *bytes != body(name) => wrong(format!("not the bytes of {name}")),
            Self::Part(name, range) if *bytes != body(name).slice(range.clone()) => {
                wrong(format!("not {range:?} of {name}"))
            }
            Self::Json(pointer, value) => {
                let answer: Value =
                    serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
                let expected: Value =
                    serde_json::from_str(&filled(&value.to_string(), kept)).unwrap();
                let found = answer.pointer(pointer).unwrap_or(&Value::Null);
                if *found == expected {
                    Ok(())
                } else {
                    wrong(format!("{pointer} is {found}, not {expected}"))
                }
            }
            _ => Ok(()),
        }
    }
}

/// A template with what it names.
fn filled(template: &str, kept: &Kept) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, (name, after))) = rest
        .split_once('{')
        .and_then(|(before, after)| Some((before, after.split_once('}')?)))
    {
        // JSON has braces of its own.
        let Some(value) = value_of(name, kept) else {
            text.push_str(&rest[..=before.len()]);
            rest = &rest[before.len() + 1..];
            continue;
        };
        text.push_str(before);
        text.push_str(&value);
        rest = after;
    }
    text + rest
}

fn value_of(name: &str, kept: &Kept) -> Option<String> {
    let found = |name: &str| {
        kept.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.clone())
    };
    if let Some(name) = name.strip_suffix('+') {
        let location = found(name)?;
        let separator = if location.contains('?') { '&' } else { '?' };
        return Some(format!("{location}{separator}"));
    }
    if let Some(value) = found(name) {
        return Some(value);
    }
    if name.is_empty()
        || !name
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || ".-".contains(char))
    {
        return None;
    }
    let (name, fact) = name.split_once('.').unwrap_or((name, "sha256"));
    match fact {
        "sha256" => Some(Digest::sha256(&body(name)).to_string()),
        "sha512" => Some(Digest::of(Algorithm::Sha512, &body(name)).to_string()),
        "len" => Some(body(name).len().to_string()),
        _ => None,
    }
}

/// Checks rows in both set-ups, and tells of all that do not hold.
pub(super) async fn check(story: &str, rows: fn() -> Vec<Row>) {
    for set_up in SetUp::all(story).await {
        let client = &set_up.client();
        let runs = rows()
            .into_iter()
            .enumerate()
            .map(|(index, row)| async move {
                let repo = format!("row-{index}");
                row.run(client, &repo).await
            });
        let outcomes: Vec<_> = stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
        let broken: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        assert!(
            broken.is_empty(),
            "{}: {} rows broken\n{}",
            set_up.name,
            broken.len(),
            broken.join("\n")
        );
    }
}
