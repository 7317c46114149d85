//! Has the kernel's maps looked at now and then, and written again where they differ from what is on record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::access::Access;
use super::steering::Steering;

/// How often the maps are looked at. A look at those of ten thousand functions takes a tenth of a second, and it takes
/// no more than one part in [`SHARE`] of the time.
const LOOK_MIN: Duration = Duration::from_secs(10);
const SHARE: u32 = 500;

/// How long until what the kernel did not take is tried again: at first, and at last.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// When to look next.
#[derive(Debug)]
struct Pace {
    retry: Duration,
}

impl Pace {
    const fn new() -> Self {
        Self { retry: RETRY_MIN }
    }

    /// After a look that took so long.
    fn next(&mut self, is_behind: bool, took: Duration) -> Duration {
        if !is_behind {
            self.retry = RETRY_MIN;
            return LOOK_MIN.max(took.saturating_mul(SHARE));
        }
        let pause = self.retry;
        self.retry = RETRY_MAX.min(self.retry * 2);
        pause
    }
}

/// Looks after the maps until it is aborted.
pub async fn watch(access: Arc<Access>, steering: Arc<Steering>) {
    let mut pace = Pace::new();
    let mut pause = LOOK_MIN;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Whoever made the change has tried again by himself.
            () = access.late().notified() => tokio::time::sleep(RETRY_MIN).await,
        }
        let (access, steering) = (Arc::clone(&access), Arc::clone(&steering));
        let began = Instant::now();
        let looked = tokio::task::spawn_blocking(move || look(&access, &steering)).await;
        pause = pace.next(!matches!(looked, Ok(true)), began.elapsed());
    }
}

/// Whether everything is as it should be.
fn look(access: &Access, steering: &Steering) -> bool {
    let policy = access.reconcile();
    let routes = steering.reconcile().map_err(anyhow::Error::from);
    let is_right = |followed: anyhow::Result<super::steering::Following>| match followed {
        Ok(following) => following.behind == 0,
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "the kernel's maps cannot be looked at");
            false
        }
    };
    // Both are to be heard.
    let all = [policy, routes].map(is_right);
    all.into_iter().all(|is_right| is_right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_is_tried_ever_less_often_and_looks_cost_little() {
        let mut pace = Pace::new();
        let short = Duration::from_millis(1);
        assert_eq!(pace.next(false, short), LOOK_MIN);
        assert_eq!(pace.next(false, Duration::from_millis(200)), Duration::from_secs(100));
        let tried: Vec<u64> = (0..8).map(|_| pace.next(true, short).as_secs()).collect();
        assert_eq!(tried, [1, 2, 4, 8, 16, 32, 60, 60]);
        pace.next(false, short);
        assert_eq!(pace.next(true, short), RETRY_MIN);
    }
}
