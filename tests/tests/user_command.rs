//! The command `auth-api user`, with which an operator manages accounts.

use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use reqwest::Method;
use reqwest::header::{HeaderValue, USER_AGENT};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::client::{NEW_PASSWORD, PASSWORD, credentials, send};
use tests::replicas::Replicas;
use tests::terminal::Terminal;
use tests::{Store, on_both_stores, wait};

on_both_stores!(
    an_operator_manages_accounts,
    operator_actions_are_audited,
    what_clients_send_is_shown_without_control_characters,
);

/// Runs `auth-api user` and returns its standard output, or its standard error if it failed.
fn run_user_command(
    replicas: &Replicas,
    arguments: &[&str],
    input: &str,
) -> Result<String, String> {
    let output = replicas
        .user_command(arguments, input)
        .expect("the command runs");
    let text = |bytes| String::from_utf8(bytes).expect("the output is UTF-8");
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    }
}

async fn an_operator_manages_accounts(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 2).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    assert_eq!(
        client.get_with_token(&token, "/api/profile").await?.status,
        200
    );
    let run = |arguments: &[&str], input: &str| run_user_command(&replicas, arguments, input);

    assert!(
        run(&["create", "bob"], PASSWORD).is_ok_and(|output| output.contains("created account"))
    );
    assert!(run(&["create", "bob"], PASSWORD).is_err_and(|error| error.contains("taken")));
    assert!(run(&["create", "carol"], "short").is_err_and(|error| error.contains("at least 8")));
    let list = run(&["list"], "").expect("the accounts are listed");
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(run(&["show", "alice"], "").is_ok_and(|output| output.contains("session ")));
    assert!(run(&["show", "unknown"], "").is_err());
    assert_eq!(client.login("bob").await?.status, 200);

    run(&["disable", "alice"], "").expect("the account is disabled");
    assert_eq!(
        client.get_with_token(&token, "/api/profile").await?.status,
        401
    );
    assert_eq!(client.login("alice").await?.status, 401);
    run(&["enable", "alice"], "").expect("the account is enabled");
    assert_eq!(client.login("alice").await?.status, 200);

    run(&["set-password", "alice"], NEW_PASSWORD).expect("the password is set");
    assert_eq!(client.login("alice").await?.status, 401);
    let new_login = client
        .post("/api/login", &credentials("alice", NEW_PASSWORD))
        .await?;
    assert_eq!(new_login.status, 200);
    run(&["delete", "alice"], "").expect("the account is deleted");
    assert!(
        run(&["end-sessions", "bob"], "").is_ok_and(|output| output.contains("sessions ended: 1"))
    );
    Ok(())
}

async fn operator_actions_are_audited(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    for (subcommand, input, expected_events) in [
        ("create", PASSWORD, vec!["register"]),
        (
            "set-password",
            NEW_PASSWORD,
            vec!["password_set", "logout_all"],
        ),
        ("disable", "", vec!["disabled", "logout_all"]),
        ("enable", "", vec!["enabled"]),
        ("end-sessions", "", vec!["logout_all"]),
        ("delete", "", vec!["logout_all", "delete"]),
    ] {
        let output = replicas.user_command(&[subcommand, "alice"], input)?;
        let log = String::from_utf8(output.stderr)?;
        let records: Vec<Value> = log
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        let events: Vec<_> = records.iter().map(|record| &record["event"]).collect();
        assert_eq!(events, expected_events, "{subcommand}: {log}");
        for record in &records {
            assert_eq!(
                (&record["target"], &record["login"]),
                (&json!("audit"), &json!("alice"))
            );
            assert!(record["operator"].is_number(), "{record}");
        }
    }
    Ok(())
}

/// A client that reaches auth-api without the gateway, or through another proxy, chooses its address.
async fn what_clients_send_is_shown_without_control_characters(store: Store) -> Result<()> {
    // CSI, right-to-left override, Hangul filler.
    const HOSTILE: &str = "\u{9b}2J\u{202e}\u{3164}";
    const ESCAPED: &str = r"\u{9b}2J\u{202e}\u{3164}";
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    client.register("alice").await?;
    let header = |text: &str| HeaderValue::from_bytes(format!("{text}{HOSTILE}").as_bytes());
    let login = client
        .request(Method::POST, "/api/login")
        .header("x-forwarded-for", header("192.0.2.1")?)
        .header(USER_AGENT, header("curl")?)
        .json(&credentials("alice", PASSWORD));
    assert_eq!(send(login).await?.status, 200);
    let shown = run_user_command(&replicas, &["show", "alice"], "").expect("the account is shown");
    for text in ["192.0.2.1", "curl"] {
        let expected = format!("{text}{ESCAPED}");
        assert!(shown.contains(&expected), "{shown:?} lacks {expected}");
    }
    Ok(())
}

#[tokio::test]
async fn a_command_in_a_folder_without_a_database_creates_none() -> Result<()> {
    let mut replicas = Replicas::start(Store::Embedded, 0).await?;
    let file = replicas.sqlite_file();
    for arguments in [&["list"][..], &["show", "alice"], &["end-all-sessions"]] {
        let error = run_user_command(&replicas, arguments, "").expect_err("no database exists");
        let named_file = format!("{} does not exist", file.display());
        assert!(
            error.contains(&named_file) && error.contains("DATA_DIR"),
            "{error}"
        );
        assert!(!file.try_exists()?);
    }
    // An operator may create the first account before the first start.
    run_user_command(&replicas, &["create", "alice"], PASSWORD).expect("the account is created");
    replicas.start_another()?;
    replicas.wait_until_ready(0).await?;
    assert_eq!(replicas.client(0)?.login("alice").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn an_operator_cannot_delete_an_account_while_its_sessions_cannot_be_ended() -> Result<()> {
    let mut replicas = Replicas::start(Store::PostgresRedis, 1).await?;
    let token = replicas.client(0)?.register_and_login("alice").await?;
    replicas.redis.as_mut().expect("the store has Redis").kill();
    assert!(run_user_command(&replicas, &["delete", "alice"], "").is_err());
    replicas
        .redis
        .as_mut()
        .expect("the store has Redis")
        .start_again()?;
    assert!(run_user_command(&replicas, &["show", "alice"], "").is_ok());
    assert!(run_user_command(&replicas, &["delete", "alice"], "").is_ok());
    let client = replicas.client(0)?;
    wait::until("Redis to be used again", async || {
        let response = client.get_with_token(&token, "/api/sessions").await;
        response.is_ok_and(|response| response.status == 401)
    })
    .await
}

/// Starts `auth-api user` with a terminal as standard input.
fn start_on_terminal(
    replicas: &Replicas,
    terminal: &Terminal,
    arguments: &[&str],
) -> Result<Child> {
    let mut command = replicas.command("auth-api");
    command.arg("user").args(arguments);
    command.stdin(terminal.stdio()?);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command.spawn()?)
}

#[tokio::test]
async fn a_terminal_does_not_show_a_password() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    let client = replicas.client(0)?;
    for (subcommand, password) in [("create", PASSWORD), ("set-password", NEW_PASSWORD)] {
        let mut terminal = Terminal::open()?;
        let command = start_on_terminal(&replicas, &terminal, &[subcommand, "alice"])?;
        terminal.wait_until_hidden().await?;
        terminal.type_text(&format!("{password}\n{password}\n"))?;
        let output = command.wait_with_output()?;
        let stderr = String::from_utf8(output.stderr)?;
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains("Password of alice: "), "{stderr}");
        assert_eq!(terminal.read_shown()?.replace("\r\n", ""), "");
        assert!(terminal.echoes()?);
        let login = credentials("alice", password);
        let response = client.post("/api/login", &login).await?;
        assert_eq!(response.status, 200, "{subcommand}");
    }
    Ok(())
}

#[tokio::test]
async fn a_terminal_shows_its_input_again_whatever_ends_the_command() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 1).await?;
    for signal in [Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP] {
        let terminal = Terminal::open()?;
        let command = start_on_terminal(&replicas, &terminal, &["create", "alice"])?;
        terminal.wait_until_hidden().await?;
        let pid = i32::try_from(command.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process id")?, signal)?;
        let output = command.wait_with_output()?;
        let stderr = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{signal:?}: {stderr}");
        assert!(stderr.contains("nothing was changed"), "{stderr}");
        assert!(terminal.echoes()?, "{signal:?}");
    }
    for input in [
        "short\nshort\n",
        "first password\nsecond password\n",
        "\u{4}\u{4}",
    ] {
        let mut terminal = Terminal::open()?;
        let command = start_on_terminal(&replicas, &terminal, &["create", "alice"])?;
        terminal.wait_until_hidden().await?;
        terminal.type_text(input)?;
        let output = command.wait_with_output()?;
        assert_eq!(output.status.code(), Some(1), "{input:?}");
        assert!(terminal.echoes()?, "{input:?}");
    }
    assert_eq!(replicas.client(0)?.login("alice").await?.status, 401);
    Ok(())
}
