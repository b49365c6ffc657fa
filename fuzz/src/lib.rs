//! Fuzz targets: everything that reads bytes from outside, against other implementations or plain models.
//!
//! A target is a function of arbitrary bytes that panics if a promise does not hold. `tests/corpora.rs` runs each
//! with the inputs of its folder under `corpus/`; `make fuzz` searches for others with libFuzzer. An input that
//! revealed a fault is kept in the corpus, beside the unit test of its fix.

mod bcrypt_hash;
mod config;
mod forwarded;
mod h1_chunked;
mod h1_request;
mod h1_response;
mod h2_connection;
mod h2_frames;
mod hyper_peer;
mod input;
mod json_body;
mod jwt;
mod path;
mod pattern;
mod quota;
mod refresh_token;
mod stored_rows;

/// Fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of its corpus and its dictionary.
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "h1_request",
        run: h1_request::run,
    },
    Target {
        name: "h1_chunked",
        run: h1_chunked::run,
    },
    Target {
        name: "h1_response",
        run: h1_response::run,
    },
    Target {
        name: "path",
        run: path::run,
    },
    Target {
        name: "h2_connection",
        run: h2_connection::run,
    },
    Target {
        name: "forwarded",
        run: forwarded::run,
    },
    Target {
        name: "config",
        run: config::run,
    },
    Target {
        name: "pattern",
        run: pattern::run,
    },
    Target {
        name: "quota",
        run: quota::run,
    },
    Target {
        name: "jwt",
        run: jwt::run,
    },
    Target {
        name: "json_body",
        run: json_body::run,
    },
    Target {
        name: "refresh_token",
        run: refresh_token::run,
    },
    Target {
        name: "bcrypt_hash",
        run: bcrypt_hash::run,
    },
    Target {
        name: "stored_rows",
        run: stored_rows::run,
    },
];

/// Returns the target with this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
