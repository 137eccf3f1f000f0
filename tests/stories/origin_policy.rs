//! `flotilla origin policy`: from a typing error to two regions.

use std::path::Path;
use std::process::Command;

use crate::harness::service::TestService;
use crate::harness::tools::run;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

const TWO_REGIONS: &str = r#"# The regions of the fleet.
[[region]]
name = "eu-1"
url = "https://origin.eu.example"
[[region]]
name = "us-1"
url = "https://origin.us.example"

[[repository]]
match = "team/**"
ack_regions = 2
"#;

/// A directory with keys, a storage and a policy file.
struct Desk {
    dir: tempfile::TempDir,
    storage: String,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("storage")).unwrap();
        let storage = format!("file://{}/storage", dir.path().display());
        let desk = Self { dir, storage };
        let pki = desk.path("pki");
        desk.flotilla(&["pki", "init", "--dir", &pki, "--region", "eu-1"])
            .unwrap();
        desk
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn flotilla(&self, arguments: &[&str]) -> Result<String, String> {
        run(Path::new(FLOTILLA), arguments)
    }

    fn origin(&self, tls: &[&str]) -> Vec<String> {
        let (seal_key, storage) = (self.path("pki/eu-1.seal.key"), self.storage.as_str());
        let fixed = [
            "origin",
            "--listen",
            "127.0.0.1:0",
            "--storage",
            storage,
            "--seal-key",
            &seal_key,
        ];
        let all = fixed.iter().chain(tls);
        all.map(|argument| (*argument).to_owned()).collect()
    }

    fn start_origin(&self, tls: &[&str]) -> TestService {
        TestService::start(Command::new(FLOTILLA).args(self.origin(tls)))
    }

    /// Runs `flotilla origin policy ACTION` with a file of this text.
    fn policy(&self, action: &str, text: &str) -> Result<String, String> {
        let file = self.path("policy.toml");
        std::fs::write(&file, text).unwrap();
        self.flotilla(&[
            "origin",
            "policy",
            action,
            &file,
            "--storage",
            &self.storage,
        ])
    }

    fn show(&self, flags: &[&str]) -> Result<String, String> {
        let show = ["origin", "policy", "show", "--storage", &self.storage];
        self.flotilla(&[&show[..], flags].concat())
    }
}

#[test]
fn policy_is_checked_stored_and_shown() {
    let desk = Desk::new();
    let error = desk.policy("set", TWO_REGIONS).unwrap_err();
    assert!(
        error.contains("no origin has started on this storage"),
        "{error}"
    );
    let origin = desk.start_origin(&[]);
    assert_eq!(
        desk.show(&[]).unwrap(),
        "# no policy: this storage belongs to a single region\n"
    );
    assert_eq!(desk.show(&["--json"]).unwrap(), "null\n");

    let typo = TWO_REGIONS.replace("ack_regions", "ack_region");
    let error = desk.policy("set", &typo).unwrap_err();
    assert!(
        error.contains("policy.toml': line 11: unknown key 'ack_region' of [[repository]]; did you mean 'ack_regions'?"),
        "{error}"
    );
    let printed = desk.policy("check", TWO_REGIONS).unwrap();
    assert!(
        printed.starts_with("region eu-1: added, https://origin.eu.example\n")
            && printed.ends_with("valid; regions: 2, rules: 1\n"),
        "{printed}"
    );
    assert_eq!(
        desk.show(&["--json"]).unwrap(),
        "null\n",
        "a check stores nothing"
    );

    let printed = desk.policy("set", TWO_REGIONS).unwrap();
    assert!(
        printed.contains("rule team/**: added\n") && printed.contains("within 2 minutes"),
        "{printed}"
    );
    assert_eq!(desk.show(&[]).unwrap(), TWO_REGIONS);
    let json: serde_json::Value = serde_json::from_str(&desk.show(&["--json"]).unwrap()).unwrap();
    assert_eq!(
        json["repository"][0]["regions"],
        serde_json::json!(["eu-1", "us-1"])
    );
    let printed = desk.policy("set", TWO_REGIONS).unwrap();
    assert!(printed.starts_with("unchanged"), "{printed}");

    let printed = desk
        .policy("set", &TWO_REGIONS.replace("= 2", "= 1"))
        .unwrap();
    assert!(
        printed.starts_with("rule team/**: ack_regions 2 -> 1\n"),
        "{printed}"
    );
    let error = desk
        .policy("set", &TWO_REGIONS.replace("us-1", "us-east-1"))
        .unwrap_err();
    assert!(
        error.contains("region us-1 would become us-east-1"),
        "{error}"
    );
    drop(origin);
}

#[test]
fn second_region_requires_a_certificate_with_the_region() {
    let desk = Desk::new();
    drop(desk.start_origin(&[]));
    desk.policy("set", TWO_REGIONS).unwrap();
    let refused = |tls: &[&str]| {
        let arguments = desk.origin(tls);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        desk.flotilla(&arguments).unwrap_err()
    };
    let error = refused(&[]);
    assert!(
        error.contains("flotilla pki issue --server NAMES --region eu-1"),
        "{error}"
    );

    let pki = desk.path("pki");
    let issue = ["pki", "issue", "--dir", &pki, "--server", "127.0.0.1"];
    desk.flotilla(&issue).unwrap();
    let [certificate, key, authority] =
        ["pki/127.0.0.1.pem", "pki/127.0.0.1.key", "pki/ca.pem"].map(|name| desk.path(name));
    let tls = [
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
        "--tls-ca",
        &authority,
    ];
    let error = refused(&tls);
    assert!(error.contains("must name its region eu-1"), "{error}");
    desk.flotilla(&[&issue[..], &["--region", "eu-1", "--renew"]].concat())
        .unwrap();
    desk.start_origin(&tls);
}
