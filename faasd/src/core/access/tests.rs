//! The policy by hand, and by chance against what the kernel would decide.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::core::address::{FUNCTION_PREFIX, VPN_PREFIX};
use crate::core::name::FunctionName;

fn name(text: &str) -> FunctionName {
    text.parse().unwrap()
}

fn subject(text: &str) -> Subject {
    text.parse().unwrap()
}

/// The maps, and the flags of the routes, as the kernel program reads them.
#[derive(Clone, Default)]
struct Kernel {
    image: Image,
    flags: HashMap<FunctionName, Guard>,
}

impl Kernel {
    /// As `faasd-ebpf` decides it.
    fn admits(&self, from: Ipv6Addr, function: &FunctionName) -> bool {
        let known = self.image.subjects.get(&from).filter(|entry| entry.number != 0);
        let Some(entry) = known else { return false };
        // Without a route nobody gets there.
        let Some(flags) = self.flags.get(function) else { return false };
        if !flags.guarded {
            return true;
        }
        let to = FUNCTION_PREFIX.function(function);
        let rule = |number: &u32| self.image.rules.get(&(*number, to)).copied();
        if let Some(own) = rule(&entry.number) {
            return own == Action::Allow;
        }
        let groups: Vec<_> = entry.groups.iter().filter(|group| **group != 0).filter_map(rule).collect();
        match (groups.contains(&Action::Deny), groups.contains(&Action::Allow)) {
            (true, _) => false,
            (_, true) => true,
            _ => !flags.closed,
        }
    }
}

/// A policy and the kernel that follows it, step by step.
#[derive(Clone)]
struct World {
    policy: Policy,
    kernel: Kernel,
}

impl World {
    fn new(configured: Access) -> Self {
        Self { policy: Policy::new(configured), kernel: Kernel::default() }
    }

    /// Makes a change; nobody may be let in between who is let in neither before nor after.
    fn edit(&mut self, edit: &Edit) {
        if let Edit::CallerGone { subject: Subject::Function(old) } = edit {
            self.kernel.flags.remove(old);
        }
        let before = self.clone();
        let effects = self.policy.apply(edit);
        let after = self.policy.clone();
        for effect in effects {
            self.kernel.image.take(&effect);
            if let Effect::Guard { function } = &effect {
                self.kernel.flags.insert(function.clone(), after.guard(function));
            }
            let known = [&before.policy, &after];
            let addresses =
                known.iter().flat_map(|p| p.callers().map(|(s, _)| (p.address(s).unwrap(), s.clone())));
            for (from, who) in addresses.collect::<BTreeMap<_, _>>() {
                let routed = |function: &&FunctionName| self.kernel.flags.contains_key(*function);
                for function in after.functions().filter(routed) {
                    let may = |policy: &Policy| policy.decide(&who, function).allowed;
                    let now = self.kernel.admits(from, function);
                    let (then, soon) = (may(&before.policy), may(&after));
                    assert!(now == then || now == soon, "{who} to {function} by {effect:?} of {edit:?}");
                }
            }
        }
        if let Edit::Caller { subject: Subject::Function(new), .. } = edit {
            self.kernel.flags.insert(new.clone(), after.guard(new));
        }
        self.agrees();
    }

    /// What the kernel holds is what it is to hold, and decides as the policy does.
    fn agrees(&self) {
        assert_eq!(self.kernel.image, Image::of(&self.policy));
        for function in self.policy.functions() {
            assert_eq!(
                self.kernel.flags.get(function).copied(),
                Some(self.policy.guard(function)),
                "{function}"
            );
            for (who, _) in self.policy.callers() {
                let from = self.policy.address(who).unwrap();
                let verdict = self.policy.decide(who, function);
                assert_eq!(
                    self.kernel.admits(from, function),
                    verdict.allowed,
                    "{who} {function} {verdict:?}"
                );
            }
        }
    }

    fn caller(&mut self, text: &str) {
        let subject = subject(text);
        let address = match &subject {
            Subject::Function(name) => FUNCTION_PREFIX.function(name),
            peer => VPN_PREFIX.host(peer.name().as_str().bytes().map(u64::from).sum::<u64>() + 2),
        };
        let number = self.policy.number(&subject).unwrap_or_else(|| self.policy.fresh_number());
        self.edit(&Edit::Caller { subject, number, address, active: true });
    }

    fn group(&mut self, group: &str, members: &[&str]) {
        let group = name(group);
        if self.policy.members(&group).is_none() {
            let number = self.policy.fresh_number();
            self.edit(&Edit::Group { name: group.clone(), number });
        }
        for member in members {
            self.edit(&Edit::Member { group: group.clone(), subject: subject(member), is_in: true });
        }
    }

    fn rule(&mut self, function: &str, who: &str, action: Option<Action>) {
        self.edit(&Edit::Rule { function: name(function), subject: subject(who), action });
    }

    fn may(&self, who: &str, function: &str) -> bool {
        self.policy.decide(&subject(who), &name(function)).allowed
    }
}

fn world() -> World {
    let mut world = World::new(Access::Open);
    for caller in ["anna", "bert", "fn:hello", "fn:orders"] {
        world.caller(caller);
    }
    world.group("ops", &["anna", "fn:orders"]);
    world
}

#[test]
fn subjects_are_read_and_written() {
    for text in ["anna", "@ops", "fn:hello"] {
        assert_eq!(subject(text).to_string(), text);
        assert_eq!(serde_json::to_string(&subject(text)).unwrap(), format!("\"{text}\""));
    }
    for bad in ["", "@", "fn:", "@@ops", "Anna", "fn:a b", "group:ops"] {
        assert!(
            bad.parse::<Subject>().unwrap_err().to_string().contains("PEER, @GROUP or fn:FUNCTION"),
            "{bad}"
        );
    }
}

#[test]
fn the_order_is_own_rule_groups_default() {
    let mut world = world();
    assert!(world.may("anna", "hello") && world.may("bert", "hello"));
    world.rule("hello", "@ops", Some(Action::Deny));
    assert!(!world.may("anna", "hello") && !world.may("fn:orders", "hello") && world.may("bert", "hello"));
    world.rule("hello", "anna", Some(Action::Allow));
    assert!(world.may("anna", "hello"), "its own rule comes first");
    world.rule("hello", "anna", None);
    world.group("friends", &["anna"]);
    world.rule("hello", "@friends", Some(Action::Allow));
    assert!(!world.may("anna", "hello"), "one group that denies wins");
    world.rule("hello", "@ops", None);
    assert!(world.may("anna", "hello"));
    world.edit(&Edit::Default { function: Some(name("hello")), access: Some(Access::Closed) });
    assert!(world.may("anna", "hello") && !world.may("bert", "hello"));
    world.edit(&Edit::Default { function: None, access: Some(Access::Closed) });
    assert!(!world.may("bert", "orders"), "the common default");
    world.edit(&Edit::Default { function: Some(name("orders")), access: Some(Access::Open) });
    assert!(world.may("bert", "orders"), "a function's own comes before it");
    assert!(!world.may("carl", "orders"), "who is nobody may nothing");
}

#[test]
fn only_what_has_rules_is_guarded() {
    let mut world = world();
    let guard = |world: &World| world.policy.guard(&name("hello"));
    assert_eq!(guard(&world), Guard::default());
    world.rule("hello", "bert", Some(Action::Deny));
    assert_eq!(guard(&world), Guard { guarded: true, closed: false });
    world.rule("hello", "bert", None);
    assert_eq!(guard(&world), Guard::default());
    let closed = Guard { guarded: true, closed: true };
    assert_eq!(Policy::new(Access::Closed).guard(&name("new")), closed, "from its first moment");
}

#[test]
fn what_goes_takes_all_that_speaks_of_it_along() {
    let mut world = world();
    world.rule("hello", "anna", Some(Action::Deny));
    world.rule("hello", "fn:orders", Some(Action::Deny));
    world.rule("hello", "@ops", Some(Action::Allow));
    world.rule("orders", "fn:orders", Some(Action::Deny));
    world.edit(&Edit::Default { function: Some(name("orders")), access: Some(Access::Closed) });
    let facts = world.policy.attached(&subject("fn:orders"));
    assert_eq!(facts.len(), 4, "{facts:?}");
    world.edit(&Edit::CallerGone { subject: subject("fn:orders") });
    assert_eq!(world.policy.attached(&subject("fn:orders")), []);
    assert_eq!(world.policy.rules(&name("hello")).unwrap().len(), 2);
    world.edit(&Edit::CallerGone { subject: subject("anna") });
    assert_eq!(world.policy.members(&name("ops")).unwrap().len(), 0);
    world.edit(&Edit::GroupGone { name: name("ops") });
    assert_eq!(world.policy.rules_len(), 0);
    assert_eq!(world.policy.guard(&name("hello")), Guard::default());
    assert!(world.kernel.image.rules.is_empty() && world.kernel.image.subjects.len() == 2);
    // What comes back has another number.
    let last = world.policy.fresh_number();
    world.caller("anna");
    assert!(world.policy.number(&subject("anna")).unwrap() > last);
}

#[test]
fn who_is_invited_has_rules_and_no_access() {
    let mut world = world();
    let new =
        |active| Edit::Caller { subject: subject("carl"), number: 77, address: VPN_PREFIX.host(9), active };
    world.edit(&new(false));
    world.rule("hello", "carl", Some(Action::Allow));
    assert!(!world.may("carl", "hello"));
    world.edit(&new(true));
    assert!(world.may("carl", "hello"));
    assert_eq!(world.policy.caller(VPN_PREFIX.host(9)), Some(&subject("carl")));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut world = world();
    let check = |world: &World, function: &str, who: &str, max| {
        world.policy.check_rules(&[name(function)], &[subject(who)], Some(Action::Deny), max)
    };
    assert_eq!(check(&world, "hello", "anna", 1), Ok(()));
    assert_eq!(check(&world, "helo", "anna", 1), Err(Refused::NoFunction(name("helo"))));
    assert_eq!(check(&world, "hello", "@op", 1), Err(Refused::NoSubject(subject("@op"))));
    assert_eq!(check(&world, "hello", "anna", 0), Err(Refused::RulesMax(0)));
    let member =
        |world: &World, group: &str, who: &str| world.policy.check_member(&name(group), &subject(who));
    assert_eq!(member(&world, "ops", "@ops"), Err(Refused::Nested(subject("@ops"))));
    assert_eq!(member(&world, "ops", "carl"), Err(Refused::NoSubject(subject("carl"))));
    for number in 0..GROUPS_PER_SUBJECT_MAX {
        assert_eq!(member(&world, "new", "bert"), Ok(()));
        world.group(&format!("g{number}"), &["bert"]);
    }
    assert_eq!(member(&world, "new", "bert"), Err(Refused::Crowded(subject("bert"))));
    assert_eq!(member(&world, "g0", "bert"), Ok(()), "it is there already");
}

#[test]
fn a_change_costs_what_it_is_about() {
    let mut policy = Policy::new(Access::Open);
    for number in 0..2000u32 {
        for (text, prefix) in [(format!("p{number}"), VPN_PREFIX), (format!("fn:f{number}"), FUNCTION_PREFIX)]
        {
            let (subject, address) = (subject(&text), prefix.host(u64::from(number) + 2));
            let fresh = policy.fresh_number();
            policy.apply(&Edit::Caller { subject, number: fresh, address, active: true });
        }
    }
    let rule = |who: String, function: u32| Edit::Rule {
        function: name(&format!("f{function}")),
        subject: subject(&who),
        action: Some(Action::Deny),
    };
    for number in 0..2000 {
        assert_eq!(policy.apply(&rule(format!("p{number}"), 0)).len(), if number == 0 { 2 } else { 1 });
    }
    assert_eq!(policy.apply(&rule("p7".into(), 7)).len(), 2);
    let revoked = Edit::CallerGone { subject: subject("p7") };
    // Itself, its two rules, and the one function that has none any more.
    assert_eq!(policy.apply(&revoked).len(), 4);
}

const PEERS: [&str; 3] = ["a", "b", "c"];
const FUNCTIONS: [&str; 3] = ["f", "g", "h"];
const GROUPS: [&str; 3] = ["x", "y", "z"];

fn callers() -> impl Strategy<Value = String> {
    let functions = FUNCTIONS.map(|name| format!("fn:{name}"));
    prop_oneof![
        prop::sample::select(&PEERS[..]).prop_map(str::to_owned),
        prop::sample::select(functions.to_vec())
    ]
}

fn subjects() -> impl Strategy<Value = String> {
    prop_oneof![2 => callers(), 1 => prop::sample::select(&GROUPS[..]).prop_map(|g| format!("@{g}"))]
}

#[derive(Clone, Debug)]
enum Move {
    Come(String),
    Go(String),
    Rule(&'static str, String, Option<Action>),
    Member(&'static str, String, bool),
    Default(Option<&'static str>, Option<Access>),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let functions = || prop::sample::select(&FUNCTIONS[..]);
    let action = prop_oneof![Just(None), Just(Some(Action::Allow)), Just(Some(Action::Deny))];
    let access = prop_oneof![Just(None), Just(Some(Access::Open)), Just(Some(Access::Closed))];
    let one = prop_oneof![
        3 => subjects().prop_map(Move::Come),
        1 => subjects().prop_map(Move::Go),
        6 => (functions(), subjects(), action).prop_map(|(f, s, a)| Move::Rule(f, s, a)),
        4 => (prop::sample::select(&GROUPS[..]), callers(), any::<bool>()).prop_map(|(g, s, on)| Move::Member(g, s, on)),
        2 => (prop::option::of(functions()), access).prop_map(|(f, a)| Move::Default(f, a)),
    ];
    prop::collection::vec(one, 1..60)
}

impl World {
    fn take(&mut self, step: &Move) {
        match step {
            Move::Come(who) => match subject(who) {
                Subject::Group(group) => self.group(group.as_str(), &[]),
                _ => self.caller(who),
            },
            Move::Go(who) => match subject(who) {
                Subject::Group(name) => self.edit(&Edit::GroupGone { name }),
                subject => self.edit(&Edit::CallerGone { subject }),
            },
            Move::Rule(function, who, action) => self.rule(function, who, *action),
            Move::Member(group, who, is_in) => {
                self.edit(&Edit::Member { group: name(group), subject: subject(who), is_in: *is_in });
            }
            Move::Default(function, access) => {
                self.edit(&Edit::Default { function: function.map(name), access: *access });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// After each step the kernel decides as the policy says, and in between as it said before or says after.
    #[test]
    fn the_kernel_follows(moves in moves(), closed in any::<bool>()) {
        let mut world = World::new(if closed { Access::Closed } else { Access::Open });
        moves.iter().for_each(|step| world.take(step));
    }

    /// From whatever the maps hold to what they are to hold, and only what differs.
    #[test]
    fn a_start_repairs_the_difference(old in moves(), new in moves(), cut in 0usize..40) {
        let (mut there, mut wanted) = (World::new(Access::Open), World::new(Access::Open));
        old.iter().for_each(|step| there.take(step));
        new.iter().for_each(|step| wanted.take(step));
        let image = Image::of(&wanted.policy);
        let mut maps = there.kernel.image;
        for step in image.steps_from(&maps.clone()).iter().take(cut) {
            maps.take(step);
        }
        // A daemon that died in between is followed by another.
        let rest = image.steps_from(&maps);
        for step in &rest {
            let before = maps.clone();
            maps.take(step);
            prop_assert_ne!(&before, &maps, "a step that changes nothing");
        }
        prop_assert_eq!(&maps, &image);
        prop_assert!(image.steps_from(&maps).is_empty());
    }
}
