//! Responses that do not end by themselves: lines, as they come.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Extension;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{BoxStream, StreamExt, unfold};
use tokio::sync::OwnedSemaphorePermit;

use super::handlers::Result;
use super::serve::Stopping;
use super::{Api, ApiError, FOLLOWERS_MAX};

/// A blank line is sent when nothing has been for so long: writing is how it is found out that nobody reads any longer.
const PULSE: Duration = Duration::from_secs(15);

/// What is said when the daemon ends.
const GOODBYE: &str = "faasd is stopping";

struct Following {
    lines: BoxStream<'static, String>,
    goodbye: fn(&str) -> String,
    stopping: Option<Stopping>,
    _room: OwnedSemaphorePermit,
}

/// Sends lines until there are no more, nobody reads them or the daemon stops, which `goodbye` makes the last line of.
pub(super) fn respond(
    api: &Api,
    stopping: Option<Extension<Stopping>>,
    media_type: &'static str,
    lines: BoxStream<'static, String>,
    goodbye: fn(&str) -> String,
) -> Result<Response> {
    let room =
        std::sync::Arc::clone(&api.followers).try_acquire_owned().map_err(|_| ApiError::Unavailable {
            title: format!("{FOLLOWERS_MAX} clients follow logs or events already"),
            detail: Some("end one of them first".into()),
        })?;
    let following =
        Following { lines, goodbye, stopping: stopping.map(|Extension(stopping)| stopping), _room: room };
    let body = unfold(Some(following), |following| async {
        let mut following = following?;
        let Following { lines, goodbye, stopping, .. } = &mut following;
        let mut line = tokio::select! {
            line = lines.next() => line?,
            () = tokio::time::sleep(PULSE) => String::new(),
            () = stopped(stopping) => {
                let mut last = goodbye(GOODBYE);
                last.push('\n');
                return Some((Ok::<_, Infallible>(Bytes::from(last)), None));
            }
        };
        line.push('\n');
        Some((Ok(Bytes::from(line)), Some(following)))
    });
    Ok(([(header::CONTENT_TYPE, media_type)], Body::from_stream(body)).into_response())
}

async fn stopped(stopping: &mut Option<Stopping>) {
    match stopping {
        // Told or gone: the end either way. The guard that comes with it cannot be held across an await.
        Some(Stopping(stopping)) => drop(stopping.wait_for(|stopped| *stopped).await),
        None => std::future::pending().await,
    }
}
