//! `faas secret set`

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;

use super::{Context, Failure, Output};
use crate::cli::{Exit, Format};
use crate::core::secret::{SECRET_BYTES_MAX, SecretBytes, SecretName};

/// Set a secret, or change it
///
/// It is read from a file or from standard input, byte for byte, and never from the command line, which every user of the
/// machine can see. Instances that run keep what they have; those that start from now on find the new one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  printf %s \"$PASSWORD\" | faas secret set db-password
  faas secret set tls.key --from-file key.pem")]
pub struct Set {
    /// The secret
    name: SecretName,
    /// The file that it is in [default: standard input]
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Set {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let value = match &self.from_file {
            Some(path) => File::open(path).and_then(read).map_err(|e| Failure::file("read", path, &e))?,
            None => {
                let input = io::stdin();
                if input.is_terminal() {
                    context.ui.note("type the secret, and end it by Ctrl-D (it is shown; a pipe or --from-file shows nothing)");
                }
                read(input).map_err(|e| Failure::new(Exit::Io, format!("cannot read standard input: {e}")))?
            }
        };
        let Some(value) = value else {
            let text = format!("a secret has {SECRET_BYTES_MAX} bytes at most, and this one has more");
            return Err(Failure::new(Exit::Data, text));
        };
        let secret = context.client.set_secret(&self.name, &value).await?;
        if self.output.format == Format::Json {
            return context.ui.json(&secret);
        }
        context.ui.note(&format!("set {}, {} bytes", secret.name, secret.bytes));
        if value.as_bytes().ends_with(b"\n") && !value.as_bytes().trim_ascii_end().contains(&b'\n') {
            context.ui.warn("it ends with a line feed, as `echo` writes it; `printf %s` writes none");
        }
        if !secret.functions.is_empty() {
            let names: Vec<_> = secret.functions.iter().map(|name| name.as_str()).collect();
            context.ui.note(&format!(
                "read by {}: instances that run keep what they have until they are replaced",
                names.join(", ")
            ));
        }
        Ok(())
    }
}

/// All of it, unless it is too large. The buffer does not grow: that would leave a copy behind.
fn read(from: impl Read) -> io::Result<Option<SecretBytes>> {
    let mut value = Vec::with_capacity(SECRET_BYTES_MAX + 64);
    let read = from.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut value);
    let (value, bytes) = (SecretBytes::new(value), read?);
    Ok((bytes <= SECRET_BYTES_MAX).then_some(value))
}
