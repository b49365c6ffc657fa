//! A new gateway takes over from a running one, and no client notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use rustix::process::Signal;
use tests::client::Protocol;
use tests::raw::{Raw, status};
use tests::{BackEnd, Gateway, wait};

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_a_new_process_takes_over() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    let (done, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (done, answered) = (Arc::clone(&done), Arc::clone(&answered));
        let protocol = if number % 2 == 0 {
            Protocol::Http1
        } else {
            Protocol::Http2
        };
        let client = gateway.client_speaking(protocol)?;
        let fresh: Vec<_> = (0..200)
            .map(|_| gateway.client_speaking(protocol))
            .collect::<Result<_>>()?;
        clients.spawn(async move {
            let mut fresh = fresh.into_iter().cycle();
            while !done.load(Ordering::Relaxed) {
                // One connection that is kept, and new ones all the time.
                let newcomer = fresh.next().expect("it is endless");
                for client in [&client, &newcomer] {
                    let answer = client.get("/").await?;
                    anyhow::ensure!(answer.status == 200, "{}", answer.status);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
    }
    let before = || answered.load(Ordering::Relaxed);
    wait::until("the load", async || before() > 50).await?;
    let mut second = gateway.again(&["run", "--upgrade"])?;
    wait::until("the new one to start", async || {
        second.log().contains("waiting for the sockets")
    })
    .await?;
    gateway.process.signal(Signal::QUIT)?;
    assert!(
        gateway.process.ended()?.success(),
        "{}",
        gateway.process.log()
    );
    let at_the_end = before();
    wait::until("the new one to answer", async || before() > at_the_end + 50).await?;
    done.store(true, Ordering::Relaxed);
    while let Some(outcome) = clients.join_next().await {
        outcome??;
    }
    assert!(second.stop()?.success());
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_open_at_the_end_gets_one_more_answer() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut kept = Raw::connect(&gateway).await?;
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    kept.send(request).await?;
    kept.until("\r\n\r\n").await?;
    gateway.process.signal(Signal::TERM)?;
    wait::until("the end to begin", async || {
        gateway
            .process
            .log()
            .contains("requests in flight are finished first")
    })
    .await?;
    kept.send(request).await?;
    let answer = kept.rest().await?;
    let last = answer.rfind("HTTP/1.1 ").map_or("", |at| &answer[at..]);
    assert_eq!(status(last), 200, "{answer}");
    assert!(last.to_lowercase().contains("connection: close"), "{last}");
    assert!(gateway.process.ended()?.success());
    Ok(())
}

#[tokio::test]
async fn sigquit_without_a_successor_ends_nobody() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    gateway.process.signal(Signal::QUIT)?;
    wait::until("the word about it", async || {
        let log = gateway.process.log();
        log.contains("SIGQUIT without a gateway that takes over")
    })
    .await?;
    assert_eq!(gateway.client()?.get("/").await?.status, 200);
    assert_eq!(gateway.operator()?.get("/health").await?.status, 200);
    assert!(gateway.process.stop()?.success());
    Ok(())
}

#[tokio::test]
async fn sighup_ends_no_gateway_that_waits_to_take_over() -> Result<()> {
    let back_end = BackEnd::good().await?;
    let mut gateway = Gateway::before(&[back_end.address]).start().await?;
    let mut second = gateway.again(&["run", "--upgrade"])?;
    wait::until("the new one to start", async || {
        second.log().contains("waiting for the sockets")
    })
    .await?;
    second.signal(Signal::HUP)?;
    gateway.process.signal(Signal::QUIT)?;
    assert!(gateway.process.ended()?.success());
    wait::until("the new one to answer", async || {
        let client = gateway.client();
        let answer = async || client?.get("/").await;
        answer().await.is_ok_and(|answer| answer.status == 200)
    })
    .await?;
    assert!(second.stop()?.success());
    Ok(())
}
