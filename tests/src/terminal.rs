//! A pseudoterminal as the standard input of a program.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::wait;

/// A pseudoterminal. The test has its master side: it types, and reads what the terminal shows.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    /// Side of the program; open in the test too, so that the terminal outlives the program.
    slave: File,
}

impl Terminal {
    /// Opens a terminal that shows what is typed.
    ///
    /// # Errors
    /// Returns an error if the system has no pseudoterminals.
    pub fn open() -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = open(path.as_c_str(), flags, Mode::empty()).context("opening a terminal")?;
        let mut modes = tcgetattr(&slave)?;
        modes.local_modes.insert(LocalModes::ECHO);
        tcsetattr(&slave, OptionalActions::Now, &modes)?;
        Ok(Self {
            master: master.into(),
            slave: slave.into(),
        })
    }

    /// Returns the program's side, for its standard input or output.
    ///
    /// # Errors
    /// Returns an error if the process has too many open files.
    pub fn stdio(&self) -> Result<Stdio> {
        Ok(self.slave.try_clone()?.into())
    }

    /// Returns whether the terminal shows what is typed.
    ///
    /// # Errors
    /// Returns an error if the terminal is closed.
    pub fn echoes(&self) -> Result<bool> {
        let modes = tcgetattr(&self.slave)?;
        Ok(modes.local_modes.contains(LocalModes::ECHO))
    }

    /// Waits until the terminal does not show what is typed.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_until_hidden(&self) -> Result<()> {
        wait::until("the terminal to hide its input", async || {
            self.echoes().is_ok_and(|echoes| !echoes)
        })
        .await
    }

    /// Types text.
    ///
    /// # Errors
    /// Returns an error if the terminal is closed.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Returns what the terminal shows, once nothing more will be: at least a line break is awaited.
    ///
    /// # Errors
    /// Returns an error if the terminal is closed.
    pub fn read_shown(&mut self) -> Result<String> {
        let mut shown = [0; 4096];
        let count = self.master.read(&mut shown)?;
        Ok(String::from_utf8_lossy(&shown[..count]).into_owned())
    }
}
