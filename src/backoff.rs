//! Backoff strategies.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The delays of one request, in order: each item is the delay before one retry.
///
/// Retries stop when the iterator ends.
pub type Delays = Box<dyn Iterator<Item = Duration> + Send>;

/// A backoff strategy: creates the delays of each request that is retried.
///
/// The server's `Retry-After` is added to each delay. [`backoff_fn`] turns a closure that returns an
/// iterator into a strategy, which supports the builders of the crate `backon`. The trait is object
/// safe and implemented for `&T`, `Box<T>` and `Arc<T>`.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_http_retry::{Backoff, Delays, RetryPolicy};
///
/// /// Delays of 1 s, 2 s, 3 s and so on.
/// #[derive(Debug)]
/// struct Linear;
///
/// impl Backoff for Linear {
///     fn delays(&self) -> Delays {
///         Box::new((1..).map(Duration::from_secs))
///     }
/// }
///
/// let policy = RetryPolicy::new().backoff(Linear);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a backoff strategy",
    label = "not a backoff strategy",
    note = "wrap a closure that returns an iterator of `Duration` in `backoff_fn`"
)]
pub trait Backoff: fmt::Debug + Send + Sync {
    /// Returns the delays of one request.
    fn delays(&self) -> Delays;
}

impl<T: Backoff + ?Sized> Backoff for &T {
    fn delays(&self) -> Delays {
        (**self).delays()
    }
}

impl<T: Backoff + ?Sized> Backoff for Box<T> {
    fn delays(&self) -> Delays {
        (**self).delays()
    }
}

impl<T: Backoff + ?Sized> Backoff for Arc<T> {
    fn delays(&self) -> Delays {
        (**self).delays()
    }
}

/// Creates a backoff strategy from a closure that returns the delays of one request.
///
/// # Examples
///
/// ```
/// use backon::{BackoffBuilder, FibonacciBuilder};
/// use std::time::Duration;
/// use tower_http_retry::{Backoff, RetryPolicy, backoff_fn};
///
/// let constant = backoff_fn(|| std::iter::repeat(Duration::from_millis(50)));
/// assert_eq!(constant.delays().next(), Some(Duration::from_millis(50)));
///
/// let fibonacci = backoff_fn(|| FibonacciBuilder::default().with_jitter().build());
/// let policy = RetryPolicy::new().backoff(fibonacci);
/// ```
pub fn backoff_fn<F, I>(delays: F) -> BackoffFn<F>
where
    F: Fn() -> I + Send + Sync,
    I: Iterator<Item = Duration> + Send + 'static,
{
    BackoffFn(delays)
}

/// A backoff strategy made from a closure, returned by [`backoff_fn`].
#[derive(Clone, Copy)]
pub struct BackoffFn<F>(F);

impl<F, I> Backoff for BackoffFn<F>
where
    F: Fn() -> I + Send + Sync,
    I: Iterator<Item = Duration> + Send + 'static,
{
    fn delays(&self) -> Delays {
        Box::new((self.0)())
    }
}

impl<F> fmt::Debug for BackoffFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackoffFn").finish_non_exhaustive()
    }
}

/// Exponential backoff with full jitter.
///
/// The delay before retry `n` (0, 1, 2 …) is drawn uniformly from `0 ..= min(cap, base · 2ⁿ)`. Jitter
/// is applied after the cap, and therefore no delay exceeds it. The delays never end: the policy limits
/// the number of retries. Each request draws its own delays.
///
/// The default is a base of 100 ms and a cap of 10 s. All values are valid: with a base of zero every
/// delay is zero, and a base above the cap draws from `0 ..= cap`. Full jitter needed the fewest calls
/// of the variants compared in
/// [Exponential Backoff And Jitter](https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/)
/// (AWS, 2015).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_http_retry::{Backoff, ExponentialBackoff};
///
/// let backoff = ExponentialBackoff::new(Duration::from_millis(20), Duration::from_secs(1));
/// assert!(backoff.delays().take(100).all(|delay| delay <= Duration::from_secs(1)));
/// ```
#[derive(Clone)]
pub struct ExponentialBackoff {
    base: Duration,
    cap: Duration,
    seed: Option<Seed>,
}

impl ExponentialBackoff {
    /// Creates a backoff whose first delay is at most `base` and whose delays never exceed `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            seed: None,
        }
    }

    /// Makes the delays deterministic, for tests and simulations.
    ///
    /// The n-th request that needs a delay gets the n-th sequence of this seed. All clones share the
    /// count of requests.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(Seed {
            seed,
            requests: Arc::default(),
        });
        self
    }

    /// Returns the maximum delay before retry `n`.
    fn ceiling(&self, n: u32) -> Duration {
        // `saturating_mul` takes a `u32`: at most 31 doublings per step.
        let mut ceiling = self.base;
        let mut doublings = n;
        while doublings > 0 && ceiling < self.cap && !ceiling.is_zero() {
            let step = doublings.min(31);
            ceiling = ceiling.saturating_mul(1 << step);
            doublings -= step;
        }
        ceiling.min(self.cap)
    }
}

impl Default for ExponentialBackoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }
}

impl fmt::Debug for ExponentialBackoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExponentialBackoff")
            .field("base", &self.base)
            .field("cap", &self.cap)
            .field("seed", &self.seed.as_ref().map(|seed| seed.seed))
            .finish()
    }
}

impl Backoff for ExponentialBackoff {
    fn delays(&self) -> Delays {
        let backoff = self.clone();
        let mut rng = match &self.seed {
            Some(seed) => seed.next(),
            None => fastrand::Rng::new(),
        };
        let mut retry = 0_u32;
        Box::new(std::iter::from_fn(move || {
            let ceiling = backoff.ceiling(retry);
            retry = retry.saturating_add(1);
            Some(jitter(ceiling, &mut rng))
        }))
    }
}

/// A seed, and the number of requests that have drawn from it.
#[derive(Clone)]
struct Seed {
    seed: u64,
    requests: Arc<AtomicU64>,
}

impl Seed {
    /// Returns the generator for the next request.
    fn next(&self) -> fastrand::Rng {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        // Mixed twice: seeds and requests that differ by a constant do not share generators.
        fastrand::Rng::with_seed(splitmix64(splitmix64(self.seed) ^ request))
    }
}

/// Returns the output of SplitMix64 for a state: a bijection that spreads each bit over all others.
///
/// From Steele, Lea and Flood, [Fast Splittable Pseudorandom Number Generators] (OOPSLA 2014), with the
/// constants of [splitmix64.c] (Vigna, 2015).
///
/// [Fast Splittable Pseudorandom Number Generators]: https://doi.org/10.1145/2660193.2660195
/// [splitmix64.c]: https://prng.di.unimi.it/splitmix64.c
fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Draws a delay uniformly from `0 ..= ceiling`.
fn jitter(ceiling: Duration, rng: &mut fastrand::Rng) -> Duration {
    const NANOS_PER_SEC: u128 = 1_000_000_000;
    let nanos = rng.u128(0..=ceiling.as_nanos());
    // Neither cast truncates, as the draw does not exceed a `Duration`.
    Duration::new(
        (nanos / NANOS_PER_SEC) as u64,
        (nanos % NANOS_PER_SEC) as u32,
    )
}

/// The exponential backoff of the crate `backoff`, cloned and reset for each request.
///
/// Its `max_elapsed_time` starts at the first retry and uses the system's clock, not tokio's.
#[cfg(feature = "backoff")]
#[cfg_attr(docsrs, doc(cfg(feature = "backoff")))]
impl<C> Backoff for ::backoff::exponential::ExponentialBackoff<C>
where
    C: ::backoff::Clock + Clone + fmt::Debug + Send + Sync + 'static,
{
    fn delays(&self) -> Delays {
        use ::backoff::backoff::Backoff as _;

        let mut backoff = self.clone();
        backoff.reset();
        Box::new(std::iter::from_fn(move || backoff.next_backoff()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashSet};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn ceiling_doubles_up_to_cap_without_overflow() {
        let default = ExponentialBackoff::default();
        let ceilings: Vec<_> = (0..9).map(|n| default.ceiling(n).as_millis()).collect();
        assert_eq!(
            ceilings,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        for n in [31, 32, 33, 64, 1000, 4_000_000_000, u32::MAX] {
            assert_eq!(default.ceiling(n), Duration::from_secs(10), "retry {n}");
            let unbounded = ExponentialBackoff::new(MS, Duration::MAX);
            assert!(
                unbounded.ceiling(n) >= MS.saturating_mul(1 << 31),
                "retry {n}"
            );
        }
        let nanos = ExponentialBackoff::new(Duration::from_nanos(1), Duration::from_secs(3600));
        assert_eq!(nanos.ceiling(40), Duration::from_nanos(1 << 40));
        assert_eq!(nanos.ceiling(4_000_000_000), Duration::from_secs(3600));
        let zero_base = ExponentialBackoff::new(Duration::ZERO, Duration::MAX);
        assert_eq!(zero_base.ceiling(4_000_000_000), Duration::ZERO);
    }

    #[test]
    fn requests_draw_different_delays_with_and_without_seed() {
        for backoff in [
            ExponentialBackoff::default(),
            ExponentialBackoff::default().with_seed(7),
        ] {
            let first: Vec<_> = backoff.delays().take(8).collect();
            let second: Vec<_> = backoff.clone().delays().take(8).collect();
            assert_ne!(first, second);
        }
    }

    #[test]
    fn same_seed_reproduces_delays() {
        let run = |seed| {
            let backoff = ExponentialBackoff::default().with_seed(seed);
            let requests = (0..4).flat_map(|_| backoff.delays().take(5));
            requests.collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn splitmix64_matches_reference_output() {
        // The first outputs of splitmix64.c for the state 1234567.
        let gamma = 0x9e37_79b9_7f4a_7c15_u64;
        let state = |n: u64| gamma.wrapping_mul(n).wrapping_add(1_234_567);
        assert_eq!(splitmix64(state(0)), 6_457_827_717_110_365_317);
        assert_eq!(splitmix64(state(1)), 3_203_168_211_198_807_973);
        assert_eq!(splitmix64(state(2)), 9_817_491_932_198_370_423);
    }

    #[cfg(feature = "backoff")]
    #[test]
    fn backoff_crate_strategies_restart_for_each_request() {
        let exponential = ::backoff::ExponentialBackoff {
            randomization_factor: 0.0,
            ..Default::default()
        };
        for _ in 0..2 {
            let delays: Vec<_> = exponential.delays().take(2).collect();
            assert_eq!(delays, [500 * MS, 750 * MS]);
        }
        use ::backoff::backoff::Backoff as _;
        let stop = backoff_fn(|| {
            let mut stop = ::backoff::backoff::Stop {};
            std::iter::from_fn(move || stop.next_backoff())
        });
        assert_eq!(stop.delays().next(), None);
    }

    #[test]
    fn backon_builders_restart_for_each_request() {
        use backon::{BackoffBuilder, ConstantBuilder};

        let backoff = backoff_fn(|| ConstantBuilder::default().with_max_times(2).build());
        assert_eq!(backoff.delays().count(), 2);
        assert_eq!(backoff.delays().count(), 2);
    }

    proptest! {
        #[test]
        fn delays_never_exceed_ceiling_or_cap(
            base in prop_oneof![
                0u64..1000,
                (1u64..20).prop_map(|s| s * 1_000_000_000),
                any::<u64>(),
            ],
            cap in any::<u64>(),
            seed: u64,
        ) {
            let (base, cap) = (Duration::from_nanos(base), Duration::from_nanos(cap));
            let backoff = ExponentialBackoff::new(base, cap).with_seed(seed);
            for (n, delay) in (0..).zip(backoff.delays().take(40)) {
                prop_assert!(delay <= backoff.ceiling(n) && delay <= cap);
            }
        }

        #[test]
        fn distinct_seeds_and_requests_draw_distinct_delays(
            seed: u64,
            other: u64,
            bit in 0u32..64,
            step in 1u64..100,
        ) {
            let seeds = BTreeSet::from([
                seed,
                other,
                seed ^ (1 << bit),
                seed.wrapping_add(1 << bit),
                seed ^ (step << 32),
                seed.wrapping_add(step),
                seed.rotate_left(32),
            ]);
            let mut firsts = HashSet::new();
            for seed in seeds {
                let backoff = ExponentialBackoff::default().with_seed(seed);
                for request in 0..100 {
                    let delays: Vec<_> = backoff.delays().take(4).collect();
                    prop_assert!(firsts.insert(delays), "seed {}, request {}", seed, request);
                }
            }
        }

        #[test]
        fn bases_of_whole_seconds_are_jittered(seconds in 1u64..5, seed: u64) {
            let base = Duration::from_secs(seconds);
            let backoff = ExponentialBackoff::new(base, Duration::from_secs(60)).with_seed(seed);
            let firsts: Vec<_> = (0..64).filter_map(|_| backoff.delays().next()).collect();
            prop_assert!(firsts.iter().any(|delay| *delay < base / 2));
            prop_assert!(firsts.iter().any(|delay| *delay > base / 2));
            prop_assert!(firsts.iter().any(|delay| delay.subsec_nanos() != 0));
        }
    }
}
