//! `faas`: one file a verb. Every verb that concerns the daemon is a client of its API and nothing else.

mod ago;
mod allow;
mod apply;
mod bench;
mod completions;
mod dependencies;
mod deploy;
mod describe;
mod detect;
mod dev;
mod diff;
mod doctor;
mod events;
mod exit;
mod gather;
mod group;
mod image;
mod invoke;
mod logs;
mod ls;
mod man;
mod new;
mod pack;
mod policy;
mod revisions;
mod rm;
mod schema;
mod secret;
mod settings;
mod targets;
mod top;
mod traffic;
mod tunnel;
mod ui;
mod version;
mod vpn;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use exit::{Exit, Failure};
pub use man::write_pages;
pub use ui::Ui;

use crate::api::client::{Client, SOCKET, Server};
use crate::runtime::runners::script;
use crate::tunnel::client::{RUN, connected_to};

/// Functions over a private network, with nothing in the way.
#[derive(Debug, Parser)]
#[command(name = "faas", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = EXIT_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_HELP: &str = "\
Exit codes: 0 ok, 1 the operation failed, 64 usage, 65 a file's content, 66 no such file,
69 faasd cannot be reached, 73 a file is in the way, 74 input or output, 76 protocol,
77 permission.

`faas VERB --help` has examples.";

#[derive(Clone, Debug, Args)]
struct Global {
    /// The daemon's socket [default: /run/faasd/faasd.sock]
    #[arg(long, global = true, value_name = "PATH", env = "FAAS_SOCKET", help_heading = "Global options")]
    socket: Option<PathBuf>,
    /// A server that this machine is an admin of, by its address in the tunnel
    ///
    /// Where there is no daemon's socket, it is the one that the machine is connected to.
    #[arg(long, global = true, value_name = "URL", env = "FAAS_SERVER", help_heading = "Global options")]
    server: Option<Server>,
    /// Colour: auto (on a terminal, unless NO_COLOR is set), always or never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Global options")]
    #[arg(hide_possible_values = true)]
    color: When,
}

impl Global {
    /// The daemon that is asked for: a server comes first, then a socket; else whichever there is.
    fn client(&self) -> Client {
        match (&self.server, &self.socket) {
            (Some(server), _) => Client::of(server.clone()),
            (None, Some(socket)) => Client::new(socket),
            (None, None) if Path::new(SOCKET).exists() => Client::new(SOCKET),
            (None, None) => connected_to(Path::new(RUN)).map_or_else(|| Client::new(SOCKET), Client::of),
        }
    }
}

/// When output has colour: `Auto` is on a terminal, unless NO_COLOR is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    #[default]
    Auto,
    Always,
    Never,
}

/// How a verb prints what it found.
#[derive(Clone, Copy, Debug, Args)]
struct Output {
    /// table is for people, json is the API's own shapes
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    New(new::New),
    Dev(dev::Dev),
    Deploy(deploy::Deploy),
    Apply(apply::Apply),
    Diff(diff::Diff),
    Ls(ls::Ls),
    Describe(describe::Describe),
    Top(top::Top),
    Invoke(invoke::Invoke),
    Bench(bench::Bench),
    Logs(logs::Logs),
    Events(events::Events),
    Rm(rm::Rm),
    Image(image::Image),
    Secret(secret::Secret),
    Allow(allow::Allow),
    Deny(allow::Deny),
    Policy(policy::Policy),
    Group(group::Group),
    Revisions(revisions::Revisions),
    Promote(traffic::Promote),
    Rollback(traffic::Rollback),
    Traffic(traffic::Traffic),
    Alias(traffic::Alias),
    Vpn(vpn::Vpn),
    Doctor(doctor::Doctor),
    Version(version::Version),
    Schema(schema::Schema),
    Completions(completions::Completions),
    Man(man::Man),
    Tunnel(tunnel::Tunnel),
    /// Serves a script; `faas dev`'s program for them
    #[command(hide = true)]
    RunScript {
        file: String,
    },
}

/// The verbs as the help shows them.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "Functions",
        &[
            "new", "dev", "deploy", "apply", "diff", "ls", "describe", "top", "invoke", "bench", "logs",
            "events", "rm", "image", "secret",
        ],
    ),
    ("Access", &["allow", "deny", "policy", "group"]),
    ("Revisions", &["revisions", "promote", "rollback", "traffic", "alias"]),
    ("Network", &["vpn"]),
    ("Machine", &["doctor", "version", "schema", "completions", "man"]),
];

/// What a verb works with.
#[derive(Debug)]
pub struct Context {
    client: Client,
    ui: Ui,
}

/// Parses the arguments (the program's name first), does what they say, and answers how it went.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let when = color_of(&args);
    let parsed =
        command(when).try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) if e.kind() == ErrorKind::MissingSubcommand => {
            help_for(&args, when);
            return Exit::Usage.into();
        }
        Err(e) => {
            // Help and version are for stdout and no error; clap knows.
            let printed = e.print().is_ok();
            return if e.use_stderr() || !printed { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let ui = Ui::new(cli.global.color);
    let context = Context { client: cli.global.client(), ui };
    match dispatch(cli.command, &context) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            context.ui.failure(&failure);
            failure.exit.into()
        }
    }
}

fn dispatch(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::New(verb) => verb.run(context),
        Command::Dev(verb) => block_on(verb.run(context)),
        Command::Deploy(verb) => block_on(verb.run(context)),
        Command::Apply(verb) => block_on(verb.run(context)),
        Command::Diff(verb) => block_on(verb.run(context)),
        Command::Ls(verb) => block_on(verb.run(context)),
        Command::Describe(verb) => block_on(verb.run(context)),
        Command::Top(verb) => block_on(verb.run(context)),
        Command::Invoke(verb) => block_on(verb.run(context)),
        Command::Bench(verb) => block_on(verb.run(context)),
        Command::Logs(verb) => block_on(verb.run(context)),
        Command::Events(verb) => block_on(verb.run(context)),
        Command::Revisions(verb) => block_on(verb.run(context)),
        Command::Promote(verb) => block_on(verb.run(context)),
        Command::Rollback(verb) => block_on(verb.run(context)),
        Command::Traffic(verb) => block_on(verb.run(context)),
        Command::Alias(verb) => block_on(verb.run(context)),
        Command::Rm(verb) => block_on(verb.run(context)),
        Command::Image(verb) => block_on(verb.run(context)),
        Command::Secret(verb) => block_on(verb.run(context)),
        Command::Allow(verb) => block_on(verb.run(context)),
        Command::Deny(verb) => block_on(verb.run(context)),
        Command::Policy(verb) => block_on(verb.run(context)),
        Command::Group(verb) => block_on(verb.run(context)),
        Command::Schema(verb) => verb.run(context),
        Command::Vpn(verb) => verb.run(context),
        Command::Doctor(verb) => block_on(verb.run(context)),
        Command::Version(verb) => block_on(verb.run(context)),
        Command::Completions(verb) => verb.run(context),
        Command::Man(verb) => verb.run(context),
        Command::Tunnel(verb) => verb.run(),
        Command::RunScript { file } => script::run(&file).map_err(|e| Failure::chain(Exit::Failed, &e)),
    }
}

/// Runs a verb's future on this thread; verbs that need no runtime start none.
fn block_on<T>(verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| Failure::new(Exit::Failed, format!("cannot start an async runtime: {e}")))?;
    let done = runtime.block_on(verb);
    // A read of standard input cannot be interrupted: do not wait for it.
    runtime.shutdown_background();
    done
}

/// The whole command line, for the parser, the completions and the man pages.
#[must_use]
pub fn command(color: When) -> clap::Command {
    let command = Cli::command().color(match color {
        When::Auto => ColorChoice::Auto,
        When::Always => ColorChoice::Always,
        When::Never => ColorChoice::Never,
    });
    let template = help_template(&command);
    command.help_template(template)
}

/// Shows the verbs to somebody who gave none. clap's own switch for this stays silent once an option has a value from
/// the environment.
fn help_for(args: &[OsString], when: When) {
    let mut found = command(when);
    found.build();
    for arg in args.iter().skip(1) {
        if let Some(verb) = found.find_subcommand(arg) {
            found = verb.clone();
        }
    }
    let help = found.render_help();
    Ui::new(when).help(&help);
}

/// clap lists the verbs in one heap; this writes them in [`GROUPS`].
fn help_template(command: &clap::Command) -> String {
    let style = command.get_styles().get_header();
    let literal = command.get_styles().get_literal();
    let mut text = String::from("{about-with-newline}\n{usage-heading} {usage}\n");
    for (title, verbs) in GROUPS {
        let _ = write!(text, "\n{style}{title}:{style:#}\n");
        for verb in verbs {
            let about = command.find_subcommand(verb).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {literal}{verb:<12}{literal:#} {about}");
        }
    }
    let _ = write!(text, "\n{style}Options:{style:#}\n{{options}}{{after-help}}");
    text
}

/// `--color` also governs how clap prints help and errors, so it is looked for before the arguments are parsed.
fn color_of(args: &[OsString]) -> When {
    let mut args = args.iter().skip(1).take_while(|arg| *arg != "--").filter_map(|arg| arg.to_str());
    while let Some(arg) = args.next() {
        let value = match arg.strip_prefix("--color") {
            Some("") => args.next(),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        if let Some(when) = value.and_then(|value| When::from_str(value, false).ok()) {
            return when;
        }
    }
    When::Auto
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command(When::Never).debug_assert();
    }

    #[test]
    fn every_verb_is_in_one_group_and_has_an_example() {
        let command = command(When::Never);
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        let visible: Vec<&clap::Command> =
            command.get_subcommands().filter(|verb| !verb.is_hide_set()).collect();
        assert_eq!(grouped, visible.iter().map(|verb| verb.get_name()).collect::<Vec<_>>());
        let nested = ["vpn", "image", "secret", "policy", "group"]
            .iter()
            .flat_map(|verb| command.find_subcommand(verb).unwrap().get_subcommands());
        for verb in visible.iter().copied().chain(nested) {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no example", verb.get_name());
            assert!(verb.get_about().is_some(), "{} says nothing of itself", verb.get_name());
        }
    }

    #[test]
    fn color_is_found_wherever_it_stands() {
        let when = |args: &[&str]| color_of(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(when(&["faas", "ls", "--color", "never"]), When::Never);
        assert_eq!(when(&["faas", "--color=always", "ls"]), When::Always);
        assert_eq!(when(&["faas", "invoke", "x", "--", "--color=always"]), When::Auto);
    }
}
