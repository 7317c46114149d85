//! The routes of logs and events.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;

use super::extract::Asked;
use super::follow::respond;
use super::handlers::{Result, parse_name, within};
use super::serve::Stopping;
use super::{Api, ApiError, QUICK};
use crate::api::since;
use crate::api::types::{EVENTS_MAX, EventLine, Events, LOG_LINES_MAX, Problem};
use crate::control::events::Filter;
use crate::core::name::FunctionName;
use crate::runtime::logs;

/// Which part of a log.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    /// The last lines, so many at most
    #[schemars(range(min = 1, max = LOG_LINES_MAX))]
    #[serde(default = "lines")]
    lines: usize,
    /// Those from then on: a time, or how long ago, like `10m`
    since: Option<String>,
    /// Those of one instance
    instance: Option<String>,
    /// And those that come, until the client hangs up or the function is removed. Blank lines only show whether it has
    #[serde(default)]
    follow: bool,
}

/// Which events.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    /// Those of one function, which may be gone by now
    function: Option<FunctionName>,
    /// Those with a higher `id`
    after: Option<u64>,
    /// Those from then on: a time, or how long ago, like `10m`
    since: Option<String>,
    /// The last ones, so many at most
    #[schemars(range(min = 1, max = EVENTS_MAX))]
    #[serde(default = "lines")]
    limit: usize,
    /// And those that come, a line for each, until the client hangs up
    #[serde(default)]
    follow: bool,
}

/// How much there is when nobody says how much.
const fn lines() -> usize {
    100
}

pub(super) async fn logs(
    State(api): State<Api>,
    Path(name): Path<String>,
    stopping: Option<Extension<Stopping>>,
    Asked(asked): Asked<LogQuery>,
) -> Result<Response> {
    let name = parse_name(&name)?;
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
    Asked(asked): Asked<EventQuery>,
) -> Result<Response> {
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

fn number(key: &str, number: usize, max: usize) -> Result<usize> {
    match number {
        number if (1..=max).contains(&number) => Ok(number),
        number => Err(ApiError::invalid(format!("`{key}` is {number}; use 1 to {max}"))),
    }
}

fn moment(text: Option<&str>) -> Result<Option<Timestamp>> {
    text.map(|text| since::parse(text, Timestamp::now()))
        .transpose()
        .map_err(|allowed| ApiError::invalid(format!("`since` is not understood; {allowed}")))
}
