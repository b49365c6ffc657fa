//! A private nginx.

use std::fs;
use std::net::SocketAddr;

use anyhow::Result;
use tempfile::TempDir;

use crate::command::{chown_to_unprivileged, unprivileged_command};
use crate::process::Process;

/// A running nginx, in a folder of its own.
#[derive(Debug)]
pub struct Nginx {
    // Fields drop in this order: the process exits before its folder is removed.
    _process: Process,
    _folder: TempDir,
}

impl Nginx {
    /// Starts nginx with the directives `http`, which stand in the block of that name, and waits until it listens
    /// at `address`.
    ///
    /// # Errors
    /// Returns an error with its log if it does not start.
    pub fn start(http: &str, address: SocketAddr) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("nginx-").tempdir()?;
        let path = folder.path().display();
        let paths: Vec<_> = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {path}/{name};"))
            .collect();
        let paths = paths.join("\n");
        let config = format!(
            "daemon off;\nmaster_process off;\npid {path}/pid;\nerror_log stderr;\nevents {{}}\n\
             http {{\naccess_log off;\n{paths}\n{http}\n}}\n"
        );
        let config_file = folder.path().join("nginx.conf");
        fs::write(&config_file, config)?;
        chown_to_unprivileged(folder.path())?;
        let mut command = unprivileged_command("/usr/sbin/nginx");
        command
            .args(["-e", "stderr", "-c"])
            .arg(&config_file)
            .arg("-p")
            .arg(folder.path());
        let mut process = Process::start("nginx", &mut command, &folder.path().join("log"))?;
        process.wait_until_listening(address)?;
        Ok(Self {
            _process: process,
            _folder: folder,
        })
    }
}
