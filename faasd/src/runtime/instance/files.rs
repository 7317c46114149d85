//! What an instance is made from, on disk: its root directory and its bundle.

use super::*;

/// A bundle on disk.
pub(super) struct Made {
    pub bundle: PathBuf,
    /// The user and group that its program runs as, inside.
    pub owner: (u32, u32),
}

impl Runtime {
    /// The root directory: a root image, mounted, or the one that all others share.
    pub(super) async fn mounted(&self, request: &Request) -> Result<PathBuf, StartError> {
        if request.slot >= bundle::SLOTS_MAX {
            return Err(StartError::Slot(request.slot));
        }
        let Some(image) = request.root.clone() else { return Ok(self.root.clone()) };
        let (mounts, slot, id) = (Arc::clone(&self.mounts), request.slot, request.id.clone());
        let mounted = tokio::task::spawn_blocking(move || mounts.acquire(&image, slot, &id)).await;
        let error = |e| StartError::Bundle { id: request.id.clone(), source: io::Error::other(e) };
        Ok(mounted.map_err(error)??)
    }

    /// Writes an instance's secrets, for its program to find them. `owner` is as the host counts.
    ///
    /// # Errors
    /// [`StartError::Secrets`]. What was written goes with the container.
    pub async fn place_secrets(
        &self,
        id: &str,
        owner: (u32, u32),
        secrets: Vec<(SecretName, SecretBytes)>,
    ) -> Result<(), StartError> {
        if secrets.is_empty() {
            return Ok(());
        }
        let (files, instance) = (Arc::clone(&self.secrets), id.to_owned());
        let placed = tokio::task::spawn_blocking(move || files.place(&instance, owner, &secrets)).await;
        let error = |e| StartError::Bundle { id: id.to_owned(), source: io::Error::other(e) };
        Ok(placed.map_err(error)??)
    }

    /// Says that an instance does not need its root image any longer, nor its secrets.
    pub(super) async fn forget_root(&self, id: &str) {
        if let Err(error) = self.secrets.remove(id) {
            tracing::warn!(id, %error, "an instance's secrets stay in memory");
        }
        let (mounts, instance) = (Arc::clone(&self.mounts), id.to_owned());
        match tokio::task::spawn_blocking(move || mounts.release(&instance)).await {
            Ok(Err(error)) => tracing::warn!(id, %error, "a root image stays mounted"),
            Err(error) => tracing::warn!(id, %error, "a root image stays mounted"),
            Ok(Ok(())) => {}
        }
    }

    /// Writes the bundle. A directory of that name that is there already belongs to another instance.
    pub(super) fn bundle(
        &self,
        request: &Request,
        root: &Path,
        agent: Option<Agent<'_>>,
    ) -> Result<Made, StartError> {
        let spec = &request.spec;
        let is_handler = spec.contract == Contract::Handler;
        let language = spec.handler_parts().language;
        let code = request.image.as_deref();
        let (inside, arguments) = match (&request.root, code) {
            (Some(image), _) => {
                let interpreter = match is_handler {
                    false => None,
                    true => Some(runners::interpreter(language).ok_or(EntryError::ScriptInImage)?),
                };
                let inside = image::process(image, code, spec, interpreter)?;
                let arguments = match (is_handler, inside.arguments.first()) {
                    (true, Some(interpreter)) => runners::arguments_of(interpreter, spec),
                    _ => inside.arguments.clone(),
                };
                (Some(inside), arguments)
            }
            (None, Some(code)) => {
                let entry = image::entry_point(code, spec)?;
                (None, if is_handler { runners::arguments(spec)? } else { entry })
            }
            (None, None) => return Err(EntryError::NoCode.into()),
        };
        let runner = is_handler.then_some(self.runner.as_path());
        let owner = inside.as_ref().map_or((bundle::USER, bundle::USER), |inside| (inside.uid, inside.gid));
        let secrets = match spec.secrets.is_empty() {
            true => None,
            false => {
                let base = bundle::uid_base(request.slot);
                Some(self.secrets.prepare(&request.id, (base + owner.0, base + owner.1))?)
            }
        };
        let callers = (spec.lane() == Lane::Warm).then(|| self.paths.callers());
        let dir = self.paths.bundles().join(&request.id);
        let hosts = request.hosts.as_ref().map(|_| dir.join("hosts"));
        let error = |source| StartError::Bundle { id: request.id.clone(), source };
        let config = bundle::config(&Parameters {
            id: &request.id,
            function: &request.function,
            slot: request.slot,
            revision: request.revision,
            spec: &request.spec,
            arguments,
            image: code,
            inside: inside.as_ref(),
            runner,
            program: (is_handler && language == Language::Script).then_some(self.program.as_path()),
            dependencies: request.dependencies.as_deref(),
            hold: request.hold,
            secrets: secrets.as_deref(),
            callers: callers.as_deref(),
            root,
            cgroup: &self.cgroup(&request.id),
            agent,
            hosts: hosts.as_deref(),
            host: &self.host,
        })
        .map_err(|e| error(io::Error::other(e)))?;
        let text = serde_json::to_vec(&config).map_err(|e| error(e.into()))?;
        fs::create_dir(&dir).map_err(error)?;
        let written = fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))
            .and_then(|()| fs::write(dir.join("config.json"), text));
        let written = match hosts.zip(request.hosts.as_ref()) {
            Some((path, hosts)) => written
                .and_then(|()| fs::write(&path, hosts))
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644))),
            None => written,
        };
        // The environment is in it, and may hold secrets.
        let written = written
            .and_then(|()| fs::set_permissions(dir.join("config.json"), fs::Permissions::from_mode(0o600)));
        if let Err(e) = written {
            let _ = fs::remove_dir_all(&dir);
            return Err(error(e));
        }
        Ok(Made { bundle: dir, owner })
    }
}
