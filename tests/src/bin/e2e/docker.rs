//! The docker command line.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Returns an error if no Docker Engine responds.
pub(crate) fn ensure_running() -> Result<()> {
    let status = Command::new("docker")
        .arg("info")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    ensure!(
        status.is_ok_and(|status| status.success()),
        "make e2e: no Docker Engine responds to `docker info`: install or start one"
    );
    Ok(())
}

/// Builds the image of one of the project's programs.
pub(crate) fn build_image(root: &Path, program: &str, tag: &str, label: &str) -> Result<()> {
    let mut command = Command::new("docker");
    command
        .args(["build", "--network", "host", "--target", program])
        .args(["--tag", tag, "--label", label])
        .args(["--file", "docker/Dockerfile", "."])
        .current_dir(root)
        .env("DOCKER_BUILDKIT", buildkit());
    run(&mut command)
}

/// Returns the value of `DOCKER_BUILDKIT`: the legacy builder where buildx is not installed.
fn buildkit() -> &'static str {
    match output(&["buildx", "version"]) {
        Ok(_) => "1",
        Err(_) => "0",
    }
}

pub(crate) fn image_size_mib(image: &str) -> Result<f64> {
    let bytes: f64 = output(&["image", "inspect", "--format", "{{.Size}}", image])?.parse()?;
    Ok(bytes / 1024.0 / 1024.0)
}

/// Returns the host's process id of a container.
pub(crate) fn container_pid(container: &str) -> Result<i32> {
    Ok(output(&["inspect", "--format", "{{.State.Pid}}", container])?.parse()?)
}

/// Returns a Markdown table row with the name and memory usage of a container.
pub(crate) fn memory_row(container: &str) -> Result<String> {
    let format = "| {{.Name}} | {{.MemUsage}} |";
    output(&["stats", "--no-stream", "--format", format, container])
}

/// Runs a command. Returns an error with its output if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Runs docker and returns its standard output.
fn output(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker").args(arguments).output()?;
    ensure!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
