use tar::{Builder, Header};

use super::*;
use crate::core::spec::{Contract, FunctionSpec};

/// One entry of a hostile or friendly archive, with names written as they are, past all checks of the tar crate.
fn entry(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, target: &str, mode: u32, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, EntryType::Regular, name, "", 0o644, content);
    tar.into_inner().unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("images"));
    (dir, store)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_tree_is_kept_once_under_its_digest() {
    let (_dir, store) = store();
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, EntryType::Directory, "./", "", 0o700, b"");
    entry(&mut tar, EntryType::Regular, "./handler.py", "", 0o600, b"code");
    entry(&mut tar, EntryType::Regular, "bin/tool", "", 0o6711, b"tool");
    entry(&mut tar, EntryType::Symlink, "bin/link", "../handler.py", 0o777, b"");
    entry(&mut tar, EntryType::Link, "again", "bin/tool", 0o644, b"");
    let unpacked = store.unpack(&tar.into_inner().unwrap()[..]).unwrap();
    assert_eq!((unpacked.bytes, unpacked.digest.len()), (8, 71));
    let dir = store.directory(&unpacked.digest).unwrap();
    assert_eq!(fs::read_to_string(dir.join("bin/link")).unwrap(), "code");
    assert_eq!(mode(&dir), 0o755);
    assert_eq!(mode(&dir.join("bin")), 0o755);
    assert_eq!(mode(&dir.join("handler.py")), 0o644);
    // Neither set-uid nor set-gid is left.
    assert_eq!(mode(&dir.join("bin/tool")), 0o755);

    // The same tree in another order, by another writer of archives.
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, EntryType::Regular, "again", "", 0o755, b"tool");
    entry(&mut tar, EntryType::Link, "bin/tool", "again", 0o755, b"");
    entry(&mut tar, EntryType::Symlink, "bin/link", "../handler.py", 0o777, b"");
    entry(&mut tar, EntryType::Regular, "handler.py", "", 0o644, b"code");
    assert_eq!(store.unpack(&tar.into_inner().unwrap()[..]).unwrap(), unpacked);
    let other = store.unpack(&file("handler.py", b"other")[..]).unwrap();
    assert_ne!(other.digest, unpacked.digest);

    let keep = [other.digest.clone()].into();
    assert_eq!(store.gc(&keep, Duration::from_secs(3600)).unwrap(), 0);
    assert_eq!(store.gc(&keep, Duration::ZERO).unwrap(), 1);
    assert!(store.directory(&unpacked.digest).is_none() && store.directory(&other.digest).is_some());
}

#[test]
fn attacks_are_refused_and_leave_nothing() {
    use EntryType as T;
    type Entry<'a> = (T, &'a str, &'a str, &'a [u8]);
    let attacks: &[(&[Entry<'_>], &str)] = &[
        (&[(T::Regular, "../x", "", b"x")], "leads out"),
        (&[(T::Regular, "a/../../x", "", b"x")], "leads out"),
        (&[(T::Regular, "/etc/x", "", b"x")], "leads out"),
        (&[(T::Symlink, "a", "/etc", b"")], "leads out"),
        (&[(T::Symlink, "a", "..", b"")], "leads out"),
        (&[(T::Symlink, "d/a", "../../x", b"")], "leads out"),
        // Down and up again may lead anywhere, if what is gone down is a link.
        (&[(T::Symlink, "d/e/a", "x/../../..", b"")], "leads out"),
        (&[(T::Symlink, "a", "b", b""), (T::Regular, "a/x", "", b"x")], "no directory"),
        (&[(T::Symlink, "a", "b", b""), (T::Regular, "a", "", b"x")], "twice"),
        (&[(T::Regular, "a", "", b"x"), (T::Directory, "a", "", b"")], "twice"),
        (&[(T::Regular, "a", "", b"x"), (T::Regular, "./a", "", b"y")], "twice"),
        (&[(T::Link, "a", "/etc/passwd", b"")], "leads out"),
        (&[(T::Link, "a", "../x", b"")], "leads out"),
        (&[(T::Link, "a", "later", b""), (T::Regular, "later", "", b"")], "no file that came before"),
        (&[(T::Symlink, "s", "t", b""), (T::Link, "a", "s", b"")], "no file that came before"),
        (&[(T::Char, "null", "", b"")], "a device"),
        (&[(T::Block, "disk", "", b"")], "a device"),
        (&[(T::Fifo, "fifo", "", b"")], "a fifo"),
        (&[(T::GNULongName, "x", "", &[b'a'; 2000]), (T::Regular, "x", "", b"")], "longer than"),
        (&[(T::GNULongName, "x", "", &[b'a'; 300]), (T::Regular, "x", "", b"")], "longer than"),
        (&[(T::GNULongName, "x", "", &[b'a'; 70_000]), (T::Regular, "x", "", b"")], "longer than"),
        (&[(T::GNULongName, "x", "", b"../y\0"), (T::Regular, "x", "", b"")], "leads out"),
        (&[(T::XHeader, "x", "", b"13 path=../y\n"), (T::Regular, "x", "", b"")], "leads out"),
        (&[(T::XHeader, "x", "", b"10 size=9\n"), (T::Regular, "x", "", b"")], "content"),
        (&[], "empty"),
    ];
    for (number, (entries, why)) in attacks.iter().enumerate() {
        let (dir, store) = store();
        let mut tar = Builder::new(Vec::new());
        entries.iter().for_each(|(kind, name, target, content)| {
            entry(&mut tar, *kind, name, target, 0o755, content);
        });
        let error = store.unpack(&tar.into_inner().unwrap()[..]).unwrap_err().to_string();
        assert!(error.contains(why), "attack {number}: {error}");
        // The directory of images, in it the one of digests, and in that nothing.
        let images = dir.path().join("images");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "attack {number}");
        assert_eq!(fs::read_dir(&images).unwrap().count(), 1, "attack {number}");
        assert_eq!(fs::read_dir(images.join(ALGORITHM)).unwrap().count(), 0, "attack {number}");
    }
}

#[test]
fn long_names_of_both_kinds_are_read() {
    let long = "d/".repeat(60) + "file";
    for (kind, header) in
        [(EntryType::GNULongName, format!("{long}\0")), (EntryType::XHeader, format!("134 path={long}\n"))]
    {
        let (_dir, store) = store();
        let mut tar = Builder::new(Vec::new());
        entry(&mut tar, kind, "x", "", 0o644, header.as_bytes());
        entry(&mut tar, EntryType::Regular, "short", "", 0o644, b"content");
        let unpacked = store.unpack(&tar.into_inner().unwrap()[..]).unwrap();
        assert_eq!(fs::read_to_string(unpacked.directory.join(&long)).unwrap(), "content");
    }
}

#[test]
fn sizes_and_numbers_have_limits() {
    let (_dir, store) = store();
    // A header that announces more than is allowed, and an endless reader behind it.
    let mut header = Header::new_gnu();
    header.set_path("big").unwrap();
    header.set_mode(0o644);
    header.set_size(BYTES_MAX + 1);
    header.set_cksum();
    let archive = header.as_bytes().chain(io::repeat(0));
    assert!(matches!(store.unpack(archive), Err(UnpackError::Bytes)));
    let truncated = &file("a", &[0; 4096])[..1024];
    assert!(matches!(store.unpack(truncated), Err(UnpackError::Read(_))));

    let mut tree = Tree::default();
    for n in 0..ENTRIES_MAX {
        tree.insert(PathBuf::from(n.to_string()), Node::Directory).unwrap();
    }
    assert!(matches!(tree.insert("more".into(), Node::Directory), Err(UnpackError::Entries(_))));
}

#[test]
fn what_is_declared_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path();
    fs::create_dir(image.join("bin")).unwrap();
    fs::write(image.join("handler.py"), "").unwrap();
    fs::write(image.join("bin/hello"), "").unwrap();
    fs::write(image.join("tool"), "").unwrap();
    fs::set_permissions(image.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    // Inside a container this leads to nothing; on the host it would.
    symlink("/usr/bin/true", image.join("absolute")).unwrap();
    let handler = |name: &str| FunctionSpec { handler: Some(format!("{name}:f")), ..FunctionSpec::default() };
    let command = |program: &str| FunctionSpec {
        contract: Contract::Fd,
        command: vec![program.to_owned(), "x".to_owned()],
        ..FunctionSpec::default()
    };
    let check = |spec: FunctionSpec| entry_point(image, &spec).map_err(|e| e.to_string());
    assert_eq!(check(handler("handler.py")), Ok(vec![]));
    for (program, inside) in [
        ("./tool", "/app/tool"),
        ("tool", "/app/tool"),
        ("/app/tool", "/app/tool"),
        ("true", "/usr/bin/true"),
        ("/bin/true", "/bin/true"),
    ] {
        assert_eq!(check(command(program)), Ok(vec![inside.to_owned(), "x".to_owned()]), "{program}");
    }
    for (spec, why) in [
        (handler("handlr.py"), "did you mean 'handler.py'?"),
        (handler("x.py"), "it has absolute, bin, handler.py, tool"),
        (command("./hello"), "no './hello'"),
        (command("bin/hello"), "chmod +x bin/hello"),
        (command("bin/helo"), "did you mean 'hello'?"),
        (command("bin"), "no regular file"),
        (command("absolute"), "no 'absolute'"),
        (command("../../etc/passwd"), "no '../../etc/passwd'"),
        (command("/etc/passwd"), "not there inside"),
        (command("/usr/local/bin/x"), "not there inside"),
        (command("no-such-program"), "no 'no-such-program'"),
    ] {
        let error = check(spec).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    assert!(
        entry_point(&image.join("gone"), &handler("x.py")).unwrap_err().to_string().contains("deploy it")
    );
}
