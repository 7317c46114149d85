//! How fast things may be changed, by all callers together. Whoever asks too often is told when to ask again, before
//! anything is read or done.

use std::num::NonZeroU32;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::{ApiError, handlers};

/// Changes a second, when nobody says how many.
pub const WRITES_PER_SECOND: NonZeroU32 = NonZeroU32::new(200).unwrap();

/// A bucket that holds the changes of two seconds.
pub(super) type Bucket = Arc<DefaultDirectRateLimiter>;

pub(super) fn bucket(writes_per_second: NonZeroU32) -> Bucket {
    let burst = writes_per_second.saturating_add(writes_per_second.get());
    Arc::new(RateLimiter::direct(Quota::per_second(writes_per_second).allow_burst(burst)))
}

/// Lets reads and invocations pass, which change nothing of the platform's.
pub(super) async fn throttle(State(bucket): State<Bucket>, request: Request<Body>, next: Next) -> Response {
    let is_read = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    if is_read || is_invocation(request.uri().path()) {
        return next.run(request).await;
    }
    match bucket.check() {
        Ok(()) => next.run(request).await,
        Err(early) => {
            let pause = early.wait_time_from(DefaultClock::default().now());
            // A client that still writes when the connection closes would not see the answer.
            handlers::discard(request.into_body()).await;
            ApiError::TooMany { seconds: pause.as_secs() + 1 }.into_response()
        }
    }
}

/// `/v1/functions/NAME/invoke…`
pub(super) fn is_invocation(path: &str) -> bool {
    let mut parts = path.strip_prefix("/v1/functions/").into_iter().flat_map(|rest| rest.split('/'));
    parts.next().is_some() && parts.next() == Some("invoke")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invocations_are_no_changes() {
        for path in ["/v1/functions/a/invoke", "/v1/functions/a/invoke/", "/v1/functions/a/invoke/x/y"] {
            assert!(is_invocation(path), "{path}");
        }
        for path in
            ["/v1/functions/invoke", "/v1/functions/a", "/v1/functions/a/rollback", "/v1/peers/invoke"]
        {
            assert!(!is_invocation(path), "{path}");
        }
    }

    #[test]
    fn a_bucket_is_emptied_by_a_burst() {
        let bucket = bucket(NonZeroU32::new(5).unwrap());
        let passed = (0..30).take_while(|_| bucket.check().is_ok()).count();
        assert!((10..30).contains(&passed), "{passed}");
    }
}
