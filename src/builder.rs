use tower::ServiceBuilder;
use tower_layer::Stack;

use crate::{error_for_status::ErrorForStatusLayer, policy::RetryPolicy, retry::RetryLayer};

mod sealed {
    pub trait Sealed<L> {}

    impl<L> Sealed<L> for tower::ServiceBuilder<L> {}
}

/// Extension trait that adds this crate's middleware to [`tower::ServiceBuilder`].
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use std::time::Duration;
/// use tower::ServiceBuilder;
/// use tower_http_retry::{RetryPolicy, ServiceBuilderExt as _};
///
/// # fn stack() -> impl tower::Service<http::Request<Full<Bytes>>> {
/// ServiceBuilder::new()
///     .error_for_status()
///     .http_retry(RetryPolicy::new())
///     .timeout(Duration::from_secs(10)) // each attempt
///     .service(Client::builder(TokioExecutor::new()).build_http())
/// # }
/// ```
pub trait ServiceBuilderExt<L>: sealed::Sealed<L> + Sized {
    /// Retries failed HTTP requests, with a [`RetryLayer`].
    ///
    /// It is not called `retry`: with tower's feature `retry`, which this crate enables, the method
    /// `ServiceBuilder::retry` of tower takes precedence.
    fn http_retry<C>(self, policy: RetryPolicy<C>) -> ServiceBuilder<Stack<RetryLayer<C>, L>>;

    /// Turns 4xx and 5xx responses into errors, with an [`ErrorForStatusLayer`].
    fn error_for_status(self) -> ServiceBuilder<Stack<ErrorForStatusLayer, L>>;
}

impl<L> ServiceBuilderExt<L> for ServiceBuilder<L> {
    fn http_retry<C>(self, policy: RetryPolicy<C>) -> ServiceBuilder<Stack<RetryLayer<C>, L>> {
        self.layer(RetryLayer::new(policy))
    }

    fn error_for_status(self) -> ServiceBuilder<Stack<ErrorForStatusLayer, L>> {
        self.layer(ErrorForStatusLayer::new())
    }
}
