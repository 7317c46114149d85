//! What requests carry, read within limits, and described for the document.

use aide::OperationInput;
use aide::generate::GenContext;
use aide::openapi::{Operation, ReferenceOr};
use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::handlers::within;
use super::{ApiError, QUICK};
use crate::api::condition::Condition;
use crate::api::types::JSON_BYTES_MAX;

/// A JSON body. Its media type must say so: a browser then asks before it sends one from a foreign page, and a page
/// that a peer looks at cannot join in the peer's stead.
#[derive(Debug)]
pub(super) struct Sent<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Sent<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let media_type = request.headers().get(header::CONTENT_TYPE);
        let media_type = media_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        if media_type.split(';').next().map(str::trim) != Some("application/json") {
            return Err(ApiError::MediaType);
        }
        let collected = async { Ok(Limited::new(request.into_body(), JSON_BYTES_MAX).collect().await) };
        let bytes = match within(QUICK, "sending the request", collected).await? {
            Ok(body) => body.to_bytes(),
            Err(e) if e.is::<LengthLimitError>() => {
                return Err(ApiError::TooLarge { what: "the request", limit_bytes: JSON_BYTES_MAX as u64 });
            }
            Err(e) => return Err(ApiError::invalid(format!("the request broke off: {e}"))),
        };
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|e| ApiError::invalid(format!("the request is not understood: {e}")))
    }
}

impl<T: JsonSchema> OperationInput for Sent<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        Json::<T>::operation_input(context, operation);
    }
}

/// A query, each of whose keys is known.
#[derive(Debug)]
pub(super) struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Query(query) = Query::<T>::try_from_uri(&parts.uri).map_err(|e| {
            let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            ApiError::invalid(format!("the query is not understood: {why}"))
        })?;
        Ok(Self(query))
    }
}

impl<T: JsonSchema> OperationInput for Asked<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        Query::<T>::operation_input(context, operation);
    }
}

/// What must hold for a write to happen.
#[derive(Debug)]
pub(super) struct If(pub Condition);

impl<S: Send + Sync> FromRequestParts<S> for If {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let text = |name: &header::HeaderName| {
            let value = parts.headers.get(name).map(|value| value.to_str());
            value.transpose().map_err(|_| ApiError::invalid(format!("{name} has characters that no tag has")))
        };
        let (tags, none) = (text(&header::IF_MATCH)?, text(&header::IF_NONE_MATCH)?);
        Condition::parse(tags, none).map(Self).map_err(|e| ApiError::invalid(e.to_string()))
    }
}

impl OperationInput for If {
    fn operation_input(_: &mut GenContext, operation: &mut Operation) {
        for (name, description) in [
            ("If-Match", "The ETag of what is to be changed, or `*`: there must be something"),
            ("If-None-Match", "`*`: there must be nothing yet"),
        ] {
            let parameter = serde_json::json!({
                "name": name, "in": "header", "description": description, "schema": { "type": "string" },
            });
            operation.parameters.extend(serde_json::from_value(parameter).ok().map(ReferenceOr::Item));
        }
    }
}
