//! HTTP-01 challenges of ACME (RFC 8555, section 8.3), from the folder that a client such as certbot writes
//! them to: the file of a token is `FOLDER/.well-known/acme-challenge/TOKEN`, as in a web root.
//!
//! Invariant: only a regular file of bounded size is read whose name is a token, directly in that folder.
//! Symbolic links below the folder are not followed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use http::{HeaderValue, Method, StatusCode};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::json;

use crate::http::message::RequestHeaders;
use crate::listener::cleartext::StaticResponse;

/// Path of all challenges (RFC 8555, section 8.3).
const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";
/// Folders between the configured one and the files of the challenges.
const SUBFOLDERS: [&str; 2] = [".well-known", "acme-challenge"];
/// Largest length of a token in bytes: authorities use 43.
const MAX_TOKEN_BYTES: usize = 128;
/// Largest size of a response in bytes: a token, a period, and 43 bytes of the key's thumbprint.
const MAX_RESPONSE_BYTES: u64 = 1024;
const PLAIN_TEXT: HeaderValue = HeaderValue::from_static("text/plain");

/// Token of a challenge: base64url without padding (RFC 8555, section 8.3), and thus no path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token(String);

impl Token {
    fn parse(text: &str) -> Option<Self> {
        let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let is_token =
            (1..=MAX_TOKEN_BYTES).contains(&text.len()) && text.bytes().all(is_base64url);
        is_token.then(|| Self(text.to_owned()))
    }
}

/// Returns the response to a request for a challenge, `None` if the request is for another path.
pub(super) async fn respond(folder: &Path, request: &RequestHeaders) -> Option<StaticResponse> {
    let token = request.target.path().strip_prefix(CHALLENGE_PATH)?;
    let is_safe = matches!(request.method, Method::GET | Method::HEAD);
    let found = match Token::parse(token).filter(|_| is_safe) {
        Some(token) => read_on_blocking_thread(folder.to_owned(), token).await,
        None => None,
    };
    Some(match found {
        Some(text) => StaticResponse::new(StatusCode::OK, PLAIN_TEXT, text),
        None => StaticResponse::json(StatusCode::NOT_FOUND, &json!({"error": "Not found"})),
    })
}

async fn read_on_blocking_thread(folder: PathBuf, token: Token) -> Option<Vec<u8>> {
    let read = tokio::task::spawn_blocking(move || read(&folder, &token));
    match read.await.ok()? {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%error, "ACME challenge cannot be read: 404");
            None
        }
    }
}

/// Reads the file of a token. Returns `None` if it is no regular file or too large.
fn read(folder: &Path, token: &Token) -> io::Result<Option<Vec<u8>>> {
    let directory = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut parent = openat(CWD, folder, directory, Mode::empty())?;
    for name in SUBFOLDERS {
        parent = openat(&parent, name, directory | OFlags::NOFOLLOW, Mode::empty())?;
    }
    // Opening a named pipe would block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: OwnedFd = openat(&parent, token.0.as_str(), flags, Mode::empty())?;
    let file = File::from(file);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.take(MAX_RESPONSE_BYTES + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= MAX_RESPONSE_BYTES).then_some(text))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn token(text: &str) -> Token {
        Token::parse(text).unwrap()
    }

    #[test]
    fn only_base64url_is_a_token() {
        for valid in [
            "a",
            "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA",
            &"a".repeat(128),
        ] {
            assert!(Token::parse(valid).is_some(), "{valid}");
        }
        for invalid in [
            "",
            ".",
            "..",
            "a/b",
            "a%2Fb",
            "a.b",
            "a=",
            "\u{e4}",
            "a\0",
            &"a".repeat(129),
        ] {
            assert!(Token::parse(invalid).is_none(), "{invalid}");
        }
    }

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let challenges = folder.path().join(".well-known/acme-challenge");
        fs::create_dir_all(&challenges).unwrap();
        let read = |name| read(folder.path(), &token(name));
        fs::write(challenges.join("token"), "token.thumbprint").unwrap();
        assert_eq!(read("token").unwrap().unwrap(), b"token.thumbprint");
        fs::write(challenges.join("large"), [b'x'; 1025]).unwrap();
        assert_eq!(read("large").unwrap(), None);
        fs::create_dir(challenges.join("folder")).unwrap();
        assert_eq!(read("folder").unwrap(), None);
        rustix::fs::mknodat(
            CWD,
            challenges.join("pipe"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert_eq!(read("pipe").unwrap(), None);
        fs::write(folder.path().join("secret"), "secret").unwrap();
        symlink("../../secret", challenges.join("link")).unwrap();
        read("link").unwrap_err();
        assert_eq!(read("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn links_below_the_folder_are_not_followed() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(folder.path().join(".well-known")).unwrap();
        fs::write(other.path().join("token"), "secret").unwrap();
        symlink(
            other.path(),
            folder.path().join(".well-known/acme-challenge"),
        )
        .unwrap();
        read(folder.path(), &token("token")).unwrap_err();
    }
}
