//! Crash safety: a store that is killed at random times holds only intact chunks afterwards, and at
//! least those that were saved.
//!
//! A child process (this test binary, started for one test) fills a store and prints a line for
//! each save. It is killed with SIGKILL after a random time. Then this process opens the store and
//! compares it with the printed lines.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use flotilla_common::chunk::PART_SIZE;
use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::*;

/// The environment variable with the folder that the child process fills.
const DIR_VARIABLE: &str = "FLOTILLA_TEST_STORE";
const CHILD: &str = "store::tests::crash::child_process_fills_store";
/// Stores that are killed concurrently.
const STORES: u64 = 2;
/// How often each store is killed.
const KILLS: u64 = 150;
const BLOBS: u8 = 6;

fn samples() -> Vec<Sample> {
    (0..BLOBS)
        .map(|salt| sample_of_length(salt, usize::from(salt % 3) * (PART_SIZE as usize) + 1000))
        .collect()
}

/// Enough for about half of all blobs.
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
    Store::open_small(dir, quota(), &samples()[0].trusted).unwrap()
}

/// The child process. Does nothing without [`DIR_VARIABLE`].
#[tokio::test]
async fn child_process_fills_store() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else {
        return;
    };
    let store = open(Path::new(&dir));
    let samples = samples();
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
                store_chunk(sample, blob, chunk).await;
            }
        }
        if blob.held().is_full() && !blob.is_complete() && blob.check_digest().await.unwrap() {
            blob.mark_complete();
        }
        let held = blob.held().count();
        let is_complete = blob.is_complete();
        store.save();
        writeln!(out, "saved {number} {held} {is_complete}").unwrap();
        out.flush().unwrap();
    }
}

/// By blob number: the chunks held at the last save, and whether the blob was complete.
type Saved = HashMap<usize, (u32, bool)>;

/// Runs the child process and kills it after `run_time`, counted from when it has opened the store
/// or, without `wait_until_open`, from its start.
fn fill_and_kill(dir: &Path, wait_until_open: bool, run_time: Duration) -> Saved {
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
            // Other lines are the test harness's, or were truncated by the kill.
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["saved", number, held, is_complete] => {
                    saved.insert(
                        number.parse().unwrap(),
                        (held.parse().unwrap(), is_complete.parse().unwrap()),
                    );
                }
                // Fails if the receiver does not wait for it.
                ["open"] => drop(open.send(())),
                ["evicted", number] => {
                    saved.remove(&number.parse().unwrap());
                }
                _ => {}
            }
        }
        saved
    });
    if wait_until_open {
        is_open.recv_timeout(Duration::from_secs(60)).unwrap();
    }
    // Not a synchronisation: the child may be killed at any time.
    std::thread::sleep(run_time);
    child.kill().unwrap();
    child.wait().unwrap();
    reading.join().unwrap()
}

/// Checks that every chunk reported as held can be read with the right bytes, or is reported as
/// damaged. Returns the number of damaged ones.
async fn count_damaged(blob: &StoredBlob, sample: &Sample) -> u32 {
    let mut damaged = 0;
    for chunk in blob.held().iter() {
        let range = sample.geometry.chunk_range(chunk);
        let expected = sample.bytes.slice(range.start as usize..range.end as usize);
        match blob.chunk(chunk).await {
            Ok(Some(held)) => {
                assert_eq!(held.range, range);
                assert_eq!(
                    blob.read(range).await.unwrap(),
                    expected,
                    "{} {chunk}",
                    blob.digest()
                );
            }
            Ok(None) | Err(StoreError::Damaged { .. }) => damaged += 1,
            Err(error) => panic!("{error}"),
        }
    }
    damaged
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("blobs")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Opens the store after a kill and checks it against the saved state. Returns the chunks held.
async fn check_after_kill(dir: &Path, saved: &Saved) -> u32 {
    let store = open(dir);
    let samples = samples();
    assert!(store.bytes() <= quota().0, "the quota is exceeded");
    let blobs = store.blobs();
    for blob in &blobs {
        let number = samples
            .iter()
            .position(|sample| sample.proof.digest() == blob.digest())
            .unwrap();
        if let Some((held, is_complete)) = saved.get(&number) {
            assert!(
                blob.held().count() >= *held,
                "blob {number} lost chunks that were saved"
            );
            assert!(
                blob.is_complete() || !is_complete,
                "blob {number} is no longer complete"
            );
        }
        assert_eq!(
            count_damaged(blob, &samples[number]).await,
            0,
            "blob {number} is damaged"
        );
    }
    for file in files(dir) {
        let named = paths::digest_of(Path::new(&file));
        assert!(
            named.is_some_and(|digest| store.get(&digest).is_some()),
            "{file} is left over"
        );
    }
    blobs.iter().map(|blob| blob.held().count()).sum()
}

/// Kills one store repeatedly. Returns the most chunks that it held after a kill.
fn kill_repeatedly(rng_seed: u64) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut rng = Pcg64Mcg::new(u128::from(rng_seed) << 1 | 1);
    let mut most = 0;
    for _ in 0..KILLS {
        let run_time = Duration::from_micros(rng.random_range(0..20_000));
        let saved = fill_and_kill(dir.path(), rng.random_ratio(7, 8), run_time);
        most = most.max(runtime.block_on(check_after_kill(dir.path(), &saved)));
    }
    most
}

#[test]
fn store_killed_hundreds_of_times_stays_consistent() {
    let stores: Vec<_> = (0..STORES)
        .map(|number| std::thread::spawn(move || kill_repeatedly(number)))
        .collect();
    for store in stores {
        assert!(
            store.join().unwrap() > 3,
            "the store made no progress between the kills"
        );
    }
}
