//! The launcher that starts a further process (exec) in a running container.

use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ShimError;
use super::executor::ProgramExecutor;
use super::launch::{outcome, settle, tidy};
use super::plan::{LaunchPlan, LaunchResult, ResolvedUser};
use crate::files;
use crate::paths::container_file;

/// The process to start; the daemon passes this plan to the launcher in a file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecPlan {
    /// Program and arguments.
    pub arguments: Vec<String>,
    /// Socket that receives the process's terminal; `None` for a process without a terminal.
    pub console: Option<PathBuf>,
}

/// Starts the process that the first file ([`ExecPlan`]) describes, and writes the result, a
/// [`LaunchResult`], to the second.
pub(crate) fn run(bundle: &Path, arguments: &[PathBuf]) -> Result<(), ShimError> {
    let [plan, result] = arguments else {
        return Err(ShimError::Container("exec takes two files".into()));
    };
    let outcome = match exec(bundle, plan) {
        Ok(pid) => LaunchResult::Ok { pid, user: ResolvedUser::default() },
        Err(error) => LaunchResult::Err(files::chain(&error)),
    };
    files::write_json(result, &outcome).map_err(ShimError::io("leave the result"))
}

fn exec(bundle: &Path, exec_file: &Path) -> Result<i32, ShimError> {
    settle()?;
    let lacks = || ShimError::Container("the container's files are gone".into());
    let plan: LaunchPlan = files::read_json(&bundle.join(container_file::PLAN))
        .map_err(ShimError::io("read the plan"))?
        .ok_or_else(lacks)?;
    let spec: Value = files::read_json(&bundle.join(container_file::SPEC))
        .map_err(ShimError::io("read the specification"))?
        .ok_or_else(lacks)?;
    let exec: ExecPlan =
        files::read_json(exec_file).map_err(ShimError::io("read the exec's plan"))?.ok_or_else(lacks)?;
    let mut process = spec["process"].clone();
    process["args"] = json!(exec.arguments);
    process["terminal"] = json!(exec.console.is_some());
    // libcontainer reads the process from a file: the plan's file is overwritten, as it has been read.
    files::write_json(exec_file, &process).map_err(ShimError::io("write the process"))?;
    let (executor, error) = ProgramExecutor::new(&plan)?;
    let pid = outcome(build(&plan, exec_file, exec.console, executor), error);
    if let Err(error) = tidy(&plan.libcontainer.join(&plan.container_id)) {
        // Failing to tidy up is only logged, as the process runs.
        say!("tidy up the state of {}: {error}", plan.container_id);
    }
    pid
}

/// Starts the process in the container. On return the executor's end of the error pipe is closed.
fn build(
    plan: &LaunchPlan,
    process: &Path,
    console: Option<PathBuf>,
    executor: ProgramExecutor,
) -> Result<i32, LibcontainerError> {
    let pid = ContainerBuilder::new(plan.container_id.clone(), SyscallType::default())
        .with_root_path(&plan.libcontainer)?
        .with_executor(executor)
        .with_console_socket(console)
        .as_tenant()
        .with_process(Some(process))
        .with_detach(true)
        .as_sibling(true)
        .build()?;
    Ok(pid.as_raw())
}
