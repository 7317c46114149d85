//! `cargo xtask ebpf`: builds the kernel program.
//!
//! Its stripped object is committed, so that stable Rust alone builds the daemon. Beside it stands the record of
//! what made it: the digest of its sources and the versions of its tools. The same sources and tools give the same
//! bytes wherever the checkout is, and `--check` rebuilds and compares.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::report::step;
use crate::{repo, run, tools};

/// What is committed, and what the daemon embeds.
pub const OBJECT: &str = "faasd/src/sys/bpf/faasd-ebpf.o";
const RECORD: &str = "faasd/src/sys/bpf/faasd-ebpf.record";
const TARGET: &str = "bpfel-unknown-none";
/// v3 has 32-bit jumps and registers and atomics: Linux 5.12.
const CPU: &str = "v3";
/// Debian's `rustc-web`, which comes with a core library made for BPF.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Change nothing: fail if the committed object is not what its sources give
    #[arg(long)]
    pub check: bool,
}

pub fn main(args: &Args) -> Result<()> {
    if args.check { check() } else { build_and_write() }
}

/// Which compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Debian's, with its ready-made core.
    Debian,
    /// rustup's nightly, which builds core from `rust-src`.
    Nightly,
}

impl Compiler {
    /// Those that are installed. The record is made with Debian's, the one that can be had at an exact version.
    pub fn installed() -> Vec<Self> {
        let debian = Path::new(DEBIAN_RUSTC).is_file() && has_core(Path::new(DEBIAN_CORE));
        let nightly = nightly_source().is_some();
        [(debian, Self::Debian), (nightly, Self::Nightly)]
            .into_iter()
            .filter_map(|(is_there, compiler)| is_there.then_some(compiler))
            .collect()
    }

    fn version(self) -> Result<String> {
        let mut command = match self {
            Self::Debian => Command::new(DEBIAN_RUSTC),
            Self::Nightly => nightly("rustc"),
        };
        Ok(run::stdout(command.arg("--version"))?.trim().to_owned())
    }

    fn cargo(self) -> Command {
        match self {
            Self::Debian => {
                let mut cargo = repo::cargo();
                cargo.arg("build");
                cargo.env("RUSTC", DEBIAN_RUSTC);
                // Both use features that are not stable yet. The value enters cargo's hashes: never vary it.
                cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf,faasd_ebpf");
                cargo
            }
            Self::Nightly => {
                let mut cargo = nightly("cargo");
                cargo.args(["build", "-Z", "build-std=core"]);
                cargo.env_remove("RUSTC").env_remove("RUSTC_BOOTSTRAP");
                cargo
            }
        }
    }
}

fn has_core(lib: &Path) -> bool {
    let files = fs::read_dir(lib).into_iter().flatten().flatten();
    files.map(|file| file.file_name()).any(|name| name.to_string_lossy().starts_with("libcore-"))
}

fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]);
    // Ours would win over the one that is asked for.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command
}

fn nightly_source() -> Option<PathBuf> {
    run::which("rustup")?;
    let sysroot = run::stdout(nightly("rustc").args(["--print", "sysroot"])).ok()?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    source.is_dir().then_some(source)
}

/// What the bytes of the object follow from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    sources: String,
    compiler: String,
    linker: String,
    llvm: String,
    object: String,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# What faasd-ebpf.o was made from. Written by `cargo xtask ebpf`, compared by its --check."
        )?;
        self.fields().into_iter().try_for_each(|(name, value)| writeln!(f, "{name} = {value}"))
    }
}

impl Record {
    fn fields(&self) -> [(&'static str, &str); 5] {
        [
            ("sources", &self.sources),
            ("compiler", &self.compiler),
            ("linker", &self.linker),
            ("llvm", &self.llvm),
            ("object", &self.object),
        ]
    }

    fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            let found = text.lines().filter_map(|line| line.split_once(" = ")).find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_owned()).with_context(|| format!("{RECORD} lacks `{name}`"))
        };
        Ok(Self {
            sources: field("sources")?,
            compiler: field("compiler")?,
            linker: field("linker")?,
            llvm: field("llvm")?,
            object: field("object")?,
        })
    }

    fn read(path: &Path) -> Result<Self> {
        Self::parse(&fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?)
    }

    /// Whether the tools are the same, so that the bytes can be compared.
    fn same_tools(&self, other: &Self) -> bool {
        (&self.compiler, &self.linker, &self.llvm) == (&other.compiler, &other.linker, &other.llvm)
    }
}

fn build_and_write() -> Result<()> {
    let (object, record) = build(None)?;
    let to = repo::root().join(OBJECT);
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    if fs::read(&to).is_ok_and(|old| old == object) {
        println!("ebpf: {OBJECT} is up to date ({} bytes)", object.len());
    } else {
        fs::write(&to, &object).with_context(|| format!("writing {OBJECT}"))?;
        println!("ebpf: wrote {OBJECT} ({} bytes)", object.len());
    }
    fs::write(repo::root().join(RECORD), record.to_string()).with_context(|| format!("writing {RECORD}"))
}

fn check() -> Result<()> {
    let committed = fs::read(repo::root().join(OBJECT)).with_context(|| format!("reading {OBJECT}"))?;
    let record = Record::read(&repo::root().join(RECORD))?;
    if digest(&committed) != record.object {
        bail!("{OBJECT} is not the object that {RECORD} describes: run `cargo xtask ebpf` and commit both");
    }
    if sources_digest(repo::root())? != record.sources {
        bail!(
            "the kernel program's sources changed after {OBJECT} was built: run `cargo xtask ebpf` and commit it"
        );
    }
    let (rebuilt, now) = build(Some(&record))?;
    if rebuilt == committed {
        println!("ebpf: {OBJECT} is what its sources give, byte by byte");
    } else if now.same_tools(&record) {
        bail!(
            "{OBJECT} ({}) is not what its sources give here with the same tools ({}): run `cargo xtask ebpf` and \
             commit it, or find what makes the build irreproducible",
            record.object,
            now.object
        );
    } else {
        println!(
            "ebpf: {OBJECT} is newer than its sources and they build; bytes NOT compared, other tools made it:"
        );
        for ((name, then), (_, here)) in record.fields().into_iter().zip(now.fields()) {
            if then != here {
                println!("ebpf:   {name}: committed with {then}, here {here}");
            }
        }
    }
    Ok(())
}

/// The object and its record, from the build directory if nothing changed since the last time.
///
/// With several compilers at hand, `like` chooses the one that made an earlier object.
fn build(like: Option<&Record>) -> Result<(Vec<u8>, Record)> {
    let installed = Compiler::installed();
    let mut versions = Vec::new();
    for compiler in installed {
        versions.push((compiler, compiler.version()?));
    }
    let same = versions.iter().find(|(_, version)| like.is_some_and(|record| record.compiler == *version));
    let Some((compiler, version)) = same.or(versions.first()) else {
        bail!("there is no compiler for {TARGET} here: run `cargo xtask setup --for build`");
    };
    let linker = tools::BPF_LINKER.require()?;
    let objcopy = objcopy()?;
    let mut record = Record {
        sources: sources_digest(repo::root())?,
        compiler: version.clone(),
        linker: format!("{} {}", tools::BPF_LINKER.name, tools::BPF_LINKER.version),
        llvm: llvm_version()?,
        object: String::new(),
    };

    let directory = repo::target_dir().join("bpf");
    let cached = directory.join("faasd-ebpf.o");
    let cached_record = directory.join("faasd-ebpf.record");
    if let (Ok(bytes), Ok(earlier)) = (fs::read(&cached), Record::read(&cached_record)) {
        record.object = digest(&bytes);
        if earlier == record {
            return Ok((bytes, record));
        }
    }

    step("ebpf", &format!("building the kernel program with {version}"), || {
        compile(*compiler, &linker, &directory)?;
        // The debug sections name every type of core; the loader needs BTF alone.
        let built = directory.join(TARGET).join("release/faasd-ebpf");
        run::quiet(Command::new(&objcopy).arg("--strip-debug").arg(&built).arg(&cached))?;
        let mut rename = Command::new(&objcopy);
        for (i, symbol) in mangled(&fs::read(&cached)?).into_iter().enumerate() {
            rename.args(["--redefine-sym", &format!("{symbol}=faasd_{i}")]);
        }
        run::quiet(rename.arg(&cached))?;
        let bytes = fs::read(&cached)?;
        record.object = digest(&bytes);
        fs::write(&cached_record, record.to_string())?;
        Ok((bytes, record))
    })
}

fn compile(compiler: Compiler, linker: &Path, directory: &Path) -> Result<()> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let mut flags = vec![
        format!("-Ctarget-cpu={CPU}"),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("--remap-path-prefix={}=/faasd", repo::root().display()),
    ];
    flags.extend(home.map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));

    let mut cargo = compiler.cargo();
    cargo.args(["--release", "--locked", "--target", TARGET]);
    cargo.current_dir(repo::root().join("faasd-ebpf"));
    cargo.env("CARGO_TARGET_DIR", directory);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo.env("PATH", tools::path_with(linker)?);
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_RUSTC"] {
        cargo.env_remove(name);
    }
    run::quiet(&mut cargo).map(drop)
}

/// The names that the compiler has made up, in the object's order: those of functions that are called and not inlined. There
/// is a hash in each that depends on where the sources lie.
fn mangled(object: &[u8]) -> Vec<&str> {
    let strings = object.split(|byte| *byte == 0).filter(|string| string.starts_with(b"_R"));
    strings.filter_map(|string| str::from_utf8(string).ok().filter(|name| name.is_ascii())).collect()
}

/// The objcopy of rustup's own toolchain, whose LLVM the linker uses too; else one of the system.
fn objcopy() -> Result<PathBuf> {
    let sysroot = run::stdout(repo::rustc().args(["--print", "sysroot"]))?;
    let host = run::stdout(repo::rustc().args(["--print", "host-tuple"]))?;
    let bundled = Path::new(sysroot.trim()).join("lib/rustlib").join(host.trim()).join("bin/rust-objcopy");
    [Some(bundled).filter(|file| file.is_file()), run::which("llvm-objcopy")]
        .into_iter()
        .flatten()
        .next()
        .context("no rust-objcopy in the toolchain and no llvm-objcopy in the PATH: install llvm")
}

/// The LLVM that makes the code: that of the default toolchain, which bpf-linker opens.
fn llvm_version() -> Result<String> {
    let verbose = run::stdout(repo::rustc().arg("-vV"))?;
    let line = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    Ok(line.context("`rustc -vV` names no LLVM version")?.to_owned())
}

/// The digest of all that the object is made from.
fn sources_digest(root: &Path) -> Result<String> {
    let mut files = vec![
        root.join("faasd-ebpf/Cargo.toml"),
        root.join("faasd-ebpf/Cargo.lock"),
        root.join("faasd-common/Cargo.toml"),
    ];
    for directory in ["faasd-ebpf/src", "faasd-common/src"] {
        collect(&root.join(directory), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy();
        hash.update(format!("{name} {}\n", text.len()));
        hash.update(text);
    }
    // faasd-common takes its version and edition from the workspace.
    let workspace = fs::read_to_string(root.join("Cargo.toml"))?;
    hash.update(section(&workspace, "[workspace.package]"));
    Ok(hex(hash))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The lines of one section of a TOML file.
fn section(toml: &str, header: &str) -> String {
    let lines = toml.lines().skip_while(|line| line.trim() != header).skip(1);
    lines.take_while(|line| !line.starts_with('[')).collect::<Vec<_>>().join("\n")
}

fn digest(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytes);
    hex(hash)
}

fn hex(hash: Sha256) -> String {
    let digits = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("sha256:{digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            sources: "sha256:1".to_owned(),
            compiler: "rustc 1.96.0 (Debian)".to_owned(),
            linker: "bpf-linker 0.10.4".to_owned(),
            llvm: "22.1.2".to_owned(),
            object: "sha256:2".to_owned(),
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        assert_eq!(Record::parse(&record().to_string()).unwrap(), record());
        let cut = record().to_string().replace("llvm = ", "lvm = ");
        assert!(Record::parse(&cut).unwrap_err().to_string().contains("`llvm`"));
    }

    #[test]
    fn bytes_are_compared_only_between_equal_tools() {
        let other_source = Record { sources: "sha256:3".to_owned(), ..record() };
        assert!(record().same_tools(&other_source));
        let other_llvm = Record { llvm: "23.0.0".to_owned(), ..record() };
        assert!(!record().same_tools(&other_llvm));
    }

    #[test]
    fn a_section_ends_where_the_next_begins() {
        let toml = "[a]\nx = 1\n[b]\ny = 2\nz = 3\n\n[c]\n";
        assert_eq!(section(toml, "[b]"), "y = 2\nz = 3\n");
        assert_eq!(section(toml, "[none]"), "");
    }

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
