//! Answers that are more than a body.

use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{Operation, Response as Described};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::api::condition::etag;
use crate::api::types::{Function, UNCHANGED_HEADER};

/// A function with its tag.
#[derive(Debug)]
pub(super) struct Tagged(pub Function);

/// What became of a deploy.
#[derive(Debug)]
pub(super) struct Deployed {
    pub function: Function,
    /// The tag of what was there before.
    pub before: Option<String>,
}

impl IntoResponse for Tagged {
    fn into_response(self) -> Response {
        let tag = etag(&self.0);
        ([(header::ETAG, tag)], Json(self.0)).into_response()
    }
}

impl IntoResponse for Deployed {
    fn into_response(self) -> Response {
        let is_new = self.before.is_none();
        // Whatever is changed gets another tag, so that the same one as before says that nothing was.
        let is_unchanged = self.before.as_ref() == Some(&etag(&self.function));
        let mut response = Tagged(self.function).into_response();
        if is_new {
            *response.status_mut() = StatusCode::CREATED;
        }
        if is_unchanged {
            response.headers_mut().insert(UNCHANGED_HEADER, HeaderValue::from_static("true"));
        }
        response
    }
}

fn described(
    context: &mut GenContext,
    operation: &mut Operation,
    headers: &[(&str, &str)],
) -> Option<Described> {
    let mut answer = Json::<Function>::operation_response(context, operation)?;
    for (name, description) in headers {
        let header = json!({ "description": description, "schema": { "type": "string" } });
        answer.headers.extend(serde_json::from_value(header).ok().map(|header| ((*name).to_owned(), header)));
    }
    Some(answer)
}

const TAG: (&str, &str) = ("ETag", "Of what is declared, for If-Match");

impl OperationOutput for Tagged {
    type Inner = Function;

    fn inferred_responses(
        context: &mut GenContext,
        operation: &mut Operation,
    ) -> Vec<(Option<u16>, Described)> {
        described(context, operation, &[TAG]).map(|answer| (Some(200), answer)).into_iter().collect()
    }
}

impl OperationOutput for Deployed {
    type Inner = Function;

    fn inferred_responses(
        context: &mut GenContext,
        operation: &mut Operation,
    ) -> Vec<(Option<u16>, Described)> {
        let unchanged = (UNCHANGED_HEADER, "`true` if all was declared like that already");
        let found = described(context, operation, &[TAG, unchanged]).map(|answer| (Some(200), answer));
        let made = described(context, operation, &[TAG]).map(|answer| {
            (Some(201), Described { description: "It was not there before".to_owned(), ..answer })
        });
        found.into_iter().chain(made).collect()
    }
}
