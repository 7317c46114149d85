//! `faas allow`, `faas deny`

use std::str::FromStr;

use clap::Args;

use super::{Context, Failure, Format, Output};
use crate::api::types::{Changed, NAMED_MAX, RuleAction, RuleChange};
use crate::core::access::{Subject, SubjectError};
use crate::core::name::FunctionName;

/// Whom a rule is about, and what.
#[derive(Debug, Args)]
pub struct About {
    /// Who calls: PEER, @GROUP or fn:FUNCTION; several with commas
    #[arg(value_name = "SUBJECT")]
    subjects: Subjects,
    /// What is called
    #[arg(required = true, value_name = "FUNCTION", num_args = 1..=NAMED_MAX)]
    functions: Vec<FunctionName>,
    #[command(flatten)]
    output: Output,
}

/// Subjects, with commas between them: one argument, since functions follow it.
#[derive(Clone, Debug)]
struct Subjects(Vec<Subject>);

impl FromStr for Subjects {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Let somebody call a function
///
/// A subject's own rule comes before those of its groups, and these before the function's default. It is in effect when
/// this returns.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas allow laptop hello
  faas allow @ops,phone hello orders
  faas allow fn:orders db")]
pub struct Allow {
    #[command(flatten)]
    about: About,
}

/// Keep somebody from calling a function, and cut the connections that they have to it
///
/// New connections are refused by the kernel, before there is a socket. `faas policy forget` takes the rule away again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  faas deny laptop hello
  faas deny @guests hello orders --keep")]
pub struct Deny {
    #[command(flatten)]
    about: About,
    /// Leave connections open that are there already
    #[arg(long)]
    keep: bool,
}

impl Allow {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        self.about.make(context, RuleAction::Allow, false).await
    }
}

impl Deny {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        self.about.make(context, RuleAction::Deny, self.keep).await
    }
}

impl About {
    pub async fn make(self, context: &Context, action: RuleAction, keep: bool) -> Result<(), Failure> {
        let Self { subjects: Subjects(subjects), functions, output } = self;
        let change = RuleChange { action, subjects, functions, keep };
        let changed = context.client.set_rules(&change).await?;
        let names = |texts: Vec<String>| texts.join(", ");
        let who = names(change.subjects.iter().map(ToString::to_string).collect());
        let what = names(change.functions.iter().map(ToString::to_string).collect());
        let said = match action {
            RuleAction::Allow => format!("{who} may call {what}"),
            RuleAction::Deny => format!("{who} may not call {what}"),
            RuleAction::Forget => format!("no rule for {who} at {what}"),
        };
        report(context, output, changed, &said)
    }
}

/// Says what a change did.
pub fn report(context: &Context, output: Output, changed: Changed, said: &str) -> Result<(), Failure> {
    if output.format == Format::Json {
        return context.ui.json(&changed);
    }
    let already = if changed.changed == 0 { " (it was so already)" } else { "" };
    let cut = match changed.cut {
        0 => String::new(),
        1 => "; 1 connection was cut".to_owned(),
        cut => format!("; {cut} connections were cut"),
    };
    context.ui.note(&format!("{said}{already}{cut}"));
    Ok(())
}
