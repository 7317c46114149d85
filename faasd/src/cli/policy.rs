//! `faas policy`

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Cell;

use super::allow::{About, report};
use super::{Context, Failure, Format, Output};
use crate::api::types::{DefaultChange, FunctionPolicy, RuleAction};
use crate::core::access::Access;
use crate::core::name::FunctionName;

/// Show who may call what, and whom the kernel has refused; forget rules, set defaults
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true, args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  faas policy                             of every function
  faas policy hello
  faas policy forget laptop hello
  faas policy default closed hello        nobody calls hello but who is allowed to
  faas policy default closed              the same for every function
  faas policy -o json | jq '.functions[].refused'")]
pub struct Policy {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The function
    function: Option<FunctionName>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Forget(Forget),
    Default(Default),
}

/// Take a rule away: what comes next decides, a group's rule or the default
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  faas policy forget laptop hello\n  faas policy forget @ops hello orders"
)]
struct Forget {
    #[command(flatten)]
    about: About,
    /// Leave connections open that would not be let in any more
    #[arg(long)]
    keep: bool,
}

/// Say who may call a function that no rule speaks of
///
/// A function's own default comes before the one of all functions, and that before `access` in faasd.toml.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas policy default closed hello
  faas policy default inherit hello       as all others again
  faas policy default closed")]
struct Default {
    /// Everybody, nobody, or by what comes next
    #[arg(value_name = "open|closed|inherit", hide_possible_values = true)]
    default: Wanted,
    /// The function [default: all that have none of their own]
    function: Option<FunctionName>,
    /// Leave connections open that would not be let in any more
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Open,
    Closed,
    Inherit,
}

impl Policy {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match (self.verb, self.function) {
            (Some(Verb::Forget(verb)), _) => verb.about.make(context, RuleAction::Forget, verb.keep).await,
            (Some(Verb::Default(verb)), _) => verb.run(context).await,
            (None, Some(function)) => one(context, &function, self.output).await,
            (None, None) => all(context, self.output).await,
        }
    }
}

impl Default {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let default = match self.default {
            Wanted::Open => Some(Access::Open),
            Wanted::Closed => Some(Access::Closed),
            Wanted::Inherit => None,
        };
        let change = DefaultChange { default, keep: self.keep };
        let changed = context.client.set_default(self.function.as_ref(), &change).await?;
        let whose = self.function.map_or("the default".to_owned(), |name| format!("the default of {name}"));
        let said = match default {
            Some(access) => format!("{whose} is {}", access.as_str()),
            None => format!("{whose} is inherited"),
        };
        report(context, self.output, changed, &said)
    }
}

async fn all(context: &Context, output: Output) -> Result<(), Failure> {
    let found = context.client.policies().await?;
    if output.format == Format::Json {
        return context.ui.json(&found);
    }
    let own = if found.default == found.configured { "" } else { ", set in place of faasd.toml's" };
    context.ui.note(&format!("by default functions are {}{own}", found.default.as_str()));
    let rows = found.functions.iter().map(|policy| {
        let with = |action: &str| -> String {
            let rules = policy.rules.iter().filter(|rule| rule.action.as_str() == action);
            rules.map(|rule| rule.subject.to_string()).collect::<Vec<_>>().join(", ")
        };
        let refused: u64 = policy.refused.iter().map(|refused| refused.connections).sum();
        vec![
            Cell::new(&policy.function),
            Cell::new(default(policy)),
            Cell::new(with("allow")),
            Cell::new(with("deny")),
            Cell::new(refused),
        ]
    });
    context.ui.table(["FUNCTION", "DEFAULT", "ALLOWED", "DENIED", "REFUSED"], rows)
}

async fn one(context: &Context, function: &FunctionName, output: Output) -> Result<(), Failure> {
    let found = context.client.policy(function).await?;
    if output.format == Format::Json {
        return context.ui.json(&found);
    }
    let ui = &context.ui;
    ui.pairs([("function", Cell::new(&found.function)), ("default", Cell::new(default(&found)))])?;
    if !found.rules.is_empty() {
        ui.print("\n")?;
        let rows =
            found.rules.iter().map(|rule| vec![Cell::new(&rule.subject), Cell::new(rule.action.as_str())]);
        ui.table(["SUBJECT", "RULE"], rows)?;
    }
    if !found.refused.is_empty() {
        ui.print("\n")?;
        let rows = found.refused.iter().map(|one| vec![Cell::new(&one.subject), Cell::new(one.connections)]);
        ui.table(["REFUSED", "CONNECTIONS"], rows)?;
    }
    Ok(())
}

fn default(policy: &FunctionPolicy) -> String {
    let own = if policy.own_default.is_some() { " (its own)" } else { "" };
    format!("{}{own}", policy.default.as_str())
}
