//! The OpenAPI document: what the routes' types say of themselves, and the little that they cannot.

use std::sync::LazyLock;

use aide::openapi::{Info, License, OpenApi};
use aide::transform::TransformOperation;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::handlers::Result;
use super::{local_routes, tunnel_routes};
use crate::api::types::{EventLine, Events, PROBLEM_MEDIA_TYPE};

/// The methods of an invocation that OpenAPI has words for; the route takes any.
const CALLS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// Where a document's named shapes are.
const SCHEMAS: &str = "#/components/schemas/";

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let mut text = format!("{:#}", generate());
    text.push('\n');
    text
});

/// The document, as it is served and checked in.
#[must_use]
pub fn document() -> &'static str {
    &DOCUMENT
}

pub(super) async fn serve() -> Result<Response> {
    Ok(([(header::CONTENT_TYPE, "application/json")], document()).into_response())
}

/// What every operation says: a name for generated clients, and a sentence.
pub(super) fn op<'a>(operation: TransformOperation<'a>, id: &str, summary: &str) -> TransformOperation<'a> {
    operation.id(id).summary(summary)
}

/// Its request is a tar archive.
pub(super) fn archive<'a>(mut operation: TransformOperation<'a>) -> TransformOperation<'a> {
    operation.inner_mut().extensions.insert("requestBody".into(), body("application/x-tar", &binary()));
    operation
}

/// Its answer is text.
pub(super) fn text<'a>(mut operation: TransformOperation<'a>) -> TransformOperation<'a> {
    let answer = answer("Text", "text/plain; charset=utf-8", &json!({ "type": "string" }));
    extend(&mut operation, "200", answer);
    operation
}

/// Its request is bytes that are nobody else's business.
pub(super) fn octets<'a>(mut operation: TransformOperation<'a>) -> TransformOperation<'a> {
    operation
        .inner_mut()
        .extensions
        .insert("requestBody".into(), body("application/octet-stream", &binary()));
    operation
}

/// Its answer is events: a list, or a line for each.
pub(super) fn events<'a>(mut operation: TransformOperation<'a>) -> TransformOperation<'a> {
    let (list, line) = aide::generate::in_context(|context| {
        (context.schema.subschema_for::<Events>(), context.schema.subschema_for::<EventLine>())
    });
    let mut answer = answer("A list, or with `follow` a line for each", "application/json", &json!(list));
    answer["content"]["application/jsonl"] = json!({ "schema": line });
    extend(&mut operation, "200", answer);
    operation
}

/// Its answer is JSON whose shape is not this document's business.
pub(super) fn any_json<'a>(mut operation: TransformOperation<'a>) -> TransformOperation<'a> {
    extend(&mut operation, "200", answer("The document", "application/json", &json!({ "type": "object" })));
    operation
}

fn extend(operation: &mut TransformOperation<'_>, status: &str, answer: Value) {
    let responses = operation.inner_mut().responses.get_or_insert_with(Default::default);
    responses.extensions.insert(status.to_owned(), answer);
}

fn binary() -> Value {
    json!({ "type": "string", "format": "binary" })
}

fn body(media_type: &str, schema: &Value) -> Value {
    json!({ "required": true, "content": { media_type: { "schema": schema } } })
}

fn answer(description: &str, media_type: &str, schema: &Value) -> Value {
    json!({ "description": description, "content": { media_type: { "schema": schema } } })
}

fn problem(status: StatusCode) -> Value {
    let description = status.canonical_reason().unwrap_or("A problem");
    answer(description, PROBLEM_MEDIA_TYPE, &json!({ "$ref": format!("{SCHEMAS}Problem") }))
}

fn generate() -> Value {
    // The library keeps its settings in the thread, draft 7 by default; OpenAPI 3.1 has the dialect of 2020-12.
    aide::generate::reset_context();
    aide::generate::in_context(|context| {
        let settings = SchemaSettings::draft2020_12();
        context.schema = SchemaGenerator::new(settings.with(|s| s.definitions_path = SCHEMAS[1..].into()));
    });
    let mut api = OpenApi { info: info(), ..OpenApi::default() };
    let _ = tunnel_routes().finish_api(&mut api);
    let peers: Vec<String> = api.paths.iter().flat_map(|paths| paths.paths.keys()).cloned().collect();
    let _ = local_routes().finish_api(&mut api);
    let mut document = serde_json::to_value(&api).unwrap_or_default();
    if let Some(paths) = document["paths"].as_object_mut() {
        invocations(paths);
        for (path, item) in paths {
            let peers_only = peers.contains(path);
            for (method, operation) in item.as_object_mut().into_iter().flatten() {
                complete(path, method, operation, peers_only);
            }
        }
    }
    plain(&mut document);
    // The order of keys depends on a feature of serde_json that any dependency may switch on.
    document.sort_all_objects();
    document
}

/// Descriptions are doc comments, whose links lead nowhere here.
fn plain(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(text) if key == "description" => {
                        *text = text.replace("[`", "`").replace("`]", "`");
                    }
                    other => plain(other),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(plain),
        _ => {}
    }
}

fn info() -> Info {
    Info {
        title: "faasd".to_owned(),
        summary: Some("Functions over a private network, with nothing in the way.".to_owned()),
        description: Some(
            "Served on the unix socket /run/faasd/faasd.sock, and to peers with the role `admin` on the server's address in \
             the tunnel. Other peers are served the operations with the tag `tunnel` there, and nothing else. Sizes are bytes, times are RFC 3339 in UTC, \
             durations are milliseconds. Every error is a `Problem`."
                .to_owned(),
        ),
        license: Some(License {
            name: env!("CARGO_PKG_LICENSE").to_owned(),
            identifier: Some(env!("CARGO_PKG_LICENSE").to_owned()),
            ..License::default()
        }),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Info::default()
    }
}

/// Three routes for one thing, of any method: a document has no word for a path with slashes in it.
fn invocations(paths: &mut Map<String, Value>) {
    let mut item = Map::new();
    for method in CALLS {
        let mut operation = json!({
            "operationId": format!("invoke{}{}", method[..1].to_uppercase(), &method[1..]),
            "summary": "Send a request to the function",
            "description": "The path may have slashes, or be empty, and goes to the function as it is, with the query. A \
                            problem of the daemon's own has the header `faasd-problem`.",
            "responses": { "default": { "description": "The function's own answer", "content": { "*/*": {} } } },
        });
        if !["get", "head"].contains(&method) {
            let mut body = body("*/*", &json!({}));
            body["required"] = false.into();
            operation["requestBody"] = body;
        }
        item.insert(method.to_owned(), operation);
    }
    paths.insert("/v1/functions/{name}/invoke/{path}".to_owned(), Value::Object(item));
}

/// What follows from an operation's path and method.
fn complete(path: &str, method: &str, operation: &mut Value, peers_only: bool) {
    let section = path.split('/').nth(2).unwrap_or_default();
    let tag = if peers_only { "tunnel" } else { section.trim_end_matches(".json") };
    operation["tags"] = json!([tag]);
    let mut statuses = vec![StatusCode::INTERNAL_SERVER_ERROR, StatusCode::GATEWAY_TIMEOUT];
    let mut parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    for name in path.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        if parameters.iter().any(|parameter| parameter["name"] == name) {
            continue;
        }
        let schema = match name {
            "name" => json!({ "$ref": format!("{SCHEMAS}FunctionName") }),
            "secret" => json!({ "$ref": format!("{SCHEMAS}SecretName") }),
            _ => json!({ "type": "string" }),
        };
        parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": schema }));
        statuses.extend([StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND]);
    }
    if parameters.iter().any(|parameter| parameter["in"] == "query") {
        statuses.push(StatusCode::BAD_REQUEST);
    }
    if parameters.iter().any(|parameter| parameter["name"] == "If-Match") {
        statuses.push(StatusCode::PRECONDITION_FAILED);
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if path.contains("/invoke/") {
        statuses.extend([StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE]);
    } else if method != "get" {
        statuses.extend([StatusCode::BAD_REQUEST, StatusCode::CONFLICT, StatusCode::SERVICE_UNAVAILABLE]);
        statuses.push(StatusCode::TOO_MANY_REQUESTS);
    }
    if operation["requestBody"].is_object() && !path.contains("/invoke/") {
        statuses.push(StatusCode::PAYLOAD_TOO_LARGE);
        if operation["requestBody"]["content"]["application/json"].is_object() {
            statuses.push(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
    }
    for status in statuses {
        operation["responses"][status.as_str()] = problem(status);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::Router;

    use super::*;

    /// The paths of a router. It does not list them, but it shows them.
    fn paths<S>(router: &Router<S>) -> BTreeSet<String> {
        let shown = format!("{router:?}");
        let paths: BTreeSet<String> = shown
            .split('"')
            // The root, and axum's own name for what no route takes.
            .filter(|text| text.len() > 1 && text.starts_with('/') && !text.contains("__private__"))
            .map(|path| path.trim_end_matches('/').replace("{*", "{"))
            .collect();
        assert!(paths.len() > 1, "no paths in {shown}");
        paths
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else_is() {
        let document: Value = serde_json::from_str(document()).unwrap();
        let described: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        let mut routes = paths(&Router::from(local_routes()));
        routes.extend(paths(&Router::from(tunnel_routes())));
        // The three routes of an invocation are described as one.
        assert!(routes.remove("/v1/functions/{name}/invoke"));
        assert_eq!(routes, described, "describe a route by `api_route` in control/api.rs");
    }

    #[test]
    fn every_operation_is_described_in_full() {
        let document: Value = serde_json::from_str(document()).unwrap();
        let mut ids = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let what = format!("{method} {path}");
                assert!(operation["summary"].is_string(), "{what}: no summary: `op` in control/api.rs");
                assert!(ids.insert(operation["operationId"].to_string()), "{what}: its id is taken");
                let answers = operation["responses"].as_object().unwrap();
                let is_call = path.contains("/invoke/");
                assert!(is_call || answers.keys().any(|s| s.starts_with('2')), "{what}: no success");
                for (status, answer) in answers.iter().filter(|(s, _)| s.starts_with(['4', '5'])) {
                    let schema = &answer["content"][PROBLEM_MEDIA_TYPE]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/Problem", "{what}: {status}");
                }
            }
        }
        // Whatever is referred to is there.
        let text = document.to_string();
        for name in text.split(SCHEMAS).skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
