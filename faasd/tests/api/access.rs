//! Rules, groups and roles, and who may ask for what through the tunnel.

use std::net::{Ipv6Addr, TcpStream};

use faasd::api::client::Server;
use faasd::api::types::{Changed, DefaultChange, GroupChange, NAMED_MAX, Rule, RuleAction, RuleChange};
use faasd::core::access::{Access, Action, Subject};

use super::*;

fn subjects(texts: &[&str]) -> Vec<Subject> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn change(action: RuleAction, who: &[&str], functions: &[&str]) -> RuleChange {
    let functions = functions.iter().map(|function| name(function)).collect();
    RuleChange { action, subjects: subjects(who), functions, keep: false }
}

const fn changed(changed: usize) -> Changed {
    Changed { changed, cut: 0 }
}

#[tokio::test]
async fn rules_are_made_changed_and_forgotten() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    deploy(&client, "orders").await;
    client.invite(&invite("laptop", 60_000)).await.unwrap();
    let both = ["hello", "orders"];
    let allow = change(RuleAction::Allow, &["laptop", "fn:orders"], &both);
    assert_eq!(client.set_rules(&allow).await.unwrap(), changed(4));
    assert_eq!(client.set_rules(&allow).await.unwrap(), changed(0), "all are there already");
    assert_eq!(
        client.set_rules(&change(RuleAction::Deny, &["laptop"], &["hello"])).await.unwrap(),
        changed(1)
    );
    let policy = client.policy(&name("hello")).await.unwrap();
    let rule = |who: &str, action| Rule { subject: who.parse().unwrap(), action };
    assert_eq!(policy.rules, [rule("laptop", Action::Deny), rule("fn:orders", Action::Allow)]);
    assert_eq!((policy.default, policy.own_default), (Access::Open, None));
    client.set_rules(&change(RuleAction::Forget, &["laptop", "fn:orders"], &both)).await.unwrap();
    assert!(client.policies().await.unwrap().functions.iter().all(|policy| policy.rules.is_empty()));

    for (change, status, why) in [
        (change(RuleAction::Allow, &["lapto"], &["hello"]), 404, "no peer 'lapto'; did you mean 'laptop'?"),
        (change(RuleAction::Allow, &["laptop"], &["helo"]), 404, "no function 'helo'; did you mean 'hello'?"),
        (change(RuleAction::Deny, &["fn:order"], &["hello"]), 404, "did you mean 'fn:orders'?"),
        (change(RuleAction::Deny, &["@ops"], &["hello"]), 404, "no group '@ops'"),
        (change(RuleAction::Deny, &[], &["hello"]), 400, "1 to 1000 subjects"),
        (change(RuleAction::Deny, &["laptop"], &vec!["hello"; NAMED_MAX + 1]), 400, "1 to 1000 functions"),
    ] {
        let (found, title) = problem(client.set_rules(&change).await.unwrap_err());
        assert!(found == status && title.contains(why), "{title}");
    }
    // One that is wrong, and none is made.
    let half = change(RuleAction::Allow, &["laptop"], &["hello", "nothing"]);
    assert_eq!(problem(client.set_rules(&half).await.unwrap_err()).0, 404);
    assert_eq!(client.policy(&name("hello")).await.unwrap().rules, []);
}

#[tokio::test]
async fn a_default_is_a_functions_own_or_that_of_all() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    deploy(&client, "orders").await;
    let to = |default| DefaultChange { default, keep: false };
    let defaults = async || {
        let all = client.policies().await.unwrap();
        let each: Vec<_> = all.functions.iter().map(|policy| policy.default).collect();
        (all.default, all.configured, each)
    };
    assert_eq!(client.set_default(None, &to(Some(Access::Closed))).await.unwrap(), changed(1));
    assert_eq!(defaults().await, (Access::Closed, Access::Open, vec![Access::Closed; 2]));
    client.set_default(Some(&name("hello")), &to(Some(Access::Open))).await.unwrap();
    assert_eq!(defaults().await.2, [Access::Open, Access::Closed]);
    client.set_default(None, &to(None)).await.unwrap();
    client.set_default(Some(&name("hello")), &to(Some(Access::Closed))).await.unwrap();
    assert_eq!(defaults().await, (Access::Open, Access::Open, vec![Access::Closed, Access::Open]));
    assert_eq!(client.set_default(Some(&name("hello")), &to(None)).await.unwrap(), changed(1));
    assert_eq!(client.set_default(Some(&name("hello")), &to(None)).await.unwrap(), changed(0));
    assert_eq!(problem(client.set_default(Some(&name("helo")), &to(None)).await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn groups_come_and_go_with_their_members_and_rules() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    deploy(&client, "hello").await;
    for peer in ["laptop", "phone"] {
        client.invite(&invite(peer, 60_000)).await.unwrap();
    }
    let (ops, other) = (name("ops"), name("nobody"));
    let add = |who: &[&str]| GroupChange { add: subjects(who), ..GroupChange::default() };
    let remove = |who: &[&str]| GroupChange { remove: subjects(who), ..GroupChange::default() };
    assert_eq!(client.change_group(&ops, &add(&["laptop", "phone", "fn:hello"])).await.unwrap(), changed(4));
    client.set_rules(&change(RuleAction::Allow, &["@ops"], &["hello"])).await.unwrap();
    assert_eq!(client.change_group(&ops, &remove(&["phone"])).await.unwrap(), changed(1));
    let group = client.group(&ops).await.unwrap();
    assert_eq!((group.members, group.functions), (subjects(&["laptop", "fn:hello"]), vec![name("hello")]));
    for (name, change, status, why) in [
        (&ops, add(&["@ops"]), 409, "a group cannot be in a group"),
        (&ops, add(&["fone"]), 404, "did you mean 'phone'?"),
        (&other, remove(&["phone"]), 404, "no group '@nobody'"),
    ] {
        let (found, title) = problem(client.change_group(name, &change).await.unwrap_err());
        assert!(found == status && title.contains(why), "{title}");
    }
    assert_eq!(problem(client.group(&other).await.unwrap_err()).0, 404);
    // Its two members, its rule, and itself.
    assert_eq!(client.remove_group(&ops, false).await.unwrap(), changed(4));
    assert!(client.groups().await.unwrap().groups.is_empty());
    assert_eq!(client.policy(&name("hello")).await.unwrap().rules, []);
    assert_eq!(problem(client.remove_group(&ops, false).await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn a_peer_has_the_role_that_it_was_invited_with_until_another_is_given() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    client.invite(&Invite { role: Role::Admin, ..invite("laptop", 60_000) }).await.unwrap();
    assert_eq!(client.peers().await.unwrap().peers[0].role, Role::Admin);
    assert_eq!(client.set_role(&name("laptop"), Role::User).await.unwrap().role, Role::User);
    assert_eq!(problem(client.set_role(&name("lapto"), Role::User).await.unwrap_err()).0, 404);
}

/// What the daemon answers to a request through the tunnel.
fn ask(daemon: &Daemon, line: &str, headers: &str) -> String {
    let text = format!("{line} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
    raw(TcpStream::connect(daemon.tunnel).unwrap(), &text)
}

fn becomes(daemon: &Daemon, role: Role) {
    daemon.fake.roles.lock().unwrap().insert(Ipv6Addr::LOCALHOST, (name("laptop"), role));
}

#[test]
fn peers_get_two_routes_and_are_known_by_their_address() {
    let daemon = Daemon::start();
    let join = |media_type: &str| {
        raw(
            TcpStream::connect(daemon.tunnel).unwrap(),
            &format!(
                "POST /v1/join HTTP/1.1\r\nhost: faasd\r\ncontent-type: {media_type}\r\nconnection: close\r\n\
                 content-length: 18\r\n\r\n{{\"public_key\":\"k\"}}"
            ),
        )
    };
    // Whether somebody is invited is for the service to say.
    assert!(join("text/plain").starts_with("HTTP/1.1 415"), "a browser's form cannot join");
    assert!(daemon.fake.joined.lock().unwrap().is_empty());
    assert!(join("application/json").starts_with("HTTP/1.1 204"));
    assert_eq!(*daemon.fake.joined.lock().unwrap(), [(Ipv6Addr::LOCALHOST, "k".to_owned())]);
    let metrics = || ask(&daemon, "GET /metrics", "host: ns.faas\r\n");
    assert!(metrics().starts_with("HTTP/1.1 403"), "who is only invited sees no metrics");
    becomes(&daemon, Role::User);
    assert!(metrics().ends_with("faasd_up 1\n"));
}

#[test]
fn users_are_turned_away_before_anything_is_looked_at() {
    let daemon = Daemon::start();
    let all = [
        "GET /v1/functions",
        "GET /v1/version",
        "GET /v1/openapi.json",
        "DELETE /v1/functions/x",
        "POST /v1/functions/x/invoke/",
        "PUT /v1/secrets/x",
        "POST /v1/peers",
        "PUT /v1/peers/laptop/role",
        "POST /v1/policy",
        "PATCH /v1/nothing",
        "GET /v1/join/",
        "GET /metrics/..",
        "GET //v1/functions",
    ];
    for known in [false, true] {
        if known {
            becomes(&daemon, Role::User);
        }
        for line in all {
            let answer = ask(&daemon, line, "host: faasd\r\ncontent-length: 9999999\r\n");
            assert!(
                answer.starts_with("HTTP/1.1 403") && answer.contains("problem+json"),
                "{line}: {answer}"
            );
            assert_eq!(answer.contains("faas vpn role laptop admin"), known, "{answer}");
        }
    }
    assert_eq!(daemon.refusals.counts(), [("role", 2 * all.len() as u64), ("page", 0), ("share", 0)]);
}

#[tokio::test]
async fn admins_have_the_whole_api_and_their_browsers_do_not() {
    let daemon = Daemon::start();
    let server: Server = format!("http://{}", daemon.tunnel).parse().unwrap();
    let client = Client::of(server);
    let (status, title) = problem(client.version().await.unwrap_err());
    assert_eq!((status, title.as_str()), (403, "whoever asks is no admin"));
    becomes(&daemon, Role::Admin);
    deploy(&client, "hello").await;
    let mut answer = client.invoke(&name("hello"), Request::get("/x").body(empty()).unwrap()).await.unwrap();
    assert_eq!(answer.body_mut().collect().await.unwrap().to_bytes(), "/x");
    client.remove(&name("hello")).await.unwrap();
    let ours = format!("host: {}\r\n", daemon.tunnel);
    assert!(ask(&daemon, "GET /v1/functions", &ours).starts_with("HTTP/1.1 200"));
    assert!(ask(&daemon, "GET /metrics", "host: ns.faas\r\n").starts_with("HTTP/1.1 200"));
    assert!(ask(&daemon, "GET /v1/nothing", &ours).starts_with("HTTP/1.1 404"));
    for (line, headers) in [
        // A form on some page, and a page whose name was made to lead here.
        ("POST /v1/images/prune", format!("{ours}origin: http://evil.example\r\n")),
        ("POST /v1/functions/hello/invoke/", format!("{ours}origin: null\r\n")),
        ("GET /v1/functions", "host: evil.example\r\n".to_owned()),
        ("GET /v1/functions", "host: evil.example:9464\r\n".to_owned()),
        ("GET /v1/functions/hello/invoke/", "host: evil.example\r\n".to_owned()),
        ("GET /v1/functions/hello/invoke/", format!("{ours}sec-fetch-site: cross-site\r\n")),
        ("GET /metrics", "host: evil.example\r\n".to_owned()),
        ("POST /v1/rotate", "host: evil.example\r\n".to_owned()),
    ] {
        let answer = ask(&daemon, line, &headers);
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("web pages"), "{line}: {answer}");
    }
    assert_eq!(daemon.refusals.counts(), [("role", 1), ("page", 8), ("share", 0)]);
}
