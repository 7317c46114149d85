//! The routes of secrets. Values come in; none goes out.

use axum::Json;
use axum::body::{Body, HttpBody};
use axum::extract::{Path, State};
use axum::response::NoContent;
use http_body_util::BodyExt;
use schemars::JsonSchema;
use serde::Deserialize;

use super::extract::Asked;
use super::handlers::{Result, discard, within};
use super::{Api, ApiError, QUICK};
use crate::api::types::{SECRET_BYTES_MAX, Secret, Secrets};
use crate::core::secret::{SecretBytes, SecretName, SecretNameError};

/// How a secret is removed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Removal {
    /// Also if functions read it, of which no instance starts any more then
    #[serde(default)]
    force: bool,
}

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Secrets>> {
    let secrets = within(QUICK, "listing the secrets", api.service.secrets()).await?;
    Ok(Json(Secrets { secrets }))
}

pub(super) async fn set(
    State(api): State<Api>,
    Path(name): Path<String>,
    mut body: Body,
) -> Result<Json<Secret>> {
    let name = parse_name(&name)?;
    let read = within(QUICK, "sending the secret", read(&mut body)).await;
    if matches!(read, Err(ApiError::TooLarge { .. })) {
        discard(body).await;
    }
    within(QUICK, "keeping the secret", api.service.set_secret(&name, read?)).await.map(Json)
}

pub(super) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
    Asked(Removal { force }): Asked<Removal>,
) -> Result<NoContent> {
    let name = parse_name(&name)?;
    within(QUICK, "removing the secret", api.service.remove_secret(&name, force)).await?;
    Ok(NoContent)
}

/// A body into a buffer that is overwritten when it is dropped, and never grows: that would leave a copy behind.
async fn read(body: &mut Body) -> Result<SecretBytes> {
    let too_large = ApiError::TooLarge { what: "the secret", limit_bytes: SECRET_BYTES_MAX as u64 };
    if body.size_hint().lower() > SECRET_BYTES_MAX as u64 {
        return Err(too_large);
    }
    let mut value = SecretBytes::with_capacity(SECRET_BYTES_MAX);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::invalid(format!("the request broke off: {e}")))?;
        if let Ok(data) = frame.into_data()
            && !value.push(&data)
        {
            return Err(too_large);
        }
    }
    Ok(value)
}

fn parse_name(name: &str) -> Result<SecretName> {
    name.parse().map_err(|e: SecretNameError| ApiError::invalid(e.to_string()))
}
