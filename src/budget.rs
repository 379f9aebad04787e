//! What all clones of a layer may spend on retries.

use std::{fmt, num::NonZeroU32};

use tower::retry::budget::Budget;

use crate::{
    invalid_config::InvalidConfig,
    sync::{Arc, AtomicU32, AtomicU64, Ordering},
};

/// A budget of tokens that bounds the retries of all requests that share it.
///
/// It starts full. A retry costs [`cost`](Self::new) tokens and is refused where they are not there
/// ([`GiveUpReason::BudgetExhausted`](crate::GiveUpReason::BudgetExhausted)). An answer to a first attempt
/// that is no failure worth retrying (a 404 too: the server is alive) gives 1 token; such an answer to
/// a retry gives back what that retry cost. So retries are paid by such answers, and an outage, which
/// brings none, cannot pay for them: Bronson et al., "Metastable Failures in Distributed Systems", HotOS
/// 2021.
///
/// Free are a retry after a 429 whose `Retry-After` is above zero, since the server set its time, and one
/// of a request that the server handed back unseen when it renewed an HTTP/2 connection (GOAWAY with
/// NO_ERROR); an answer to it counts as one to a first attempt.
///
/// The default is a capacity of 50 and a cost of 10. Its honest limit: of 100 requests that fail at the
/// same moment, 5 are retried.
///
/// A retry that was never sent is refunded: its call was dropped while it waited, the service did not
/// get ready, or the failed response's body said `invalid_token`. One that was sent and failed is not.
/// While the budget is full, a success writes no shared memory.
///
/// Clones share the tokens. Unless one is given, each
/// [`RetryLayer`](crate::RetryLayer) has a budget of its own; a budget given to several layers is
/// shared by them.
///
/// ```
/// use tower_http_retry::{RetryBudget, RetryLayer, RetryPolicy};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let budget = RetryBudget::new(500.try_into()?, 14.try_into()?)?;
/// let layer = RetryLayer::new(RetryPolicy::new().budget(budget.clone()));
/// assert_eq!(budget.balance(), Some(500));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RetryBudget {
    shared: Arc<Shared>,
}

struct Shared {
    tokens: Tokens,
    withdrawals: AtomicU64,
    overdrafts: AtomicU64,
}

enum Tokens {
    Own(Bucket),
    Tower(Box<dyn Budget + Send + Sync>),
}

impl RetryBudget {
    /// A full budget of `capacity` tokens, of which each retry costs `cost`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidConfig`] if `cost` exceeds `capacity`, which would allow no retry at all.
    pub fn new(capacity: NonZeroU32, cost: NonZeroU32) -> Result<Self, InvalidConfig> {
        if cost > capacity {
            let message =
                format!("a retry costs {cost} tokens, but the capacity is {capacity} tokens");
            return Err(InvalidConfig::new("budget", message));
        }
        Ok(Self::of(Tokens::Own(Bucket::new(capacity.get(), cost))))
    }

    /// A budget of tower's, [`TpsBudget`](tower::retry::budget::TpsBudget) for instance.
    ///
    /// Each withdrawal is one retry and each deposit one answer, whatever [`new`](Self::new) says of
    /// tokens. tower's trait has no way to give back, so that a retry that was cancelled before it was
    /// sent is spent.
    ///
    /// ```
    /// use tower::retry::budget::TpsBudget;
    /// use tower_http_retry::{RetryBudget, RetryPolicy};
    ///
    /// let budget = RetryBudget::from_tower(TpsBudget::default());
    /// assert_eq!(budget.balance(), None); // it does not tell
    /// let policy = RetryPolicy::new().budget(budget);
    /// ```
    pub fn from_tower(budget: impl Budget + Send + Sync + 'static) -> Self {
        Self::of(Tokens::Tower(Box::new(budget)))
    }

    fn of(tokens: Tokens) -> Self {
        Self {
            shared: Arc::new(Shared {
                tokens,
                withdrawals: AtomicU64::new(0),
                overdrafts: AtomicU64::new(0),
            }),
        }
    }

    /// The tokens left; `None` for a budget of tower's, which does not tell.
    pub fn balance(&self) -> Option<u32> {
        match &self.shared.tokens {
            Tokens::Own(bucket) => Some(bucket.tokens()),
            Tokens::Tower(_) => None,
        }
    }

    /// How many retries have been paid for since the budget was made, those given back included.
    pub fn withdrawals(&self) -> u64 {
        self.shared.withdrawals.load(Ordering::Relaxed)
    }

    /// How many retries have been refused since the budget was made.
    pub fn overdrafts(&self) -> u64 {
        self.shared.overdrafts.load(Ordering::Relaxed)
    }

    /// Takes what a retry costs; `None` where it is not there.
    pub(crate) fn try_withdraw(&self) -> Option<Withdrawal> {
        let paid = match &self.shared.tokens {
            Tokens::Own(bucket) => bucket.withdraw(),
            Tokens::Tower(budget) => budget.withdraw(),
        };
        let count = match paid {
            true => &self.shared.withdrawals,
            false => &self.shared.overdrafts,
        };
        count.fetch_add(1, Ordering::Relaxed);
        // Made only where it was paid: dropped, it would give back what was never taken.
        paid.then(|| Withdrawal {
            budget: self.clone(),
            spent: false,
        })
    }

    /// An answer came that is no failure worth retrying, to a retry that cost tokens or to another
    /// attempt.
    #[inline]
    pub(crate) fn deposit(&self, refund_retry: bool) {
        match &self.shared.tokens {
            Tokens::Own(bucket) => bucket.deposit(match refund_retry {
                true => bucket.cost.get(),
                false => 1,
            }),
            Tokens::Tower(budget) => budget.deposit(),
        }
    }
}

/// Lets a policy for tower's own retry layer share what this layer may spend.
///
/// A deposit counts as an answer to a first attempt that is no failure, a withdrawal as one retry that
/// is sent. What was withdrawn so does not come back: tower's trait cannot say that a retry has
/// succeeded, or that it was never sent.
///
/// ```
/// use tower::retry::budget::Budget;
/// use tower_http_retry::RetryBudget;
///
/// fn retry_by_hand(budget: &impl Budget) -> bool {
///     budget.withdraw()
/// }
///
/// let budget = RetryBudget::default();
/// assert!(retry_by_hand(&budget));
/// assert_eq!(budget.balance(), Some(40));
/// Budget::deposit(&budget);
/// assert_eq!(budget.balance(), Some(41));
/// ```
impl Budget for RetryBudget {
    fn deposit(&self) {
        // The method of that name above, which is not the trait's.
        Self::deposit(self, false);
    }

    fn withdraw(&self) -> bool {
        let paid = Self::try_withdraw(self);
        paid.map(Withdrawal::spend).is_some()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        const COST: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);
        Self::of(Tokens::Own(Bucket::new(50, COST)))
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget")
            .field("balance", &self.balance())
            .field("withdrawals", &self.withdrawals())
            .field("overdrafts", &self.overdrafts())
            .finish()
    }
}

/// What was taken for one retry; given back unless it is spent.
pub(crate) struct Withdrawal {
    budget: RetryBudget,
    spent: bool,
}

impl Withdrawal {
    /// The retry is on its way.
    pub(crate) fn spend(mut self) {
        self.spent = true;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if let (false, Tokens::Own(bucket)) = (self.spent, &self.budget.shared.tokens) {
            bucket.deposit(bucket.cost.get());
        }
    }
}

/// The tokens themselves: between 0 and the capacity, whatever happens at the same time.
pub(crate) struct Bucket {
    tokens: AtomicU32,
    capacity: u32,
    cost: NonZeroU32,
}

// No other memory hangs on the tokens, so that their order alone matters: relaxed is enough.
impl Bucket {
    pub(crate) fn new(capacity: u32, cost: NonZeroU32) -> Self {
        Self {
            tokens: AtomicU32::new(capacity),
            capacity,
            cost,
        }
    }

    pub(crate) fn tokens(&self) -> u32 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Takes the cost of one retry, or nothing.
    pub(crate) fn withdraw(&self) -> bool {
        self.update(|tokens| tokens.checked_sub(self.cost.get()))
    }

    /// Adds tokens, as far as there is room; where there is none, nothing is written.
    #[inline]
    pub(crate) fn deposit(&self, tokens: u32) {
        self.update(|now| {
            (now < self.capacity).then(|| now.saturating_add(tokens).min(self.capacity))
        });
    }

    #[inline]
    fn update(&self, change: impl FnMut(u32) -> Option<u32>) -> bool {
        let relaxed = Ordering::Relaxed;
        self.tokens.fetch_update(relaxed, relaxed, change).is_ok()
    }
}

#[cfg(all(test, not(retry_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        let new = |capacity: u32, cost: u32| {
            RetryBudget::new(capacity.try_into().unwrap(), cost.try_into().unwrap())
        };
        assert_eq!(
            new(9, 10).unwrap_err().to_string(),
            "budget: a retry costs 10 tokens, but the capacity is 9 tokens"
        );
        assert_eq!(new(10, 10).unwrap().balance(), Some(10));
    }

    #[test]
    fn it_pays_for_as_many_retries_as_it_has_tokens_and_counts_them() {
        let budget = RetryBudget::default();
        let paid: Vec<_> = (0..8).map_while(|_| budget.try_withdraw()).collect();
        assert_eq!(paid.len(), 5);
        assert_eq!(budget.balance(), Some(0));
        assert_eq!((budget.withdrawals(), budget.overdrafts()), (5, 1));
        for (sent, withdrawal) in paid.into_iter().enumerate() {
            match sent {
                0..2 => withdrawal.spend(),
                _ => drop(withdrawal),
            }
        }
        // Of five, two were sent.
        assert_eq!(budget.balance(), Some(30));
        budget.deposit(false);
        assert_eq!(budget.balance(), Some(31));
        budget.deposit(true);
        assert_eq!(budget.balance(), Some(41));
    }

    #[test]
    fn a_budget_of_towers_is_asked_instead_and_gets_nothing_back() {
        use tower::retry::budget::TpsBudget;
        let tps = TpsBudget::new(std::time::Duration::from_secs(10), 0, 1.0);
        let budget = RetryBudget::from_tower(tps);
        assert!(budget.try_withdraw().is_none());
        budget.deposit(false);
        assert!(budget.try_withdraw().is_some());
        assert!(budget.try_withdraw().is_none());
    }

    proptest! {
        #[test]
        fn the_tokens_stay_between_zero_and_the_capacity(
            capacity in 1u32..200,
            cost in 1u32..50,
            steps in proptest::collection::vec((0u8..4, any::<proptest::sample::Index>()), 0..300),
        ) {
            let (full, price) = (capacity.try_into().unwrap(), cost.try_into().unwrap());
            let Ok(budget) = RetryBudget::new(full, price) else { return Ok(()) };
            let mut open = Vec::new();
            let (mut spent, mut given) = (0_u64, 0_u64);
            for (step, index) in steps {
                match step {
                    0 => open.extend(budget.try_withdraw()),
                    1 => {
                        budget.deposit(false);
                        given += 1;
                    }
                    2 => {
                        budget.deposit(true);
                        given += u64::from(cost);
                    }
                    _ if open.is_empty() => {}
                    _ => {
                        let at = index.index(open.len());
                        let withdrawal: Withdrawal = open.swap_remove(at);
                        if at % 2 == 0 {
                            withdrawal.spend();
                            spent += u64::from(cost);
                        }
                    }
                }
                let tokens = budget.balance().unwrap();
                prop_assert!(tokens <= capacity);
                let held = open.len() as u64 * u64::from(cost);
                prop_assert!(u64::from(tokens) + held + spent <= u64::from(capacity) + given);
            }
        }
    }
}

#[cfg(all(test, retry_loom))]
mod model {
    use super::*;
    use loom::thread;

    const COST: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);

    #[test]
    fn no_token_is_spent_twice() {
        loom::model(|| {
            // Enough for two of three.
            let bucket = Arc::new(Bucket::new(5, COST));
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let bucket = bucket.clone();
                    thread::spawn(move || u32::from(bucket.withdraw()))
                })
                .collect();
            let own = u32::from(bucket.withdraw());
            let paid: u32 = others.into_iter().map(|it| it.join().unwrap()).sum();
            assert_eq!(own + paid, 2);
            assert_eq!(bucket.tokens(), 1);
        });
    }

    #[test]
    fn no_refund_is_lost() {
        loom::model(|| {
            let bucket = Arc::new(Bucket::new(4, COST));
            let other = {
                let bucket = bucket.clone();
                thread::spawn(move || {
                    assert!(bucket.withdraw());
                    bucket.deposit(2);
                })
            };
            assert!(bucket.withdraw());
            bucket.deposit(2);
            other.join().unwrap();
            assert_eq!(bucket.tokens(), 4);
        });
    }
}
