//! Upgrades of the gateway without downtime: a new process takes over the sockets of a running one.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::Signal;
use tests::client::{Client, Protocol};
use tests::{Gateway, MockUpstream, address, wait};

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_a_new_process_takes_over() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let (done, response_count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (done, response_count) = (Arc::clone(&done), Arc::clone(&response_count));
        let protocol = if number % 2 == 0 {
            Protocol::Http1
        } else {
            Protocol::Http2
        };
        let client = gateway.client_with_protocol(protocol)?;
        let new_clients: Vec<_> = (0..200)
            .map(|_| gateway.client_with_protocol(protocol))
            .collect::<Result<_>>()?;
        clients.spawn(async move {
            let mut new_clients = new_clients.into_iter().cycle();
            while !done.load(Ordering::Relaxed) {
                // One connection that is kept open, and new ones all the time.
                let new_client = new_clients.next().expect("the cycle is endless");
                for client in [&client, &new_client] {
                    let response = client.get("/").await?;
                    anyhow::ensure!(response.status == 200, "{}", response.status);
                    response_count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
    }
    let responses = || response_count.load(Ordering::Relaxed);
    wait::until("the load", async || responses() > 50).await?;
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    second.wait_for_log("waiting for the sockets").await?;
    gateway.process.signal(Signal::QUIT)?;
    assert!(
        gateway.process.wait_for_exit()?.success(),
        "{}",
        gateway.process.log()
    );
    let responses_before = responses();
    wait::until("responses of the new gateway", async || {
        responses() > responses_before + 50
    })
    .await?;
    done.store(true, Ordering::Relaxed);
    while let Some(outcome) = clients.join_next().await {
        outcome??;
    }
    assert!(second.terminate()?.success());
    Ok(())
}

#[tokio::test]
async fn an_upgrade_without_a_running_gateway_serves() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    assert!(gateway.process.terminate()?.success());
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    gateway
        .wait_for_response("/", |response| response.status == 200)
        .await?;
    assert!(second.terminate()?.success());
    Ok(())
}

#[tokio::test]
async fn sigquit_without_a_successor_is_ignored() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    gateway.process.signal(Signal::QUIT)?;
    gateway
        .process
        .wait_for_log("SIGQUIT ignored: no new gateway waits for the sockets")
        .await?;
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    assert_eq!(gateway.admin_client()?.get("/health").await?.status, 200);
    assert!(gateway.process.terminate()?.success());
    Ok(())
}

#[tokio::test]
async fn sighup_does_not_stop_a_gateway_that_waits_to_take_over() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    second.wait_for_log("waiting for the sockets").await?;
    second.signal(Signal::HUP)?;
    gateway.process.signal(Signal::QUIT)?;
    assert!(gateway.process.wait_for_exit()?.success());
    gateway
        .wait_for_response("/", |response| response.status == 200)
        .await?;
    assert!(second.terminate()?.success());
    Ok(())
}

#[tokio::test]
async fn a_new_address_that_another_program_uses_is_found_before_the_take_over() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let other = TcpListener::bind(address::unused_loopback())?;
    set_admin_address(&gateway, other.local_addr()?)?;
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    assert!(!second.wait_for_exit()?.success());
    second
        .wait_for_log("the running gateway cannot hand all of these over")
        .await?;
    assert!(!second.log().contains("waiting for the sockets"));
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    assert_eq!(gateway.admin_client()?.get("/health").await?.status, 200);
    assert!(gateway.process.terminate()?.success());
    Ok(())
}

#[tokio::test]
async fn a_new_address_is_bound_before_the_take_over() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let address = address::unused_loopback();
    set_admin_address(&gateway, address)?;
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    second.wait_for_log("waiting for the sockets").await?;
    TcpListener::bind(address).unwrap_err();
    gateway.process.signal(Signal::QUIT)?;
    assert!(gateway.process.wait_for_exit()?.success());
    gateway
        .wait_for_response("/", |response| response.status == 200)
        .await?;
    let admin = Client::cleartext(address)?;
    assert_eq!(admin.get("/health").await?.status, 200);
    assert!(second.terminate()?.success());
    Ok(())
}

/// Changes the address of the admin listener in the configuration file.
fn set_admin_address(gateway: &Gateway, address: SocketAddr) -> Result<()> {
    let config = format!("premier: {{listen: {{admin: \"{address}\"}}}}");
    Ok(std::fs::write(gateway.config_file(), config)?)
}

#[tokio::test]
async fn sockets_that_were_not_asked_for_are_not_used() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    second.wait_for_log("waiting for the sockets").await?;
    let path = gateway.config_file().with_file_name("upgrade.sock");
    let mode = std::fs::metadata(&path)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let other = TcpListener::bind("127.0.0.1:0")?;
    let name = gateway.address.to_string();
    let sockets = [other.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
    let stream = UnixStream::connect(&path)?;
    let message = [IoSlice::new(name.as_bytes())];
    sendmsg(&stream, &message, &mut ancillary, SendFlags::empty())?;
    assert!(!second.wait_for_exit()?.success());
    second.wait_for_log("is bound to").await?;
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    Ok(())
}
