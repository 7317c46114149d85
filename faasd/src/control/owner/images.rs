//! Root images and who runs them. That the owner does this, and one thing at a time, keeps an image from being removed
//! while a deploy of it is being decided.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::*;
use crate::control::instances::Files;
use crate::core::spec::FunctionSpec;
use crate::core::spec::{Contract, Lane};
use crate::runtime::image::{ImportError, Store};
use crate::runtime::runners;

/// What a record's instances are made from.
pub(super) fn files(store: &Store, record: &RevisionRecord) -> Result<Files, String> {
    let gone = |what: &str| format!("its image {what} is gone; deploy it again");
    let code = record.image.as_ref().map(|digest| store.directory(digest).ok_or_else(|| gone(digest)));
    let root = record.root.as_ref().map(|digest| store.roots().image(digest).ok_or_else(|| gone(digest)));
    let dependencies =
        record.dependencies.as_ref().map(|digest| store.directory(digest).ok_or_else(|| gone(digest)));
    Ok(Files { code: code.transpose()?, root: root.transpose()?, dependencies: dependencies.transpose()? })
}

/// Whether a declaration can be run with the code of that digest, and the digest that its `image` stands for now. What
/// a server is to be told and the declaration does not say, the image may.
pub(super) fn check(
    store: &Store,
    code: Option<&str>,
    dependencies: Option<&str>,
    spec: &mut FunctionSpec,
) -> Result<Option<String>, ApiError> {
    let directory = |digest: &str| {
        store.directory(digest).ok_or_else(|| ApiError::Invalid {
            title: format!("there is no image {digest}"),
            detail: Some("upload the code first: `faas deploy` does both".to_owned()),
        })
    };
    let code = code.map(directory).transpose()?;
    dependencies.map(directory).transpose()?;
    if dependencies.is_some() && spec.contract != Contract::Handler {
        return Err(ApiError::invalid("only handlers have dependencies apart from their code"));
    }
    let invalid = |e: image::EntryError| ApiError::invalid(e.to_string());
    match (&spec.image, &code) {
        (None, None) => Err(invalid(image::EntryError::NoCode)),
        (None, Some(code)) => image::entry_point(code, spec).map(|_| None).map_err(invalid),
        (Some(name), _) => {
            let is_handler = spec.contract == Contract::Handler;
            if is_handler && code.is_none() {
                return Err(invalid(image::EntryError::NoCode));
            }
            let digest = store.roots().resolve(name).map_err(|e| ApiError::failed(&e))?;
            let root = digest.as_deref().and_then(|digest| store.roots().image(digest));
            let root = root.ok_or_else(|| no_image(store, name))?;
            let interpreter = match is_handler {
                false => None,
                true => Some(
                    runners::interpreter(spec.handler_parts().language)
                        .ok_or_else(|| invalid(image::EntryError::ScriptInImage))?,
                ),
            };
            image::process(&root, code.as_deref(), spec, interpreter).map_err(invalid)?;
            if spec.contract == Contract::Port {
                spec.listen_port = spec.listen_port.or_else(|| root.settings.port());
            }
            if spec.lane() == Lane::Warm && !is_handler {
                let signal = root.settings.stop_signal.map(serde_json::Value::String);
                spec.stop_signal = spec.stop_signal.or_else(|| serde_json::from_value(signal?).ok());
            }
            Ok(Some(root.digest))
        }
    }
}

fn no_image(store: &Store, name: &str) -> ApiError {
    let names = store.roots().names().unwrap_or_default();
    let near = super::super::api::nearest(name, names.iter().map(|named| named.name.as_str()));
    ApiError::Invalid {
        title: format!("there is no image '{name}' here"),
        detail: Some(match near {
            Some(near) => format!("did you mean '{near}'?"),
            None => {
                format!("fetch it first: `faas image pull {name}`, or import it: `faas image import FILE`")
            }
        }),
    }
}

impl Owner {
    /// Tells of an image, by the digits of its digest, whether it has to stay: a function is declared with it, or an
    /// instance of an earlier revision still runs.
    pub(super) fn root_keeper(&self) -> impl Fn(&str) -> bool + Send + 'static {
        let declared: HashSet<String> = self
            .records()
            .filter_map(|(_, record)| record.root.as_ref()?.split(':').next_back().map(str::to_owned))
            .collect();
        let mounts = self.parts.instances.mounts();
        move |hex| declared.contains(hex) || mounts.uses(hex)
    }

    fn users(&self) -> BTreeMap<String, BTreeSet<FunctionName>> {
        let mut users: BTreeMap<String, BTreeSet<FunctionName>> = BTreeMap::new();
        for (name, record) in self.records() {
            if let Some(root) = &record.root {
                users.entry(root.clone()).or_default().insert(name.clone());
            }
        }
        users
    }

    pub(super) fn images(&self, reply: Reply<Vec<NamedImage>>) {
        let (store, users) = (self.parts.images.clone(), self.users());
        // Thousands of small files may take their time.
        tokio::task::spawn_blocking(move || {
            let images = store.roots().names().map_err(|e| ApiError::failed(&e)).map(|all| {
                let of = |digest: &String| users.get(digest).into_iter().flatten().cloned().collect();
                all.into_iter()
                    .map(|named| {
                        let functions = of(&named.digest);
                        view(named, functions)
                    })
                    .collect()
            });
            drop(reply.send(images));
        });
    }

    pub(super) fn remove_image(&self, name: &ImageName, reply: Reply<()>) {
        let store = &self.parts.images;
        let failed = |e: ImportError| ApiError::failed(&e);
        let removed = store.roots().names().map_err(failed).and_then(|names| {
            let named = names.iter().find(|named| named.name == *name).ok_or_else(|| {
                let near = super::super::api::nearest(name.as_str(), names.iter().map(|n| n.name.as_str()));
                ApiError::NotFound { what: format!("image '{name}'"), suggestion: near.map(str::to_owned) }
            })?;
            let is_last = names.iter().filter(|other| other.digest == named.digest).count() == 1;
            let users = self.users().remove(&named.digest).unwrap_or_default();
            if is_last && !users.is_empty() {
                let users: Vec<_> = users.iter().map(FunctionName::as_str).collect();
                return Err(ApiError::Conflict {
                    title: format!("'{name}' is the image of {}", users.join(", ")),
                    detail: Some("remove the functions first, or deploy them with another image".to_owned()),
                });
            }
            store.roots().forget(name).map_err(failed)
        });
        match removed {
            Err(error) => drop(reply.send(Err(error))),
            Ok(_) => {
                let (store, keeps) = (store.clone(), self.root_keeper());
                tokio::task::spawn_blocking(move || {
                    let collected = store.roots().gc(keeps, Duration::ZERO);
                    drop(reply.send(collected.map(drop).map_err(failed)));
                });
            }
        }
    }

    pub(super) fn prune_images(&self, names: bool, reply: Reply<Pruned>) {
        let (store, users, keeps) = (self.parts.images.clone(), self.users(), self.root_keeper());
        tokio::task::spawn_blocking(move || drop(reply.send(prune(&store, names, &users, keeps))));
    }
}

fn prune(
    store: &Store,
    names: bool,
    users: &BTreeMap<String, BTreeSet<FunctionName>>,
    keeps: impl Fn(&str) -> bool,
) -> Result<Pruned, ApiError> {
    let failed = |e: ImportError| ApiError::failed(&e);
    let mut pruned = Pruned { names: Vec::new(), freed_bytes: 0 };
    if names {
        for named in store.roots().names().map_err(failed)? {
            if !users.contains_key(&named.digest) && store.roots().forget(&named.name).map_err(failed)? {
                pruned.names.push(named.name);
            }
        }
    }
    match store.roots().gc(keeps, Duration::ZERO).map_err(failed)? {
        Some(freed) => pruned.freed_bytes = freed,
        None => {
            return Err(ApiError::Conflict {
                title: "an image is being imported".to_owned(),
                detail: Some("prune again when that is done".to_owned()),
            });
        }
    }
    Ok(pruned)
}

/// A name as callers see it.
pub(in crate::control) fn view(named: image::roots::Named, functions: Vec<FunctionName>) -> NamedImage {
    let image::roots::Named { name, digest, manifest, bytes, layers, imported_at } = named;
    NamedImage { name, digest, manifest, bytes, layers, imported_at, functions }
}
