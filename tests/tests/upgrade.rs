//! Upgrades of the gateway without downtime: a new process takes over the sockets of a running one.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::Signal;
use tests::client::{Client, Protocol, Response};
use tests::process::Process;
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

/// Quotas of 100 requests on one path for each algorithm. A request over that of `/leaky_bucket` is not delayed but
/// reported.
const QUOTAS: &str = "premier:
  paths:
    - {pattern: /fixed_window, features: {rate_limit: {quota: 100, duration: 864000}}}
    - {pattern: /sliding_window, features: {rate_limit: {quota: 100, duration: 864000, algorithm: sliding_window}}}
    - {pattern: /token_bucket, features: {rate_limit: {quota: 100, duration: 864000, algorithm: token_bucket}}}
    - {pattern: /leaky_bucket, features: {rate_limit: {quota: 100, duration: 864000, algorithm: leaky_bucket, \
       mode: observe}}}
    - {pattern: /changed, features: {rate_limit: {quota: 100, duration: 864000}}}
";
const PATHS: [&str; 4] = [
    "/fixed_window",
    "/sliding_window",
    "/token_bucket",
    "/leaky_bucket",
];

/// Returns a client that all processes of a gateway know by one address.
fn client_of(gateway: &Gateway, source: Ipv4Addr) -> Result<Client> {
    Client::new(
        gateway.address,
        &gateway.certificate,
        source,
        Protocol::Http2,
    )
}

/// Returns the requests that are left, as `RateLimit` has them.
fn remaining(response: &Response) -> Result<u32> {
    let header = response.header("ratelimit");
    let parameter = header.split(';').find_map(|part| part.strip_prefix("r="));
    Ok(parameter.context(header.to_owned())?.parse()?)
}

/// Starts a second process that waits for the sockets, and tells the first one to hand over.
async fn begin_upgrade(gateway: &mut Gateway) -> Result<Process> {
    let second = gateway.start_second(&["run", "--upgrade"])?;
    second.wait_for_log("waiting for the sockets").await?;
    gateway.process.signal(Signal::QUIT)?;
    Ok(second)
}

#[tokio::test]
async fn an_upgrade_resets_no_quota() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::start(upstream.address, QUOTAS).await?;
    let source = address::random_loopback();
    let client = client_of(&gateway, source)?;
    for path in PATHS.into_iter().chain(["/changed"]) {
        for _ in 0..29 {
            client.get(path).await?;
        }
        assert_eq!(remaining(&client.get(path).await?)?, 70, "{path}");
    }
    drop(client);
    let changed = QUOTAS.replace(
        "/changed, features: {rate_limit: {quota: 100",
        "/changed, features: {rate_limit: {quota: 101",
    );
    assert_ne!(changed, QUOTAS);
    std::fs::write(gateway.config_file(), changed)?;
    let mut second = begin_upgrade(&mut gateway).await?;
    assert!(gateway.process.wait_for_exit()?.success());
    second.wait_for_log("quota counters taken over").await?;
    let client = client_of(&gateway, source)?;
    for path in PATHS {
        assert_eq!(remaining(&client.get(path).await?)?, 69, "{path}");
    }
    assert_eq!(remaining(&client.get("/changed").await?)?, 100);
    let mut passed = 0;
    for _ in 0..100 {
        passed += usize::from(client.get("/token_bucket").await?.status == 200);
    }
    assert_eq!(passed, 69);

    // The same again: the counters outlive any number of upgrades.
    let mut third = gateway.start_second(&["run", "--upgrade"])?;
    third.wait_for_log("waiting for the sockets").await?;
    second.signal(Signal::QUIT)?;
    assert!(second.wait_for_exit()?.success());
    let client = client_of(&gateway, source)?;
    assert_eq!(client.get("/token_bucket").await?.status, 429);
    assert_eq!(remaining(&client.get("/fixed_window").await?)?, 68);
    assert!(third.terminate()?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_processes_of_an_upgrade_together_keep_to_the_quota() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::start(upstream.address, QUOTAS).await?;
    let source = address::random_loopback();
    let connected = client_of(&gateway, source)?;
    assert_eq!(connected.get("/fixed_window").await?.status, 200);
    let mut second = begin_upgrade(&mut gateway).await?;
    second.wait_for_log("quota counters taken over").await?;
    // The old process serves its connections for some seconds more, the new one accepts others.
    let mut clients = vec![connected; 8];
    for _ in 0..8 {
        clients.push(client_of(&gateway, source)?);
    }
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..300 {
        let client = clients[number % clients.len()].clone();
        requests.spawn(async move { client.get("/fixed_window").await });
    }
    let mut passed = 1;
    while let Some(response) = requests.join_next().await {
        passed += usize::from(response??.status == 200);
    }
    assert_eq!(passed, 100);
    assert!(gateway.process.wait_for_exit()?.success());
    let client = client_of(&gateway, source)?;
    assert_eq!(client.get("/fixed_window").await?.status, 429);
    let log = gateway.process.log();
    assert!(!log.contains("counting alone"), "{log}");
    assert!(second.terminate()?.success());
    Ok(())
}

#[tokio::test]
async fn counters_that_are_malformed_or_of_another_version_begin_anew() -> Result<()> {
    for (bytes, reason) in [
        (&b"GWQUOTAS\xff\xff"[..], "version 65535 of the format"),
        (&b"something else"[..], "are no counters"),
        (&b"GWQUOTAS\x01\x00\x09\x00\x00\x00\x00"[..], "malformed"),
        (&b"GWQUOTAS\x01\x00\x02\xff\xff\xff\xff"[..], "too long"),
        (&b"GWQUOTAS"[..], "the connection failed"),
    ] {
        let upstream = MockUpstream::always_ok().await?;
        let mut gateway = Gateway::start(upstream.address, QUOTAS).await?;
        let source = address::random_loopback();
        let client = client_of(&gateway, source)?;
        assert_eq!(remaining(&client.get("/fixed_window").await?)?, 99);
        drop(client);
        let mut second = gateway.start_second(&["run", "--upgrade"])?;
        second.wait_for_log("waiting for the sockets").await?;
        let path = gateway.config_file().with_file_name("upgrade.sock.quotas");
        let mode = std::fs::metadata(&path)?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // The first one to connect is the one that is heard.
        let mut stream = UnixStream::connect(&path)?;
        stream.write_all(bytes)?;
        drop(stream);
        gateway.process.signal(Signal::QUIT)?;
        second.wait_for_log("quotas begin anew").await?;
        assert!(second.log().contains(reason), "{}", second.log());
        gateway.process.signal(Signal::KILL)?;
        gateway.process.wait_for_exit()?;
        gateway
            .wait_for_response("/", |response| response.status == 200)
            .await?;
        assert!(!path.exists());
        let client = client_of(&gateway, source)?;
        assert_eq!(remaining(&client.get("/fixed_window").await?)?, 99);
        assert!(second.terminate()?.success());
    }
    Ok(())
}

#[tokio::test]
async fn the_old_process_goes_on_serving_and_counting_if_the_new_one_is_killed() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::start(upstream.address, QUOTAS).await?;
    let source = address::random_loopback();
    let client = client_of(&gateway, source)?;
    assert_eq!(remaining(&client.get("/fixed_window").await?)?, 99);
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    second.wait_for_log("waiting for the sockets").await?;
    second.signal(Signal::STOP)?;
    gateway.process.signal(Signal::QUIT)?;
    gateway
        .process
        .wait_for_log("listening sockets sent to the new gateway")
        .await?;
    second.signal(Signal::KILL)?;
    second.wait_for_exit()?;
    gateway
        .process
        .wait_for_log("the new gateway does not accept connections: this one goes on serving")
        .await?;
    assert!(remaining(&client.get("/fixed_window").await?)? >= 97);
    let new_client = client_of(&gateway, source)?;
    assert_eq!(new_client.get("/fixed_window").await?.status, 200);

    // The next upgrade works, and no count is lost.
    drop((client, new_client));
    let mut third = begin_upgrade(&mut gateway).await?;
    assert!(gateway.process.wait_for_exit()?.success());
    let client = client_of(&gateway, source)?;
    assert!(remaining(&client.get("/fixed_window").await?)? <= 97);
    assert!(third.terminate()?.success());
    Ok(())
}

#[tokio::test]
async fn a_new_process_that_hangs_too_long_ends_and_the_old_one_goes_on_serving() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    second.wait_for_log("waiting for the sockets").await?;
    second.signal(Signal::STOP)?;
    gateway.process.signal(Signal::QUIT)?;
    gateway
        .process
        .wait_for_log("the new gateway does not accept connections: this one goes on serving")
        .await?;
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    second.signal(Signal::CONT)?;
    assert!(!second.wait_for_exit()?.success());
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    assert!(gateway.process.terminate()?.success());
    Ok(())
}

#[tokio::test]
async fn the_new_process_serves_if_the_old_one_is_killed_during_the_hand_over() -> Result<()> {
    let upstream = MockUpstream::always_ok().await?;
    let mut gateway = Gateway::builder(&[upstream.address]).start().await?;
    let mut second = gateway.start_second(&["run", "--upgrade"])?;
    second.wait_for_log("waiting for the sockets").await?;
    second.signal(Signal::STOP)?;
    gateway.process.signal(Signal::QUIT)?;
    gateway
        .process
        .wait_for_log("listening sockets sent to the new gateway")
        .await?;
    gateway.process.signal(Signal::KILL)?;
    gateway.process.wait_for_exit()?;
    second.signal(Signal::CONT)?;
    gateway
        .wait_for_response("/", |response| response.status == 200)
        .await?;
    assert!(second.terminate()?.success());
    Ok(())
}
