//! The store is killed again and again, at any point, and damaged behind its back: what it says
//! afterwards is true.
//!
//! A child process (this test binary, started again for one test) fills a store and writes a line
//! for each state that it has saved. It is killed with SIGKILL after a random time; then the store
//! is opened here and held to what was saved.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use flotilla_common::chunk::PART_SIZE;
use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::tests::{Sample, hold, sample_of};
use super::*;

/// Tells the child which folder to fill.
const DIR_VARIABLE: &str = "FLOTILLA_TEST_STORE";
const CHILD: &str = "store::killed::fills_a_store_until_it_is_killed";
/// Stores that are killed at the same time, and how often each.
const LANES: u64 = 2;
const KILLS: u64 = 150;
const BLOBS: u8 = 6;

fn samples() -> Vec<Sample> {
    (0..BLOBS)
        .map(|salt| sample_of(salt, usize::from(salt % 3) * (PART_SIZE as usize) + 1000))
        .collect()
}

/// Room for about half of all blobs.
fn quota() -> ByteSize {
    ByteSize(
        samples()
            .iter()
            .map(|sample| sample.geometry.size())
            .sum::<u64>()
            / 2,
    )
}

fn open(dir: &Path) -> Store {
    Store::open(dir, quota(), &samples()[0].trusted).unwrap()
}

/// The child's part; nothing unless it is told a folder.
#[tokio::test]
async fn fills_a_store_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else {
        return;
    };
    let (store, samples) = (open(Path::new(&dir)), samples());
    let mut rng = Pcg64Mcg::new(u128::from(rand::rng().random::<u64>()) << 1 | 1);
    let mut out = std::io::stdout();
    writeln!(out, "\nopen").unwrap();
    out.flush().unwrap();
    loop {
        let number = rng.random_range(0..samples.len());
        let sample = &samples[number];
        let Ok((pin, evicted)) = store.insert(sample.proof.clone(), sample.geometry) else {
            continue;
        };
        for (number, _) in samples
            .iter()
            .enumerate()
            .filter(|(_, sample)| evicted.contains(sample.proof.digest()))
        {
            writeln!(out, "evicted {number}").unwrap();
        }
        let blob = pin.blob();
        for _ in 0..rng.random_range(1..4) {
            let chunk = rng.random_range(0..sample.geometry.chunks());
            if !blob.holds(chunk) {
                hold(sample, blob, chunk).await;
            }
        }
        if blob.held().is_full() && !blob.is_complete() && blob.check_digest().await.unwrap() {
            blob.complete();
        }
        let (held, is_complete) = (blob.held().count(), blob.is_complete());
        store.save();
        writeln!(out, "saved {number} {held} {is_complete}").unwrap();
        out.flush().unwrap();
    }
}

/// What the child has saved of a blob: chunks held, and whether it was complete.
type Saved = HashMap<usize, (u32, bool)>;

/// Runs the child for a while and kills it; the while begins when it has opened the store, or at
/// once.
fn fill_and_kill(dir: &Path, waits: bool, patience: Duration) -> Saved {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--nocapture", "--test-threads=1"])
        .env(DIR_VARIABLE, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (open, is_open) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut saved = Saved::new();
        for line in lines.map_while(Result::ok) {
            // What is not such a line is the test harness's, or cut short by the kill.
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["saved", number, held, is_complete] => {
                    saved.insert(
                        number.parse().unwrap(),
                        (held.parse().unwrap(), is_complete.parse().unwrap()),
                    );
                }
                // Nobody waits for it any more, perhaps.
                ["open"] => drop(open.send(())),
                ["evicted", number] => {
                    saved.remove(&number.parse().unwrap());
                }
                _ => {}
            }
        }
        saved
    });
    if waits {
        is_open.recv_timeout(Duration::from_secs(60)).unwrap();
    }
    // Not for synchronisation: any moment is a good one to be killed at.
    std::thread::sleep(patience);
    child.kill().unwrap();
    child.wait().unwrap();
    reading.join().unwrap()
}

/// Every chunk that the store says it holds has the blob's bytes, or is found out before a byte of
/// it is given away.
async fn has_only_the_truth(blob: &StoredBlob, sample: &Sample) -> u32 {
    let mut lost = 0;
    for chunk in blob.held().iter() {
        let range = sample.geometry.chunk_range(chunk);
        let right = sample.bytes.slice(range.start as usize..range.end as usize);
        match blob.chunk(chunk).await {
            Ok(Some(held)) => {
                assert_eq!(held.range, range);
                assert_eq!(
                    blob.read(range).await.unwrap(),
                    right,
                    "{} {chunk}",
                    blob.digest()
                );
            }
            Ok(None) | Err(StoreError::Doubtful { .. }) => lost += 1,
            Err(error) => panic!("{error}"),
        }
    }
    lost
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("blobs")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// One life after a death: everything saved is there, nothing else is.
async fn check(dir: &Path, saved: &Saved) -> u32 {
    let (store, samples) = (open(dir), samples());
    assert!(store.bytes() <= quota().0, "the quota holds");
    let blobs = store.blobs();
    for blob in &blobs {
        let number = samples
            .iter()
            .position(|sample| sample.proof.digest() == blob.digest())
            .unwrap();
        if let Some((held, is_complete)) = saved.get(&number) {
            assert!(
                blob.held().count() >= *held,
                "blob {number} resumes with what was saved of it"
            );
            assert!(
                blob.is_complete() || !is_complete,
                "blob {number} stays complete"
            );
        }
        assert_eq!(
            has_only_the_truth(blob, &samples[number]).await,
            0,
            "blob {number} was not damaged"
        );
    }
    for file in files(dir) {
        let named = meta::named(Path::new(&file));
        assert!(
            named.is_some_and(|digest| store.get(&digest).is_some()),
            "{file} is left over"
        );
    }
    blobs.iter().map(|blob| blob.held().count()).sum()
}

/// Kills one store again and again; the most chunks that were ever found.
fn lane(lane: u64) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut rng = Pcg64Mcg::new(u128::from(lane) << 1 | 1);
    let mut most = 0;
    for _ in 0..KILLS {
        let patience = Duration::from_micros(rng.random_range(0..20_000));
        let saved = fill_and_kill(dir.path(), rng.random_ratio(7, 8), patience);
        most = most.max(runtime.block_on(check(dir.path(), &saved)));
    }
    most
}

#[test]
fn a_store_killed_hundreds_of_times_never_lies_and_resumes() {
    let lanes: Vec<_> = (0..LANES)
        .map(|number| std::thread::spawn(move || lane(number)))
        .collect();
    for lane in lanes {
        assert!(
            lane.join().unwrap() > 3,
            "it got somewhere between the kills"
        );
    }
}
