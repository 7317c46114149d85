//! The project's own tasks. `cargo xtask help` lists them; each is a file here.

mod bench;
mod channels;
mod check;
mod contract;
mod demo;
mod dist;
mod ebpf;
mod interrupt;
mod lock;
mod openpgp;
mod packages;
mod publish;
mod repo;
mod report;
mod root;
mod run;
mod setup;
mod tag;
mod test;
mod tidy;
mod tools;
mod vm;
mod workflows;

use std::process::ExitCode;

use clap::Parser;

/// Tasks of the faasd repository
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Task {
    /// Install what is missing on this machine
    Setup(setup::Args),
    /// Build the kernel program and write the object that the daemon embeds
    Ebpf(ebpf::Args),
    /// Formatting, lints, house rules, dependencies, the committed kernel program
    Check(check::Args),
    /// The house rules alone: what imports what, where unsafe may stand, links, sizes
    Tidy,
    /// Write the API's document and the function file's schema anew
    Contract,
    /// Every test: those of the crates, those that need root, and the platform from end to end
    Test(test::Args),
    /// The tests that turn on the kernel, in a virtual machine: Debian's own kernel with WireGuard, and control groups v2
    Vm(vm::Args),
    /// The platform on this machine: two network namespaces, a tunnel, a function, a request
    Demo(demo::Args),
    /// A release: packages, tarballs, bill of materials, checksums and their signature, in one directory
    Dist(dist::Args),
    /// A release made a site: repositories for apt and dnf, its files, install.sh
    Publish(publish::Args),
    /// A release installed from each of its channels into fresh systems, and refused where it must be
    Channels(channels::Args),
    /// Whether a tag is that of a release; prints what the changelog says about it
    Tag(tag::Args),
    /// Measure it against the same program with no platform
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup(args) => setup::main(&args),
        Task::Ebpf(args) => ebpf::main(&args),
        Task::Check(args) => check::main(&args),
        Task::Tidy => tidy::main(),
        Task::Contract => contract::main(),
        Task::Test(args) => test::main(&args),
        Task::Vm(args) => vm::main(&args),
        Task::Demo(args) => demo::main(&args),
        Task::Dist(args) => dist::main(&args),
        Task::Publish(args) => publish::main(&args),
        Task::Channels(args) => channels::main(&args),
        Task::Tag(args) => tag::main(&args),
        Task::Bench(args) => bench::main(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Task::command().debug_assert();
    }

    #[test]
    fn every_task_says_what_it_does() {
        for task in Task::command().get_subcommands() {
            assert!(task.get_about().is_some(), "{} has no help", task.get_name());
        }
    }
}
