//! The keys of a service from flags, environment and file, valid and invalid.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use clap::{Args, Subcommand};
use flotilla_common::units::ByteSize;

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Service,
}

#[derive(Debug, Subcommand)]
enum Service {
    Peer(Peer),
    Plain {
        #[arg(long)]
        storage: Option<String>,
    },
}

#[derive(Debug, Args)]
struct Peer {
    #[command(flatten)]
    config: ConfigFile,
    /// Required.
    #[arg(long)]
    store: PathBuf,
    #[arg(long, default_value = "10GiB")]
    quota: ByteSize,
    #[arg(long, value_delimiter = ',')]
    origin: Vec<String>,
    #[arg(long)]
    require_grants: bool,
    /// In the environment of every test.
    #[arg(long, env = "CARGO_PKG_NAME", default_value = "none")]
    region: String,
}

fn run(file: &str, flags: &[&str]) -> Result<Peer, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("peer.toml");
    std::fs::write(&path, file).unwrap();
    let path = path.into_os_string().into_string().unwrap();
    let arguments = ["flotilla", "peer", "--config", &path]
        .into_iter()
        .chain(flags.iter().copied());
    match try_parse_from::<Cli, _>(arguments) {
        Ok(Cli {
            command: Service::Peer(peer),
        }) => Ok(peer),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn flag_wins_over_file() {
    let file = r#"
        store = "/var/lib/flotilla"
        quota = "2GiB"
        origin = ["http://a", "http://b"]
        require_grants = true
    "#;
    let peer = run(file, &["--quota", "3GiB"]).unwrap();
    assert_eq!(peer.store, PathBuf::from("/var/lib/flotilla"));
    assert_eq!(peer.quota, ByteSize(3 << 30));
    assert_eq!(peer.origin, ["http://a", "http://b"]);
    assert!(peer.require_grants);
    assert!(peer.config.config.is_some());

    let peer = run(file, &["--origin", "http://c"]).unwrap();
    assert_eq!(peer.quota, ByteSize(2 << 30));
    assert_eq!(peer.origin, ["http://c"], "a list replaces a list");
}

#[test]
fn environment_wins_over_file_and_flag_over_both() {
    let file = "store = '/s'\nregion = 'from-the-file'";
    assert_eq!(run(file, &[]).unwrap().region, env!("CARGO_PKG_NAME"));
    assert_eq!(
        run(file, &["--region", "from-the-flag"]).unwrap().region,
        "from-the-flag"
    );
}

#[test]
fn default_applies_without_flag_or_file() {
    let peer = run("store = '/s'", &[]).unwrap();
    assert_eq!(peer.quota, ByteSize(10 << 30));
    assert!(!peer.require_grants && peer.origin.is_empty());
}

#[test]
fn every_key_has_an_environment_variable() {
    let command = with_environment(<Cli as clap::CommandFactory>::command());
    let variables = |name| -> Vec<String> {
        let service = command.find_subcommand(name).unwrap();
        let variables = service.get_arguments().filter_map(Arg::get_env);
        variables
            .map(|variable| variable.to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        variables("peer"),
        [
            "FLOTILLA_CONFIG",
            "FLOTILLA_STORE",
            "FLOTILLA_QUOTA",
            "FLOTILLA_ORIGIN",
            "FLOTILLA_REQUIRE_GRANTS",
            "CARGO_PKG_NAME"
        ]
    );
    assert_eq!(
        variables("plain"),
        [""; 0],
        "a command without a configuration file has no variables"
    );
}

#[test]
fn unknown_key_suggests_the_nearest_one() {
    let error = run("store = '/s'\nquotta = '1GiB'", &[]).unwrap_err();
    assert!(
        error.contains("unknown key 'quotta'; did you mean 'quota'?"),
        "{error}"
    );
    assert!(error.contains("peer.toml"), "{error}");
    let error = run("colour = 'blue'", &[]).unwrap_err();
    assert!(
        error.contains("valid keys are: store, quota, origin, require-grants, region"),
        "{error}"
    );
}

#[test]
fn invalid_value_names_key_and_fix() {
    for (file, key, fix) in [
        ("quota = '5 elephants'", "key 'quota'", "for example 64MiB"),
        ("store = ['/a', '/b']", "key 'store'", "one value"),
        (
            "require-grants = 'yes'",
            "key 'require-grants'",
            "true or false",
        ),
        ("store = 1979-05-27", "key 'store'", "quotes"),
        (
            "[peer]\nstore = '/s'",
            "unknown key 'peer'",
            "valid keys are",
        ),
        ("[store]\npath = '/s'", "key 'store'", "without [sections]"),
        ("store = ", "not valid TOML", "line 1"),
    ] {
        let error = run(file, &[]).unwrap_err();
        assert!(
            error.contains(key) && error.contains(fix),
            "{file}: {error}"
        );
    }
}

#[test]
fn missing_key_is_named() {
    let error = run("quota = '1GiB'", &[]).unwrap_err();
    assert!(error.contains("--store"), "{error}");
    let missing = try_parse_from::<Cli, _>(["flotilla", "peer", "--config", "/nowhere/peer.toml"]);
    let error = missing.unwrap_err().to_string();
    assert!(
        error.starts_with("read configuration '/nowhere/peer.toml'"),
        "{error}"
    );
}

#[test]
fn flag_errors_and_help_come_from_clap() {
    let error = run("store = '/s'", &["--quta", "1GiB"]).unwrap_err();
    assert!(error.contains("--quota"), "{error}");
    let help = try_parse_from::<Cli, _>(["flotilla", "peer", "--help"]).unwrap_err();
    assert!(
        matches!(help, ConfigError::Arguments(error) if error.kind() == ErrorKind::DisplayHelp)
    );
    let plain = try_parse_from::<Cli, _>(["flotilla", "plain", "--storage", "memory:///"]).unwrap();
    assert!(matches!(plain.command, Service::Plain { storage: Some(_) }));
}
