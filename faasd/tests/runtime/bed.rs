//! What each test has of the machine.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use faasd::core::name::FunctionName;
use faasd::core::paths::Paths;
use faasd::core::spec::{Contract, FunctionSpec};
use faasd::runtime::{Created, Request, Runtime, image, new_id};
use faasd::sys::cgroup::Cgroups;
use faasd::sys::pidfd::Exit;
use faasd_sdk::wire::{self};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use crate::DEADLINE;

/// A part of the machine for one test alone.
pub struct Bed {
    _dir: tempfile::TempDir,
    pub paths: Paths,
    pub runtime: Runtime,
}

/// One started instance, and our end of its socket.
pub struct Instance {
    pub running: Created,
    pub socket: OwnedFd,
}

impl Bed {
    pub async fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let paths = Paths {
            state: dir.path().join("state"),
            run: dir.path().join("run"),
            wireguard: dir.path().join("wireguard"),
            instance: format!("faasd-test-runtime-{}-{number}", std::process::id()),
            cgroup: None,
        };
        let runtime = Runtime::new(paths.clone()).await.unwrap();
        Self { _dir: dir, paths, runtime }
    }

    /// Keeps files as an image, by way of an archive, as an upload does.
    pub fn image(&self, files: &[(&str, &[u8])]) -> PathBuf {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        image::Store::new(self.paths.images()).unpack(&tar.into_inner().unwrap()[..]).unwrap().directory
    }

    /// A request for a python script that talks over descriptor 3 itself.
    pub fn script(&self, text: &str) -> (Request, OwnedFd) {
        let spec = FunctionSpec {
            contract: Contract::Fd,
            command: ["/usr/bin/python3", "-S", "-E", "probe.py"].map(str::to_owned).to_vec(),
            ..FunctionSpec::default()
        };
        self.request(spec, self.image(&[("probe.py", text.as_bytes())]))
    }

    pub fn request(&self, spec: FunctionSpec, image: PathBuf) -> (Request, OwnedFd) {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        let status = rustix::fs::memfd_create("status", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&status, wire::status::BYTES as u64).unwrap();
        let function: FunctionName = "probe".parse().unwrap();
        let id = new_id(&function, 1);
        let (image, descriptors) = (Some(image), vec![theirs, status]);
        (
            Request {
                id,
                function,
                slot: 7,
                revision: 1,
                spec,
                image,
                root: None,
                dependencies: None,
                hosts: None,
                hold: false,
                descriptors,
            },
            ours,
        )
    }

    pub async fn start(&self, request: (Request, OwnedFd)) -> Instance {
        let instance = self.create(request).await;
        self.release(&instance).await;
        instance
    }

    /// Up to where its program would be executed.
    pub async fn create(&self, (request, socket): (Request, OwnedFd)) -> Instance {
        let running = self.runtime.create(request).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
        Instance { running, socket }
    }

    pub async fn release(&self, Instance { running, .. }: &Instance) {
        let released = self.runtime.release(&running.id, &running.process).await;
        released.unwrap_or_else(|e| panic!("{}", chain(&e)));
    }

    pub async fn stop(&self, instance: &Instance, grace: Duration) -> Exit {
        let running = &instance.running;
        self.runtime.stop(&running.id, &running.process, grace).await.unwrap()
    }

    /// There is no bundle, no state of runc, no cgroup and no mount.
    pub fn assert_nothing_left(&self) {
        assert_eq!(fs::read_dir(self.paths.bundles()).unwrap().count(), 0, "bundles");
        assert_eq!(fs::read_dir(self.paths.runc()).unwrap().count(), 0, "runc");
        let cgroups = Cgroups::discover().unwrap();
        assert_eq!(cgroups.children(&self.paths.containers()), Vec::<String>::new(), "cgroups");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.paths.state.display().to_string()), "mounts: {mounts}");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = Cgroups::discover().and_then(|c| c.remove(&self.paths.containers(), Duration::from_secs(5)));
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Instance {
    /// The next message from inside. Empty when the instance is gone.
    pub fn receive(&self) -> Vec<u8> {
        let mut poll = [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::IN)];
        let deadline = rustix::event::Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut poll, Some(&deadline)).unwrap(), 1, "no message in {DEADLINE:?}");
        let mut buffer = vec![0; 64 << 10];
        let (bytes, _) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()).unwrap();
        buffer.truncate(bytes);
        buffer
    }

    pub fn report(&self) -> serde_json::Value {
        let message = self.receive();
        serde_json::from_slice(&message)
            .unwrap_or_else(|e| panic!("{e}: {:?}; {}", String::from_utf8_lossy(&message), self.printed()))
    }

    /// What it has printed so far, to be shown when a test fails.
    pub fn printed(&self) -> String {
        let mut buffer = vec![0; 64 << 10];
        let bytes = rustix::io::read(&self.running.log, &mut buffer[..]).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    }

    pub fn status(&self, key: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.running.pid)).unwrap();
        let value = text.lines().find_map(|l| l.strip_prefix(&format!("{key}:")).map(str::trim));
        value.unwrap_or_else(|| panic!("no {key}")).to_owned()
    }

    pub async fn exited(&self) -> Exit {
        tokio::time::timeout(DEADLINE, self.running.process.exited()).await.unwrap().unwrap()
    }
}
