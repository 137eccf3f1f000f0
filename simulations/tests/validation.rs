//! The scenarios of `validation/`, which `tests/compare-simulator` runs beside real bursts.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use flotilla_simulations::{Scenario, run};

#[test]
fn all_have_the_same_links_and_run() {
    let folder = format!("{}/validation", env!("CARGO_MANIFEST_DIR"));
    let mut links = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let scenario = Scenario::parse(&text).unwrap();
        assert_eq!(scenario.name, path.file_stem().unwrap().to_str().unwrap());
        let command = text.lines().next().unwrap();
        assert!(command.starts_with("# flotilla-lab swarm "), "{command}");
        let peers = format!("--peers {}", scenario.peers.count);
        assert!(command.contains(&peers), "{command}");
        let outcome = run(&scenario, 1);
        assert!(outcome.ok, "{}: {:?}", scenario.name, outcome.details);
        // A set-up must not have values of its own that fit the simulator to it.
        links.push((scenario.links, scenario.peers.up, scenario.origin));
    }
    assert!(links.len() > 1);
    assert!(links.windows(2).all(|pair| pair[0] == pair[1]), "{links:?}");
}
