//! From an archive to instances, and what is left after them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use faasd_tests::{Bed, Output, eventually};
use rustix::process::Signal;
use serde_json::Value;
use tar::EntryType;

use crate::make::{Layer, USER, digest, hello, libraries};

/// Brings an image in, by way of a file.
pub fn import(bed: &Bed, name: &str, greeting: &str) -> Result<Value> {
    let file = bed.path("image.tar");
    fs::write(&file, hello(greeting)?.saved(name)?)?;
    bed.json(&["image", "import", &file.display().to_string()])
}

/// Deploys what an image itself runs, which takes its connections by the hand-off protocol.
pub fn deploy(bed: &Bed, name: &str, image: &str) -> Result<Output> {
    bed.deploy(name, &[("faas.toml", format!("contract = 'fd'\nimage = '{image}'\n").as_bytes())])
}

pub fn secrets() -> Result<()> {
    let bed = Bed::joined()?;
    import(&bed, "app:1", "one")?;
    let file = bed.path("value");
    fs::write(&file, "of the image's own user")?;
    bed.faas(&["secret", "set", "token", "--from-file", &file.display().to_string()])?.ok()?;
    let toml = "contract = 'fd'\nimage = 'app:1'\nsecrets = ['token']\n";
    bed.deploy("web", &[("faas.toml", toml.as_bytes())])?.ok()?;
    let secret = root(instance(&bed, "web")?).join("run/secrets/token");
    ensure!(fs::read_to_string(&secret)? == "of the image's own user");
    let meta = fs::metadata(&secret)?;
    ensure!(meta.uid() % 65_536 == USER && meta.mode() & 0o7777 == 0o400, "{meta:?}");
    ensure!(bed.client().curl("http://web.faas/")? == "hello from faasd\n");
    bed.finish()
}

/// The process id of the one instance that is ready.
fn instance(bed: &Bed, name: &str) -> Result<u64> {
    let function = bed.describe(name)?;
    let pid = function["instances"].as_array().and_then(|all| all.iter().find(|i| i["phase"] == "ready"));
    pid.and_then(|instance| instance["pid"].as_u64()).with_context(|| format!("no instance: {function}"))
}

fn root(pid: u64) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("root")
}

/// How many images are mounted.
fn mounted(bed: &Bed) -> usize {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let roots = bed.path("state/roots").display().to_string();
    text.lines().filter(|line| line.contains(&roots)).count()
}

pub fn alone() -> Result<()> {
    let bed = Bed::joined()?;
    let image = import(&bed, "docker.io/library/app:1", "one")?;
    ensure!(image["name"] == "app:1" && image["layers"] == 2, "{image}");
    deploy(&bed, "web", "app:1")?.ok()?;
    let client = bed.client();
    ensure!(client.curl("http://web.faas/")? == "hello from faasd\n");
    let env = client.curl("http://web.faas/env")?;
    for line in ["FROM_IMAGE=yes", "PATH=/bin", "FAAS_FUNCTION=web", "HOME=/tmp"] {
        ensure!(env.lines().any(|l| l == line), "no {line} in {env}");
    }

    let pid = instance(&bed, "web")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:\t")?.split('\t').next()?.parse::<u32>().ok());
    let base = uid.context("no uid")? - USER;
    ensure!(base >= 0x1000_0000 && base.is_multiple_of(65_536), "{base:#x}");
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        ensure!(status.contains(line), "no {line} in {status}");
    }
    // Files belong to the container's own users; nothing has power of its own.
    let root = root(pid);
    ensure!(fs::metadata(root.join("etc/secret"))?.uid() == base + USER);
    let program = fs::metadata(root.join("bin/hello"))?;
    ensure!(program.uid() == base && program.mode() & 0o7777 == 0o755, "{:o}", program.mode());
    // What the second layer hides is hidden, and of the host there is nothing.
    for absent in ["etc/gone", "usr/bin/env", "etc/debian_version", "app/faas.toml", "sys/kernel"] {
        ensure!(!root.join(absent).exists(), "{absent} is there");
    }
    ensure!(fs::read_link(format!("/proc/{pid}/cwd"))?.ends_with("srv"));
    // The image cannot be written to, not even by the host's root; what is to be written to can be.
    ensure!(fs::write(root.join("etc/new"), "").is_err());
    ensure!(fs::metadata(root.join("run"))?.uid() == base + USER);

    let refused = bed.faas(&["image", "rm", "app:1"])?.failed()?;
    ensure!(refused.contains("'app:1' is the image of web"), "{refused}");
    ensure!(bed.json(&["image", "prune", "--all", "--yes"])?["names"] == serde_json::json!([]));
    let listed = bed.json(&["image", "ls"])?;
    ensure!(listed["images"][0]["functions"] == serde_json::json!(["web"]), "{listed}");
    let described = bed.describe("web")?;
    ensure!(described["root"] == image["digest"] && described.get("image").is_none(), "{described}");

    bed.faas(&["rm", "web", "--yes"])?.ok()?;
    bed.faas(&["image", "rm", "app:1"])?.ok()?;
    let left = |dir: &str| fs::read_dir(bed.path("state/images/roots").join(dir)).map_or(0, Iterator::count);
    ensure!(["layers", "configs", "names"].map(left) == [0, 0, 0]);
    bed.finish()
}

pub fn mounts() -> Result<()> {
    let mut bed = Bed::joined()?;
    import(&bed, "app:1", "one")?;
    bed.deploy(
        "two",
        &[("faas.toml", b"contract = 'fd'\nimage = 'app:1'\nscale.min = 2\nwritable = ['/srv']\n")],
    )?
    .ok()?;
    eventually("two instances are ready", || {
        bed.describe("two").is_ok_and(|f| {
            f["instances"]
                .as_array()
                .is_some_and(|all| all.iter().filter(|i| i["phase"] == "ready").count() == 2)
        })
    })?;
    ensure!(mounted(&bed) == 1, "{}", mounted(&bed));
    // Another function has other users, and so a mount of its own.
    deploy(&bed, "one", "app:1")?.ok()?;
    ensure!(mounted(&bed) == 2, "{}", mounted(&bed));

    // A daemon that dies takes no mount along, and the next one knows whose they are.
    bed.end_daemon(Signal::KILL)?;
    ensure!(mounted(&bed) == 2, "{}", mounted(&bed));
    bed.serve()?;
    let adopted = bed.describe("one")?;
    ensure!(adopted["instances"][0]["adopted"] == true, "{adopted}");
    ensure!(bed.client().curl("http://one.faas/")? == "hello from faasd\n");
    bed.faas(&["rm", "one", "--yes"])?.ok()?;
    ensure!(mounted(&bed) == 1, "{}", mounted(&bed));
    bed.faas(&["rm", "two", "--yes"])?.ok()?;
    ensure!(mounted(&bed) == 0, "{}", mounted(&bed));

    // What is mounted when all is taken down goes with it; `finish` would find it.
    deploy(&bed, "last", "app:1")?.ok()?;
    ensure!(mounted(&bed) == 1, "{}", mounted(&bed));
    bed.finish()
}

pub fn moved() -> Result<()> {
    let bed = Bed::serving()?;
    let first = import(&bed, "app:latest", "one")?;
    deploy(&bed, "web", "app")?.ok()?;
    let second = import(&bed, "app:latest", "two")?;
    ensure!(first["digest"] != second["digest"]);
    // A new instance of the same revision is what was deployed, though nothing is called so any longer.
    bed.json(&["image", "prune"])?;
    let before = instance(&bed, "web")?;
    let pid = i32::try_from(before).ok().and_then(rustix::process::Pid::from_raw).context("no pid")?;
    rustix::process::kill_process(pid, Signal::KILL)?;
    eventually("another instance takes its place", || instance(&bed, "web").is_ok_and(|now| now != before))?;
    let greeting = |bed: &Bed| {
        Ok::<_, anyhow::Error>(fs::read_to_string(root(instance(bed, "web")?).join("srv/greeting"))?)
    };
    ensure!(greeting(&bed)? == "one");
    deploy(&bed, "web", "app")?.ok()?;
    ensure!(bed.describe("web")?["root"] == second["digest"]);
    eventually("the new image is what runs", || greeting(&bed).is_ok_and(|text| text == "two"))?;
    bed.finish()
}

pub fn code() -> Result<()> {
    let bed = Bed::joined()?;
    import(&bed, "app:1", "one")?;
    let program = fs::read(faasd_tests::hello_program())?;
    let toml = "contract = 'fd'\nimage = 'app:1'\ncommand = ['./program']\nenv.SHARED = 'function'\n";
    bed.deploy("mine", &[("program", &program), ("faas.toml", toml.as_bytes())])?.ok()?;
    let env = bed.client().curl("http://mine.faas/env")?;
    ensure!(env.contains("SHARED=function") && env.contains("FROM_IMAGE=yes"), "{env}");
    let pid = instance(&bed, "mine")?;
    ensure!(fs::read_link(format!("/proc/{pid}/cwd"))?.ends_with("app"));
    ensure!(fs::read_to_string(format!("/proc/{pid}/cmdline"))?.starts_with("/app/program"));
    for (toml, why) in [
        ("contract = 'fd'\nimage = 'nothing:1'\n", "there is no image 'nothing:1'"),
        ("contract = 'fd'\nimage = 'ap:1'\n", "did you mean 'app:1'?"),
        ("contract = 'fd'\nimage = 'app:1'\ncommand = ['helo']\n", "'helo' is not in the image"),
        ("contract = 'fd'\nimage = 'app:1'\nwritable = ['/var/run']\n", "`writable` names /var/run"),
        ("contract = 'fd'\nimage = 'App'\n", "write an image's name"),
        ("handler = 'handler.py:handle'\nimage = 'app:1'\n", "'python3' is not in the image"),
    ] {
        let files: [(&str, &[u8]); 2] =
            [("faas.toml", toml.as_bytes()), ("handler.py", b"def handle(e, c): ...")];
        let said = bed.deploy("bad", &files)?.failed()?;
        ensure!(said.contains(why), "{toml}: {said}");
    }
    ensure!(mounted(&bed) == 1);
    bed.finish()
}

/// The host's python, without the host.
fn python() -> Result<Vec<u8>> {
    let python = fs::canonicalize("/usr/bin/python3")?;
    let version = python.file_name().context("no python")?.to_string_lossy().into_owned();
    let mut layer = Layer::default();
    for library in libraries(&python)? {
        layer.file(library.trim_start_matches('/'), 0o755, 0, &fs::read(&library)?)?;
    }
    layer.file("usr/local/bin/python3", 0o755, 0, &fs::read(&python)?)?;
    layer.tree(&Path::new("/usr/lib").join(&version), Path::new("usr/local/lib").join(&version).as_path())?;
    layer.file("srv/index.html", 0o600, USER, b"served as it is\n")?;
    layer.pack()
}

/// A handler in an image, and beside it a server that is nothing but an image.
pub fn handler() -> Result<()> {
    let bed = Bed::joined()?;
    let file = bed.path("python.tar");
    let layer = python()?;
    fs::write(&file, &layer)?;
    bed.faas(&["image", "import", &file.display().to_string()])?.ok()?;
    let handler = b"import sys\ndef handle(event, context):\n    return sys.executable\n";
    bed.deploy("script", &[("handler.py", handler), ("faas.toml", b"image = 'python'\n")])?.ok()?;
    let said = bed.client().curl("http://script.faas/")?;
    ensure!(said == "/usr/local/bin/python3", "{said}");

    // No directory, no file: the image says all, its port and its signal as well.
    let mut image = hello("one")?;
    image.config["config"] = serde_json::json!({
        "Cmd": ["python3", "-m", "http.server", "9000", "--bind", "::"], "WorkingDir": "/srv",
        "User": format!("{USER}:{USER}"), "ExposedPorts": { "9000/tcp": {}, "53/udp": {} }, "StopSignal": "SIGINT",
    });
    image.config["rootfs"]["diff_ids"] = serde_json::json!([digest(&layer)]);
    image.layers = vec![layer];
    fs::write(&file, image.saved("server:1")?)?;
    bed.faas(&["image", "import", &file.display().to_string()])?.ok()?;
    bed.faas(&["deploy", "web", "--image", "server:1"])?.ok()?;
    ensure!(bed.client().curl("http://web.faas/index.html")? == "served as it is\n");
    let spec = &bed.describe("web")?["spec"];
    ensure!(spec["listen_port"] == 9000 && spec["stop_signal"] == "SIGINT", "{spec}");
    bed.finish()
}

pub fn killed() -> Result<()> {
    let mut bed = Bed::serving()?;
    let file = bed.path("image.tar");
    fs::write(&file, hello("one")?.saved("app:1")?)?;
    let roots = bed.path("state/images/roots");
    let mut child = std::process::Command::new(faasd_tests::program("faas"))
        .arg("--socket")
        .arg(bed.path("run/faasd.sock"))
        .args(["image", "import"])
        .arg(&file)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    eventually("a layer is being unpacked", || {
        let drafts = fs::read_dir(&roots).into_iter().flatten().flatten();
        drafts.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(".draft-"))
    })?;
    bed.end_daemon(Signal::KILL)?;
    ensure!(!child.wait()?.success());
    bed.serve()?;
    // Nothing is called so, and what was begun is in nobody's way.
    ensure!(bed.json(&["image", "ls"])?["images"] == serde_json::json!([]));
    deploy(&bed, "web", "app:1")?.failed()?;
    bed.faas(&["image", "prune"])?.ok()?;
    let left = |dir: &str| fs::read_dir(roots.join(dir)).map_or(0, Iterator::count);
    ensure!(["layers", "configs", "names", ""].map(left) == [0, 0, 0, 3], "something is left");
    bed.faas(&["image", "import", &file.display().to_string()])?.ok()?;
    deploy(&bed, "web", "app:1")?.ok()?;
    bed.finish()
}

pub fn hostile() -> Result<()> {
    let bed = Bed::serving()?;
    let mut traversal = Layer::default();
    traversal.file("../../escaped", 0o644, 0, b"x")?;
    let mut device = Layer::default();
    device.add(EntryType::Block, "disk", "", 0o666, 0, b"")?;
    let mut links = Layer::default();
    links.add(EntryType::Symlink, "proc", "/etc", 0o777, 0, b"")?;
    let mut damaged = hello("one")?;
    damaged.layers[1][600] ^= 1;
    let mut absent = hello("one")?;
    absent.layers.pop();
    for (name, archive, why) in [
        ("traversal", traversal.pack()?, "leads out"),
        ("device", device.pack()?, "a device"),
        ("links", links.pack()?, "/proc is no directory"),
        ("damaged", damaged.saved("x:1")?, ""),
        ("absent", absent.saved("x:1")?, "names 2 layers"),
        ("text", b"no archive at all, but some text".repeat(64), ""),
    ] {
        let file = bed.path(name);
        fs::write(&file, archive)?;
        let said = bed.faas(&["image", "import", &file.display().to_string()])?.failed()?;
        ensure!(said.contains(why), "{name}: {said}");
        let left =
            |dir: &str| fs::read_dir(bed.path("state/images/roots").join(dir)).map_or(0, Iterator::count);
        ensure!(["layers", "configs", "names", ""].map(left) == [0, 0, 0, 3], "{name} leaves something");
        ensure!(!bed.path("escaped").exists() && !bed.path("state/escaped").exists());
    }
    bed.finish()
}
