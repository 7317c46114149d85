//! What functions write, what happens to them, and the secrets that they read.

use super::*;
use jiff::Timestamp;

use crate::api::types::{EventQuery, Events, LogQuery, Secret, Secrets, Usage};
use crate::core::secret::{SecretBytes, SecretName};

impl Client {
    /// The last lines of a function's log.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn logs(&self, name: &FunctionName, query: &LogQuery) -> Result<Bytes> {
        let request = bare(Method::GET, &log_path(name, query))?;
        self.bytes(request, QUICK).await
    }

    /// The same, and what is written from now on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn follow_logs(&self, name: &FunctionName, query: &LogQuery) -> Result<Lines> {
        self.follow(&log_path(name, query)).await
    }

    /// What functions use whose names begin so.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn usage(&self, prefix: &str) -> Result<Usage> {
        let mut taken_at = Timestamp::UNIX_EPOCH;
        let open = |page: Usage| {
            taken_at = page.taken_at;
            (page.functions, page.next)
        };
        let functions = self.pages("/v1/usage", prefix, open).await?;
        Ok(Usage { taken_at, functions, next: None })
    }

    /// The last events.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self, query: &EventQuery) -> Result<Events> {
        self.get(&event_path(query)).await
    }

    /// The same, and those that come: each line is an [`EventLine`](super::types::EventLine).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn follow_events(&self, query: &EventQuery) -> Result<Lines> {
        self.follow(&event_path(query)).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn secrets(&self) -> Result<Secrets> {
        self.get("/v1/secrets").await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn set_secret(&self, name: &SecretName, value: &SecretBytes) -> Result<Secret> {
        let request = build(Method::PUT, &format!("/v1/secrets/{name}"))
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(full(value.as_bytes().to_vec()))?;
        self.ask(request, QUICK).await
    }

    /// With `force` also one that functions read.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_secret(&self, name: &SecretName, force: bool) -> Result<()> {
        let request = build(Method::DELETE, &format!("/v1/secrets/{name}?force={force}")).body(empty())?;
        self.bytes(request, QUICK).await.map(drop)
    }
}

fn log_path(name: &FunctionName, query: &LogQuery) -> String {
    let mut path = format!("/v1/functions/{name}/logs?lines={}", query.lines);
    path.extend(query.since.map(|since| format!("&since={since}")));
    path.extend(query.instance.as_ref().map(|instance| format!("&instance={instance}")));
    path
}

fn event_path(query: &EventQuery) -> String {
    let mut path = format!("/v1/events?limit={}", query.limit);
    path.extend(query.function.as_ref().map(|name| format!("&function={name}")));
    path.extend(query.after.map(|after| format!("&after={after}")));
    path.extend(query.since.map(|since| format!("&since={since}")));
    path
}
