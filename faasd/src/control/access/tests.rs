//! The policy on record and in maps, without a kernel.

use std::path::Path;

use super::*;
use crate::api::types::{DefaultChange, GroupChange, RuleAction, RuleChange};
use crate::control::callers::Callers;
use crate::control::records::FunctionRecord;
use crate::control::steering::Following;
use crate::control::store::Embedded;
use crate::core::access::{Access as Default, Action, Entry, Place, Role};
use crate::core::address::{FUNCTION_PREFIX, VPN_PREFIX};

/// Maps in memory, and connections that are open.
#[derive(Debug, Default)]
struct Memory {
    image: Mutex<Image>,
    steps: Mutex<Vec<Effect>>,
    open: Mutex<Vec<(Ipv6Addr, SocketAddrV6)>>,
    refusing: Mutex<HashSet<Place>>,
    refusals: Mutex<Vec<(u32, Ipv6Addr, u64)>>,
}

impl Enforcer for Memory {
    fn image(&self) -> anyhow::Result<Image> {
        Ok(self.image.lock().unwrap().clone())
    }

    fn take(&self, step: &Effect) -> anyhow::Result<()> {
        let refusing = self.refusing.lock().unwrap();
        anyhow::ensure!(step.place().is_none_or(|place| !refusing.contains(&place)), "out of memory");
        self.image.lock().unwrap().take(step);
        self.steps.lock().unwrap().push(step.clone());
        Ok(())
    }

    fn cut(&self, is_refused: &dyn Fn(Ipv6Addr, SocketAddrV6) -> bool) -> anyhow::Result<u64> {
        let mut open = self.open.lock().unwrap();
        let before = open.len();
        open.retain(|(from, to)| !is_refused(*from, *to));
        Ok((before - open.len()) as u64)
    }

    fn forget_counts(&self, known: &HashSet<u32>) -> anyhow::Result<()> {
        self.refusals.lock().unwrap().retain(|(number, ..)| known.contains(number));
        Ok(())
    }

    fn counts(&self) -> anyhow::Result<Counts> {
        Ok(Counts { refusals: self.refusals.lock().unwrap().clone(), ..Counts::default() })
    }
}

fn name(text: &str) -> FunctionName {
    text.parse().unwrap()
}

fn subject(text: &str) -> Subject {
    text.parse().unwrap()
}

fn peer(text: &str, number: u32, host: u64) -> PeerRecord {
    PeerRecord {
        name: name(text),
        number,
        address: VPN_PREFIX.host(host),
        role: Role::User,
        public_key: String::new(),
        invited_until: None,
        endpoint: None,
    }
}

fn function(text: &str, subject: u32) -> FunctionRecord {
    FunctionRecord {
        name: name(text),
        slot: 0,
        subject,
        newest: 1,
        shares: Vec::new(),
        previous: Vec::new(),
        aliases: std::collections::BTreeMap::new(),
    }
}

/// A daemon's policy, with an owner that sets no routes but remembers which it was to.
struct Bed {
    access: Arc<Access>,
    memory: Arc<Memory>,
    guarded: std::sync::mpsc::Receiver<FunctionName>,
    /// Where names are published.
    _callers: tempfile::TempDir,
}

impl Bed {
    fn start(store: &Arc<dyn Store>, memory: Arc<Memory>) -> Self {
        let access = Arc::new(Access::open(Arc::clone(store), Default::Open, FUNCTION_PREFIX).unwrap());
        let (owner, mut inbox) = mpsc::channel(1);
        let (told, guarded) = std::sync::mpsc::sync_channel(1024);
        let asked = Arc::clone(&access);
        std::thread::spawn(move || {
            while let Some(message) = inbox.blocking_recv() {
                let Message::Guard { functions, reply } = message else { continue };
                // As the owner does, while whoever asked waits for it.
                functions.iter().for_each(|name| _ = asked.guard(name));
                functions.into_iter().for_each(|name| drop(told.send(name)));
                let _ = reply.send(Vec::new());
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let callers = Arc::new(Callers::open(dir.path()).unwrap());
        access.attach(Arc::clone(&memory) as Arc<dyn Enforcer>, callers, owner).unwrap();
        Self { access, memory, guarded, _callers: dir }
    }

    fn rule(&self, action: RuleAction, who: &str, what: &str) -> crate::api::types::Changed {
        let change =
            RuleChange { action, subjects: vec![subject(who)], functions: vec![name(what)], keep: false };
        self.access.set_rules(&change).unwrap()
    }

    fn entry(&self, host: u64) -> Option<Entry> {
        self.memory.image.lock().unwrap().subjects.get(&VPN_PREFIX.host(host)).copied()
    }
}

fn open(dir: &Path) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.join("store")).unwrap());
    let put = |write: Write| store.write_all(&[write]).unwrap();
    for record in [peer("anna", 3, 2), peer("bert", 0, 3)] {
        put(json_write(PeerRecord::key(&record.name), &record).unwrap());
    }
    for record in [function("hello", 4), function("orders", 0)] {
        put(json_write(FunctionRecord::key(&record.name), &record).unwrap());
    }
    store
}

#[test]
fn records_of_before_there_were_numbers_are_given_some() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bed = Bed::start(&store, Arc::default());
    assert_eq!(bed.entry(2).unwrap().number, 3);
    let number = bed.entry(3).unwrap().number;
    assert!(number > 4, "{number}");
    drop(bed);
    let again = Bed::start(&store, Arc::default());
    assert_eq!(again.entry(3).unwrap().number, number, "it is on record");
}

#[test]
fn another_daemon_has_the_same_policy_and_touches_nothing_that_holds() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bed = Bed::start(&store, Arc::default());
    let add = GroupChange { add: vec![subject("bert"), subject("fn:orders")], ..GroupChange::default() };
    bed.access.change_group(&name("ops"), &add).unwrap();
    assert_eq!(bed.rule(RuleAction::Deny, "@ops", "hello").changed, 1);
    assert_eq!(bed.rule(RuleAction::Allow, "anna", "hello").changed, 1);
    let closed = DefaultChange { default: Some(Default::Closed), keep: false };
    bed.access.set_default(Some(&name("orders")), &closed).unwrap();
    assert_eq!(bed.guarded.try_iter().collect::<Vec<_>>(), [name("hello"), name("orders")]);
    let image = bed.memory.image().unwrap();
    assert_eq!(image.rules.len(), 2);

    let again = Bed::start(&store, Arc::clone(&bed.memory));
    bed.memory.steps.lock().unwrap().clear();
    let third = Bed::start(&store, Arc::clone(&bed.memory));
    assert_eq!(*bed.memory.steps.lock().unwrap(), [], "all was as it should be");
    assert_eq!(Image::of(&again.access.policy()), image);
    assert!(third.access.guard(&name("orders")).closed && third.access.guard(&name("hello")).guarded);

    // On record, and the daemon died before it was in the maps; and the other way round.
    let lost = bed.memory.image.lock().unwrap().rules.drain().next().unwrap();
    bed.memory.image.lock().unwrap().rules.insert((99, lost.0.1), Action::Allow);
    Bed::start(&store, Arc::clone(&bed.memory));
    assert_eq!(bed.memory.image().unwrap(), image);
}

#[test]
fn what_goes_leaves_nothing_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bed = Bed::start(&store, Arc::default());
    let before = store.list("").unwrap().len();
    let add = GroupChange { add: vec![subject("bert"), subject("fn:orders")], ..GroupChange::default() };
    bed.access.change_group(&name("ops"), &add).unwrap();
    bed.rule(RuleAction::Deny, "bert", "hello");
    bed.rule(RuleAction::Deny, "fn:orders", "hello");
    bed.rule(RuleAction::Allow, "anna", "orders");
    let going =
        bed.access.remove(&subject("bert"), vec![Write::Delete { key: PeerRecord::key(&name("bert")) }]);
    let going = going.unwrap();
    bed.access.reconcile().unwrap();
    assert!(bed.entry(3).is_some(), "in the maps until it is finished");
    bed.access.settle(bed.access.finish(going)).unwrap();
    assert!(bed.entry(3).is_none());
    let going = bed
        .access
        .remove(&subject("fn:orders"), vec![Write::Delete { key: FunctionRecord::key(&name("orders")) }]);
    assert_eq!(bed.access.finish(going.unwrap()).guards, [name("hello")], "its last rule went");
    bed.access.remove_group(&name("ops"), false).unwrap();
    assert_eq!(store.list("").unwrap().len(), before - 2);
    assert!(bed.memory.image().unwrap().rules.is_empty());
}

#[test]
fn only_what_is_not_allowed_any_more_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::start(&open(dir.path()), Arc::default());
    let at = |text: &str, port| SocketAddrV6::new(FUNCTION_PREFIX.function(&name(text)), port, 0, 0);
    let revision = SocketAddrV6::new(FUNCTION_PREFIX.revision(&name("hello"), 3), 80, 0, 0);
    for text in ["hello", "orders"] {
        bed.access.show_ports(&name(text), [80]);
    }
    let orders = *at("orders", 80).ip();
    let hello = *at("hello", 80).ip();
    let all = [
        (VPN_PREFIX.host(2), at("hello", 80)),
        (VPN_PREFIX.host(2), revision),
        (VPN_PREFIX.host(2), at("orders", 80)),
        (VPN_PREFIX.host(3), at("hello", 80)),
        // orders has called hello: both ends are here.
        (orders, at("hello", 80)),
        (hello, at("orders", 50_000)),
        // The daemon's own, and an admin's with the API.
        (VPN_PREFIX.server(), at("hello", 80)),
        (VPN_PREFIX.host(2), SocketAddrV6::new(VPN_PREFIX.server(), 9464, 0, 0)),
    ];
    let left = |bed: &Bed| bed.memory.open.lock().unwrap().clone();
    *bed.memory.open.lock().unwrap() = all.to_vec();
    assert_eq!(bed.rule(RuleAction::Deny, "anna", "hello").cut, 2);
    assert_eq!(left(&bed), all[2..]);
    // That hello may not call orders is no reason to end what orders has with hello.
    assert_eq!(bed.rule(RuleAction::Deny, "fn:hello", "orders").cut, 0);
    let keep = DefaultChange { default: Some(Default::Closed), keep: true };
    assert_eq!(bed.access.set_default(None, &keep).unwrap().cut, 0);
    bed.access.set_default(None, &DefaultChange { default: None, keep: false }).unwrap();
    bed.rule(RuleAction::Allow, "bert", "hello");
    let closed = DefaultChange { default: Some(Default::Closed), keep: false };
    assert_eq!(bed.access.set_default(None, &closed).unwrap().cut, 2);
    assert_eq!(left(&bed), [all[3], all[5], all[6], all[7]]);
    assert_eq!(bed.access.cut_all(VPN_PREFIX.host(2)).unwrap(), 1);
}

#[test]
fn a_store_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bed = Bed::start(&store, Arc::default());
    let image = bed.memory.image().unwrap();
    // A key that no store takes.
    let bad = Write::Delete { key: String::new() };
    bed.access.remove(&subject("anna"), vec![bad]).unwrap_err();
    assert_eq!((bed.memory.image().unwrap(), Image::of(&bed.access.policy())), (image.clone(), image));
}

/// The place of a rule in the maps.
fn place(bed: &Bed, who: &str, what: &str) -> Place {
    let number = bed.access.policy().number(&subject(who)).unwrap();
    Place::Rule { subject: number, function: FUNCTION_PREFIX.function(&name(what)) }
}

fn rules(bed: &Bed) -> usize {
    bed.memory.image.lock().unwrap().rules.len()
}

#[test]
fn what_the_kernel_does_not_take_is_said_and_taken_later() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::start(&open(dir.path()), Arc::default());
    let deny = RuleChange {
        action: RuleAction::Deny,
        subjects: vec![subject("anna"), subject("bert")],
        functions: vec![name("hello")],
        keep: true,
    };
    bed.memory.refusing.lock().unwrap().insert(place(&bed, "anna", "hello"));
    assert!(matches!(bed.access.set_rules(&deny), Err(ApiError::Unavailable { .. })));
    assert_eq!((rules(&bed), bed.access.following().behind), (1, 1), "the other one is in effect");
    assert_eq!(bed.guarded.try_iter().collect::<Vec<_>>(), [name("hello")], "and looked at");
    // The same again changes nothing on record, and is no success for that.
    assert!(matches!(bed.access.set_rules(&deny), Err(ApiError::Unavailable { .. })));
    bed.rule(RuleAction::Deny, "bert", "orders");
    bed.memory.refusing.lock().unwrap().clear();
    assert_eq!(bed.access.set_rules(&deny).unwrap().changed, 0);
    assert_eq!((rules(&bed), bed.access.following().behind), (3, 0));
}

#[test]
fn maps_that_somebody_else_has_changed_are_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::start(&open(dir.path()), Arc::default());
    bed.rule(RuleAction::Deny, "anna", "hello");
    let right = bed.memory.image().unwrap();
    assert_eq!(bed.access.reconcile().unwrap(), Following { behind: 0, repaired: 0 });
    {
        let mut image = bed.memory.image.lock().unwrap();
        image.rules.clear();
        image.subjects.remove(&VPN_PREFIX.host(3));
        image.subjects.insert(VPN_PREFIX.host(7), Entry { number: 3, ..Entry::default() });
    }
    bed.memory.refusing.lock().unwrap().insert(place(&bed, "anna", "hello"));
    assert_eq!(bed.access.reconcile().unwrap(), Following { behind: 1, repaired: 2 });
    bed.memory.refusing.lock().unwrap().clear();
    assert_eq!(bed.access.reconcile().unwrap(), Following { behind: 0, repaired: 3 });
    assert_eq!(bed.memory.image().unwrap(), right);
}

#[test]
fn who_does_not_go_keeps_what_is_denied() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::start(&open(dir.path()), Arc::default());
    bed.rule(RuleAction::Deny, "anna", "hello");
    bed.memory.refusing.lock().unwrap().insert(Place::Subject(VPN_PREFIX.host(2)));
    let going = bed.access.remove(&subject("anna"), Vec::new()).unwrap();
    bed.access.settle(bed.access.finish(going)).unwrap_err();
    assert_eq!((rules(&bed), bed.access.following().behind), (1, 2));
    bed.memory.refusing.lock().unwrap().clear();
    bed.access.reconcile().unwrap();
    assert_eq!((rules(&bed), bed.entry(2), bed.access.following().behind), (0, None, 0));
}

#[test]
fn two_changes_at_once_leave_what_is_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::start(&open(dir.path()), Arc::default());
    let add = |group: &str| {
        let change = GroupChange { add: vec![subject("anna")], ..GroupChange::default() };
        bed.access.change_group(&name(group), &change).unwrap();
    };
    add("ops");
    let going = bed.access.remove(&subject("@ops"), Vec::new()).unwrap();
    add("dev");
    bed.access.settle(bed.access.finish(going)).unwrap();
    assert_eq!(bed.memory.image().unwrap(), Image::of(&bed.access.policy()));
    assert_ne!(bed.entry(2).unwrap().groups[0], 0);
}

#[test]
fn a_number_that_is_given_again_begins_at_zero() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bed = Bed::start(&store, Arc::default());
    let hello = FUNCTION_PREFIX.function(&name("hello"));
    bed.access.show_peer(&peer("last", bed.access.fresh_number(), 9));
    let number = bed.access.policy().number(&subject("last")).unwrap();
    *bed.memory.refusals.lock().unwrap() = vec![(number, hello, 7), (3, hello, 2)];
    let going = bed.access.remove(&subject("last"), Vec::new()).unwrap();
    bed.access.settle(bed.access.finish(going)).unwrap();
    let again = Bed::start(&store, Arc::clone(&bed.memory));
    assert_eq!(again.access.fresh_number(), number);
    again.access.show_peer(&peer("next", number, 10));
    assert_eq!(again.access.counts().unwrap().refusals, [(subject("anna"), name("hello"), 2)]);
}
