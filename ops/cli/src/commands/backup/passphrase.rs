//! Reads passphrases from a file, the environment or the terminal; never from the
//! command line, which every user of the machine can read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use master_node::backup::Passphrase;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

const VARIABLE: &str = "EPHOR_BACKUP_PASSPHRASE";
/// Maximum size in bytes of a passphrase file.
const FILE_MAX: u64 = 4096;

/// Source of the passphrase that a bundle is encrypted with.
#[derive(Debug, Args)]
pub struct PassphraseArgs {
    /// File whose first line is the passphrase [default: $EPHOR_BACKUP_PASSPHRASE, or a prompt]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl PassphraseArgs {
    /// Gets the passphrase for opening an existing bundle.
    pub fn for_bundle(&self) -> Result<Passphrase> {
        Ok(Passphrase::new(self.given()?.map_or_else(|| ask("passphrase: "), Ok)?))
    }

    /// Gets the passphrase for a new bundle; at the terminal it is asked for twice.
    pub fn for_new(&self) -> Result<Passphrase> {
        let text = match self.given()? {
            Some(text) => text,
            None => {
                let text = ask("passphrase for the backup: ")?;
                ensure!(text == ask("passphrase again: ")?, "the two passphrases differ");
                text
            }
        };
        Ok(Passphrase::for_new(text)?)
    }

    fn given(&self) -> Result<Option<String>> {
        if let Some(path) = &self.passphrase_file {
            let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
            let text =
                first_line(file.take(FILE_MAX)).with_context(|| format!("reading {}", path.display()))?;
            ensure!(!text.is_empty(), "{} holds no passphrase in its first line", path.display());
            return Ok(Some(text));
        }
        match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => Ok(Some(text)),
            Ok(_) => bail!("${VARIABLE} is empty"),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(error) => Err(error).context(VARIABLE),
        }
    }
}

fn first_line(source: impl Read) -> Result<String> {
    let mut line = String::new();
    BufReader::new(source).read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks at the terminal, without echo.
fn ask(question: &str) -> Result<String> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty").with_context(|| {
        format!("no terminal to ask for the passphrase: give --passphrase-file, or set ${VARIABLE}")
    })?;
    terminal.write_all(question.as_bytes())?;
    let shown = tcgetattr(&terminal)?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    hidden.local_flags.insert(LocalFlags::ECHONL);
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &hidden)?;
    let line = first_line(&terminal);
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &shown)?;
    let line = line?;
    ensure!(!line.is_empty(), "no passphrase was given");
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_file_is_the_passphrase() {
        let path = std::env::temp_dir().join(format!("ephor-passphrase-{}", std::process::id()));
        let arguments = PassphraseArgs { passphrase_file: Some(path.clone()) };
        std::fs::write(&path, "correct horse battery \nsecond line\n").unwrap();
        let read = arguments.given();
        std::fs::write(&path, "\n").unwrap();
        let empty = arguments.for_new();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap().as_deref(), Some("correct horse battery "));
        assert!(format!("{:#}", empty.unwrap_err()).contains("no passphrase"));
    }
}
