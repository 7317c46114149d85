use anyhow::Result;
#[derive(Debug, clap::Args)]
pub struct Args {}
pub fn main(_: &Args) -> Result<()> {
    Ok(())
}
