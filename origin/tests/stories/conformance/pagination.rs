//! Following the pages of a listing by their Link headers.

use std::collections::BTreeSet;

use flotilla_common::digest::Digest;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::Deployment;
use crate::support::{MANIFEST, descriptor, header, manifest};

#[tokio::test]
async fn pages_of_referrers_are_complete() {
    let deployment = Deployment::one_replica().await;
    let client = deployment.client();
    let subject = client.push_image("app", "v1", &[]).await;
    for index in 0..7 {
        let mut artifact: Value =
            serde_json::from_slice(&manifest(b"{\"tag\":\"v1\"}", &[])).unwrap();
        artifact["subject"] = descriptor(MANIFEST, &subject);
        artifact["artifactType"] = json!(format!("type/{} +", index % 2));
        artifact["annotations"] = json!({"index": index.to_string(), "long": "x".repeat(700_000)});
        let artifact = artifact.to_string();
        let path = format!("/v2/app/manifests/{}", Digest::sha256(artifact.as_bytes()));
        let response = client.put_manifest(&path, MANIFEST, artifact).await;
        assert_eq!(response.status(), StatusCode::CREATED);
    }
    for (filter, expected) in [("", 7), ("?artifactType=type/1%20%2B", 3)] {
        let mut next = format!("/v2/app/referrers/{}{filter}", Digest::sha256(&subject));
        let mut found = Vec::new();
        let mut pages = 0;
        while !next.is_empty() {
            let response = client.get(&next).await;
            let link = header(&response, "link").to_owned();
            next = link
                .strip_prefix('<')
                .and_then(|link| link.split('>').next())
                .unwrap_or("")
                .to_owned();
            let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            let manifests = body["manifests"].as_array().unwrap().iter();
            found.extend(manifests.map(|manifest| manifest["annotations"]["index"].clone()));
            pages += 1;
        }
        assert!(pages > 1, "3 MiB of annotations exceed one response");
        let distinct: BTreeSet<_> = found.iter().map(Value::to_string).collect();
        assert_eq!(
            (found.len(), distinct.len()),
            (expected, expected),
            "{filter}"
        );
    }
}
