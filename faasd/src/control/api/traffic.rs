//! Who serves: revisions, their shares of the traffic, their names.

use axum::Json;
use axum::extract::{Path, State};

use super::extract::Sent;
use super::handlers::{Result, parse_name, within};
use super::{Api, ApiError, QUICK, TRAFFIC};
use crate::api::types::{AliasTarget, Function, Revisions, Traffic};
use crate::core::revision::{Alias, check_shares};

pub(super) async fn revisions(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Revisions>> {
    let name = parse_name(&name)?;
    within(QUICK, "listing the revisions", api.service.revisions(&name)).await.map(Json)
}

pub(super) async fn set_traffic(
    State(api): State<Api>,
    Path(name): Path<String>,
    Sent(traffic): Sent<Traffic>,
) -> Result<Json<Function>> {
    let name = parse_name(&name)?;
    check_shares(&traffic.shares).map_err(|e| ApiError::invalid(e.to_string()))?;
    within(TRAFFIC, "the change of traffic", api.service.set_traffic(&name, traffic)).await.map(Json)
}

pub(super) async fn rollback(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Function>> {
    let name = parse_name(&name)?;
    within(TRAFFIC, "the rollback", api.service.rollback(&name)).await.map(Json)
}

pub(super) async fn set_alias(
    State(api): State<Api>,
    Path((name, alias)): Path<(String, String)>,
    Sent(AliasTarget { revision }): Sent<AliasTarget>,
) -> Result<Json<Function>> {
    let (name, alias) = (parse_name(&name)?, parse_alias(&alias)?);
    within(QUICK, "naming the revision", api.service.alias(&name, alias, Some(revision))).await.map(Json)
}

pub(super) async fn remove_alias(
    State(api): State<Api>,
    Path((name, alias)): Path<(String, String)>,
) -> Result<Json<Function>> {
    let (name, alias) = (parse_name(&name)?, parse_alias(&alias)?);
    within(QUICK, "removing the alias", api.service.alias(&name, alias, None)).await.map(Json)
}

fn parse_alias(alias: &str) -> Result<Alias> {
    alias.parse().map_err(|e: crate::core::revision::RevisionError| ApiError::invalid(e.to_string()))
}
