//! `--config FILE`: one typed configuration per role, in YAML. Flags override the
//! file, the file overrides the defaults; `--print-config` shows the result.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a configuration file; without a path, returns the defaults. Unknown fields are errors.
pub fn load<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T> {
    let Some(path) = path else { return Ok(T::default()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_norway::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
}

/// Prints the effective configuration.
pub fn print<T: Serialize>(config: &T) -> Result<()> {
    print!("{}", serde_norway::to_string(config)?);
    Ok(())
}

/// Sets a configuration field when its flag was given.
pub fn set<T>(field: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *field = value;
    }
}

/// The name of this machine, the default name of a node.
pub fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use master_node::config::MasterConfig;

    use super::*;

    #[test]
    fn an_unknown_field_is_an_error_that_names_it() {
        let path = std::env::temp_dir().join(format!("ephor-config-{}.yaml", std::process::id()));
        std::fs::write(&path, "name: m1\napiprt: 1\n").unwrap();
        let error = load::<MasterConfig>(Some(&path)).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert!(format!("{error:#}").contains("apiprt"), "{error:#}");
    }
}
