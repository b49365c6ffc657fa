//! Unicode normalization of logins: rows of the Python service that are not in form C log in, and no new
//! login looks like an existing one.

use anyhow::Result;
use tests::client::{NEW_PASSWORD, PASSWORD, credentials};
use tests::replicas::Replicas;
use tests::{Store, on_both_stores};

on_both_stores!(
    an_account_whose_login_is_not_in_form_c_logs_in_with_every_spelling,
    accounts_whose_logins_differ_in_form_log_in_with_their_own_spelling,
    every_spelling_of_a_login_counts_for_one_lock,
    a_login_with_invisible_characters_cannot_be_registered,
    an_operator_finds_every_account_that_the_list_prints,
    the_list_prints_no_two_logins_alike,
);

/// One login in normalization forms C and D.
const NFC: &str = "J\u{fc}rgen \u{e9}";
const NFD: &str = "Ju\u{308}rgen e\u{301}";
/// The same in neither form.
const MIXED: &str = "Ju\u{308}rgen \u{e9}";

/// Starts a replica with an account whose stored login is `login`.
async fn start_with_login(store: Store, login: &str) -> Result<Replicas> {
    let replicas = Replicas::start(store, 1).await?;
    replicas.client(0)?.register("alice").await?;
    rename(&replicas, "alice", login).await?;
    Ok(replicas)
}

async fn rename(replicas: &Replicas, old: &str, new: &str) -> Result<()> {
    replicas
        .execute(format!(
            "UPDATE users SET login = '{new}' WHERE login = '{old}'"
        ))
        .await
}

async fn an_account_whose_login_is_not_in_form_c_logs_in_with_every_spelling(
    store: Store,
) -> Result<()> {
    for stored in [NFC, NFD, MIXED] {
        let replicas = start_with_login(store, stored).await?;
        let client = replicas.client(0)?;
        let spellings = match stored {
            MIXED => vec![MIXED],
            _ => vec![NFC, NFD, MIXED],
        };
        for presented in spellings {
            let login = client.login(presented).await?;
            assert_eq!(login.status, 200, "{stored:?} as {presented:?}");
            let token = login.access_token()?;
            let profile = client.get_with_token(&token, "/api/profile").await?;
            assert_eq!(profile.json()["login"], stored);
        }
        let taken = match stored {
            MIXED => vec![],
            _ => vec![NFC, NFD, MIXED],
        };
        for new in taken {
            let registered = client.register(new).await?;
            assert_eq!(registered.status, 409, "{stored:?} as {new:?}");
            let created = replicas.user_command(&["create", new], PASSWORD)?;
            assert!(!created.status.success());
        }
        let body = credentials(stored, PASSWORD);
        assert_eq!(client.post("/api/delete", &body).await?.status, 200);
        assert_eq!(client.register(NFD).await?.status, 201);
    }
    Ok(())
}

async fn accounts_whose_logins_differ_in_form_log_in_with_their_own_spelling(
    store: Store,
) -> Result<()> {
    let replicas = start_with_login(store, NFD).await?;
    let client = replicas.client(0)?;
    let body = credentials("another", NEW_PASSWORD);
    assert_eq!(client.post("/api/register", &body).await?.status, 201);
    rename(&replicas, "another", NFC).await?;
    for (login, own, other) in [(NFD, PASSWORD, NEW_PASSWORD), (NFC, NEW_PASSWORD, PASSWORD)] {
        let accepted = client.post("/api/login", &credentials(login, own)).await?;
        assert_eq!(accepted.status, 200, "{login:?}");
        let rejected = client
            .post("/api/login", &credentials(login, other))
            .await?;
        assert_eq!(rejected.status, 401, "{login:?}");
    }
    Ok(())
}

async fn every_spelling_of_a_login_counts_for_one_lock(store: Store) -> Result<()> {
    let replicas = start_with_login(store, NFD).await?;
    let client = replicas.client(0)?;
    for presented in [NFC, NFD, MIXED].into_iter().cycle().take(10) {
        let wrong = credentials(presented, "a wrong password");
        assert_eq!(client.post("/api/login", &wrong).await?.status, 401);
    }
    for presented in [NFC, NFD, MIXED] {
        assert_eq!(client.login(presented).await?.status, 429, "{presented:?}");
    }
    Ok(())
}

async fn a_login_with_invisible_characters_cannot_be_registered(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    for invisible in [
        '\u{200b}',  // zero width space
        '\u{200d}',  // zero width joiner
        '\u{feff}',  // byte order mark
        '\u{ad}',    // soft hyphen
        '\u{202e}',  // right-to-left override
        '\u{2066}',  // left-to-right isolate
        '\u{3164}',  // Hangul filler
        '\u{115f}',  // Hangul choseong filler
        '\u{fe0f}',  // variation selector
        '\u{e0041}', // tag
        '\u{378}',   // unassigned
        '\u{ffff}',  // noncharacter
    ] {
        let login = format!("al{invisible}ice");
        let rejected = client.register(&login).await?;
        assert_eq!(rejected.status, 422, "{login:?}");
        let message = &rejected.json()["detail"][0]["msg"];
        assert_eq!(
            message,
            "Value error, Login must not contain invisible or unassigned characters"
        );
    }
    Ok(())
}

async fn an_operator_finds_every_account_that_the_list_prints(store: Store) -> Result<()> {
    let replicas = Replicas::start(store, 1).await?;
    let client = replicas.client(0)?;
    for (number, stored) in [NFC, NFD, MIXED, "a\tb\u{1b}c", "zero\u{200b}width", "a\\nb"]
        .into_iter()
        .enumerate()
    {
        // Sessions are of different accounts, so that each of them is shown with its own.
        client.register("alice").await?;
        rename(&replicas, "alice", stored).await?;
        let list = String::from_utf8(replicas.user_command(&["list"], "")?.stdout)?;
        let line = list.lines().last().expect("an account is listed");
        let printed = line
            .split_once("  created")
            .and_then(|(account, _)| account.split_once("  "));
        let (id, login) = printed.expect("the line has an id and a login");
        assert!(
            !login.contains(|character: char| character.is_control() || character == '\u{200b}'),
            "{login:?}"
        );
        for arguments in [vec!["show", login], vec!["show", "--id", id]] {
            let shown = replicas.user_command(&arguments, "")?;
            let shown = String::from_utf8(shown.stdout)?;
            assert_eq!(shown.lines().next(), Some(line), "{arguments:?}");
        }
        for (subcommand, input) in [
            ("disable", ""),
            ("enable", ""),
            ("end-sessions", ""),
            ("set-password", NEW_PASSWORD),
            ("unlock", ""),
            ("delete", ""),
        ] {
            if subcommand == "delete" && number < 3 {
                continue;
            }
            let output = replicas.user_command(&[subcommand, "--id", id], input)?;
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{subcommand}: {error}");
        }
    }
    for arguments in [
        vec!["show"],
        vec!["show", "--id", "999999"],
        vec!["show", NFC, "--id", "1"],
    ] {
        assert!(!replicas.user_command(&arguments, "")?.status.success());
    }
    Ok(())
}

/// A client can register a login that is spelled like the escape sequences in which the list prints the invisible
/// characters of older ones.
async fn the_list_prints_no_two_logins_alike(store: Store) -> Result<()> {
    let replicas = start_with_login(store, "bob\u{200b}").await?;
    replicas.client(0)?.register("bob\\u{200b}").await?;
    let list = String::from_utf8(replicas.user_command(&["list"], "")?.stdout)?;
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    for line in lines {
        let login = line.split("  ").nth(1).expect("the line has a login");
        let shown = String::from_utf8(replicas.user_command(&["show", login], "")?.stdout)?;
        assert_eq!(shown.lines().next(), Some(line), "{login}");
    }
    Ok(())
}
