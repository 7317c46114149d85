//! The start of an instance, in two steps: the container, which costs tens of milliseconds, and its program's execution,
//! which costs the opening of a fifo. Between them a container may be held for as long as one likes.

use super::*;

impl Runtime {
    /// Makes a container whose program is not executed yet. Until it is, the container can be [stopped](Runtime::stop) like
    /// any other. The future is to be run to its end: one that is dropped half-way may leave a container behind until the
    /// next [`Runtime::adopt`].
    ///
    /// # Errors
    /// [`StartError`]; whatever had been made is removed first.
    pub async fn create(&self, request: Request) -> Result<Created, StartError> {
        let id = request.id.clone();
        let (serving, calling) = (request.spec.contract == Contract::Port, request.spec.connects());
        let desk = match serving || calling {
            true => {
                let desk = Desk::open(&self.paths.agents(), &id);
                Some(desk.map_err(|source| StartError::Agent { id: id.clone(), source })?)
            }
            false => None,
        };
        let agent = desk.as_ref().map(|desk| Agent { desk: &desk.path, serving, calling });
        let made = match self.mounted(&request).await.and_then(|root| self.bundle(&request, &root, agent)) {
            Ok(made) => made,
            Err(e) => {
                self.forget_root(&id).await;
                return Err(e);
            }
        };
        match self.create_from(&id, made, request, desk).await {
            Ok(created) => Ok(created),
            Err(e) => {
                self.failed(&id).await;
                Err(e)
            }
        }
    }

    /// Lets a created container execute its program. Its secrets are [placed](Runtime::place_secrets) before: a container
    /// that waits has nothing in it that could be out of date when it starts.
    ///
    /// # Errors
    /// [`StartError::Runc`]; the container is removed first.
    pub async fn release(&self, id: &str, process: &Pidfd) -> Result<(), StartError> {
        let released = self.runc.start(id, process).await;
        if released.is_err() {
            self.failed(id).await;
        }
        released.map_err(|source| StartError::Runc { id: id.to_owned(), source })
    }

    async fn failed(&self, id: &str) {
        if let Err(left) = self.clear(id).await {
            tracing::warn!(id, error = %left, "a failed start left something behind");
        }
    }

    async fn create_from(
        &self,
        id: &str,
        made: Made,
        request: Request,
        desk: Option<Desk>,
    ) -> Result<Created, StartError> {
        let runc = |source| StartError::Runc { id: id.to_owned(), source };
        let process = |source| StartError::Process { id: id.to_owned(), source };
        let output = |source| StartError::Output { id: id.to_owned(), source };
        let (log, output_end) = logs::pipe().map_err(output)?;
        // A program may open /dev/stdout anew, for which its user must own what is behind it.
        let base = bundle::uid_base(request.slot);
        let owner = (base + made.owner.0, base + made.owner.1);
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::fchown(&output_end, Some(uid), Some(gid)).map_err(|e| output(e.into()))?;
        let begin = Instant::now();
        let pid = self.runc.create(&made.bundle, id, request.descriptors, output_end).await.map_err(runc)?;
        let notify = match desk {
            Some(desk) => {
                let received = desk.receive().await;
                Some(received.map_err(|source| StartError::Agent { id: id.to_owned(), source })?)
            }
            None => None,
        };
        // The process is a child of ours, so its number is not given away before we reap it.
        let pidfd = Arc::new(Pidfd::open(pid).map_err(process)?);
        Ok(Created {
            id: id.to_owned(),
            pid,
            process: pidfd,
            log,
            notify,
            owner,
            create_time: begin.elapsed(),
        })
    }
}

/// Where runc delivers a container's notification descriptor while it creates the container.
struct Desk {
    path: PathBuf,
    listener: UnixListener,
}

impl Desk {
    fn open(dir: &Path, id: &str) -> io::Result<Self> {
        // Short, as a unix socket's path has to be.
        let digest = Sha256::digest(id);
        let path = dir.join(format!("{:x}", HexDigest(&digest[..8])));
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    /// What was delivered. To be called once the container has been created: it is there by then.
    async fn receive(self) -> io::Result<OwnedFd> {
        let received = tokio::time::timeout(AGENT_DEADLINE, async {
            let (stream, _) = self.listener.accept().await?;
            // The container's state comes along, which says nothing that is not known; the first bytes will do.
            let mut state = [0; 4096];
            loop {
                stream.readable().await?;
                match stream.try_io(Interest::READABLE, || {
                    scm::recv(&stream, &mut state, rustix::net::RecvFlags::DONTWAIT)
                }) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    received => return received,
                }
            }
        });
        let (_, mut descriptors) = received.await.map_err(|_| io::ErrorKind::TimedOut)??;
        descriptors.pop().ok_or_else(|| io::Error::other("runc sent no notification descriptor"))
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
