//! Parsing of conformance tables.
//!
//! ```text
//! # section of the specification
//!
//! MUST title                          or SHOULD, or MAY (then the row says what this origin does)
//!     given blob NAME                 the repository has the blob
//!     given image TAG                 ... the image "image" with its blobs, under the tag
//!     given tags                      ... the tags 1.0, B, a, a-1 and b
//!     given referrers                 ... the image, with three manifests that refer to it
//!     given upload                    an upload was begun; its Location is kept as "upload"
//!     METHOD PATH                     a request
//!     PUT manifest NAME as REFERENCE  the same for the manifest NAME, with its media type
//!         > HEADER: VALUE             sent with the request
//!         > body NAME
//!         < STATUS                    expected in the response
//!         < HEADER: VALUE
//!         < has HEADER
//!         < lacks HEADER
//!         < keep HEADER as VARIABLE
//!         < error CODE                the first code of the error body
//!         < body NAME [RANGE]         the body, or a range of its bytes
//!         < json POINTER VALUE        the value at a JSON pointer; null if there is none
//! ```
//! `bodies.rs` has the bodies by NAME. Paths, header values and JSON are templates:
//!
//! | template | value |
//! |---|---|
//! | `{repo}`, `{other}` | two repositories that only this row uses |
//! | `{NAME}`, `{NAME.sha512}`, `{NAME.len}` | digests and length of a body |
//! | `{VARIABLE}` | a kept header |
//! | `{VARIABLE+}` | a kept Location, to which a query parameter is appended |
//! | `{manifest-type}`, `{index-type}` | the OCI media types |
//! | `{c*N}` | the character `c`, N times |

use core::ops::Range;

use reqwest::Method;
use serde_json::Value;

use super::bodies::body;

/// A requirement of the specification.
pub(super) struct Row {
    /// MUST, SHOULD or MAY.
    pub(super) level: &'static str,
    pub(super) section: &'static str,
    pub(super) title: &'static str,
    pub(super) steps: Vec<Step>,
}

/// A request and its expected response.
pub(super) struct Step {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Option<&'static str>,
    pub(super) expected: Vec<Expected>,
}

pub(super) enum Expected {
    Status(u16),
    Header(&'static str, &'static str),
    HasHeader(&'static str),
    LacksHeader(&'static str),
    KeepHeader {
        header: &'static str,
        variable: &'static str,
    },
    ErrorCode(&'static str),
    Body(&'static str),
    BodyRange(&'static str, Range<usize>),
    Json {
        pointer: &'static str,
        value: &'static str,
    },
}

/// Parses a table.
///
/// # Panics
/// If a line is not valid; the message names it.
pub(super) fn parse(table: &'static str) -> Vec<Row> {
    let mut section = "";
    let mut rows: Vec<Row> = Vec::new();
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (word, rest) = line.split_once(' ').expect(line);
        match word {
            "#" => section = rest,
            "MUST" | "SHOULD" | "MAY" => rows.push(Row {
                level: word,
                section,
                title: rest,
                steps: Vec::new(),
            }),
            _ => {
                let row = rows.last_mut().expect("a row begins with its level");
                row.push_line(word, rest);
            }
        }
    }
    rows
}

impl Row {
    fn push_line(&mut self, word: &'static str, rest: &'static str) {
        match word {
            "given" => self.push_given(rest),
            ">" => self.last_step().push_sent(rest),
            "<" => self.last_step().expected.push(Expected::parse(rest)),
            method => match rest.strip_prefix("manifest ") {
                Some(manifest) => {
                    let (name, reference) = manifest.split_once(" as ").expect(rest);
                    self.push_manifest(name, reference);
                }
                None => self.push_step(method.parse().expect(method), rest),
            },
        }
    }

    fn last_step(&mut self) -> &mut Step {
        self.steps.last_mut().expect("a row begins with a request")
    }

    fn push_step(&mut self, method: Method, path: impl Into<String>) {
        self.steps.push(Step {
            method,
            path: path.into(),
            headers: Vec::new(),
            body: None,
            expected: Vec::new(),
        });
    }

    fn expect(&mut self, expected: Expected) {
        self.last_step().expected.push(expected);
    }

    fn push_given(&mut self, given: &'static str) {
        match given.split_once(' ') {
            Some(("blob", name)) => self.push_blob(name),
            Some(("image", tag)) => self.push_image(tag),
            None if given == "upload" => {
                self.push_step(Method::POST, "/v2/{repo}/blobs/uploads/");
                self.expect(Expected::Status(202));
                self.expect(Expected::KeepHeader {
                    header: "location",
                    variable: "upload",
                });
            }
            None if given == "tags" => {
                self.push_blob("config");
                let reference = "{no-layers}?tag=b&tag=a&tag=B&tag=1.0&tag=a-1";
                self.push_manifest("no-layers", reference);
                self.expect(Expected::Status(201));
            }
            None if given == "referrers" => {
                self.push_image("v1");
                for (name, reference) in [
                    ("sbom", "{sbom}"),
                    ("signature", "{signature}"),
                    ("signature-2", "{signature-2}"),
                ] {
                    self.push_manifest(name, reference);
                    self.expect(Expected::Status(201));
                }
            }
            _ => panic!("given {given}"),
        }
    }

    fn push_blob(&mut self, name: &'static str) {
        let path = format!("/v2/{{repo}}/blobs/uploads/?digest={{{name}}}");
        self.push_step(Method::POST, path);
        self.last_step().body = Some(name);
        self.expect(Expected::Status(201));
    }

    fn push_image(&mut self, tag: &'static str) {
        self.push_blob("config");
        self.push_blob("layer");
        self.push_manifest("image", tag);
        self.expect(Expected::Status(201));
    }

    fn push_manifest(&mut self, name: &'static str, reference: &str) {
        let parsed: Option<Value> = serde_json::from_slice(&body(name)).ok();
        let media_type =
            parsed.and_then(|manifest| Some(manifest["mediaType"].as_str()?.to_owned()));
        self.push_step(Method::PUT, format!("/v2/{{repo}}/manifests/{reference}"));
        let step = self.last_step();
        step.body = Some(name);
        let media_type = media_type.unwrap_or_else(|| crate::support::MANIFEST.to_owned());
        step.headers.push(("content-type", media_type));
    }
}

impl Step {
    fn push_sent(&mut self, sent: &'static str) {
        match sent.split_once(": ") {
            Some((name, value)) => self.headers.push((name, value.to_owned())),
            None => self.body = Some(sent.strip_prefix("body ").expect(sent)),
        }
    }
}

impl Expected {
    fn parse(line: &'static str) -> Self {
        if let Ok(status) = line.parse() {
            return Self::Status(status);
        }
        let (word, rest) = line.split_once(' ').expect(line);
        match word {
            "has" => Self::HasHeader(rest),
            "lacks" => Self::LacksHeader(rest),
            "keep" => {
                let (header, variable) = rest.split_once(" as ").expect(line);
                Self::KeepHeader { header, variable }
            }
            "error" => Self::ErrorCode(rest),
            "body" => match rest.split_once(' ') {
                None => Self::Body(rest),
                Some((name, range)) => {
                    let (start, end) = range.split_once("..").expect(line);
                    Self::BodyRange(name, start.parse().unwrap()..end.parse().unwrap())
                }
            },
            "json" => {
                let (pointer, value) = rest.split_once(' ').expect(line);
                Self::Json { pointer, value }
            }
            _ => Self::Header(word.strip_suffix(':').expect(line), rest),
        }
    }
}
