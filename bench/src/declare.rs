//! Functions by the thousand, as the store has them: one that was deployed is on record again under other names. To
//! deploy them one by one would take a quarter of an hour, of which nothing is measured.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use faasd::control::records::{FUNCTIONS, FunctionRecord, PEERS, PeerRecord, REVISIONS, RevisionRecord};
use faasd::control::store::{Embedded, Store, get_json, json_write, list_json};
use faasd::core::name::FunctionName;

/// Writes that are made together.
const BATCH: usize = 1000;

/// What to declare.
#[derive(Debug, Args)]
pub struct Declare {
    /// The store's file. No daemon may have it open.
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// The function that they are to be like.
    #[arg(long, value_name = "NAME")]
    like: FunctionName,
    /// How many; they are named NAME-0, NAME-1, and so on.
    #[arg(long)]
    count: u32,
}

impl Declare {
    /// Declares.
    ///
    /// # Errors
    /// If there is no such function, or of the store.
    pub fn run(&self) -> anyhow::Result<()> {
        ensure!(self.store.exists(), "there is no {}", self.store.display());
        let store = Embedded::open(&self.store)?;
        let functions: Vec<FunctionRecord> =
            list_json(&store, FUNCTIONS)?.into_iter().map(|(_, stored)| stored.record).collect();
        let peers: Vec<PeerRecord> =
            list_json(&store, PEERS)?.into_iter().map(|(_, stored)| stored.record).collect();
        let model = functions.iter().find(|function| function.name == self.like);
        let model = model.with_context(|| format!("{} is not declared", self.like))?;
        let number = model.primary().context("no revision serves")?;
        let key = RevisionRecord::key_of(&model.name, number);
        let revision =
            get_json::<RevisionRecord>(&store, &key)?.with_context(|| format!("{REVISIONS}: no {key}"))?;
        // Numbers that nobody has yet.
        let slots = functions.iter().flat_map(|f| f.shares.iter().map(|share| share.slot).chain([f.slot]));
        let mut slot = slots.max().unwrap_or_default();
        let subjects = functions.iter().map(|f| f.subject).chain(peers.iter().map(|peer| peer.number));
        let mut subject = subjects.max().unwrap_or_default();
        let mut next = || {
            slot += 1;
            slot
        };
        let mut writes = Vec::new();
        for index in 0..self.count {
            let name: FunctionName = format!("{}-{index}", self.like).parse()?;
            let mut function = FunctionRecord { name: name.clone(), slot: next(), ..model.clone() };
            subject += 1;
            function.subject = subject;
            for share in &mut function.shares {
                share.slot = next();
            }
            let revision = RevisionRecord { name, slot: function.slot, ..revision.record.clone() };
            writes.push(json_write(revision.key(), &revision)?);
            writes.push(json_write(FunctionRecord::key(&function.name), &function)?);
        }
        writes.chunks(BATCH).try_for_each(|batch| store.write_all(batch))?;
        Ok(())
    }
}
