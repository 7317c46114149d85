//! Each program's place in the kernel, and its pin, by which it stays there.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{CgroupAttachMode, FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcAttachType, TcHandle,
    qdisc_add_clsact,
};
use aya::programs::{CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps};
use aya::util::KernelVersion;
use faasd_common::programs;

use super::{Attachment, BpfError, chain, io_error};

const GUARDS: [&str; 4] =
    [programs::DENY_CONNECT4, programs::DENY_CONNECT6, programs::DENY_BIND4, programs::DENY_BIND6];

/// Where our filter is at an interface, by which the next daemon finds it: its priority and handle.
const FILTER: (u16, TcHandle) = (1, TcHandle::new(0, 1));

/// Attaches all of them.
pub(super) fn all(object: &mut Ebpf, at: &Attachment<'_>) -> Result<(), BpfError> {
    // The guards first: no socket is steered to a function before it is locked in.
    guards(object, at)?;
    egress(object, at)?;
    // Nor before its connections are counted.
    counting(object, at)?;
    steering(object, at)
}

/// Pins `link` under `name` in place of the link that is pinned there now, which ends only afterwards.
fn replace_pin(dir: &Path, name: &'static str, link: FdLink) -> Result<(), BpfError> {
    let attach = |reason: String| BpfError::Attach { program: name, reason };
    let (pin, new) = (dir.join(format!("link_{name}")), dir.join(format!("next_{name}")));
    let old = PinnedLink::from_pin(&pin).ok();
    // Left over from a daemon that was killed right here.
    let _ = fs::remove_file(&new);
    link.pin(&new).map_err(|e| attach(chain(&e)))?;
    fs::rename(&new, &pin).map_err(|e| attach(format!("cannot pin it at {}: {e}", pin.display())))?;
    drop(old);
    Ok(())
}

fn steering(object: &mut Ebpf, at: &Attachment<'_>) -> Result<(), BpfError> {
    const NAME: &str = programs::STEER;
    let attach = |e: &dyn std::error::Error| BpfError::Attach { program: NAME, reason: chain(e) };
    let program: &mut SkLookup = program(object, NAME)?;
    program.load().map_err(|e| attach(&e))?;
    let id = program.attach(at.ingress).map_err(|e| attach(&e))?;
    let link = program.take_link(id).map_err(|e| attach(&e))?;
    replace_pin(at.dir, NAME, link.into())
}

fn guards(object: &mut Ebpf, at: &Attachment<'_>) -> Result<(), BpfError> {
    let cgroup = cgroup(at)?;
    for name in GUARDS {
        let attach = |e: &dyn std::error::Error| BpfError::Attach { program: name, reason: chain(e) };
        let program: &mut CgroupSockAddr = program(object, name)?;
        program.load().map_err(|e| attach(&e))?;
        // No flag: several links may be attached to one cgroup in any case.
        let id = program.attach(&cgroup, CgroupAttachMode::Single).map_err(|e| attach(&e))?;
        let link = program.take_link(id).map_err(|e| attach(&e))?;
        replace_pin(at.dir, name, link.try_into().map_err(|e| attach(&e))?)?;
    }
    Ok(())
}

fn counting(object: &mut Ebpf, at: &Attachment<'_>) -> Result<(), BpfError> {
    const NAME: &str = programs::COUNT_LIVE;
    let attach = |e: &dyn std::error::Error| BpfError::Attach { program: NAME, reason: chain(e) };
    let program: &mut SockOps = program(object, NAME)?;
    program.load().map_err(|e| attach(&e))?;
    let id = program.attach(cgroup(at)?, CgroupAttachMode::Single).map_err(|e| attach(&e))?;
    let link = program.take_link(id).map_err(|e| attach(&e))?;
    replace_pin(at.dir, NAME, link.try_into().map_err(|e| attach(&e))?)
}

fn cgroup(at: &Attachment<'_>) -> Result<File, BpfError> {
    File::open(at.cgroup).map_err(|e| io_error(&format!("open the cgroup {}", at.cgroup.display()), e))
}

fn egress(object: &mut Ebpf, at: &Attachment<'_>) -> Result<(), BpfError> {
    const NAME: &str = programs::GUARD_EGRESS;
    let attach = |reason: String| BpfError::Attach { program: NAME, reason };
    let program: &mut SchedClassifier = program(object, NAME)?;
    program.load().map_err(|e| attach(chain(&e)))?;
    for (interface, pin) in [("lo", "guard_egress_lo"), (at.tunnel, "guard_egress_tunnel")] {
        // Links of programs at an interface came with Linux 6.6.
        let tcx = KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(6, 6, 0));
        // Interface indices and netlink are the namespace's own.
        let link = at
            .ingress
            .run(|| {
                let other = |e: ProgramError| io::Error::other(chain(&e));
                let id = match tcx {
                    true => program.attach(interface, TcAttachType::Egress).map_err(other)?,
                    false => filter(program, interface)?,
                };
                program.take_link(id).map_err(other)
            })
            .map_err(|e| attach(format!("on {interface}: {e}")))?;
        if tcx {
            replace_pin(at.dir, pin, link.try_into().map_err(|e| attach(chain(&e)))?)?;
        } else {
            keep_attached(link);
        }
    }
    Ok(())
}

/// Makes the program the interface's filter, in the place of the one that an earlier daemon has left there: one program is
/// exchanged for the other, and no packet passes without either.
fn filter(program: &mut SchedClassifier, interface: &str) -> io::Result<SchedClassifierLinkId> {
    let other = |e: &dyn std::error::Error| io::Error::other(chain(e));
    match qdisc_add_clsact(interface) {
        Err(e) if !chain(&e).contains("exists") => return Err(other(&e)),
        _ => {}
    }
    let (priority, handle) = FILTER;
    let earlier = SchedClassifierLink::attached(interface, TcAttachType::Egress, priority, handle, None)?;
    program.attach_to_link(earlier).or_else(|_| {
        let place = TcAttachOptions::Netlink(NlOptions { priority, handle, classid: None });
        program.attach_with_options(interface, TcAttachType::Egress, place).map_err(|e| other(&e))
    })
}

/// A netlink filter has no descriptor to pin: it lives as long as its interface, unless its handle is dropped.
#[expect(clippy::mem_forget, reason = "dropping the handle would detach the filter")]
fn keep_attached(link: SchedClassifierLink) {
    std::mem::forget(link);
}

fn program<'a, T>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, BpfError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let missing = || BpfError::Attach { program: name, reason: "the object does not define it".to_owned() };
    object.program_mut(name).ok_or_else(missing)?.try_into().map_err(|_| missing())
}
