//! The routes of logs and events.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;

use super::follow::{query, respond};
use super::handlers::{Result, parse_name, within};
use super::serve::Stopping;
use super::{Api, ApiError, QUICK};
use crate::api::since;
use crate::api::types::{EVENTS_MAX, EventLine, Events, LOG_LINES_MAX, Problem};
use crate::control::events::Filter;
use crate::core::name::FunctionName;
use crate::runtime::logs;

/// How much there is when nobody says how much.
const LINES: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    lines: Option<usize>,
    since: Option<String>,
    instance: Option<String>,
    #[serde(default)]
    follow: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    function: Option<FunctionName>,
    after: Option<u64>,
    since: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    follow: bool,
}

pub(super) async fn logs(
    State(api): State<Api>,
    Path(name): Path<String>,
    stopping: Option<Extension<Stopping>>,
    uri: Uri,
) -> Result<Response> {
    let name = parse_name(&name)?;
    let asked: LogQuery = query(&uri, "lines, since, instance and follow")?;
    let wanted = logs::Query {
        lines: number("lines", asked.lines, LOG_LINES_MAX)?,
        since: moment(asked.since.as_deref())?,
        instance: asked.instance,
    };
    const TEXT: &str = "text/plain; charset=utf-8";
    if asked.follow {
        let lines = within(QUICK, "reading the log", api.service.follow_logs(&name, wanted)).await?;
        let goodbye = |why: &str| format!("{:.6} faasd: [{why}]", Timestamp::now());
        return respond(&api, stopping, TEXT, lines, goodbye);
    }
    let lines = within(QUICK, "reading the log", api.service.logs(&name, wanted)).await?;
    let mut text = String::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    Ok(([(header::CONTENT_TYPE, TEXT)], text).into_response())
}

pub(super) async fn events(
    State(api): State<Api>,
    stopping: Option<Extension<Stopping>>,
    uri: Uri,
) -> Result<Response> {
    let asked: EventQuery = query(&uri, "function, after, since, limit and follow")?;
    let limit = number("limit", asked.limit, EVENTS_MAX)?;
    let filter =
        Filter { function: asked.function, after: asked.after, since: moment(asked.since.as_deref())? };
    if asked.follow {
        let lines = api.service.follow_events(filter, limit).map(|line| json(&line)).boxed();
        return respond(&api, stopping, "application/jsonl", lines, goodbye);
    }
    Ok(Json(Events { events: api.service.events(&filter, limit) }).into_response())
}

fn goodbye(why: &str) -> String {
    json(&EventLine::End(Problem { status: 503, title: why.to_owned(), detail: None }))
}

fn json(line: &EventLine) -> String {
    // It has neither maps nor numbers that JSON does not know.
    serde_json::to_string(line).unwrap_or_default()
}

fn number(key: &str, number: Option<usize>, max: usize) -> Result<usize> {
    match number.unwrap_or(LINES) {
        number if (1..=max).contains(&number) => Ok(number),
        number => Err(ApiError::invalid(format!("`{key}` is {number}; use 1 to {max}"))),
    }
}

fn moment(text: Option<&str>) -> Result<Option<Timestamp>> {
    text.map(|text| since::parse(text, Timestamp::now()))
        .transpose()
        .map_err(|allowed| ApiError::invalid(format!("`since` is not understood; {allowed}")))
}
