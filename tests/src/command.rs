//! Commands for child processes, and the paths of the programs under test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// User and group that run PostgreSQL and PgBouncer; every Debian and Ubuntu has them.
const UNPRIVILEGED_USER: &str = "nobody";
const UNPRIVILEGED_GROUP: &str = "nogroup";

/// Environment variable that names the folder of the programs under test, where they are not
/// beside the running program: benchmarks use release builds.
const PROGRAMS_VARIABLE: &str = "TEST_PROGRAMS";

/// Returns a command whose process the kernel kills when the thread that started it dies.
#[must_use]
pub fn bound_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Returns a [`bound_command`] that runs as an unprivileged user where the tests run as root,
/// which PostgreSQL and PgBouncer refuse to run as.
#[must_use]
pub fn unprivileged_command(program: impl AsRef<OsStr>) -> Command {
    if !rustix::process::geteuid().is_root() {
        return bound_command(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", UNPRIVILEGED_USER])
        .args(["--regid", UNPRIVILEGED_GROUP, "--clear-groups"])
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program);
    command
}

/// Makes the user of [`unprivileged_command`] the owner of `folder` and everything in it.
///
/// # Errors
/// Returns an error if `chown` fails.
pub fn chown_to_unprivileged(folder: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        let status = Command::new("chown")
            .arg("-R")
            .arg(format!("{UNPRIVILEGED_USER}:{UNPRIVILEGED_GROUP}"))
            .arg(folder)
            .status()?;
        ensure!(status.success(), "chown {}: {status}", folder.display());
    }
    Ok(())
}

/// Returns the path of one of the project's programs: in the folder that `TEST_PROGRAMS` names,
/// else beside the running program.
///
/// # Panics
/// Panics if the program is not built; `scripts/test` builds it.
#[must_use]
pub fn program_path(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os(PROGRAMS_VARIABLE) {
        return PathBuf::from(folder).join(name);
    }
    let running_program =
        std::env::current_exe().expect("the path of the running program is known");
    // Cargo puts programs into the profile's folder, and tests into its subfolder `deps`.
    running_program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not built: run `cargo build --workspace --bins`"))
}
