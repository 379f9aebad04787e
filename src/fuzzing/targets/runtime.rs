//! A runtime whose clock advances only while all tasks are idle.

use std::{cell::RefCell, future::Future};

use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
}

/// Runs a future to its end, with a paused clock. The runtime is reused, as creating one is slow.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let cached = RUNTIME.with(|runtime| runtime.borrow_mut().take());
    let runtime = cached.unwrap_or_else(|| {
        let mut builder = Builder::new_current_thread();
        builder
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime")
    });
    let output = runtime.block_on(future);
    // Not reached after a panic: the tasks of a failed input are dropped with their runtime.
    RUNTIME.with(|cached| *cached.borrow_mut() = Some(runtime));
    output
}
