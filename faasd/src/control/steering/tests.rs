//! Maps in memory that fail, and that somebody else has changed.

use super::*;

#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    entries: HashMap<Place, Target>,
    failing: HashSet<Place>,
    writes: Vec<Place>,
}

impl Memory {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap()
    }
}

impl Maps for Memory {
    fn all(&self) -> Result<HashMap<Place, Target>, BpfError> {
        Ok(self.held().entries.clone())
    }

    fn get(&self, place: Place) -> Result<Option<Target>, BpfError> {
        Ok(self.held().entries.get(&place).cloned())
    }

    fn put(&self, place: Place, target: Option<&Target>) -> Result<(), BpfError> {
        let mut held = self.held();
        if held.failing.contains(&place) {
            return Err(BpfError::Map { map: "ROUTES", reason: "out of memory".to_owned() });
        }
        if matches!(target, Some(Target::Split(branches)) if branches.is_empty()) {
            return Err(BpfError::Split { branches: 0, total: 0 });
        }
        held.writes.push(place);
        match target {
            Some(target) => drop(held.entries.insert(place, target.clone())),
            None => drop(held.entries.remove(&place)),
        }
        Ok(())
    }
}

fn at(host: u128) -> Ipv6Addr {
    Ipv6Addr::from_bits(host)
}

fn route(host: u128) -> Place {
    Place::Route(at(host), 80)
}

fn to(slot: u32) -> Target {
    Target::Route(Route::to(slot))
}

fn bed() -> (Memory, Steering, Arc<Notify>) {
    let (memory, late) = (Memory::default(), Arc::new(Notify::new()));
    memory.held().entries.insert(route(9), to(9));
    let steering = Steering::new(Box::new(memory.clone()), Arc::clone(&late)).unwrap();
    (memory, steering, late)
}

const fn following(behind: u64, repaired: u64) -> Following {
    Following { behind, repaired }
}

#[tokio::test]
async fn what_the_kernel_does_not_take_is_tried_again() {
    let (memory, steering, late) = bed();
    memory.held().failing.extend([route(1), route(9)]);
    steering.set_route(at(1), 80, Route::to(1)).unwrap_err();
    steering.clear_route(at(9), 80).unwrap_err();
    steering.set_route(at(2), 80, Route::to(2)).unwrap();
    late.notified().await;
    assert_eq!(steering.following(), following(2, 0));
    assert_eq!(steering.reconcile().unwrap(), following(2, 0), "nothing has changed");
    memory.held().failing.remove(&route(1));
    assert_eq!(steering.reconcile().unwrap(), following(1, 1), "one that fails does not hold up the other");
    memory.held().failing.clear();
    assert_eq!(steering.reconcile().unwrap(), following(0, 2));
    assert_eq!(memory.held().entries, HashMap::from([(route(1), to(1)), (route(2), to(2))]));
}

#[test]
fn what_somebody_else_has_changed_is_put_right_in_order() {
    let (memory, steering, _) = bed();
    let branch = |slot| Branch { slot, weight: 50, shed: false };
    steering.set_pool(1, &[4, 5]).unwrap();
    steering.set_split(1, &[branch(1), branch(2), Branch { weight: 0, ..branch(3) }]).unwrap();
    steering.set_route(at(1), 80, Route { flags: Route::SPLIT, ..Route::to(1) }).unwrap();
    assert_eq!(steering.reconcile().unwrap(), following(0, 0));
    let right = memory.held().entries.clone();
    assert_eq!(right[&Place::Split(1)], Target::Split(vec![branch(1), branch(2)]));
    {
        let mut held = memory.held();
        held.entries.remove(&Place::Pool(1));
        held.entries.remove(&Place::Split(1));
        held.entries.insert(route(1), to(7));
        held.entries.insert(route(6), to(6));
        held.entries.insert(Place::Pool(6), Target::Pool(vec![6]));
        held.writes.clear();
    }
    assert_eq!(steering.reconcile().unwrap(), following(0, 5));
    assert_eq!(memory.held().entries, right);
    assert_eq!(
        memory.held().writes,
        [Place::Pool(1), Place::Split(1), route(1), route(6), Place::Pool(6)],
        "nothing leads to what is not there"
    );
}

#[test]
fn a_route_waits_for_what_it_shares_out_by() {
    let (memory, steering, _) = bed();
    let branch = |slot| Branch { slot, weight: 50, shed: false };
    let shared = |flags| Route { flags: flags | Route::SPLIT, ..Route::to(1) };
    memory.held().entries.insert(route(1), to(3));
    memory.held().failing.insert(Place::Split(1));
    steering.set_split(1, &[branch(1), branch(2)]).unwrap_err();
    steering.set_route(at(1), 80, shared(0)).unwrap_err();
    assert_eq!((steering.reconcile().unwrap(), &memory.held().entries[&route(1)]), (following(2, 0), &to(3)));
    memory.held().failing.clear();
    assert_eq!(steering.reconcile().unwrap(), following(0, 2));
    // With a former one it may be written: its flags are the policy's.
    memory.held().failing.insert(Place::Split(1));
    steering.set_split(1, &[branch(1), branch(4)]).unwrap_err();
    steering.set_route(at(1), 80, shared(Route::CLOSED)).unwrap();
    assert_eq!(memory.held().entries[&route(1)], Target::Route(shared(Route::CLOSED)));
}

#[test]
fn what_nobody_can_have_is_not_wanted() {
    let (_, steering, _) = bed();
    assert!(matches!(steering.set_split(1, &[]), Err(BpfError::Split { .. })));
    assert_eq!(steering.reconcile().unwrap(), following(0, 0));
    steering.set_pool(2, &[1]).unwrap();
    steering.set_pool(2, &[]).unwrap();
    assert_eq!((steering.pools(), steering.splits()), (vec![], vec![]));
    assert_eq!(steering.routes(), [(at(9), 80, Route::to(9))]);
}
