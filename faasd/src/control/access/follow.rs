//! How the kernel's maps follow the policy: step by step with each change, and by comparison with it for whatever was not
//! taken, or was changed by somebody else.

use super::*;
use crate::control::steering::Following;
use crate::core::access::Place;

/// Entries of the maps that are not as the policy has them, as far as that is known.
#[derive(Debug, Default)]
pub(super) struct Behind {
    places: HashSet<Place>,
    /// Entries that a comparison has found, and that were written.
    repaired: u64,
}

/// What has become of the steps of a change.
#[derive(Debug, Default)]
#[must_use = "routes may have to follow, and who asked is to know what the kernel has not taken"]
pub struct Carried {
    /// The functions whose routes' flags are to be set.
    pub guards: Vec<FunctionName>,
    /// What the kernel has not taken.
    late: Vec<Place>,
}

impl Access {
    /// Takes the steps in the kernel, each of them whatever becomes of the others. To be called with the writer's lock.
    pub(super) fn carry_out(&self, effects: Vec<Effect>) -> Carried {
        let mut carried = Carried::default();
        let mut is_late = false;
        for effect in effects {
            match effect {
                Effect::Guard { function } => carried.guards.push(function),
                step => carried.late.extend(self.take(&self.as_it_is(step), &mut is_late)),
            }
        }
        if !carried.late.is_empty() {
            self.late.notify_one();
        }
        carried
    }

    /// A subject is written as the policy has it now: since the step was found there may have been others.
    fn as_it_is(&self, step: Effect) -> Effect {
        match step {
            Effect::SetSubject { address, .. } | Effect::ClearSubject { address } => {
                match self.policy().entry_at(address) {
                    Some(entry) => Effect::SetSubject { address, entry },
                    None => Effect::ClearSubject { address },
                }
            }
            rule => rule,
        }
    }

    /// Takes one step. Returns its place if the kernel has not taken it. While a subject `is_late` no rule is removed: it
    /// may be what still denies something to that one.
    fn take(&self, step: &Effect, is_late: &mut bool) -> Option<Place> {
        let place = step.place()?;
        let Attached { enforcer, callers, .. } = self.attached.get()?;
        match step {
            // Before it is let in, and with the name that goes with the address now.
            Effect::SetSubject { address, .. } => {
                let name = self.policy().caller(*address).map(ToString::to_string);
                name.into_iter().for_each(|name| callers.set(*address, &name));
            }
            Effect::ClearSubject { address } => callers.clear(*address),
            _ => {}
        }
        let taken = match step {
            Effect::ClearRule { .. } if *is_late => Err(anyhow::anyhow!("a subject is to go first")),
            _ => enforcer.take(step),
        };
        let mut behind = self.behind();
        match taken {
            Ok(()) => {
                behind.places.remove(&place);
                None
            }
            Err(error) => {
                *is_late |= matches!(place, Place::Subject(_));
                if behind.places.insert(place) {
                    let error = format!("{error:#}");
                    tracing::error!(?step, error, "the kernel does not follow the policy");
                }
                Some(place)
            }
        }
    }

    /// Compares the kernel's maps with the policy, and writes what differs. Blocks.
    ///
    /// # Errors
    /// Those of reading the maps. What cannot be written is still [`Following::behind`].
    pub fn reconcile(&self) -> anyhow::Result<Following> {
        let Some(Attached { enforcer, .. }) = self.attached.get() else { return Ok(Following::default()) };
        let differences = || -> anyhow::Result<_> {
            let there = enforcer.image()?;
            Ok(Image::of(&self.policy()).steps_from(&there))
        };
        // Nearly always all is well, and nobody who makes a change is to wait until that is certain.
        if self.following().behind == 0 && differences()?.is_empty() {
            return Ok(self.following());
        }
        let _writer = self.writer();
        // What is about to go is still in the maps, and on record no more: it goes when its routes have.
        if Arc::strong_count(&self.leaving) > 1 {
            return Ok(self.following());
        }
        let steps = differences()?;
        self.behind().places.retain(|place| steps.iter().any(|step| step.place() == Some(*place)));
        let (mut repaired, mut is_late) = (0, false);
        for step in steps {
            repaired += u64::from(self.take(&step, &mut is_late).is_none());
        }
        if repaired > 0 {
            tracing::warn!(entries = repaired, "the kernel's policy was not as it should be, and is again");
            self.behind().repaired += repaired;
        }
        Ok(self.following())
    }

    /// How well the maps follow.
    #[must_use]
    pub fn following(&self) -> Following {
        let behind = self.behind();
        Following { behind: behind.places.len() as u64, repaired: behind.repaired }
    }

    /// Whether a change is in effect. What the kernel has not taken is tried once more; the owner sets the flags of
    /// routes, which is waited for. Blocks.
    ///
    /// # Errors
    /// [`ApiError`], if something is not.
    pub fn settle(&self, carried: Carried) -> Result<(), ApiError> {
        let Carried { guards, late } = carried;
        let mut unknown = None;
        if !late.is_empty() {
            unknown = self.reconcile().err();
        }
        let unrouted = self.guard_routes(guards)?;
        let behind = late.iter().filter(|place| self.behind().places.contains(place)).count();
        if let Some(error) = unknown {
            return Err(not_taken(behind, &unrouted, Some(&error)));
        }
        match behind == 0 && unrouted.is_empty() {
            true => Ok(()),
            false => Err(not_taken(behind, &unrouted, None)),
        }
    }

    /// What was asked for is on record already. It may be that the kernel has not taken it yet: it is tried again. Blocks.
    ///
    /// # Errors
    /// [`ApiError`], if something is still not in effect.
    pub(super) fn settle_again(&self, functions: Vec<FunctionName>) -> Result<(), ApiError> {
        let late = self.behind().places.iter().copied().collect();
        self.settle(Carried { guards: functions, late })
    }

    /// Has the owner set the flags of these functions' routes. Returns those whose routes the kernel has not taken.
    fn guard_routes(&self, functions: Vec<FunctionName>) -> Result<Vec<FunctionName>, ApiError> {
        let Some(Attached { owner, .. }) = self.attached.get() else { return Ok(Vec::new()) };
        if functions.is_empty() {
            return Ok(Vec::new());
        }
        let stopping = || ApiError::Unavailable {
            title: "faasd is stopping".to_owned(),
            detail: Some("the change is on record, and in effect when it is back".to_owned()),
        };
        let (reply, done) = oneshot::channel();
        owner.blocking_send(Message::Guard { functions, reply }).map_err(|_| stopping())?;
        done.blocking_recv().map_err(|_| stopping())
    }

    pub(super) fn behind(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// It is on record, and not in effect.
fn not_taken(entries: usize, unrouted: &[FunctionName], error: Option<&anyhow::Error>) -> ApiError {
    let mut what = Vec::new();
    if entries > 0 {
        what.push(format!("{entries} entries of the policy"));
    }
    what.extend(unrouted.iter().map(|name| format!("the route of '{name}'")));
    let what = match error {
        Some(error) => format!("its maps cannot be read: {error:#}"),
        None => format!("missing: {}", what.join(", ")),
    };
    ApiError::Unavailable {
        title: "the change is on record, but the kernel has not taken all of it".to_owned(),
        detail: Some(format!(
            "{what}. faasd goes on trying: `faasd_kernel_entries_behind` is 0 once it is in effect, and the daemon's \
             log has the cause"
        )),
    }
}
