//! Roles, rules, defaults and groups.

use super::*;
use crate::api::types::{
    Changed, DefaultChange, FunctionPolicy, Group, GroupChange, Groups, Peer, Policies, RoleChange,
    RuleChange,
};
use crate::core::access::{GroupName, Role};

impl Client {
    /// # Errors
    /// [`ClientError`].
    pub async fn set_role(&self, name: &FunctionName, role: Role) -> Result<Peer> {
        self.ask(json(Method::PUT, &format!("/v1/peers/{name}/role"), &RoleChange { role })?, QUICK).await
    }

    /// The policy of every function.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn policies(&self) -> Result<Policies> {
        let mut first = None;
        let functions = self.pages("/v1/policy", "", |page: Policies| {
            first.get_or_insert((page.default, page.configured));
            (page.functions, page.next)
        });
        let functions = functions.await?;
        let (default, configured) = first.unwrap_or_default();
        Ok(Policies { default, configured, functions, next: None })
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn policy(&self, function: &FunctionName) -> Result<FunctionPolicy> {
        self.get(&format!("/v1/policy/{function}")).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn set_rules(&self, change: &RuleChange) -> Result<Changed> {
        self.ask(json(Method::POST, "/v1/policy", change)?, QUICK).await
    }

    /// Sets a function's default, or that of all that have none of their own.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_default(
        &self,
        function: Option<&FunctionName>,
        change: &DefaultChange,
    ) -> Result<Changed> {
        let path = function.map_or("/v1/policy".to_owned(), |name| format!("/v1/policy/{name}"));
        self.ask(json(Method::PUT, &path, change)?, QUICK).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn groups(&self) -> Result<Groups> {
        let groups = self.pages("/v1/groups", "", |page: Groups| (page.groups, page.next)).await?;
        Ok(Groups { groups, next: None })
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn group(&self, name: &GroupName) -> Result<Group> {
        self.get(&format!("/v1/groups/{name}")).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn change_group(&self, name: &GroupName, change: &GroupChange) -> Result<Changed> {
        self.ask(json(Method::POST, &format!("/v1/groups/{name}"), change)?, QUICK).await
    }

    /// # Errors
    /// [`ClientError`].
    pub async fn remove_group(&self, name: &GroupName, keep: bool) -> Result<Changed> {
        self.ask(bare(Method::DELETE, &format!("/v1/groups/{name}?keep={keep}"))?, QUICK).await
    }
}
