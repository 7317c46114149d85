//! The seccomp agent of one container: what an unmodified server binds to its port is exchanged for the function's
//! listener, before its own eyes and without its knowing; and what a program connects to by its function's grants is
//! connected to elsewhere ([`super::egress`]).
//!
//! The container's network namespace is empty, so that a socket made in it hears nobody. The function's listener was
//! made in the ingress namespace; a descriptor of it does its work wherever it is held. So when the server calls
//! `bind` on a TCP socket with the function's port, that descriptor comes to stand for the listener, with the options
//! that the server has set so far; and when it calls `listen` on it, the server is ready. Whatever else is bound,
//! other ports and unix sockets, goes its own way.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::time::Instant;

use super::egress::Caller;
use super::options::copy_options;
use crate::sys::notify::{Answer, Call, Notifications};
use crate::sys::shared::copy_linger;

/// Ports that are remembered for a complaint.
const OTHERS_MAX: usize = 8;

/// How many calls of one container are served in how long: each costs the daemon some 50 µs. Who calls more often waits.
const CALLS_MAX: u32 = 500;
const CALLS_WINDOW: Duration = Duration::from_millis(100);

/// Who answers a container's calls.
#[derive(Debug)]
pub struct Agent {
    notifications: Arc<Notifications>,
    server: Option<Server>,
    caller: Option<Arc<Caller>>,
    served: Mutex<Served>,
}

/// The calls of the window that is under way.
#[derive(Debug)]
struct Served {
    since: Instant,
    calls: u32,
}

/// The listener that a container's server is to have.
#[derive(Debug)]
pub struct Server {
    listener: Arc<OwnedFd>,
    /// The kernel's own name for the listener, the same through all its descriptors.
    cookie: u64,
    port: u16,
    /// Whether what is bound over IPv4 is exchanged as well.
    ipv4: bool,
    /// Ports that were bound in its stead.
    others: Mutex<BTreeSet<u16>>,
}

/// What a server has come to.
#[derive(Debug)]
#[must_use]
pub enum Asked {
    /// It waits in `listen` for [`Agent::listening`].
    Listen(Listen),
    /// It listens on its port over IPv4, which may be all that it does.
    Ipv4,
}

/// A call that waits.
#[derive(Debug)]
pub struct Listen(Call);

/// What a call is about.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    /// `bind` of a TCP socket over IPv6 to the function's port.
    Bind,
    /// `listen` on the listener.
    Listen,
    /// `listen` on what was bound over IPv4.
    ListenIpv4,
    Other,
}

impl Agent {
    /// `notify` is what runc sent for the container. Needs to be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn new(notify: OwnedFd, server: Option<Server>, caller: Option<Arc<Caller>>) -> io::Result<Self> {
        Ok(Self {
            notifications: Arc::new(Notifications::new(notify)?),
            server,
            caller,
            served: Mutex::new(Served { since: Instant::now(), calls: 0 }),
        })
    }

    /// Lets the listener go: nothing more is exchanged for it. `None` if that was all that there was to do.
    #[must_use]
    pub fn without_server(self) -> Option<Self> {
        self.caller.is_some().then_some(Self { server: None, ..self })
    }

    /// Serves the program's calls until its server listens. `None` when no process is left that could. Nothing is lost if
    /// the future is dropped.
    ///
    /// # Errors
    /// Those of the notification descriptor.
    pub async fn next(&self) -> io::Result<Option<Asked>> {
        loop {
            self.turn().await;
            let Some(call) = self.notifications.next().await? else { return Ok(None) };
            if call.number == libc::SYS_connect {
                match &self.caller {
                    Some(caller) => caller.serve(&self.notifications, call)?,
                    None => drop(self.notifications.answer(&call, Answer::Proceed)?),
                }
                continue;
            }
            let subject = self.server.as_ref().map(|server| server.subject(&call));
            let subject = subject.and_then(Result::ok).unwrap_or(Subject::Other);
            // Only now is it certain that it was the caller that was looked at.
            let subject = if self.notifications.is_waiting(&call) { subject } else { Subject::Other };
            match (subject, &self.server) {
                (Subject::Listen, _) => return Ok(Some(Asked::Listen(Listen(call)))),
                (Subject::ListenIpv4, _) => {
                    self.notifications.answer(&call, Answer::Proceed)?;
                    return Ok(Some(Asked::Ipv4));
                }
                (Subject::Bind, Some(server)) => {
                    let answer = match server.exchange(&self.notifications, &call) {
                        Ok(()) => Answer::Done,
                        Err(e) => Answer::Fail(e.raw_os_error().unwrap_or(libc::EADDRNOTAVAIL)),
                    };
                    self.notifications.answer(&call, answer)?;
                }
                (Subject::Bind | Subject::Other, _) => {
                    self.notifications.answer(&call, Answer::Proceed)?;
                }
            }
        }
    }

    /// Waits for the next window if this one's calls are used up.
    async fn turn(&self) {
        let next = {
            let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
            let next = served.since + CALLS_WINDOW;
            if Instant::now() >= next {
                *served = Served { since: Instant::now(), calls: 0 };
            }
            served.calls += 1;
            (served.calls > CALLS_MAX).then_some(next)
        };
        if let Some(next) = next {
            tokio::time::sleep_until(next).await;
        }
    }

    /// Lets the server go on from `listen`, on a listener that listens.
    ///
    /// # Errors
    /// Those of the notification descriptor.
    pub fn listening(&self, listen: &Listen) -> io::Result<()> {
        // Not by the kernel: the server's own backlog may be short, and this queue also holds what waited for its start.
        self.notifications.answer(&listen.0, Answer::Done).map(drop)
    }

    /// What to tell the owner of a server that does not listen on its port.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        self.server.as_ref().map(Server::complaint)
    }
}

impl Server {
    /// `port` is what the server is told to bind; `ipv4`, whether it may have the listener for what it binds over IPv4.
    ///
    /// # Errors
    /// Those of `getsockopt(2)`.
    pub fn new(listener: Arc<OwnedFd>, port: u16, ipv4: bool) -> io::Result<Self> {
        let cookie = sockopt::socket_cookie(&*listener)?;
        Ok(Self { listener, cookie, port, ipv4, others: Mutex::default() })
    }

    fn complaint(&self) -> String {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let text = format!("it did not listen on [::]:{}, the port that it is told as PORT", self.port);
        if others.is_empty() {
            return text;
        }
        let others: Vec<String> = others.iter().map(u16::to_string).collect();
        let others = others.join(", ");
        format!("{text}, but bound {others}; `listen_port` in the function's file names another port")
    }

    /// A port that was bound and is not the function's.
    fn note(&self, port: u16) {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if port != 0 && others.len() < OTHERS_MAX {
            others.insert(port);
        }
    }

    fn subject(&self, call: &Call) -> io::Result<Subject> {
        let number = call.arguments[0] as RawFd;
        Ok(match call.number {
            libc::SYS_bind => {
                let address = call.memory(call.arguments[1], call.arguments[2] as usize)?;
                match port(&address) {
                    Some((family, port))
                        if port == self.port && (family == AddressFamily::INET6 || self.ipv4) =>
                    {
                        match sockopt::socket_type(call.descriptor(number)?)? {
                            SocketType::STREAM => Subject::Bind,
                            _ => Subject::Other,
                        }
                    }
                    // The listener cannot stand in for this one: see `relay`.
                    Some((_, port)) if port == self.port => Subject::Other,
                    other => {
                        other.into_iter().for_each(|(_, port)| self.note(port));
                        Subject::Other
                    }
                }
            }
            libc::SYS_listen => {
                let socket = call.descriptor(number)?;
                let bound = || SocketAddr::try_from(rustix::net::getsockname(&socket).ok()?).ok();
                if sockopt::socket_cookie(&socket)? == self.cookie {
                    Subject::Listen
                } else if bound().is_some_and(|bound| bound.is_ipv4() && bound.port() == self.port) {
                    Subject::ListenIpv4
                } else {
                    Subject::Other
                }
            }
            _ => Subject::Other,
        })
    }

    fn exchange(&self, notifications: &Notifications, call: &Call) -> io::Result<()> {
        let number = call.arguments[0] as RawFd;
        let flags = call.flags(number)?;
        let theirs = call.descriptor(number)?;
        copy_options(&theirs, &self.listener)?;
        // It is what connections inherit; a listener itself ends at once.
        copy_linger(&theirs, &self.listener)?;
        rustix::io::ioctl_fionbio(&*self.listener, flags.nonblocking)?;
        notifications.replace(call, number, self.listener.as_fd(), flags)
    }
}

/// Family and port of a socket address in memory. `None` for other families.
fn port(address: &[u8]) -> Option<(AddressFamily, u16)> {
    let family = AddressFamily::from_raw(u16::from_ne_bytes(address.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(address.get(2..4)?.try_into().ok()?);
    matches!(family, AddressFamily::INET | AddressFamily::INET6).then_some((family, port))
}

/// The listener bound to one of `addresses` among the descriptors of `processes`, and who has it: how a new daemon gets hold of it
/// again, since nobody but the server keeps it.
#[must_use]
pub fn find_listener(processes: &[u32], addresses: &[SocketAddr]) -> Option<(u32, OwnedFd)> {
    processes.iter().find_map(|process| {
        let mut numbers: Vec<RawFd> = std::fs::read_dir(format!("/proc/{process}/fd"))
            .ok()?
            .flatten()
            .filter(|entry| {
                std::fs::read_link(entry.path())
                    .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
            })
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        // Listeners come before the connections that they accept.
        numbers.sort_unstable();
        numbers.into_iter().find_map(|number| {
            let socket = crate::sys::notify::duplicate(*process, number).ok()?;
            let bound = rustix::net::getsockname(&socket).ok().and_then(|a| SocketAddr::try_from(a).ok());
            (bound.is_some_and(|bound| addresses.contains(&bound))
                && sockopt::socket_acceptconn(&socket).unwrap_or(false))
            .then(|| Some((*process, socket.into_inner()?)))
            .flatten()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_both_families_are_read_and_others_passed_over() {
        let mut address = [0; 28];
        address[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        address[2..4].copy_from_slice(&8080u16.to_be_bytes());
        assert_eq!(port(&address), Some((AddressFamily::INET6, 8080)));
        address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        assert_eq!(port(&address[..16]), Some((AddressFamily::INET, 8080)));
        address[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
        assert_eq!(port(&address), None);
        assert_eq!(port(&[10, 0, 31]), None);
    }
}
