//! Upgrade: the listening sockets of the running gateway are handed over to this process.
//!
//! The protocol is Pingora's: the running gateway connects to a Unix socket and sends the addresses,
//! separated by spaces, with the sockets as ancillary data (`SCM_RIGHTS`, unix(7)). Pingora would accept
//! it from any user and use whatever it is sent. So this module receives it: at a socket that the user of
//! this process alone may connect to, from a process of that user or of root, and only listening TCP
//! sockets that are bound to the configured addresses they are named by. They are passed on to
//! Pingora through a socket in a folder that no other user may enter.

use std::fs::{self, DirBuilder};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, getsockname, recvmsg, sendmsg, sockopt,
};

use crate::config::ListenAddresses;
use crate::server::private_socket::{self, PrivateSocket};

/// Longest time to wait for the running gateway.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(6);
/// Longest time for which a connected process may send nothing.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Largest number of sockets, and length of the list of their addresses, that Pingora sends.
const MAX_SOCKETS: usize = 32;
const MAX_MESSAGE_BYTES: usize = 2048;

/// Listening sockets of the running gateway, each with its address, and those that were bound beside them.
#[derive(Debug)]
pub(super) struct HandedOverSockets(Vec<(SocketAddr, OwnedFd)>);

impl HandedOverSockets {
    /// Waits at `path` for the running gateway to hand its sockets over.
    ///
    /// # Errors
    /// Returns an error if it does not within [`HAND_OVER_TIMEOUT`], or if what it hands over is not what
    /// `listen` asks for.
    pub(super) fn receive(path: &Path, listen: ListenAddresses) -> Result<Self> {
        let socket = PrivateSocket::bind(path.to_owned())
            .with_context(|| format!("listening at {}", path.display()))?;
        tracing::info!(
            socket = %path.display(),
            "waiting for the sockets of the running gateway: send it SIGQUIT within 5 seconds"
        );
        let received = accept(&socket).and_then(|stream| receive_message(&stream));
        drop(socket);
        Self::check(received?, listen)
    }

    /// Checks that the sockets are those that the configuration names. One that it does not name any more
    /// is closed: nothing would accept its connections.
    fn check(received: Vec<(String, OwnedFd)>, listen: ListenAddresses) -> Result<Self> {
        let mut sockets = Vec::new();
        for (name, socket) in received {
            let address: SocketAddr = name.parse().with_context(|| {
                format!("handed over socket `{name}` is not named by an address")
            })?;
            check_socket(&socket, address)
                .with_context(|| format!("handed over socket for {address}"))?;
            if listen.all().any(|configured| configured == address) {
                sockets.push((address, socket));
            } else {
                tracing::warn!(%address, "handed over socket closed: the address is not configured");
            }
        }
        Ok(Self(sockets))
    }

    /// Adds listeners that this process has bound, so that Pingora listens on them too.
    ///
    /// # Errors
    /// Returns an error if one cannot be made nonblocking, as Pingora expects sockets to be.
    pub(super) fn add(&mut self, bound: Vec<(SocketAddr, TcpListener)>) -> io::Result<()> {
        for (address, listener) in bound {
            listener.set_nonblocking(true)?;
            self.0.push((address, listener.into()));
        }
        Ok(())
    }

    /// Returns whether there is a socket for an address.
    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|(known, _)| *known == address)
    }

    /// Runs `receive_from`, which receives the sockets at the path that it is given.
    ///
    /// # Errors
    /// Returns an error if there can be no private folder beside `upgrade_socket`.
    pub(super) fn pass_on<T>(
        self,
        upgrade_socket: &Path,
        receive_from: impl FnOnce(&Path) -> T,
    ) -> Result<T> {
        let folder = PrivateFolder::create(upgrade_socket)?;
        let path = folder.socket();
        let sender = thread::spawn({
            let path = path.clone();
            move || self.send(&path)
        });
        let result = receive_from(&path);
        match sender.join() {
            Ok(sent) => sent.context("passing the handed over sockets on")?,
            Err(_) => bail!("passing the handed over sockets on failed"),
        }
        Ok(result)
    }

    /// Sends the sockets to the listener at `path`, as soon as there is one.
    fn send(&self, path: &Path) -> io::Result<()> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > HAND_OVER_TIMEOUT => return Err(error),
                Err(_) => thread::sleep(POLL_INTERVAL),
            }
        };
        let names: Vec<_> = self
            .0
            .iter()
            .map(|(address, _)| address.to_string())
            .collect();
        let sockets: Vec<_> = self.0.iter().map(|(_, socket)| socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
        let names = names.join(" ");
        let message = [IoSlice::new(names.as_bytes())];
        sendmsg(&stream, &message, &mut ancillary, SendFlags::empty())?;
        Ok(())
    }
}

/// Waits for the connection of the running gateway.
fn accept(socket: &PrivateSocket) -> Result<UnixStream> {
    let stream = private_socket::accept(socket, HAND_OVER_TIMEOUT)
        .context("accepting the running gateway")?;
    let stream = stream.with_context(|| {
        format!("the running gateway has not handed its sockets over within {HAND_OVER_TIMEOUT:?}")
    })?;
    stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
    Ok(stream)
}

/// Receives the sockets, each with its name.
fn receive_message(stream: &UnixStream) -> Result<Vec<(String, OwnedFd)>> {
    let mut names = [0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut names)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .context("receiving the sockets of the running gateway")?;
    let mut sockets = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            sockets.extend(received);
        }
    }
    let names = str::from_utf8(&names[..message.bytes]).context("addresses are not UTF-8")?;
    let names: Vec<_> = names.split_ascii_whitespace().map(str::to_owned).collect();
    ensure!(
        names.len() == sockets.len(),
        "{} sockets with {} addresses were handed over",
        sockets.len(),
        names.len()
    );
    Ok(names.into_iter().zip(sockets).collect())
}

/// Checks that a socket is a listening TCP socket that is bound to `address`.
fn check_socket(socket: &OwnedFd, address: SocketAddr) -> Result<()> {
    let bound = getsockname(socket).context("has no address")?;
    let bound = SocketAddr::try_from(bound).context("is not a TCP socket")?;
    ensure!(bound == address, "is bound to {bound}");
    ensure!(
        sockopt::socket_type(socket)? == SocketType::STREAM && sockopt::socket_acceptconn(socket)?,
        "is not a listening TCP socket"
    );
    Ok(())
}

/// Folder that only the user of this process may enter. It is removed when dropped.
struct PrivateFolder(PathBuf);

impl PrivateFolder {
    /// Creates the folder beside `upgrade_socket`, where this process may write.
    fn create(upgrade_socket: &Path) -> Result<Self> {
        let folder = Self(private_socket::beside(upgrade_socket, ".d"));
        // A process that was killed may have left it.
        folder.remove();
        DirBuilder::new()
            .mode(0o700)
            .create(&folder.0)
            .with_context(|| format!("creating {}", folder.0.display()))?;
        Ok(folder)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("s")
    }

    fn remove(&self) {
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_dir(&self.0);
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn listen(https: SocketAddr) -> ListenAddresses {
        ListenAddresses {
            https,
            http: None,
            admin: "127.0.0.1:1".parse().unwrap(),
            public_port: 443,
        }
    }

    #[test]
    fn only_listening_sockets_of_their_address_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let check = |name: &str, socket: OwnedFd| {
            HandedOverSockets::check(vec![(name.to_owned(), socket)], listen(address))
        };
        let duplicate = || OwnedFd::from(listener.try_clone().unwrap());
        assert!(
            check(&address.to_string(), duplicate())
                .unwrap()
                .contains(address)
        );
        let error = check("127.0.0.1:1", duplicate()).unwrap_err();
        assert!(format!("{error:#}").contains("is bound to"), "{error:#}");
        check("https", duplicate()).unwrap_err();

        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        let name = datagram.local_addr().unwrap().to_string();
        let error = check(&name, datagram.into()).unwrap_err();
        assert!(
            format!("{error:#}").contains("is not a listening TCP socket"),
            "{error:#}"
        );

        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let other_address = other.local_addr().unwrap();
        let sockets = check(&other_address.to_string(), other.into()).unwrap();
        assert!(!sockets.contains(other_address), "it is not configured");
    }
}
