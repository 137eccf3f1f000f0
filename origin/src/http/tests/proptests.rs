//! No path, query or range panics, whatever a client sends.

use flotilla_runtime::http::range::{RequestedRange, parse_upload_range};
use http::Method;
use proptest::prelude::*;

use super::super::route::{parameters, route};

proptest! {
    #[test]
    fn any_path_and_query_is_routed_or_refused(
        path in ".{0,200}",
        tail in "(/|[a-z0-9._:%-]|blobs|uploads|manifests|tags|sha256:){0,40}",
        query in ".{0,100}",
    ) {
        for method in [Method::GET, Method::PUT, Method::POST] {
            let _ = route(&method, &path);
            let _ = route(&method, &format!("/v2/{tail}"));
            let _ = route(&method, &format!("/v2/app/{tail}"));
        }
        let _ = parameters(Some(&query), "digest").count();
    }

    #[test]
    fn any_range_lies_within_the_size(header in "(bytes)?[= 0-9,-]{0,60}", noise in ".{0,60}", size: u64) {
        for header in [&header, &noise] {
            if let RequestedRange::Part(part) = RequestedRange::parse(Some(header), size) {
                prop_assert!(part.start < part.end && part.end <= size, "{header}: {part:?}");
            }
            if let Some(chunk) = parse_upload_range(header) {
                prop_assert!(chunk.start < chunk.end, "{header}: {chunk:?}");
            }
        }
    }
}
