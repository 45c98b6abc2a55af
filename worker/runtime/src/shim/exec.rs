//! The launcher of a further process in a running container.

use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ShimError;
use super::launch::{failed, settle};
use super::plan::{LaunchPlan, Launched, ResolvedUser};
use crate::files;
use crate::paths::container_file;

/// What to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Wish {
    pub arguments: Vec<String>,
    /// Where its terminal goes, if it gets one.
    pub console: Option<PathBuf>,
}

/// Runs the [`Wish`] in the first file and leaves a [`Launched`] in the second.
pub(crate) fn run(bundle: &Path, arguments: &[PathBuf]) -> Result<(), ShimError> {
    let [wish, result] = arguments else {
        return Err(ShimError::Container("exec takes two files".into()));
    };
    let outcome = match exec(bundle, wish) {
        Ok(pid) => Launched::Ok { pid, user: ResolvedUser::default() },
        Err(error) => Launched::Err(files::chain(&error)),
    };
    files::write_json(result, &outcome).map_err(ShimError::io("leave the result"))
}

fn exec(bundle: &Path, wish_file: &Path) -> Result<i32, ShimError> {
    settle()?;
    let lacks = || ShimError::Container("the container's files are gone".into());
    let plan: LaunchPlan = files::read_json(&bundle.join(container_file::PLAN))
        .map_err(ShimError::io("read the plan"))?
        .ok_or_else(lacks)?;
    let spec: Value = files::read_json(&bundle.join(container_file::SPEC))
        .map_err(ShimError::io("read the specification"))?
        .ok_or_else(lacks)?;
    let wish: Wish =
        files::read_json(wish_file).map_err(ShimError::io("read the wish"))?.ok_or_else(lacks)?;
    let mut process = spec["process"].clone();
    process["args"] = json!(wish.arguments);
    process["terminal"] = json!(wish.console.is_some());
    // libcontainer takes the process from a file: the wish's own, which has been read.
    files::write_json(wish_file, &process).map_err(ShimError::io("write the process"))?;
    let pid = ContainerBuilder::new(plan.container_id, SyscallType::default())
        .with_root_path(&plan.libcontainer)
        .map_err(failed)?
        .with_console_socket(wish.console)
        .as_tenant()
        .with_process(Some(wish_file))
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(failed)?;
    Ok(pid.as_raw())
}
