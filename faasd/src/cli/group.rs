//! `faas group`

use clap::{Args, Subcommand};
use comfy_table::Cell;

use super::allow::report;
use super::rm::confirm;
use super::{Context, Exit, Failure, Format, Output};
use crate::api::types::GroupChange;
use crate::core::access::{GroupName, Subject};

/// Groups of peers and functions, which rules speak of as @GROUP
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
#[command(after_help = "Examples:
  faas group add ops laptop phone
  faas allow @ops hello
  faas group rm ops phone                 it is not in the group any more
  faas group rm ops                       there is no such group any more
  faas group ls")]
pub struct Group {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Add(Add),
    Rm(Rm),
    Ls(Ls),
}

/// Put peers or functions into a group, which is made if there is none
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas group add ops laptop phone\n  faas group add backends fn:orders")]
struct Add {
    /// The group's name
    group: GroupName,
    /// PEER or fn:FUNCTION
    #[arg(required = true, value_name = "SUBJECT")]
    subjects: Vec<Subject>,
    /// Leave connections open that would not be let in any more
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    output: Output,
}

/// Take members out of a group; without any, remove it and the rules that speak of it
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas group rm ops phone\n  faas group rm ops --yes")]
struct Rm {
    /// The group's name
    group: GroupName,
    /// PEER or fn:FUNCTION
    #[arg(value_name = "SUBJECT")]
    subjects: Vec<Subject>,
    /// Leave connections open that would not be let in any more
    #[arg(long)]
    keep: bool,
    /// Do not ask (nor is anybody asked where there is no terminal)
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

/// List the groups, their members, and the functions that have rules for them
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  faas group ls\n  faas group ls ops -o json | jq -r '.groups[].members[]'"
)]
struct Ls {
    /// One of them
    group: Option<GroupName>,
    #[command(flatten)]
    output: Output,
}

impl Group {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.verb {
            Verb::Add(verb) => verb.run(context).await,
            Verb::Rm(verb) => verb.run(context).await,
            Verb::Ls(verb) => verb.run(context).await,
        }
    }
}

fn names(subjects: &[Subject]) -> String {
    subjects.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Add {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let said = format!("{} in @{}", names(&self.subjects), self.group);
        let change = GroupChange { add: self.subjects, remove: Vec::new(), keep: self.keep };
        let changed = context.client.change_group(&self.group, &change).await?;
        report(context, self.output, changed, &said)
    }
}

impl Rm {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let group = &self.group;
        if self.subjects.is_empty() {
            if !self.yes && !confirm(&format!("Remove @{group} and the rules that speak of it?"))? {
                return Err(Failure::new(Exit::Failed, format!("@{group} stays")));
            }
            let changed = context.client.remove_group(group, self.keep).await?;
            return report(context, self.output, changed, &format!("removed @{group}"));
        }
        let said = format!("{} not in @{group}", names(&self.subjects));
        let change = GroupChange { add: Vec::new(), remove: self.subjects, keep: self.keep };
        let changed = context.client.change_group(group, &change).await?;
        report(context, self.output, changed, &said)
    }
}

impl Ls {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut found = match &self.group {
            None => context.client.groups().await?,
            Some(name) => {
                let groups = vec![context.client.group(name).await?];
                crate::api::types::Groups { groups, next: None }
            }
        };
        if self.output.format == Format::Json {
            return context.ui.json(&found);
        }
        if found.groups.is_empty() {
            context.ui.note("no groups yet; `faas group add GROUP PEER` makes one");
            return Ok(());
        }
        let rows = found.groups.drain(..).map(|group| {
            let functions: Vec<_> = group.functions.iter().map(|name| name.as_str()).collect();
            vec![Cell::new(&group.name), Cell::new(names(&group.members)), Cell::new(functions.join(", "))]
        });
        context.ui.table(["GROUP", "MEMBERS", "FUNCTIONS"], rows.collect::<Vec<_>>())
    }
}
