//! The policy while daemons die and come back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use faasd_tests::{Load, address, eventually};
use rustix::process::Signal;

use crate::{deploy_server, refused, served, two};

pub fn killed() -> Result<()> {
    let mut bed = two()?;
    deploy_server(&bed, "hello")?;
    let to = address(&bed.describe("hello")?)?;
    bed.faas(&["group", "add", "ops", "client"])?.ok()?;
    bed.faas(&["allow", "@ops", "hello"])?.ok()?;
    bed.faas(&["policy", "default", "closed"])?.ok()?;
    // One client is served all the time, and the other one never, whatever becomes of the daemon.
    let load = Load::reconnecting(&bed.client(), to, 80, 2)?;
    let ns = bed.client_at(2).netns()?;
    let (stop, got_in, tries) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            ns.run(|| {
                while !stop.load(Ordering::Relaxed) {
                    let dialled =
                        std::net::TcpStream::connect_timeout(&(to, 80).into(), Duration::from_secs(5));
                    got_in.fetch_or(dialled.is_ok(), Ordering::Relaxed);
                    tries.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let done = (|| -> Result<()> {
            for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
                bed.end_daemon(signal)?;
                let tried = tries.load(Ordering::Relaxed) + 50;
                load.more(100)?;
                eventually("the other one tries", || tries.load(Ordering::Relaxed) >= tried)?;
                bed.serve()?;
                load.more(100)?;
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        done
    })?;
    ensure!(!got_in.load(Ordering::Relaxed), "the other one got in");
    load.finish()?;
    // It is the same policy that goes on.
    bed.faas(&["group", "add", "ops", "other"])?.ok()?;
    served(&bed.client_at(2), to)?;
    bed.faas(&["deny", "client", "hello"])?.ok()?;
    refused(&bed.client(), to)?;
    bed.finish()
}

pub fn repaired() -> Result<()> {
    use aya::maps::{HashMap, Map, MapData};

    let mut bed = two()?;
    bed.deploy_hello("hello", "")?;
    let to = address(&bed.describe("hello")?)?;
    bed.faas(&["deny", "other", "hello"])?.ok()?;
    bed.end_daemon(Signal::KILL)?;
    // As if it had died between the record and the map, and as if it had died before a removal was carried out.
    let pins = std::path::Path::new("/sys/fs/bpf").join(bed.name());
    let rules = Map::HashMap(MapData::from_pin(pins.join(faasd_common::maps::RULES))?);
    let mut rules: HashMap<MapData, [u32; 5], u32> = rules.try_into()?;
    let key = rules.keys().next().context("no rule")??;
    rules.remove(&key)?;
    rules.insert([4711, key[1], key[2], key[3], key[4]], faasd_common::Rule::ALLOW, 0)?;
    bed.serve()?;
    refused(&bed.client_at(2), to)?;
    let left = rules.keys().collect::<Result<Vec<_>, _>>()?;
    ensure!(left == [key], "{left:?}, and not {key:?}");
    served(&bed.client(), to)?;
    bed.finish()
}
