//! Imports of good archives, and refusals of bad ones. They need root: an image's files have owners.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::roots::*;
use super::view::View;
use super::*;
use crate::core::image::ImageName;

/// An entry as it stands in an archive, names unchecked.
#[derive(Clone, Debug)]
struct Item<'a> {
    kind: EntryType,
    name: &'a str,
    target: &'a str,
    mode: u32,
    owner: u64,
    content: &'a [u8],
}

const fn item<'a>(kind: EntryType, name: &'a str, target: &'a str) -> Item<'a> {
    Item { kind, name, target, mode: 0o755, owner: 0, content: b"" }
}

const fn dir(name: &str) -> Item<'_> {
    item(EntryType::Directory, name, "")
}

const fn file<'a>(name: &'a str, content: &'a [u8]) -> Item<'a> {
    Item { kind: EntryType::Regular, name, target: "", mode: 0o644, owner: 0, content }
}

const fn link<'a>(name: &'a str, target: &'a str) -> Item<'a> {
    item(EntryType::Symlink, name, target)
}

fn tar(items: &[Item<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for item in items {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..item.name.len()].copy_from_slice(item.name.as_bytes());
        header.as_old_mut().linkname[..item.target.len()].copy_from_slice(item.target.as_bytes());
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(item.owner);
        header.set_gid(item.owner);
        header.set_mtime(1_700_000_000);
        header.set_size(item.content.len() as u64);
        header.set_cksum();
        tar.append(&header, item.content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// An OCI layout that can be bent before it is packed.
struct Layout {
    files: Vec<(String, Vec<u8>)>,
    config: serde_json::Value,
    manifest: serde_json::Value,
    index: serde_json::Value,
}

impl Layout {
    /// Layers as `(packed, plain)`.
    fn new(layers: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let ids: Vec<_> = layers.iter().map(|(_, plain)| digest(plain)).collect();
        let config = json!({
            "architecture": oci_spec::image::Arch::default().to_string(), "os": "linux",
            "config": { "Entrypoint": ["/bin/server"], "Cmd": ["-v"], "Env": ["A=b", "PATH=/bin"], "User": "web",
                        "ExposedPorts": { "8080/tcp": {} }, "Volumes": { "/data": {} }, "StopSignal": "SIGQUIT" },
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        let described: Vec<_> = layers
            .iter()
            .map(|(packed, _)| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(packed), "size": packed.len() }))
            .collect();
        let manifest = json!({ "schemaVersion": 2, "layers": described });
        let index = json!({ "schemaVersion": 2 });
        let files = layers
            .iter()
            .map(|(packed, _)| (digest(packed).replace("sha256:", "blobs/sha256/"), packed.clone()));
        Self { files: files.collect(), config, manifest, index }
    }

    fn blob(&mut self, value: &serde_json::Value, kind: &str) -> serde_json::Value {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = digest(&bytes);
        let described = json!({ "mediaType": kind, "digest": digest, "size": bytes.len() });
        self.files.push((digest.replace("sha256:", "blobs/sha256/"), bytes));
        described
    }

    /// As a tar file. `bend` sees the files before they are packed.
    fn pack(mut self, bend: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
        let config = self.config.clone();
        self.manifest["config"] = self.blob(&config, "application/vnd.oci.image.config.v1+json");
        let manifest = self.manifest.clone();
        let mut described = self.blob(&manifest, "application/vnd.oci.image.manifest.v1+json");
        described["annotations"] = json!({ "org.opencontainers.image.ref.name": "made:1" });
        if self.index.get("manifests").is_none() {
            self.index["manifests"] = json!([described]);
        }
        self.files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        self.files.push(("index.json".into(), serde_json::to_vec(&self.index).unwrap()));
        bend(&mut self.files);
        pack(&self.files)
    }
}

fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<_> = files.iter().map(|(name, content)| file(name, content)).collect();
    tar(&items)
}

struct Bed {
    dir: tempfile::TempDir,
    roots: Roots,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let roots = Roots::new(dir.path().join("roots"));
        Self { dir, roots }
    }

    fn import(&self, archive: &[u8]) -> Result<Imported, ImportError> {
        let mut file = tempfile::tempfile_in(self.dir.path()).unwrap();
        file.write_all(archive).unwrap();
        let fallback: ImageName = "fallback:1".parse().unwrap();
        self.roots.import(&file, None, Some(&fallback))
    }

    fn image(&self, archive: &[u8]) -> RootImage {
        let imported = self.import(archive).unwrap();
        self.roots.image(&imported.named.digest).unwrap()
    }

    /// How many things are kept: layers, configurations, names, drafts.
    fn kept(&self) -> [usize; 4] {
        let count =
            |dir: &str| fs::read_dir(self.dir.path().join("roots").join(dir)).map_or(0, Iterator::count);
        [count("layers"), count("configs"), count("names"), count("").saturating_sub(3)]
    }
}

fn base() -> Vec<Item<'static>> {
    vec![
        dir("./"),
        dir("bin"),
        Item { mode: 0o6755, ..file("bin/server", b"#!/bin/sh\n") },
        dir("etc"),
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/false\n"),
        file("etc/group", b"root:x:0:\nweb:x:102:\nlogs:x:4:x,web\n"),
        Item { mode: 0o600, owner: 101, ..file("etc/secret", b"s") },
        dir("data"),
        dir("old"),
        file("old/a", b"a"),
        file("old/b", b"b"),
        dir("run"),
        dir("var"),
        link("var/run", "/run"),
        file("var/run/pid", b"1"),
        Item { owner: 70_000, ..file("odd", b"") },
    ]
}

fn two_layers() -> Layout {
    let first = tar(&base());
    let second = tar(&[
        file("old/.wh.a", b""),
        dir("new"),
        file("new/.wh..wh..opq", b""),
        file("new/x", b"x"),
        item(EntryType::Link, "new/y", "new/x"),
        item(EntryType::Char, "dev/null", ""),
    ]);
    Layout::new(&[(gzip(&first), first), (zstandard(&second), second)])
}

#[test]
#[ignore = "needs root"]
fn a_layout_is_taken_in_and_shared() {
    let bed = Bed::new();
    let imported = bed.import(&two_layers().pack(|_| {})).unwrap();
    assert_eq!((imported.named.name.as_str(), imported.named.layers), ("made:1", 2));
    assert_eq!(imported.notes, ["left out: /dev/null (a device)"]);
    let image = bed.roots.image(&imported.named.digest).unwrap();
    assert_eq!(image.settings.entrypoint, ["/bin/server"]);
    assert_eq!(
        (image.settings.user.as_str(), image.settings.stop_signal.as_deref()),
        ("web", Some("SIGQUIT"))
    );

    let [first, second] = image.layers.as_slice() else { panic!("{image:?}") };
    let of = |path: &str| fs::symlink_metadata(first.join(path)).unwrap();
    // Neither set-uid nor set-gid is left; owners are in the range that is mapped.
    assert_eq!(of("bin/server").permissions().mode() & 0o7777, 0o755);
    assert_eq!((of("etc/secret").uid(), of("bin").uid()), (OWNER_BASE + 101, OWNER_BASE));
    assert_eq!(of("odd").uid(), OWNER_BASE + 65_534);
    assert_eq!(of("etc/passwd").mtime(), 1_700_000_000);
    // The parent was a link, to be followed within the image alone.
    assert_eq!(fs::read(first.join("run/pid")).unwrap(), b"1");
    let hidden = fs::symlink_metadata(second.join("old/a")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);

    let view = View { layers: &image.layers };
    let there = |path: &str| view.find(Path::new(path)).is_some();
    assert_eq!(
        ["old/a", "old/b", "new/y", "var/run/pid", "../../etc/group"].map(there),
        [false, true, true, true, true]
    );
    let process = process(&image, None, &Default::default(), None).unwrap();
    assert_eq!(process.arguments, ["/bin/server", "-v"]);
    assert_eq!((process.uid, process.gid, process.groups), (101, 102, vec![4]));
    assert_eq!((process.cwd.as_str(), process.writable), ("/", vec!["/data".to_owned()]));

    // The same again changes nothing; another image with one of the layers adds the rest alone.
    assert_eq!(bed.import(&two_layers().pack(|_| {})).unwrap().named.digest, image.digest);
    assert_eq!(bed.kept(), [2, 1, 1, 0]);
    let first = tar(&base());
    let mut other = Layout::new(&[(first.clone(), first)]);
    other.config["config"]["User"] = json!("");
    let other = bed.import(&other.pack(|_| {})).unwrap().named;
    assert_eq!(bed.kept(), [2, 2, 1, 0], "the name stands for the second now");

    // Collected is what neither a name nor anybody else has.
    let hour = Duration::from_secs(3600);
    assert_eq!(bed.roots.gc(|_| false, hour).unwrap(), Some(0));
    assert_eq!(bed.roots.gc(|hex| image.digest.ends_with(hex), Duration::ZERO).unwrap(), Some(0));
    assert_eq!(bed.kept(), [2, 2, 1, 0]);
    assert!(bed.roots.gc(|_| false, Duration::ZERO).unwrap().unwrap() > 0);
    assert_eq!(bed.kept(), [1, 1, 1, 0]);
    assert!(bed.roots.image(&image.digest).is_none() && bed.roots.image(&other.digest).is_some());
    assert!(bed.roots.forget(&other.name).unwrap());
    bed.roots.gc(|_| false, Duration::ZERO).unwrap();
    assert_eq!(bed.kept(), [0, 0, 0, 0]);
}

#[test]
#[ignore = "needs root"]
fn every_form_of_archive_is_understood() {
    let bed = Bed::new();
    let plain = tar(&base());
    let digests: Vec<_> = [plain.clone(), gzip(&plain), zstandard(&plain)]
        .iter()
        .map(|archive| bed.import(archive).unwrap().named)
        .map(|named| (named.name.to_string(), named.digest))
        .collect();
    assert!(digests.iter().all(|one| *one == digests[0]), "{digests:?}");
    assert_eq!(digests[0].0, "fallback:1");

    // As `docker save` writes it: by digest, with a layer that is a link to another.
    let layout = Layout::new(&[(plain.clone(), plain.clone()), (plain.clone(), plain.clone())]);
    let config = serde_json::to_vec(&layout.config).unwrap();
    let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
    let manifest =
        json!([{ "Config": config_name, "RepoTags": ["saved:2"], "Layers": ["a/layer.tar", "b/layer.tar"] }]);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let saved = tar(&[
        file("a/layer.tar", &plain),
        link("b/layer.tar", "../a/layer.tar"),
        file(&config_name, &config),
        file("manifest.json", &manifest),
    ]);
    let named = bed.import(&gzip(&saved)).unwrap().named;
    assert_eq!((named.name.as_str(), named.digest), ("saved:2", digest(&config)));
    assert_eq!(bed.kept(), [1, 2, 2, 0]);

    // An index for several platforms, within another.
    let mut layout = Layout::new(&[(plain.clone(), plain)]);
    layout.index = json!({ "schemaVersion": 2 });
    let arch = oci_spec::image::Arch::default().to_string();
    let config = layout.config.clone();
    layout.manifest["config"] = layout.blob(&config, "application/vnd.oci.image.config.v1+json");
    let manifest = layout.manifest.clone();
    let mut ours = layout.blob(&manifest, "application/vnd.oci.image.manifest.v1+json");
    ours["platform"] = json!({ "architecture": arch, "os": "linux" });
    let mut theirs = ours.clone();
    theirs["platform"] = json!({ "architecture": "s390x", "os": "linux" });
    theirs["digest"] = json!(digest(b"not here"));
    let inner = layout.blob(
        &json!({ "schemaVersion": 2, "manifests": [theirs, ours] }),
        "application/vnd.oci.image.index.v1+json",
    );
    layout.index["manifests"] = json!([inner]);
    assert_eq!(bed.import(&layout.pack(|_| {})).unwrap().named.name.as_str(), "fallback:1");
}

#[test]
#[ignore = "needs root"]
fn hostile_layers_are_refused_and_leave_nothing() {
    use EntryType as T;
    let long = "a/".repeat(45) + "b";
    let attacks: &[(&[Item<'_>], &str)] = &[
        (&[file("../x", b"x")], "leads out"),
        (&[file("a/../../x", b"x")], "leads out"),
        (&[file("/etc/x", b"x")], "leads out"),
        (&[link("a", "b"), link("b", "a"), file("a/x", b"x")], "too many links"),
        (&[link("a", "a/a"), file("a/x", b"x")], "too many links"),
        (&[file("a", b"x"), file("a/b", b"x")], "no directory"),
        (&[dir("a"), file("a", b"x")], "twice"),
        (&[item(T::Link, "a", "/etc/passwd")], "leads out"),
        (&[item(T::Link, "a", "../x")], "leads out"),
        (&[item(T::Link, "a", "below")], "no file that came before"),
        (&[dir("d"), item(T::Link, "a", "d")], "no file that came before"),
        (&[file("a", b""), item(T::Link, "a", "a")], "no file that came before"),
        (&[item(T::Char, "null", "")], "a device"),
        (&[item(T::Block, "etc/disk", "")], "a device"),
        (&[item(T::Fifo, "run/fifo", "")], "a fifo"),
        (&[file(".wh.", b"")], "no whiteout"),
        (&[file("a/.wh...", b"")], "no whiteout"),
        (&[file(".wh..wh..opq", b"")], "no whiteout"),
        (&[link("a", "")], "leads out"),
        (&[link("dev", "/etc")], "/dev is no directory"),
        (&[link("proc", "etc"), dir("etc")], "/proc is no directory"),
        (&[link("tmp", "/var/tmp")], "/tmp is no directory"),
        (&[file("sys", b"")], "/sys is no directory"),
        (&[item(T::GNUSparse, "a", "")], "sparse"),
        (
            &[Item { content: &[b'a'; 70_000], ..item(T::GNULongName, "x", "") }, file("x", b"")],
            "longer than",
        ),
        (&[Item { content: b"10 size=9\n", ..item(T::XHeader, "x", "") }, file("x", b"")], "content"),
        (
            &[Item { content: b"12 uid=many\n", ..item(T::XHeader, "x", "") }, file("x", b"")],
            "cannot be read",
        ),
        (&[file(&long, b""), link(&long, "x"), file("x", b""), dir("b"), link("b/.wh.", "x")], "no whiteout"),
    ];
    for (number, (items, why)) in attacks.iter().enumerate() {
        let plain = tar(items);
        for archive in [plain.clone(), Layout::new(&[(gzip(&plain), plain)]).pack(|_| {})] {
            let bed = Bed::new();
            let error = bed.import(&archive).unwrap_err().to_string();
            assert!(error.contains(why), "attack {number}: {error}");
            assert_eq!(bed.kept(), [0, 0, 0, 0], "attack {number}");
            assert_eq!(fs::read_dir(bed.dir.path()).unwrap().count(), 1, "attack {number}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn links_lead_nowhere_but_within() {
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let there = outside.path().to_str().unwrap();
    let bed = Bed::new();
    // Each of these would write outside of the layer, were the link followed by the kernel.
    let up = format!("../../../../../../../..{there}");
    let image = bed.image(&tar(&[
        link("a", there),
        file("a/x", b"1"),
        link("b", &up),
        file("b/y", b"2"),
        link("c", "/"),
        file("c/z", b"3"),
        link("here", "."),
        file("here/w", b"4"),
        // A later entry takes the place of a link, and of what it leads to nothing.
        link("victim", there),
        file("victim", b"5"),
        link("gone", there),
        dir("gone"),
        file("gone/v", b"6"),
    ]));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let layer = &image.layers[0];
    let inside = layer.join(there.trim_start_matches('/'));
    for (path, content) in [
        (inside.join("x"), b"1"),
        (inside.join("y"), b"2"),
        (layer.join("z"), b"3"),
        (layer.join("w"), b"4"),
        (layer.join("victim"), b"5"),
        (layer.join("gone/v"), b"6"),
    ] {
        assert_eq!(fs::read(&path).unwrap(), content, "{}", path.display());
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_not_as_its_digest_says_is_refused() {
    type Files = Vec<(String, Vec<u8>)>;
    let at = |files: &mut Files, what: &str| {
        files
            .iter()
            .position(|(name, content)| {
                name.starts_with("blobs") && String::from_utf8_lossy(content).contains(what)
            })
            .unwrap()
    };
    type Bend = Box<dyn FnOnce(&mut Files)>;
    let cases: Vec<(Bend, &str)> = vec![
        (
            Box::new(|files| {
                let last = files[0].1.len() - 9;
                files[0].1[last] ^= 1;
            }),
            "digest",
        ),
        (Box::new(|files| files[0].1.push(0)), "digest"),
        (Box::new(|files| drop(files.remove(1))), "not in the archive"),
        (
            Box::new(move |files| {
                let n = at(files, "diff_ids");
                files[n].1.push(b' ');
            }),
            "digest",
        ),
        (
            Box::new(move |files| {
                let n = at(files, "schemaVersion");
                files[n].1[0] = b' ';
            }),
            "digest",
        ),
        (Box::new(|files| files.retain(|(name, _)| name != "index.json")), "neither"),
        (Box::new(|files| files.last_mut().unwrap().1 = b"{".to_vec()), "not understood"),
        (Box::new(|files| files.last_mut().unwrap().1 = vec![b' '; 5 << 20]), "larger"),
    ];
    for (number, (bend, why)) in cases.into_iter().enumerate() {
        let bed = Bed::new();
        let error = bed.import(&two_layers().pack(bend)).unwrap_err();
        let text = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(
            text.contains(why) || (number < 1 && text.contains("cannot be read")),
            "case {number}: {text}"
        );
        assert_eq!(bed.kept(), [0, 0, 0, 0], "case {number}");
    }
    for (key, value, why) in [
        ("/architecture", json!("s390x"), "this machine is"),
        ("/os", json!("windows"), "this machine is"),
        ("/rootfs/diff_ids", json!([digest(b"x")]), "names 1 layers"),
        ("/rootfs/diff_ids/1", json!(digest(b"x")), "digest"),
        ("/rootfs/diff_ids/0", json!("md5:0"), "no sha256"),
    ] {
        let bed = Bed::new();
        let mut layout = two_layers();
        *layout.config.pointer_mut(key).unwrap() = value;
        let error = bed.import(&layout.pack(|_| {})).unwrap_err().to_string();
        assert!(error.contains(why), "{key}: {error}");
        assert_eq!(bed.kept(), [0, 0, 0, 0], "{key}");
    }
    let many = Layout::new(&vec![(vec![0; 1024], vec![0; 1024]); LAYERS_MAX + 1]);
    assert!(Bed::new().import(&many.pack(|_| {})).unwrap_err().to_string().contains("at most 128"));
}

#[test]
#[ignore = "needs root"]
fn a_bomb_is_defused_by_what_it_may_spend() {
    let bed = Bed::new();
    bed.import(&tar(&base())).unwrap();
    let bomb = gzip(&tar(&[file("zeros", &vec![0; 8 << 20])]));
    assert!(bomb.len() < 100_000);
    let mut budget = blob::Budget::new(1 << 20, 1000);
    let mut file = tempfile::tempfile_in(bed.dir.path()).unwrap();
    file.write_all(&Layout::new(&[(bomb.clone(), bomb)]).pack(|_| {})).unwrap();
    let found = oci::find(&file).unwrap();
    let root = bed.dir.path().join("bomb");
    fs::create_dir(&root).unwrap();
    let error = blob::unpack(&file, &found.layers[0], &root, &mut budget).unwrap_err();
    assert!(matches!(error, ImportError::Bytes), "{error}");

    let items: Vec<String> = (0..200).map(|n| format!("d{n}/e/f")).collect();
    let plain = tar(&items.iter().map(|name| self::file(name, b"")).collect::<Vec<_>>());
    let root = bed.dir.path().join("many");
    fs::create_dir(&root).unwrap();
    let error = layer::unpack(&plain[..], &root, 300).unwrap_err().to_string();
    assert!(error.contains("entries"), "{error}");
}
