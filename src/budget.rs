//! Retry budgets.

use std::{fmt, num::NonZeroU32};

use tower::retry::budget::Budget;

use crate::{
    invalid_config::InvalidConfig,
    sync::{Arc, AtomicU32, AtomicU64, Ordering},
};

/// A token budget that limits the retries of all requests that share it.
///
/// The budget starts full. Each retry withdraws [`cost`](Self::new) tokens. If the balance is too low,
/// the retry is not made
/// ([`GiveUpReason::BudgetExhausted`](crate::GiveUpReason::BudgetExhausted)). A response that is not a
/// retryable failure deposits tokens: 1 token after a first attempt, and the cost of the retry after a
/// retry. A 404 counts too, as the server is alive. During an outage there are no such responses, and
/// the retries stop. This prevents retries from sustaining the outage: see Bronson et al., "Metastable
/// Failures in Distributed Systems", HotOS 2021.
///
/// Two kinds of retries are free: after a 429 with a positive `Retry-After`, since the server chose the
/// time, and after a graceful HTTP/2 GOAWAY (NO_ERROR) that left the request unprocessed. A response to
/// a free retry deposits 1 token.
///
/// The default is a capacity of 50 and a cost of 10. With it, 5 of 100 requests that fail at the same
/// moment are retried.
///
/// A retry that is never sent is refunded: the call is dropped before the retry starts, the rate gate
/// rejects it, the inner service returns an error from `poll_ready`, or the failed response's body
/// contains `invalid_token`. A retry that is sent and fails is not refunded. While the budget is full, a
/// deposit does not write to shared memory.
///
/// Clones share the tokens. Each [`RetryLayer`](crate::RetryLayer) has its own budget by default. Pass
/// clones of one budget to several layers to share it.
///
/// # Examples
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
    state: Arc<BudgetState>,
}

/// The state that all clones of a budget share.
struct BudgetState {
    tokens: Tokens,
    withdrawals: AtomicU64,
    overdrafts: AtomicU64,
}

enum Tokens {
    Own(TokenBucket),
    Tower(Box<dyn Budget + Send + Sync>),
}

impl RetryBudget {
    /// Creates a full budget of `capacity` tokens. Each retry costs `cost` tokens.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidConfig`] if `cost` exceeds `capacity`, as no retry would be possible.
    pub fn new(capacity: NonZeroU32, cost: NonZeroU32) -> Result<Self, InvalidConfig> {
        if cost > capacity {
            let message =
                format!("a retry costs {cost} tokens, but the capacity is {capacity} tokens");
            return Err(InvalidConfig::new("budget", message));
        }
        Ok(Self::from_tokens(Tokens::Own(TokenBucket::new(
            capacity.get(),
            cost,
        ))))
    }

    /// Creates a budget from one of tower's budgets, for example
    /// [`TpsBudget`](tower::retry::budget::TpsBudget).
    ///
    /// Each retry is one withdrawal, and each response that is not a retryable failure is one deposit.
    /// tower's trait has no refund: a retry that is cancelled before it is sent stays withdrawn.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower::retry::budget::TpsBudget;
    /// use tower_http_retry::{RetryBudget, RetryPolicy};
    ///
    /// let budget = RetryBudget::from_tower(TpsBudget::default());
    /// assert_eq!(budget.balance(), None); // not available
    /// let policy = RetryPolicy::new().budget(budget);
    /// ```
    pub fn from_tower(budget: impl Budget + Send + Sync + 'static) -> Self {
        Self::from_tokens(Tokens::Tower(Box::new(budget)))
    }

    fn from_tokens(tokens: Tokens) -> Self {
        Self {
            state: Arc::new(BudgetState {
                tokens,
                withdrawals: AtomicU64::new(0),
                overdrafts: AtomicU64::new(0),
            }),
        }
    }

    /// Returns the current number of tokens, or `None` for a budget created by
    /// [`from_tower`](Self::from_tower), whose balance is not available.
    pub fn balance(&self) -> Option<u32> {
        match &self.state.tokens {
            Tokens::Own(bucket) => Some(bucket.balance()),
            Tokens::Tower(_) => None,
        }
    }

    /// Returns the number of successful withdrawals since the budget was created, including refunded
    /// ones.
    pub fn withdrawals(&self) -> u64 {
        self.state.withdrawals.load(Ordering::Relaxed)
    }

    /// Returns the number of withdrawals that failed since the budget was created because the balance
    /// was too low.
    pub fn overdrafts(&self) -> u64 {
        self.state.overdrafts.load(Ordering::Relaxed)
    }

    /// Withdraws the cost of one retry. Returns `None` if the balance is too low.
    pub(crate) fn try_withdraw(&self) -> Option<Withdrawal> {
        let paid = match &self.state.tokens {
            Tokens::Own(bucket) => bucket.withdraw(),
            Tokens::Tower(budget) => budget.withdraw(),
        };
        let count = match paid {
            true => &self.state.withdrawals,
            false => &self.state.overdrafts,
        };
        count.fetch_add(1, Ordering::Relaxed);
        // Constructed only on success, as dropping it refunds the cost.
        paid.then(|| Withdrawal {
            budget: self.clone(),
            spent: false,
        })
    }

    /// Deposits tokens for a response that is not a retryable failure: the cost of a retry if
    /// `refund_retry` is set, otherwise 1.
    #[inline]
    pub(crate) fn deposit(&self, refund_retry: bool) {
        match &self.state.tokens {
            Tokens::Own(bucket) => bucket.deposit(match refund_retry {
                true => bucket.cost.get(),
                false => 1,
            }),
            Tokens::Tower(budget) => budget.deposit(),
        }
    }
}

/// An implementation of tower's budget, to share one budget with a policy of tower's own retry layer.
///
/// A deposit adds 1 token. A withdrawal takes the cost of one retry and is never refunded, as tower's
/// trait cannot report a retry that succeeded or was never sent.
///
/// # Examples
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
        // Calls the inherent method.
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
        Self::from_tokens(Tokens::Own(TokenBucket::new(50, COST)))
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

/// The cost of one retry, refunded on drop unless it is spent.
pub(crate) struct Withdrawal {
    budget: RetryBudget,
    spent: bool,
}

impl Withdrawal {
    /// Keeps the withdrawal on drop, as the retry is sent.
    pub(crate) fn spend(mut self) {
        self.spent = true;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if let (false, Tokens::Own(bucket)) = (self.spent, &self.budget.state.tokens) {
            bucket.deposit(bucket.cost.get());
        }
    }
}

/// A counter of tokens that stays between 0 and the capacity under concurrent use.
pub(crate) struct TokenBucket {
    tokens: AtomicU32,
    capacity: u32,
    cost: NonZeroU32,
}

// `Relaxed` suffices, as the counter guards no other memory.
impl TokenBucket {
    pub(crate) fn new(capacity: u32, cost: NonZeroU32) -> Self {
        Self {
            tokens: AtomicU32::new(capacity),
            capacity,
            cost,
        }
    }

    pub(crate) fn balance(&self) -> u32 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Takes the cost of one retry. Returns `false` and takes nothing if the balance is too low.
    pub(crate) fn withdraw(&self) -> bool {
        self.update(|balance| balance.checked_sub(self.cost.get()))
    }

    /// Adds tokens up to the capacity. A full bucket is not written to.
    #[inline]
    pub(crate) fn deposit(&self, tokens: u32) {
        self.update(|balance| {
            (balance < self.capacity).then(|| balance.saturating_add(tokens).min(self.capacity))
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
    fn new_rejects_cost_above_capacity() {
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
    fn withdraws_until_empty_and_counts_withdrawals() {
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
        // Two of the five were sent, and three refunded.
        assert_eq!(budget.balance(), Some(30));
        budget.deposit(false);
        assert_eq!(budget.balance(), Some(31));
        budget.deposit(true);
        assert_eq!(budget.balance(), Some(41));
    }

    #[test]
    fn from_tower_delegates_without_refund() {
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
        fn balance_stays_between_zero_and_capacity(
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
    fn concurrent_withdrawals_never_overdraw() {
        loom::model(|| {
            // Enough for two of the three withdrawals.
            let bucket = Arc::new(TokenBucket::new(5, COST));
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let bucket = bucket.clone();
                    thread::spawn(move || u32::from(bucket.withdraw()))
                })
                .collect();
            let own = u32::from(bucket.withdraw());
            let paid: u32 = others.into_iter().map(|other| other.join().unwrap()).sum();
            assert_eq!(own + paid, 2);
            assert_eq!(bucket.balance(), 1);
        });
    }

    #[test]
    fn concurrent_deposits_are_not_lost() {
        loom::model(|| {
            let bucket = Arc::new(TokenBucket::new(4, COST));
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
            assert_eq!(bucket.balance(), 4);
        });
    }
}
