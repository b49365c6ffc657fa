//! A wall clock that differs from this machine's, by libfaketime.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::settings::{Settings, settings};

/// The allocator of the C library in place of jemalloc, which Redis is linked with and which asks for the time before
/// libfaketime can tell it.
const C_LIBRARY: &str = "libc.so.6";

/// Wall clock of processes that are started with [`Clock::environment`]. Monotonic clocks are not changed, as by a
/// step of a real clock.
#[derive(Debug)]
pub struct Clock {
    folder: TempDir,
}

impl Clock {
    /// Returns a clock that differs by `offset_seconds` from this machine's.
    ///
    /// # Errors
    /// Returns an error if its file cannot be written.
    pub fn new(offset_seconds: i64) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("clock-").tempdir()?;
        let clock = Self { folder };
        clock.set(offset_seconds)?;
        Ok(clock)
    }

    /// Steps the clock of running processes too.
    ///
    /// # Errors
    /// Returns an error if its file cannot be written.
    pub fn set(&self, offset_seconds: i64) -> Result<()> {
        // Replaced by a rename: a process may read it at any time.
        let file = self.file();
        let new_file = file.with_extension("new");
        fs::write(&new_file, format!("{offset_seconds:+}s\n"))?;
        Ok(fs::rename(new_file, file)?)
    }

    /// Returns the environment variables of processes with this clock.
    ///
    /// # Errors
    /// Returns an error if libfaketime is not installed.
    pub fn environment(&self) -> Result<Settings> {
        let libraries = format!("{}:{C_LIBRARY}", library()?.display());
        Ok(settings([
            ("LD_PRELOAD", libraries),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }
}

/// Returns the path of libfaketime for programs with threads, which Debian puts into the folder of its architecture.
fn library() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib")?;
    let mut libraries = folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    libraries
        .find(|library| library.is_file())
        .context("libfaketime is not installed: run the tests by scripts/test")
}
