//! Settings of a function on the command line, which come before those of its file.

use clap::Args;
use toml::{Table, Value};

use super::{Exit, Failure};

/// Flags for what changes from one place to the next. All else is in faas.toml.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Settings, before those of faas.toml")]
pub struct Settings {
    /// Instances that are always there
    #[arg(long, value_name = "N")]
    min: Option<u32>,
    /// The most instances
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// Open connections for each instance
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// How long an instance is kept that is not needed, like 5m
    #[arg(long, value_name = "TIME")]
    idle: Option<String>,
    /// Memory of each instance, like 128MiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Processor time of each instance, in cores
    #[arg(long, value_name = "CORES")]
    cpu: Option<f64>,
    /// An environment variable; may be repeated
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

impl Settings {
    /// As the function's file would have them.
    pub fn table(&self) -> Table {
        let number = |value: u32| Value::Integer(value.into());
        let mut table = Table::new();
        let mut set = |section: &str, key: &str, value: Option<Value>| {
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let (Some(value), Value::Table(section)) = (value, section) {
                section.insert(key.to_owned(), value);
            }
        };
        set("scale", "min", self.min.map(number));
        set("scale", "max", self.max.map(number));
        set("scale", "concurrency", self.concurrency.map(number));
        set("scale", "idle", self.idle.clone().map(Value::String));
        set("limits", "memory", self.memory.clone().map(Value::String));
        set("limits", "cpu", self.cpu.map(Value::Float));
        for (name, value) in &self.env {
            set("env", name, Some(Value::String(value.clone())));
        }
        table.retain(|_, section| section.as_table().is_some_and(|section| !section.is_empty()));
        table
    }
}

/// A failure of what was given on the command line, and not of a file.
pub fn of_flags(failure: Failure, flags: &Table) -> Failure {
    if failure.exit == Exit::Data && !flags.is_empty() {
        return Failure { exit: Exit::Usage, ..failure };
    }
    failure
}
