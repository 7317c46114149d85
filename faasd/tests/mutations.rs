//! Archives and function files with bytes changed at random: whatever is read from others may be refused, and never does
//! harm. A run is bounded and can be replayed: `FAASD_SEED=N` (printed by each failure) and `FAASD_ROUNDS=N`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use faasd::core::image::ImageName;
use faasd::core::spec::FunctionSpec;
use faasd::runtime::image::{Roots, Store};
use tar::{Builder, EntryType, Header};

const BLOCK: usize = 512;

/// What one run does, unless it is told.
const ROUNDS: u64 = 400;

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, max: usize) -> usize {
        (self.next() % max.max(1) as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `round` with a seed of its own each time, and says which it was that failed.
/// Of the default run, some are accepted and some refused: else the mutations would be of no use.
fn rounds(mut round: impl FnMut(&mut Random) -> bool) {
    let (first, rounds) = match number("FAASD_SEED") {
        Some(seed) => (seed, number("FAASD_ROUNDS").unwrap_or(1)),
        None => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            (now.as_nanos() as u64, number("FAASD_ROUNDS").unwrap_or(ROUNDS))
        }
    };
    let mut accepted = 0;
    for seed in (0..rounds).map(|n| first.wrapping_add(n)) {
        // Neighbouring seeds are to have nothing in common.
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        match catch_unwind(AssertUnwindSafe(|| round(&mut random))) {
            Ok(is_accepted) => accepted += u64::from(is_accepted),
            Err(panic) => {
                eprintln!("replay with FAASD_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{accepted} of {rounds} were accepted");
    assert!(rounds < ROUNDS || (0 < accepted && accepted < rounds), "{accepted} of {rounds} were accepted");
}

/// Words that mean something to whoever reads these bytes.
const WORDS: [&[u8]; 14] = [
    b"../",
    b"/",
    b"..",
    b".wh.",
    b".wh..wh..opq",
    b"\0",
    b"a/b/c",
    b"dev",
    b"proc",
    b"/etc/passwd",
    b"\xff\xff",
    b"77777777777\0",
    b"00000000000\0",
    b"./",
];

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let word = random.pick(&WORDS);
                let end = (at + word.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&word[..end - at]);
            }
            4 => {
                let from = random.below(bytes.len());
                let piece = bytes[from..(from + random.below(64)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                // A header of another kind, or with another name.
                let block = at / BLOCK * BLOCK;
                if block + BLOCK <= bytes.len() {
                    bytes[block + 156] = *random
                        .pick(&[b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S"])
                        .first()
                        .unwrap();
                }
            }
        }
    }
}

/// Makes headers' sums right again, so that what is behind them is read at all.
fn mend(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(BLOCK) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

fn tar(entries: &[(EntryType, &str, &str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, target, content) in entries {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn code() -> Vec<u8> {
    use EntryType as T;
    tar(&[
        (T::Directory, "./", "", b""),
        (T::Regular, "handler.py", "", b"def handle(event, context): ..."),
        (T::Directory, "lib", "", b""),
        (T::Symlink, "lib/link", "../handler.py", b""),
        (T::Link, "lib/again", "handler.py", b""),
        (T::GNULongName, "././@LongLink", "", b"a/rather/long/name\0"),
        (T::Regular, "short", "", b"content"),
        (T::XHeader, "pax", "", b"17 path=some/pax\n"),
        (T::Regular, "short", "", b"more"),
    ])
}

fn root_file_system() -> Vec<u8> {
    use EntryType as T;
    let mut all = tar(&[
        (T::Directory, "run", "", b""),
        (T::Directory, "var", "", b""),
        (T::Symlink, "var/run", "/run", b""),
        (T::Regular, "var/run/pid", "", b"1"),
        (T::Regular, "old/.wh.file", "", b""),
        (T::Regular, "new/.wh..wh..opq", "", b""),
        (T::Char, "dev/null", "", b""),
        (T::Symlink, "link", "other", b""),
        (T::Symlink, "other", "link/../old", b""),
    ]);
    all.truncate(all.len() - 2 * BLOCK);
    all.extend(code());
    all
}

/// An image as `docker save` writes it, whose configuration fits its layer, however that is bent.
fn saved(layer: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    let id: String = sha2::Sha256::digest(layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = format!(
        r#"{{"architecture":"{arch}","os":"linux","config":{{"Cmd":["/a"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{id}"]}}}}"#
    );
    tar(&[
        (EntryType::Regular, "layer.tar", "", layer),
        (EntryType::Regular, "config.json", "", config.as_bytes()),
        (
            EntryType::Regular,
            "manifest.json",
            "",
            br#"[{"Config":"config.json","RepoTags":["a:1"],"Layers":["layer.tar"]}]"#,
        ),
    ])
}

/// What is in a directory of drafts and of things that are whole.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Where writing costs no disk.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

#[test]
fn archives_of_code_do_no_harm() {
    let good = code();
    rounds(|random| {
        let dir = scratch();
        let mut bytes = good.clone();
        mutate(random, &mut bytes);
        if random.below(4) > 0 {
            mend(&mut bytes);
        }
        let images = dir.path().join("images");
        let unpacked = Store::new(images.clone()).unpack(&bytes[..]);
        assert_eq!(names(dir.path()), ["images"]);
        assert_eq!(names(&images), ["sha256"]);
        let kept = names(&images.join("sha256")).len();
        assert_eq!(kept, usize::from(unpacked.is_ok()));
        kept == 1
    });
}

#[test]
#[ignore = "needs root"]
fn archives_of_images_do_no_harm() {
    let good = root_file_system();
    let fallback: ImageName = "a:1".parse().unwrap();
    rounds(|random| {
        let dir = scratch();
        let mut layer = good.clone();
        mutate(random, &mut layer);
        if random.below(4) > 0 {
            mend(&mut layer);
        }
        // Bent within an image that is in order, by itself, or the image around it bent as well.
        let mut bytes = match random.below(3) {
            0 => layer,
            kind => {
                let mut bytes = saved(&layer);
                if kind == 2 {
                    mutate(random, &mut bytes);
                    mend(&mut bytes);
                }
                bytes
            }
        };
        if random.below(8) == 0 {
            bytes = zstd::encode_all(&bytes[..], 1).unwrap();
            mutate(random, &mut bytes);
        }
        let mut file = tempfile::tempfile_in(dir.path()).unwrap();
        file.write_all(&bytes).unwrap();
        file.rewind().unwrap();
        let place = dir.path().join("roots");
        let roots = Roots::new(place.clone());
        let imported = roots.import(&file, None, Some(&fallback));
        assert_eq!(names(dir.path()), ["roots"]);
        assert_eq!(names(&place), ["configs", "layers", "names"]);
        let kept = ["configs", "layers", "names"].map(|dir| names(&place.join(dir)).len());
        match imported {
            Ok(imported) => {
                assert_eq!(kept, [1, 1, 1]);
                assert!(roots.image(&imported.named.digest).is_some());
            }
            Err(_) => assert_eq!(kept, [0, 0, 0]),
        }
        kept[0] == 1
    });
}

#[test]
fn function_files_do_no_harm() {
    let manual = include_str!("../../docs/CONFIGURATION.md");
    let good = manual.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    const TEXTS: [&[u8]; 12] = [
        b"'",
        b"\"",
        b"[",
        b"]",
        b"= 99999999999999999999",
        b"\n",
        b"-1",
        b"nan",
        b"1e400",
        b"\\u0000",
        b"port",
        b"\xc3",
    ];
    rounds(|random| {
        // Some of what is commented out comes in, some of the rest goes; not all of it goes together.
        let mut lines = Vec::new();
        for line in good.lines() {
            match line.strip_prefix('#') {
                Some(hidden) if random.below(12) == 0 => lines.push(hidden),
                None if random.below(4) == 0 && !line.starts_with('[') => {}
                _ => lines.push(line),
            }
        }
        let mut bytes = lines.join("\n").into_bytes();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            let text = random.pick(&TEXTS);
            let end = (at + random.below(4)).min(bytes.len());
            bytes.splice(at..end, text.iter().copied());
        }
        let text = String::from_utf8_lossy(&bytes);
        let spec = FunctionSpec::from_toml(&text);
        if let Ok(spec) = &spec {
            spec.check().unwrap();
            let stored = serde_json::to_string(spec).unwrap();
            assert_eq!(serde_json::from_str::<FunctionSpec>(&stored).unwrap(), *spec, "{text}");
        }
        spec.is_ok()
    });
}
