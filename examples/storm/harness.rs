//! Runs the experiments. Each combination of setting, policy and seed is a job with its own clock.

use std::{
    future::Future,
    io::{IsTerminal, stderr},
    panic::resume_unwind,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::runtime::Builder;

/// Runs all jobs on all processors and returns the results in the order of the jobs.
pub(crate) fn run_all<J: Sync, R: Send>(
    title: &str,
    jobs: &[J],
    run: impl Fn(&J) -> R + Sync,
) -> Vec<R> {
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut results = Vec::new();
        while let Some((index, job)) = take_next(&next, jobs) {
            results.push((index, run(job)));
            let finished = finished.fetch_add(1, Ordering::Relaxed) + 1;
            print_progress(title, finished, jobs.len());
        }
        results
    };
    let mut results = run_on_all_processors(work);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Runs one experiment under a paused clock, which advances to the next timer when all tasks are idle.
///
/// The layers and the simulation draw all random numbers from this thread's generator. A seed
/// therefore determines all figures.
pub(crate) fn simulate<F: Future>(seed: u64, experiment: F) -> F::Output {
    fastrand::seed(seed);
    let mut runtime = Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs no system resources");
    runtime.block_on(experiment)
}

/// Locks state that the tasks of one experiment share. They run on one thread and never hold the lock
/// across an await point.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

fn take_next<'a, J>(next: &AtomicUsize, jobs: &'a [J]) -> Option<(usize, &'a J)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    jobs.get(index).map(|job| (index, job))
}

fn run_on_all_processors<R: Send>(work: impl Fn() -> Vec<R> + Sync) -> Vec<R> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..processors).map(|_| scope.spawn(&work)).collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results
            .flat_map(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

fn print_progress(title: &str, finished: usize, jobs: usize) {
    let last = finished == jobs;
    if stderr().is_terminal() {
        let end = if last { "\n" } else { "" };
        eprint!("\r{title}: {finished} of {jobs} runs{end}");
    } else if last || finished % 10 == 0 {
        eprintln!("{title}: {finished} of {jobs} runs");
    }
}
