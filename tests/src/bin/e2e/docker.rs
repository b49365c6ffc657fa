//! The docker command line.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

/// Docker Engine that commands are for.
#[derive(Debug, Clone)]
pub(crate) struct Docker {
    /// Its socket as a URL; `None` for the engine of this machine.
    host: Option<String>,
}

impl Docker {
    pub(crate) fn of_machine() -> Self {
        Self { host: None }
    }

    pub(crate) fn at(host: String) -> Self {
        Self { host: Some(host) }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        self.select(&mut command);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Makes a command, and what it starts, use this engine.
    pub(crate) fn select(&self, command: &mut Command) {
        if let Some(host) = &self.host {
            command.env("DOCKER_HOST", host);
        }
    }

    /// Runs docker and returns its standard output.
    pub(crate) fn output(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }

    /// Builds a stage of a Dockerfile, with a label that makes the image differ from one without.
    pub(crate) fn build_image(
        &self,
        root: &Path,
        dockerfile: &str,
        target: &str,
        tag: &str,
        label: &str,
    ) -> Result<()> {
        let mut command = self.command(&["build", "--network", "host", "--target", target]);
        command
            .args(["--tag", tag, "--label", label])
            .args(["--file", dockerfile, "."])
            .current_dir(root)
            .env("DOCKER_BUILDKIT", self.buildkit())
            // A build takes long: its progress is shown.
            .stdout(std::io::stderr());
        let status = command.status()?;
        ensure!(status.success(), "{command:?}: {status}");
        Ok(())
    }

    /// Returns the value of `DOCKER_BUILDKIT`: the legacy builder where buildx is not installed.
    fn buildkit(&self) -> &'static str {
        match self.output(&["buildx", "version"]) {
            Ok(_) => "1",
            Err(_) => "0",
        }
    }

    pub(crate) fn image_id(&self, image: &str) -> Result<String> {
        self.output(&["image", "inspect", "--format", "{{.Id}}", image])
    }

    pub(crate) fn image_size_mib(&self, image: &str) -> Result<f64> {
        let bytes: f64 = self
            .output(&["image", "inspect", "--format", "{{.Size}}", image])?
            .parse()?;
        Ok(bytes / 1024.0 / 1024.0)
    }

    /// Returns a property of a container, by a template of `docker inspect`.
    pub(crate) fn inspect(&self, container: &str, template: &str) -> Result<String> {
        self.output(&["inspect", "--format", template, container])
    }

    /// Returns a Markdown table row with the name and memory usage of a container.
    pub(crate) fn memory_row(&self, container: &str) -> Result<String> {
        let format = "| {{.Name}} | {{.MemUsage}} |";
        self.output(&["stats", "--no-stream", "--format", format, container])
    }
}

/// Runs a command and returns its standard output.
///
/// # Errors
/// Returns an error with the command's output if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        text(&output)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Returns what a command printed on standard output and standard error.
pub(crate) fn text(output: &Output) -> String {
    let (stdout, stderr) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(stdout).into_owned() + &String::from_utf8_lossy(stderr)
}
