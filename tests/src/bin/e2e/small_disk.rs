//! Small disks for the volumes of the stores: a test fills them, never the disk of the machine.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::docker::{self, Docker};
use crate::images;

/// The part of a disk that is written at once.
const BLOCK_SIZE: usize = 4096;
/// More than a small disk has.
const MAX_FILLER: usize = 1 << 30;

/// A store with a disk of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Postgres,
    Redis,
}

impl Store {
    pub(crate) const ALL: [Self; 2] = [Self::Postgres, Self::Redis];

    /// Returns the name of the volume in `compose.prod.yml`.
    fn volume(self) -> &'static str {
        match self {
            Self::Postgres => "postgres_data",
            Self::Redis => "redis_data",
        }
    }

    /// Returns the options of the file system: the size is several times what the whole test needs.
    fn mount_options(self, docker: &Docker) -> Result<String> {
        match self {
            // The container starts as root and makes its user the owner.
            Self::Postgres => Ok("size=512m".to_owned()),
            Self::Redis => {
                let arguments = ["run", "--rm", images::REDIS];
                let owner = ["stat", "--format", "uid=%u,gid=%g", "/data"];
                let owner = docker.output(&[&arguments[..], &owner].concat())?;
                Ok(format!("size=32m,{owner}"))
            }
        }
    }

    /// Returns the folder on which the disk is mounted, in the folder of a deployment.
    pub(crate) fn disk(self, deployment: &Path) -> PathBuf {
        deployment.join(format!("disk-{}", self.volume()))
    }

    /// Mounts the disk and puts the volume of `compose.prod.yml` in the folder `deployment` on it. It is outside of
    /// the folder of the Docker daemon, which unmounts what is in its own when it stops.
    pub(crate) fn create_disk(self, deployment: &Path, docker: &Docker) -> Result<()> {
        let folder = self.disk(deployment);
        fs::create_dir(&folder)?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &self.mount_options(docker)?, "tmpfs"]);
        docker::output(command.arg(&folder))?;

        let file = deployment.join("compose.prod.yml");
        let compose = fs::read_to_string(&file)?;
        let entry = format!("\n  {}:\n", self.volume());
        let (before, after) = compose
            .split_once(&entry)
            .with_context(|| format!("compose.prod.yml has no volume {}", self.volume()))?;
        let device = folder.display();
        let options = format!("    driver_opts: {{type: none, o: bind, device: {device}}}\n");
        Ok(fs::write(
            &file,
            format!("{before}{entry}{options}{after}"),
        )?)
    }
}

/// A file that takes all the space of a small disk. Dropping it makes the space free again.
#[derive(Debug)]
pub(crate) struct Filler(PathBuf);

impl Filler {
    /// Fills the disk that is mounted on `folder`.
    pub(crate) fn fill(folder: &Path) -> Result<Self> {
        let filler = Self(folder.join("filler"));
        let mut file = File::create(&filler.0)?;
        let block = [0; BLOCK_SIZE];
        let mut written = 0;
        while file.write_all(&block).is_ok() {
            written += BLOCK_SIZE;
            ensure!(
                written < MAX_FILLER,
                "{} is no small disk",
                folder.display()
            );
        }
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
