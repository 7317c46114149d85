//! Functions that are declared in files, and edited by several at once.

use std::fs;

use anyhow::{Context, Result, ensure};
use faasd::api::client::{Client, ClientError, Outcome};
use faasd::api::condition::{Condition, etag};
use faasd::api::types::Deploy;
use faasd_tests::{Bed, hello_program};

use crate::only;

pub fn twice() -> Result<()> {
    let bed = Bed::joined()?;
    let code = |text: &str| format!("def handle(event, context):\n    return '{text}'\n");
    let dir = bed.path("stack");
    for (file, text) in [
        ("one/handler.py", code("one").as_str()),
        ("two/handler.py", code("two").as_str()),
        ("stack.toml", "[functions.one]\npath = 'one'\n[functions.other]\npath = 'two'\nenv = { A = 'b' }\n"),
    ] {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(path, text)?;
    }
    let program = dir.join("hello");
    fs::create_dir(&program)?;
    fs::copy(hello_program(), program.join("program"))?;
    fs::write(program.join("faas.toml"), "contract = 'fd'\ncommand = ['./program']\n")?;
    let (stack, program) = (dir.join("stack.toml").display().to_string(), program.display().to_string());
    let apply = || -> Result<Vec<String>> {
        let done = bed.json(&["apply", &program, "-f", &stack])?;
        let functions = done["functions"].as_array().context("functions")?;
        Ok(functions.iter().map(|f| format!("{} {} {}", f["name"], f["result"], f["revision"])).collect())
    };
    let results = |result: &str| ["hello", "one", "other"].map(|name| format!("\"{name}\" \"{result}\" 1"));
    let first = apply()?;
    ensure!(first == results("created"), "{first:?}");
    let before = bed.describe("one")?;
    let second = apply()?;
    ensure!(second == results("unchanged"), "{second:?}");
    ensure!(only(&bed.describe("one")?)? == only(&before)?, "its instance was replaced");
    ensure!(bed.client().curl("http://other.faas/")? == "two");
    bed.faas(&["diff", &program, "-f", &stack])?.ok()?;

    fs::write(dir.join("two/handler.py"), code("2"))?;
    let different = bed.faas(&["diff", &program, "-f", &stack])?;
    ensure!(different.status == Some(1), "{different:?}");
    let third = apply()?;
    ensure!(third[2] == "\"other\" \"updated\" 2" && third[..2] == results("unchanged")[..2], "{third:?}");
    ensure!(bed.client().curl("http://other.faas/")? == "2");
    bed.finish()
}

/// Any number of people read the same, and all write what they made of it at once.
pub fn concurrent_edits() -> Result<()> {
    const EDITORS: usize = 8;
    let bed = Bed::serving()?;
    bed.deploy("edited", &[("handler.py", b"def handle(event, context):\n    return 'x'\n")])?.ok()?;
    let client = Client::new(bed.path("run/faasd.sock"));
    let name = "edited".parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let read = client.function(&name).await?;
        let seen = Condition::Tagged(vec![etag(&read)]);
        let edit = |editor: usize| {
            let mut deploy = Deploy { image: read.image.clone(), ..Deploy::default() };
            deploy.spec = read.spec.clone();
            deploy.spec.env.insert("EDITOR".into(), editor.to_string());
            deploy
        };
        let mut edits = tokio::task::JoinSet::new();
        for editor in 0..EDITORS {
            let (client, name, seen, deploy) = (client.clone(), name.clone(), seen.clone(), edit(editor));
            edits.spawn(async move { (editor, client.deploy_if(&name, &deploy, &seen).await) });
        }
        let mut winners = Vec::new();
        for (editor, done) in edits.join_all().await {
            match done {
                Ok((_, Outcome::Updated)) => winners.push(editor.to_string()),
                Err(ClientError::Problem(problem)) if [409, 412].contains(&problem.status) => {}
                other => anyhow::bail!("{editor}: {other:?}"),
            }
        }
        ensure!(winners.len() == 1, "{winners:?}");
        let now = client.function(&name).await?;
        ensure!(now.spec.env["EDITOR"] == winners[0] && now.revision == 2, "{now:?}");
        // Who read before that may not remove it either.
        let late = client.remove_if(&name, &seen).await;
        ensure!(matches!(&late, Err(ClientError::Problem(p)) if p.status == 412), "{late:?}");
        let (same, outcome) = client.deploy_if(&name, &edit(winners[0].parse()?), &Condition::Exists).await?;
        ensure!(outcome == Outcome::Unchanged && same.revision == 2, "{same:?}");
        client.remove_if(&name, &Condition::Tagged(vec![etag(&now)])).await?;
        Ok(())
    })?;
    bed.finish()
}
