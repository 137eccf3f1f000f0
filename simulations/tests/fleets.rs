//! Fleets that are no single burst: several images, arrivals over time, seeders, restarts, classes
//! of hosts.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use flotilla_simulations::{Outcome, Scenario, run};

const SET: &str = "name = 'set'\n[[bases]]\nname = 'base'\nlayers = ['4MiB', '1MiB']\n\
    [[images]]\nname = 'service'\nbase = 'base'\nlayers = ['1MiB', '2kB']\nvariants = 6\n\
    [origin]\nup = '100Mbit'\n";
const PEERS: &str = "[peers]\ncount = 24\nup = '100Mbit'\ndown = '100Mbit'\n";
const MIB: f64 = (1 << 20) as f64;

fn run_text(text: &str) -> Outcome {
    run(&Scenario::parse(text).unwrap(), 1)
}

fn error_of(text: &str) -> String {
    Scenario::parse(text).unwrap_err().to_string()
}

fn assert_ok(outcome: &Outcome) {
    assert!(outcome.ok, "{:?}", outcome.details.complaints);
}

#[test]
fn shared_layers_are_pulled_once() {
    let outcome = run_text(&format!("{SET}{PEERS}"));
    assert_ok(&outcome);
    assert_eq!(outcome.details.completions_s.len(), 24 * 6);
    // The base once and the own layers of six images, not six times the base.
    let bound_s = (5.0 * MIB + 6.0 * (MIB + 2000.0)) * 8.0 / 100e6;
    assert!((outcome.fluid_bound_s - bound_s).abs() < 0.01);
    assert!(outcome.origin_copies < 1.05, "{}", outcome.origin_copies);
    // Six times the base would take at least three times the bound.
    assert!(outcome.max_s < 2.0 * bound_s, "{}", outcome.max_s);
}

#[test]
fn pulls_one_after_the_other_lack_only_what_the_earlier_ones_did_not_bring() {
    let outcome = run_text(&format!("{SET}{PEERS}[pulls]\nat_once = 1\n"));
    assert_ok(&outcome);
    let completions = &outcome.details.completions_s;
    assert_eq!(completions.len(), 24 * 6);
    // The first pull of a peer takes the base, too; the five others are much shorter.
    let first_s = (6.0 * MIB + 2000.0) * 8.0 / 100e6;
    let median_s = outcome.p50_s;
    assert!(median_s < 0.8 * first_s, "{median_s}");
    assert!(completions[24 * 5] >= first_s, "{completions:?}");
    assert!((outcome.fluid_bound_s - first_s).abs() < 0.01);
}

#[test]
fn chosen_images_and_arrivals_over_time_strand_no_peer() {
    let text = format!(
        "{SET}{PEERS}[pulls]\nimages = 2\nat_once = 1\n[arrivals]\nper_s = 2\nlifetime_s = 4\n\
         warned_share = 0.5\n[[arrivals.peaks]]\nat_s = 3\nfor_s = 1\nfactor = 10\n"
    );
    let outcome = run_text(&text);
    assert_ok(&outcome);
    assert!(outcome.simulated_s > 3.0, "{}", outcome.simulated_s);
    // Some peers ended before their pulls did.
    let pulls = outcome.details.completions_s.len();
    assert!((24..=48).contains(&pulls), "{pulls}");
    assert_eq!(run_text(&text).trace_hash, outcome.trace_hash);
}

#[test]
fn seeders_serve_before_the_origin_is_asked() {
    let text = format!(
        "{SET}{}",
        PEERS.replace("count = 24", "count = 24\nseeders = 4")
    );
    let outcome = run_text(&text);
    assert_ok(&outcome);
    assert_eq!(outcome.details.completions_s.len(), 20 * 6);
    assert!(outcome.origin_copies < 0.5, "{}", outcome.origin_copies);
}

#[test]
fn peers_that_restart_pull_only_what_they_lost() {
    let restart = "[[failures]]\nkind = 'restart-peers'\nat_s = 0.5\nfor_s = 1\nshare = 0.5\n";
    let kept = run_text(&format!("{SET}{PEERS}{restart}"));
    let lost = run_text(&format!("{SET}{PEERS}{restart}kept_share = 0\n"));
    for outcome in [&kept, &lost] {
        assert_ok(outcome);
        assert_eq!(outcome.details.completions_s.len(), 24 * 6);
        assert!(outcome.simulated_s > 1.5, "{}", outcome.simulated_s);
    }
    assert!(lost.simulated_s > kept.simulated_s, "{}", lost.simulated_s);
    assert!(lost.details.served > kept.details.served);
}

#[test]
fn classes_of_hosts_have_their_own_rates() {
    let class = "[[peers.classes]]\nshare = 0.25\nup = '10Mbit'\ndown = '10Mbit'\n";
    let outcome = run_text(&format!("{SET}{PEERS}{class}"));
    assert_ok(&outcome);
    assert!(
        outcome.max_s > 2.5 * outcome.p50_s,
        "{} {}",
        outcome.max_s,
        outcome.p50_s
    );
}

#[test]
fn trace_of_starts_is_read_from_a_file_beside_the_scenario() {
    let folder = std::env::temp_dir().join(format!("flotilla-trace-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("traced.toml");
    let peers = PEERS.replace("count = 24", "count = 3");
    fs::write(
        &path,
        format!("{SET}{peers}[arrivals]\ntrace = 'starts.csv'\n"),
    )
    .unwrap();
    let read = |csv: &str| {
        fs::write(folder.join("starts.csv"), csv).unwrap();
        Scenario::read(&path).map_err(|error| error.to_string())
    };
    let scenario = read("start_s,stop_s,image\n0,,service\n2.5,,\n7, 7.01,\n").unwrap();
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    // One image of the first peer, six of the second, none of the third.
    assert_eq!(outcome.details.completions_s.len(), 7);
    let error = |csv: &str| read(csv).unwrap_err();
    assert!(error("start_s\n1\n2\n").contains("write 2, the number of rows"));
    assert!(error("when\n1\n2\n3\n").contains("the columns start_s"));
    assert!(error("start_s,image\n1,x\n2,\n3,\n").contains("one of the [[images]]"));
    fs::remove_file(folder.join("starts.csv")).unwrap();
    let missing = Scenario::read(&path).unwrap_err().to_string();
    assert!(missing.contains("starts.csv"), "{missing}");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn errors_name_the_key_and_the_fix() {
    let base = SET.replace("base = 'base'", "base = 'bass'");
    assert!(error_of(&format!("{base}{PEERS}")).contains("`images.base`: write the name"));
    let both = format!("{SET}{PEERS}[image]\nlayers = ['1MiB']\n");
    assert!(error_of(&both).contains("one image or a set"));
    let many = format!("{SET}{PEERS}[pulls]\nimages = 7\n");
    assert!(error_of(&many).contains("`pulls.images`: write a number from 1"));
    let spread = PEERS.replace("count = 24", "count = 24\nstart_spread_s = 3");
    let spread = format!("{SET}{spread}[arrivals]\nper_s = 1\n");
    assert!(error_of(&spread).contains("`peers.start_spread_s`: remove it"));
    let kept =
        format!("{SET}{PEERS}[[failures]]\nkind = 'kill-peers'\nat_s = 1\nkept_share = 0.5\n");
    assert!(error_of(&kept).contains("`failures.kept_share`"));
}

#[test]
fn lazy_runtime_reads_its_share_with_pauses_and_is_done() {
    let lazy = |share: &str| {
        let text = format!(
            "name = 'lazy'\n[image]\nlayers = ['16MiB']\n[origin]\nup = '1Gbit'\n\
             [peers]\ncount = 4\nup = '1Gbit'\ndown = '1Gbit'\n\
             [pulls]\nlazy_share = {share}\nlazy_pause_ms = 500\n"
        );
        let outcome = run_text(&text);
        assert_ok(&outcome);
        outcome
    };
    // One read, and a quarter of 64 chunks with a pause before each but the first.
    assert!(lazy("0").max_s < 0.5);
    let max_s = lazy("0.25").max_s;
    assert!((15.0 * 0.5..15.0 * 0.5 + 0.5).contains(&max_s), "{max_s}");
}

#[test]
fn lazy_reads_that_are_passed_through_are_of_one_chunk_each() {
    let outcome = run_text(
        "name = 'lazy'\n[image]\nlayers = ['16MiB']\n\
         [origin]\nup = '1Gbit'\nfail_closures = true\n\
         [peers]\ncount = 4\nup = '1Gbit'\ndown = '1Gbit'\n[pulls]\nlazy_share = 0.5\n",
    );
    assert_ok(&outcome);
    assert_eq!(outcome.details.completions_s.len(), 4);
    assert_eq!(outcome.origin_copies, 4.0 * 0.5);
}
