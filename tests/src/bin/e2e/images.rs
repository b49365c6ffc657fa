//! Images that the deployments run: two versions of each program, the stores, and images that do not work.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::docker::Docker;
use crate::engine::Engine;
use crate::progress;

pub(crate) const REDIS: &str = "redis:7-bookworm";
const POSTGRES: &str = "postgres:15-bookworm";
const BALANCER: &str = "haproxy:2.6-bookworm";
/// Image of a host whose programs are run by systemd.
pub(crate) const SYSTEMD: &str = "systemd-host:e2e";

const PROGRAMS: [&str; 2] = ["gateway", "auth-api"];
const VERSIONS: [u8; 2] = [1, 2];

/// Stages of [`BROKEN_DOCKERFILE`].
const BROKEN: [&str; 4] = [
    "auth-api-absent",
    "auth-api-exits",
    "gateway-exits",
    "gateway-exits-in-service",
];
const BROKEN_DOCKERFILE: &str = "tests/src/bin/e2e/broken.Dockerfile";
const SYSTEMD_DOCKERFILE: &str = "tests/src/bin/e2e/systemd.Dockerfile";

/// Origin of the images of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Images {
    /// Built from the source, which takes minutes unless it is unchanged.
    Build,
    /// Those that an earlier run has built.
    Existing,
}

impl Images {
    /// Returns the origin that a word of the command line names.
    pub(crate) fn parse(word: &str) -> Result<Self> {
        match word {
            "build" => Ok(Self::Build),
            "existing" => Ok(Self::Existing),
            _ => anyhow::bail!("IMAGES is `build` or `existing`, not `{word}`"),
        }
    }

    /// Makes the images of the programs available on the Docker Engine of this machine.
    pub(crate) fn provide(self, root: &Path) -> Result<()> {
        let docker = Docker::of_machine();
        for (program, version) in versions() {
            let tag = tag(program, version);
            match self {
                Self::Build => {
                    progress::report(&format!("building {tag}"));
                    let label = format!("e2e={version}");
                    docker.build_image(root, "docker/Dockerfile", program, &tag, &label)?;
                }
                Self::Existing => {
                    let exists = docker.output(&["image", "inspect", &tag]).is_ok();
                    ensure!(
                        exists,
                        "there is no image {tag}: run without IMAGES=existing"
                    );
                }
            }
        }
        Ok(())
    }
}

/// Returns the name of the image of a program's version.
pub(crate) fn tag(program: &str, version: u8) -> String {
    format!("{program}:e2e-{version}")
}

fn versions() -> impl Iterator<Item = (&'static str, u8)> {
    let programs = PROGRAMS.into_iter();
    programs.flat_map(|program| VERSIONS.map(|version| (program, version)))
}

/// Copies the images of the programs, of the stores and of the balancer to `engine`, and builds broken ones there.
pub(crate) fn load(root: &Path, engine: &Engine) -> Result<()> {
    let programs = versions().map(|(program, version)| tag(program, version));
    let others = [POSTGRES, REDIS, BALANCER].map(str::to_owned);
    for image in programs.chain(others) {
        progress::report(&format!("copying {image} to the daemon of the test"));
        engine.load_image(&image)?;
    }
    let docker = engine.docker();
    for target in BROKEN {
        let tag = format!("{target}:e2e");
        docker
            .build_image(root, BROKEN_DOCKERFILE, target, &tag, "e2e=broken")
            .with_context(|| tag.clone())?;
    }
    Ok(())
}

/// Builds the image of a host with systemd, from Debian packages, and copies it to `engine`.
pub(crate) fn load_systemd(root: &Path, engine: &Engine) -> Result<()> {
    progress::report("building a host with systemd");
    let docker = Docker::of_machine();
    docker.build_image(root, SYSTEMD_DOCKERFILE, "host", SYSTEMD, "e2e=systemd")?;
    engine.load_image(SYSTEMD)
}
