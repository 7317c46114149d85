//! The OCI bundle of one instance: a `config.json`, made from the function's declaration. Pure, apart from
//! [`skeleton`]: what is in it can be read and tested without a container.
//!
//! The root directory is the same for every instance: empty directories to mount on, links into `/usr`, and a
//! minimal `/etc`. The host's `/usr` is seen read-only, which gives every function the host's libc, python and the like
//! at no cost in memory or time.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResourcesBuilder,
    Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};

use super::image::Process;
use super::seccomp;
use crate::core::egress::HOSTS;
use crate::core::name::FunctionName;
use crate::core::secret;
use crate::core::spec::{Contract, FunctionSpec, Language};

/// The user and group that code runs as, inside.
pub const USER: u32 = 65_532;

/// The host's user ids given to containers begin here: far above those of people and services, and of other container
/// managers' usual ranges.
pub const UID_BASE: u32 = 0x1000_0000;

/// User ids for each function.
pub const UID_RANGE: u32 = 65_536;

/// The most functions that ranges can be given to without passing `i32::MAX`, which some tools take for the end.
pub const SLOTS_MAX: u32 = (i32::MAX as u32 - UID_BASE) / UID_RANGE;

/// Where the code is, inside.
pub const APP: &str = "/app";

/// Where the runner is, inside.
pub const RUNNER: &str = "/run/faasd";

/// Where the program is that serves scripts, inside.
pub const RUNNER_PROGRAM: &str = "/run/faasd-runner";

/// Where what a function depends on is, inside, by its language: node looks there by itself.
#[must_use]
pub const fn dependencies(language: Language) -> &'static str {
    match language {
        Language::Node => "/node_modules",
        Language::Python | Language::Script => "/deps",
    }
}

/// Where a function that accepts its connections itself finds who has which address.
pub const CALLERS: &str = "/run/faasd-callers";

/// The scheduler's period. 100 ms is the kernel's default; a shorter one costs more than it smooths.
const CPU_PERIOD_US: u64 = 100_000;

/// The kernel refuses a quota below 1 ms.
const CPU_QUOTA_US_MIN: i64 = 1_000;

/// Below 1024 (one default weight) a container starves on v1 beside the host's own processes.
const CPU_SHARES_MIN: u64 = 1_024;
const CPU_SHARES_MAX: u64 = 262_144;

/// Functions are killed before the daemon and the rest of the machine when memory runs out.
const OOM_SCORE: i32 = 500;

const SEARCH_PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// Of a root image that does not say.
pub const IMAGE_SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Keys of the annotations that a restarted daemon reads back.
pub mod annotation {
    pub const FUNCTION: &str = "io.faasd.function";
    pub const REVISION: &str = "io.faasd.revision";
    pub const SLOT: &str = "io.faasd.slot";
    /// Where the root image of a function that has one is mounted.
    pub const ROOT: &str = "io.faasd.root";
}

/// Everything that a bundle is made from.
#[derive(Debug)]
pub struct Parameters<'a> {
    pub id: &'a str,
    pub function: &'a FunctionName,
    /// The function's range of user ids.
    pub slot: u32,
    pub revision: u64,
    pub spec: &'a FunctionSpec,
    /// The argument vector, as it is inside.
    pub arguments: Vec<String>,
    /// The code, if there is any.
    pub image: Option<&'a Path>,
    /// What a root image asks for; `None` where the root is our own and the host's `/usr` is seen.
    pub inside: Option<&'a Process>,
    /// The runner's directory, for handlers.
    pub runner: Option<&'a Path>,
    /// The program that serves scripts, for them.
    pub program: Option<&'a Path>,
    /// What the code depends on, for handlers.
    pub dependencies: Option<&'a Path>,
    /// Whether the runner is to wait before it loads the code.
    pub hold: bool,
    /// The directory of its secrets, if it has any.
    pub secrets: Option<&'a Path>,
    /// The directory of callers' names, for those who are not told of them with each connection.
    pub callers: Option<&'a Path>,
    /// What [`skeleton`] made, or a root image.
    pub root: &'a Path,
    /// Absolute within each hierarchy: relative ones would nest under the daemon's own group.
    pub cgroup: &'a str,
    /// Who is asked about some of its calls, for a `port` function and for one that may connect to others.
    pub agent: Option<seccomp::Agent<'a>>,
    /// Its `/etc/hosts`, if it is not everybody's.
    pub hosts: Option<&'a Path>,
    pub host: &'a Host,
}

/// What of the machine shows in a bundle.
#[derive(Clone, Debug)]
pub struct Host {
    /// Our own hard limit of open files: without `CAP_SYS_RESOURCE` there is no going past it.
    pub files_max: u64,
    /// Whether a limit on swap can be set.
    pub swap_limit: bool,
    /// Whether there is a `/usr/local` to hide.
    pub usr_local: bool,
}

/// The first host uid of a function's range.
#[must_use]
pub const fn uid_base(slot: u32) -> u32 {
    UID_BASE + slot * UID_RANGE
}

/// Makes `config.json`'s content.
///
/// # Errors
/// None in practice: those of the builders.
pub fn config(p: &Parameters<'_>) -> Result<Spec, OciSpecError> {
    let limits = &p.spec.limits;
    let none = LinuxCapabilitiesBuilder::default()
        .bounding([])
        .effective([])
        .inheritable([])
        .permitted([])
        .ambient([])
        .build()?;
    let limit = |typ, value: u64| PosixRlimitBuilder::default().typ(typ).hard(value).soft(value).build();
    let user = match p.inside {
        None => UserBuilder::default().uid(USER).gid(USER).build()?,
        Some(inside) => UserBuilder::default()
            .uid(inside.uid)
            .gid(inside.gid)
            .additional_gids(inside.groups.clone())
            .build()?,
    };
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(p.arguments.clone())
        .env(environment(p))
        .cwd(p.inside.map_or(APP, |inside| &inside.cwd))
        .capabilities(none)
        .rlimits(vec![
            limit(PosixRlimitType::RlimitNofile, limits.files_max.min(p.host.files_max))?,
            limit(PosixRlimitType::RlimitCore, 0)?,
        ])
        .no_new_privileges(true)
        .oom_score_adj(OOM_SCORE)
        .build()?;

    let memory = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
    let memory = LinuxMemoryBuilder::default().limit(memory);
    // Swap counts memory in: the same number means none of it.
    let memory = match p.host.swap_limit {
        true => memory.swap(i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX)),
        false => memory,
    };
    let quota = (limits.cpu_cores * CPU_PERIOD_US as f64).round() as i64;
    let shares = (limits.cpu_cores * CPU_SHARES_MIN as f64).round() as u64;
    let cpu = LinuxCpuBuilder::default()
        .period(CPU_PERIOD_US)
        .quota(quota.max(CPU_QUOTA_US_MIN))
        .shares(shares.clamp(CPU_SHARES_MIN, CPU_SHARES_MAX));
    // runc adds the rules for null, zero, full, random, urandom and tty itself.
    let no_devices = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let resources = LinuxResourcesBuilder::default()
        .devices(vec![no_devices])
        .memory(memory.build()?)
        .cpu(cpu.build()?)
        .pids(LinuxPidsBuilder::default().limit(i64::from(limits.pids_max)).build()?)
        .build()?;

    let namespaces = [
        LinuxNamespaceType::User,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
        LinuxNamespaceType::Network,
    ];
    let namespaces: Result<Vec<_>, _> =
        namespaces.map(|typ| LinuxNamespaceBuilder::default().typ(typ).build()).into_iter().collect();
    let ids = LinuxIdMappingBuilder::default()
        .container_id(0u32)
        .host_id(uid_base(p.slot))
        .size(UID_RANGE)
        .build()?;
    let linux = LinuxBuilder::default()
        .namespaces(namespaces?)
        .uid_mappings(vec![ids])
        .gid_mappings(vec![ids])
        .resources(resources)
        .cgroups_path(p.cgroup)
        .seccomp(seccomp::profile(p.agent)?)
        // Nothing is left to mask: /proc shows processes alone, and there is no /sys. Masked paths have had their share
        // of holes (CVE-2025-31133).
        .masked_paths(Vec::new())
        .readonly_paths(Vec::new())
        .build()?;

    let mut annotations = HashMap::from([
        (annotation::FUNCTION.to_owned(), p.function.to_string()),
        (annotation::REVISION.to_owned(), p.revision.to_string()),
        (annotation::SLOT.to_owned(), p.slot.to_string()),
    ]);
    if p.inside.is_some() {
        annotations.insert(annotation::ROOT.to_owned(), p.root.display().to_string());
    }
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(p.root).readonly(true).build()?)
        .hostname(p.function.as_str())
        .mounts(mounts(p)?)
        .process(process)
        .annotations(annotations)
        .linux(linux)
        .build()
}

/// The environment: the function's own, and above it what a function may rely on.
fn environment(p: &Parameters<'_>) -> Vec<String> {
    if let Some(inside) = p.inside {
        return environment_of_image(p, inside);
    }
    let mut ours = vec![
        SEARCH_PATH.to_owned(),
        "HOME=/tmp".to_owned(),
        "LANG=C.UTF-8".to_owned(),
        // The code is on a read-only mount: trying to write byte code would only cost time.
        "PYTHONDONTWRITEBYTECODE=1".to_owned(),
        format!("FAAS_FUNCTION={}", p.function),
        format!("FAAS_REVISION={}", p.revision),
    ];
    ours.extend(p.dependencies.map(|_| format!("FAAS_DEPENDENCIES={}", dependencies(language(p)))));
    ours.extend(environment_of_contract(p).into_iter().map(|(key, value)| format!("{key}={value}")));
    let is_ours = |key: &str| ours.iter().any(|pair| pair.split('=').next() == Some(key));
    let theirs = p.spec.env.iter().filter(|(key, _)| !is_ours(key));
    theirs.map(|(key, value)| format!("{key}={value}")).chain(ours.iter().cloned()).collect()
}

/// What the contract tells a server.
fn environment_of_contract(p: &Parameters<'_>) -> Vec<(&'static str, String)> {
    let spec = p.spec;
    let mut all = match spec.contract {
        Contract::Port => vec![("PORT", spec.listen_port().to_string()), ("HOST", "::".to_owned())],
        // sd_listen_fds(3). The program is the first process of its namespace.
        Contract::ListenFds => [("LISTEN_FDS", "1"), ("LISTEN_PID", "1"), ("LISTEN_FDNAMES", "faas")]
            .map(|(key, value)| (key, value.to_owned()))
            .to_vec(),
        // The runner's own business; it has the control socket as 4.
        Contract::Handler if spec.handler_parts().language.has_listener() => {
            vec![("LISTEN_FDS", "1".to_owned())]
        }
        Contract::Handler | Contract::Fd => Vec::new(),
    };
    all.extend(p.hold.then(|| ("FAAS_HOLD", "1".to_owned())));
    all
}

/// With a root image it is the image that is relied on, and the function may know better.
fn environment_of_image(p: &Parameters<'_>, inside: &Process) -> Vec<String> {
    let mut all = BTreeMap::from([("PATH", IMAGE_SEARCH_PATH), ("HOME", "/tmp")]);
    all.extend(inside.env.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    all.extend(p.spec.env.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    let (function, revision) = (p.function.to_string(), p.revision.to_string());
    let contract = environment_of_contract(p);
    if p.dependencies.is_some() {
        all.insert("FAAS_DEPENDENCIES", dependencies(language(p)));
    }
    all.extend(contract.iter().map(|(key, value)| (*key, value.as_str())));
    all.extend([("FAAS_FUNCTION", function.as_str()), ("FAAS_REVISION", revision.as_str())]);
    all.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn language(p: &Parameters<'_>) -> Language {
    p.spec.handler_parts().language
}

fn mounts(p: &Parameters<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let mount = |destination: &str, kind: &str, source: &Path, options: &[&str]| {
        MountBuilder::default()
            .destination(destination)
            .typ(kind)
            .source(source)
            .options(options.iter().map(|&o| o.to_owned()).collect::<Vec<_>>())
            .build()
    };
    let tmpfs = Path::new("tmpfs");
    let tmp_size = format!("size={}", p.spec.limits.tmp_bytes);
    let mut mounts = Vec::new();
    if p.inside.is_none() {
        mounts.push(mount("/usr", "none", Path::new("/usr"), &["rbind", "ro", "nosuid", "nodev"])?);
    }
    if p.inside.is_none() && p.host.usr_local {
        // The administrator's own programs are none of a function's business.
        let options = ["ro", "nosuid", "nodev", "noexec", "mode=755", "size=4k"];
        mounts.push(mount("/usr/local", "tmpfs", tmpfs, &options)?);
    }
    let proc = ["nosuid", "noexec", "nodev", "hidepid=2", "subset=pid"];
    mounts.push(mount("/proc", "proc", Path::new("proc"), &proc)?);
    mounts.push(mount("/dev", "tmpfs", tmpfs, &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"])?);
    mounts.push(mount("/dev/shm", "tmpfs", tmpfs, &["nosuid", "noexec", "nodev", "mode=1777", &tmp_size])?);
    mounts.push(mount("/tmp", "tmpfs", tmpfs, &["nosuid", "nodev", "mode=1777", &tmp_size])?);
    if let Some(inside) = p.inside {
        // What servers expect to be able to write to, each for this instance alone.
        let own = [format!("uid={}", inside.uid), format!("gid={}", inside.gid), tmp_size];
        let options = ["nosuid", "nodev", "mode=755", &own[0], &own[1], &own[2]];
        for place in std::iter::once("/run").chain(inside.writable.iter().map(String::as_str)) {
            mounts.push(mount(place, "tmpfs", tmpfs, &options)?);
        }
    }
    if let Some(image) = p.image {
        mounts.push(mount(APP, "none", image, &["bind", "ro", "nosuid", "nodev"])?);
    }
    if let Some(runner) = p.runner {
        mounts.push(mount(RUNNER, "none", runner, &["bind", "ro", "nosuid", "nodev", "noexec"])?);
    }
    if let Some(program) = p.program {
        mounts.push(mount(RUNNER_PROGRAM, "none", program, &["bind", "ro", "nosuid", "nodev"])?);
    }
    if let Some(dir) = p.dependencies {
        let inside = dependencies(language(p));
        mounts.push(mount(inside, "none", dir, &["bind", "ro", "nosuid", "nodev"])?);
    }
    if let Some(hosts) = p.hosts {
        mounts.push(mount("/etc/hosts", "none", hosts, &["bind", "ro", "nosuid", "nodev", "noexec"])?);
    }
    if let Some(dir) = p.secrets {
        mounts.push(mount(secret::DIRECTORY, "none", dir, &["bind", "ro", "nosuid", "nodev", "noexec"])?);
    }
    if let Some(dir) = p.callers {
        mounts.push(mount(CALLERS, "none", dir, &["bind", "ro", "nosuid", "nodev", "noexec"])?);
    }
    Ok(mounts)
}

/// Makes the root directory that all containers share, or completes it. It is mounted read-only.
///
/// # Errors
/// Those of the file system.
pub fn skeleton(root: &Path) -> io::Result<()> {
    // /tmp has its final mode here, since runc 1.1 gives a tmpfs the mode of its mount point.
    for (dir, mode) in [
        ("", 0o755),
        ("app", 0o755),
        ("deps", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("node_modules", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        ("run/faasd", 0o755),
        ("run/faasd-callers", 0o755),
        ("run/secrets", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
    ] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        match symlink(PathBuf::from("usr").join(link), root.join(link)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    let passwd = format!(
        "root:x:0:0:root:/:/usr/sbin/nologin\nfunction:x:{USER}:{USER}:function:/tmp:/usr/sbin/nologin\n"
    );
    for (file, content) in [
        ("etc/passwd", passwd),
        ("etc/group", format!("root:x:0:\nfunction:x:{USER}:\n")),
        ("etc/hosts", HOSTS.to_owned()),
        // There is no DNS, and whoever looks for one waits in vain.
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n".to_owned()),
        // Mounted over.
        ("run/faasd-runner", String::new()),
    ] {
        let file = root.join(file);
        if fs::read_to_string(&file).is_ok_and(|now| now == content) {
            continue;
        }
        fs::write(&file, content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(spec: &FunctionSpec, slot: u32) -> serde_json::Value {
        let host = Host { files_max: 20_000, swap_limit: true, usr_local: true };
        let function = "hello".parse().unwrap();
        let parameters = Parameters {
            id: "hello-1-3f9a",
            function: &function,
            slot,
            revision: 1,
            spec,
            arguments: vec!["/app/hello".into()],
            image: Some(Path::new("/images/x")),
            inside: None,
            runner: Some(Path::new("/runners/x")),
            program: Some(Path::new("/usr/bin/faasd")),
            dependencies: Some(Path::new("/images/y")),
            secrets: Some(Path::new("/run/faasd/secrets/hello-1-3f9a")),
            callers: Some(Path::new("/run/faasd/callers")),
            hold: false,
            root: Path::new("/root"),
            cgroup: "/faasd/hello-1-3f9a",
            agent: None,
            hosts: Some(Path::new("/bundles/x/hosts")),
            host: &host,
        };
        serde_json::to_value(config(&parameters).unwrap()).unwrap()
    }

    #[test]
    fn nothing_is_granted() {
        let config = made(&FunctionSpec::default(), 3);
        let process = &config["process"];
        for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
            assert_eq!(process["capabilities"][set], serde_json::json!([]), "{set}");
        }
        assert_eq!(process["noNewPrivileges"], true);
        assert_eq!(process["user"]["uid"], USER);
        let linux = &config["linux"];
        assert_eq!(linux["namespaces"].as_array().unwrap().len(), 7);
        assert_eq!(linux["uidMappings"][0]["hostID"], 0x1000_0000 + 3 * 65_536);
        assert_eq!(linux["resources"]["devices"], serde_json::json!([{ "allow": false, "access": "rwm" }]));
        assert_eq!(config["root"]["readonly"], true);
        for mount in config["mounts"].as_array().unwrap() {
            let options: Vec<_> =
                mount["options"].as_array().unwrap().iter().map(|o| o.as_str().unwrap()).collect();
            assert!(options.contains(&"nosuid"), "{mount}");
            let is_bind = options.iter().any(|o| o.ends_with("bind"));
            assert!(!is_bind || (options.contains(&"ro") && options.contains(&"nodev")), "{mount}");
        }
    }

    #[test]
    fn limits_arrive() {
        let mut spec = FunctionSpec::default();
        spec.limits.cpu_cores = 0.001;
        let config = made(&spec, 0);
        let resources = &config["linux"]["resources"];
        assert_eq!(resources["memory"]["limit"], 128 << 20);
        assert_eq!(resources["memory"]["swap"], 128 << 20);
        assert_eq!(resources["cpu"]["quota"], 1_000);
        assert_eq!(resources["cpu"]["shares"], 1_024);
        assert_eq!(resources["pids"]["limit"], 128);
        assert_eq!(config["process"]["rlimits"][0]["hard"], 16_384);
        spec.limits.files_max = 1 << 20;
        assert_eq!(made(&spec, 0)["process"]["rlimits"][0]["soft"], 20_000);
    }

    #[test]
    fn a_function_cannot_override_what_it_relies_on() {
        let env = [("PATH".into(), "/evil".into()), ("A".into(), "b".into())].into();
        let config = made(&FunctionSpec { env, ..FunctionSpec::default() }, 0);
        let env: Vec<_> =
            config["process"]["env"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
        assert_eq!(env.iter().filter(|e| e.starts_with("PATH=")).collect::<Vec<_>>(), [&SEARCH_PATH]);
        assert!(
            env.contains(&"A=b") && env.contains(&"FAAS_FUNCTION=hello") && env.contains(&"FAAS_REVISION=1")
        );
    }

    #[test]
    fn ranges_of_user_ids_do_not_meet() {
        assert_eq!(uid_base(1) - uid_base(0), UID_RANGE);
        assert!(u64::from(uid_base(SLOTS_MAX - 1)) + u64::from(UID_RANGE) <= i32::MAX as u64);
    }
}
