//! `faas promote`, `faas rollback`, `faas traffic`, `faas alias`: who serves, and by what name.

use clap::Args;
use comfy_table::Cell;

use super::{Context, Exit, Failure, Format, Output};
use crate::api::types::{self, Function, TrafficShare};
use crate::core::name::FunctionName;
use crate::core::revision::{self, RevisionName, WantedShare};

/// Give all traffic to one revision
///
/// It takes over when an instance of it is ready. Connections that are open stay with the revision that they were made
/// to, which finishes them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas promote hello v3\n  faas promote hello canary")]
pub struct Promote {
    /// The function
    name: FunctionName,
    /// The revision: v3, 3, or an alias
    revision: RevisionName,
    #[command(flatten)]
    output: Output,
}

/// Go back to who served before the last change
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas rollback hello\n  faas rollback hello --to v2")]
pub struct Rollback {
    /// The function
    name: FunctionName,
    /// To this revision instead: v3, 3, or an alias
    #[arg(long, value_name = "REVISION")]
    to: Option<RevisionName>,
    #[command(flatten)]
    output: Output,
}

/// Show or set each revision's share of the traffic, in percent
///
/// Each new connection is given to a revision by these weights, in the kernel.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  faas traffic hello\n  faas traffic hello v3=95 v4=5")]
pub struct Traffic {
    /// The function
    name: FunctionName,
    /// Who is to serve: REVISION=PERCENT; all of them add up to 100
    #[arg(value_name = "REVISION=PERCENT")]
    shares: Vec<WantedShare>,
    #[command(flatten)]
    output: Output,
}

/// Name a revision, or take a name away
///
/// An alias can stand wherever a revision is asked for. A revision that has one is kept, and is reached at
/// ALIAS.FUNCTION.faas and vNUMBER.FUNCTION.faas also when it has no share of the traffic: it is started by the first
/// connection.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  faas alias hello stable v3\n  faas alias hello next v4      # try it out: curl http://next.hello.faas/\n  faas alias hello stable --rm"
)]
pub struct Alias {
    /// The function
    name: FunctionName,
    /// The name: like a function's
    alias: revision::Alias,
    /// What it stands for from now on: v3, or 3
    #[arg(required_unless_present = "rm")]
    revision: Option<RevisionName>,
    /// Take the name away
    #[arg(long, conflicts_with = "revision")]
    rm: bool,
    #[command(flatten)]
    output: Output,
}

impl Promote {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let shares = vec![WantedShare { revision: self.revision, weight: 100 }];
        set(context, &self.name, shares, self.output).await
    }
}

impl Rollback {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        if let Some(revision) = self.to {
            return set(context, &self.name, vec![WantedShare { revision, weight: 100 }], self.output).await;
        }
        let spinner = context.ui.spinner(format!("rolling {} back", self.name));
        let function = context.client.rollback(&self.name).await;
        spinner.finish_and_clear();
        show(context, &function?, self.output)
    }
}

impl Traffic {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        if self.shares.is_empty() {
            return show(context, &context.client.function(&self.name).await?, self.output);
        }
        revision::check_shares(&self.shares).map_err(|e| {
            Failure::new(Exit::Usage, e.to_string())
                .hint(format!("for example: `faas traffic {} v1=95 v2=5`", self.name))
        })?;
        set(context, &self.name, self.shares, self.output).await
    }
}

impl Alias {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let revision = match &self.revision {
            None => None,
            Some(RevisionName::Number(number)) => Some(*number),
            Some(RevisionName::Alias(other)) => {
                let function = context.client.function(&self.name).await?;
                let found = function.aliases.get(other).copied();
                Some(found.ok_or_else(|| {
                    Failure::new(Exit::Failed, format!("'{}' has no alias '{other}'", self.name))
                })?)
            }
        };
        let function = context.client.alias(&self.name, &self.alias, revision).await?;
        show(context, &function, self.output)
    }
}

async fn set(
    context: &Context,
    name: &FunctionName,
    shares: Vec<WantedShare>,
    output: Output,
) -> Result<(), Failure> {
    let spinner = context.ui.spinner(format!("changing the traffic of {name}"));
    let function = context.client.set_traffic(name, &types::Traffic { shares }).await;
    spinner.finish_and_clear();
    show(context, &function?, output)
}

fn show(context: &Context, function: &Function, output: Output) -> Result<(), Failure> {
    if output.format == Format::Json {
        return context.ui.json(function);
    }
    let aliases: Vec<_> =
        function.aliases.iter().map(|(alias, number)| format!("{alias} is v{number}")).collect();
    let mut pairs =
        vec![("name", Cell::new(&function.name)), ("traffic", Cell::new(shares(&function.traffic)))];
    if !aliases.is_empty() {
        pairs.push(("aliases", Cell::new(aliases.join(", "))));
    }
    context.ui.pairs(pairs)
}

/// `v3 95%, v4 5%`.
pub fn shares(traffic: &[TrafficShare]) -> String {
    let shares: Vec<_> =
        traffic.iter().map(|share| format!("v{} {}%", share.revision, share.weight)).collect();
    shares.join(", ")
}
