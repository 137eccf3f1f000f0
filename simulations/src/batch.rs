//! Several runs at once, within a number of threads and an amount of memory.

use core::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use crate::images::Images;
use crate::scenario::Scenario;

/// Memory of a run without any peers, in bytes.
const BASE_BYTES: u64 = 8 << 20;
/// Memory of a peer without chunks, in bytes.
const PEER_BYTES: u64 = 32 << 10;
/// Memory per peer and chunk, in bits: its own map and verified chunks, and what it knows of its
/// neighbours.
const CHUNK_BITS: u64 = 160;

/// A scenario with a seed.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The scenario.
    pub scenario: &'a Scenario,
    /// The generator's seed.
    pub rng_seed: u64,
}

impl Job<'_> {
    /// An estimate of the memory that the run needs, in bytes, on the safe side.
    pub fn memory_bytes(&self) -> u64 {
        let peers = u64::from(self.scenario.peers.count);
        BASE_BYTES + peers * (PEER_BYTES + self.chunks() * CHUNK_BITS / 8)
    }

    /// Chunks of the images that a peer pulls; of a set's images, that of the largest ones.
    fn chunks(&self) -> u64 {
        let images = Images::new(self.scenario);
        images.most_chunks_per_peer()
    }

    /// A number that grows with the time that the run takes.
    fn work(&self) -> u64 {
        u64::from(self.scenario.peers.count) * self.chunks()
    }
}

/// What runs at once may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of threads.
    pub threads: NonZeroUsize,
    /// Memory of all runs together, in bytes. A run that needs more runs alone.
    pub memory_bytes: u64,
}

/// Runs all jobs, the longest first, and returns the results in the order of the jobs.
pub fn run_all<T: Send>(
    jobs: &[Job<'_>],
    limits: &Limits,
    run: impl Fn(usize, &Job<'_>) -> T + Sync,
) -> Vec<T> {
    let needs: Vec<u64> = jobs.iter().map(Job::memory_bytes).collect();
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|at| (core::cmp::Reverse(jobs[*at].work()), *at));
    let line = Line {
        needs: &needs,
        memory_bytes: limits.memory_bytes,
        state: Mutex::new(LineState {
            waiting: order,
            running: 0,
            used_bytes: 0,
        }),
        changed: Condvar::new(),
    };
    let work = || {
        let mut results = Vec::new();
        while let Some(at) = line.take() {
            results.push((at, run(at, &jobs[at])));
            line.give_back(at);
        }
        results
    };
    let threads = limits.threads.get().min(jobs.len());
    let mut results: Vec<(usize, T)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Vec<(usize, T)>>| match worker.join() {
            Ok(results) => results,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().flat_map(join).collect()
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The jobs that have not begun, and what the others use.
struct Line<'a> {
    needs: &'a [u64],
    memory_bytes: u64,
    state: Mutex<LineState>,
    changed: Condvar,
}

struct LineState {
    waiting: Vec<usize>,
    running: usize,
    used_bytes: u64,
}

impl Line<'_> {
    /// Waits until a job fits, and takes it; `None` if all have begun.
    fn take(&self) -> Option<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.waiting.is_empty() {
                return None;
            }
            let left = self.memory_bytes.saturating_sub(state.used_bytes);
            let fits = |at: &usize| state.running == 0 || self.needs[*at] <= left;
            if let Some(position) = state.waiting.iter().position(fits) {
                let at = state.waiting.remove(position);
                state.running += 1;
                state.used_bytes += self.needs[at];
                return Some(at);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, at: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running -= 1;
        state.used_bytes -= self.needs[at];
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn scenario(peers: u32) -> Scenario {
        Scenario::parse(&format!(
            "name = 'some'\n[image]\nlayers = ['1MiB']\n[peers]\ncount = {peers}\nup = '10Mbit'\n\
             down = '10Mbit'\n[origin]\nup = '10Mbit'"
        ))
        .unwrap()
    }

    fn limits(threads: usize, memory_bytes: u64) -> Limits {
        Limits {
            threads: NonZeroUsize::new(threads).unwrap(),
            memory_bytes,
        }
    }

    #[test]
    fn results_are_in_the_order_of_the_jobs() {
        let (small, large) = (scenario(2), scenario(9));
        let jobs = [&small, &large, &small, &large].map(|scenario| Job {
            scenario,
            rng_seed: u64::from(scenario.peers.count),
        });
        let results = run_all(&jobs, &limits(3, u64::MAX), |at, job| (at, job.rng_seed));
        assert_eq!(results, [(0, 2), (1, 9), (2, 2), (3, 9)]);
    }

    #[test]
    fn runs_at_once_stay_within_the_memory() {
        let (small, large) = (scenario(10), scenario(2000));
        let jobs: Vec<Job<'_>> = (0..40)
            .map(|rng_seed| Job {
                scenario: if rng_seed % 8 == 0 { &large } else { &small },
                rng_seed,
            })
            .collect();
        // Two small runs fit, and a large one alone exceeds the limit.
        let limit = 2 * jobs[1].memory_bytes();
        assert!(jobs[0].memory_bytes() > limit);
        let (used, most) = (AtomicU64::new(0), AtomicU64::new(0));
        run_all(&jobs, &limits(8, limit), |_, job| {
            let bytes = job.memory_bytes();
            let now = used.fetch_add(bytes, Ordering::SeqCst) + bytes;
            assert!(now <= limit || now == bytes, "{now} bytes at once");
            most.fetch_max(now, Ordering::SeqCst);
            thread::yield_now();
            used.fetch_sub(bytes, Ordering::SeqCst);
        });
        assert_eq!(most.into_inner(), jobs[0].memory_bytes());
    }
}
