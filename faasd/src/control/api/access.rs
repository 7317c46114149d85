//! The routes of roles, rules, defaults and groups.

use axum::Json;
use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Deserialize;

use super::extract::{Asked, Sent};
use super::handlers::{Result, parse_name, within};
use super::list::Listing;
use super::{Api, QUICK};
use crate::api::types::{
    Changed, DefaultChange, FunctionPolicy, Group, GroupChange, Groups, Peer, Policies, RoleChange,
    RuleChange,
};

/// How a group is removed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Removal {
    /// Leave connections open that would not be let in any more
    #[serde(default)]
    keep: bool,
}

pub(super) async fn set_role(
    State(api): State<Api>,
    Path(name): Path<String>,
    Sent(RoleChange { role }): Sent<RoleChange>,
) -> Result<Json<Peer>> {
    let name = parse_name(&name)?;
    within(QUICK, "changing the role", api.service.set_role(&name, role)).await.map(Json)
}

pub(super) async fn policies(
    State(api): State<Api>,
    Asked(listing): Asked<Listing>,
) -> Result<Json<Policies>> {
    listing.check()?;
    let all = within(QUICK, "listing the policy", api.service.policies(&listing.prefix)).await?;
    let (functions, next) = listing.page(all.functions, |policy| policy.function.to_string());
    Ok(Json(Policies { functions, next, ..all }))
}

pub(super) async fn policy(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<FunctionPolicy>> {
    let name = parse_name(&name)?;
    within(QUICK, "looking up the policy", api.service.policy(&name)).await.map(Json)
}

pub(super) async fn set_rules(
    State(api): State<Api>,
    Sent(change): Sent<RuleChange>,
) -> Result<Json<Changed>> {
    within(QUICK, "changing the rules", api.service.set_rules(change)).await.map(Json)
}

pub(super) async fn set_common_default(
    State(api): State<Api>,
    Sent(change): Sent<DefaultChange>,
) -> Result<Json<Changed>> {
    within(QUICK, "changing the default", api.service.set_default(None, change)).await.map(Json)
}

pub(super) async fn set_default(
    State(api): State<Api>,
    Path(name): Path<String>,
    Sent(change): Sent<DefaultChange>,
) -> Result<Json<Changed>> {
    let name = parse_name(&name)?;
    within(QUICK, "changing the default", api.service.set_default(Some(name), change)).await.map(Json)
}

pub(super) async fn groups(State(api): State<Api>, Asked(listing): Asked<Listing>) -> Result<Json<Groups>> {
    listing.check()?;
    let groups = within(QUICK, "listing the groups", api.service.groups()).await?;
    let (groups, next) = listing.page(groups, |group| group.name.to_string());
    Ok(Json(Groups { groups, next }))
}

pub(super) async fn group(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Group>> {
    let name = parse_name(&name)?;
    within(QUICK, "looking up the group", api.service.group(&name)).await.map(Json)
}

pub(super) async fn change_group(
    State(api): State<Api>,
    Path(name): Path<String>,
    Sent(change): Sent<GroupChange>,
) -> Result<Json<Changed>> {
    let name = parse_name(&name)?;
    within(QUICK, "changing the group", api.service.change_group(&name, change)).await.map(Json)
}

pub(super) async fn remove_group(
    State(api): State<Api>,
    Path(name): Path<String>,
    Asked(Removal { keep }): Asked<Removal>,
) -> Result<Json<Changed>> {
    let name = parse_name(&name)?;
    within(QUICK, "removing the group", api.service.remove_group(&name, keep)).await.map(Json)
}
