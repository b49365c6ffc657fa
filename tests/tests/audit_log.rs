//! Audit log in a file of its own: shared by replicas, rotated, and required or not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use tests::client::{PASSWORD, credentials};
use tests::replicas::Replicas;
use tests::settings::{Settings, settings};
use tests::{Store, on_both_stores, wait};

on_both_stores!(
    replicas_share_a_file_that_is_rotated,
    a_broken_audit_log_stops_no_request_by_default,
    a_required_audit_log_that_is_broken_stops_what_it_has_to_record,
);

/// Folder of an audit log, which a test can take away.
struct AuditFolder(tempfile::TempDir);

impl AuditFolder {
    fn create() -> Result<Self> {
        let folder = Self(tempfile::tempdir()?);
        fs::create_dir(folder.path())?;
        Ok(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("audit")
    }

    /// Makes every write fail.
    fn take_away(&self) -> Result<()> {
        Ok(fs::rename(self.path(), self.path().with_extension("away"))?)
    }

    fn put_back(&self) -> Result<()> {
        Ok(fs::rename(self.path().with_extension("away"), self.path())?)
    }

    fn settings(&self) -> Settings {
        let file = self.path().join("audit.log");
        settings([("AUDIT_LOG", file.display().to_string())])
    }

    /// Returns the records of all files.
    fn records(&self) -> Result<Vec<Value>> {
        let mut records = Vec::new();
        for file in audit_files(&self.path())? {
            for line in fs::read_to_string(&file)?.lines() {
                records.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
            }
        }
        Ok(records)
    }

    fn count(&self, event: &str) -> usize {
        let records = self.records().unwrap_or_default();
        records
            .iter()
            .filter(|record| record["event"] == event)
            .count()
    }
}

fn audit_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "lock") {
            files.push(path);
        }
    }
    Ok(files)
}

async fn replicas_share_a_file_that_is_rotated(store: Store) -> Result<()> {
    const LOGINS: usize = 60;
    let folder = AuditFolder::create()?;
    let mut all = folder.settings();
    all.extend(settings([
        ("AUDIT_LOG_MAX_BYTES", "4096".to_owned()),
        ("AUDIT_LOG_MODE", "required".to_owned()),
    ]));
    let replicas = Replicas::start_with(store, 2, all).await?;
    let mut logins = tokio::task::JoinSet::new();
    for number in 0..LOGINS {
        let client = replicas.client(number % 2)?;
        logins.spawn(async move { client.login(&format!("unknown {number}")).await });
    }
    for response in logins.join_all().await {
        assert_eq!(response?.status, 401);
    }
    // A required record is on disk before the response.
    let records = folder.records()?;
    let unknown: BTreeSet<_> = records
        .iter()
        .map(|record| record["unknown_login"].as_str().unwrap_or_default())
        .collect();
    assert_eq!((records.len(), unknown.len()), (LOGINS, LOGINS));
    let files = audit_files(&folder.path())?;
    assert!(files.len() > 2, "{files:?}");
    for file in files {
        assert!(fs::metadata(&file)?.len() <= 4096, "{}", file.display());
    }
    assert!(!replicas.logs().contains("login_failed"), "a second copy");

    let created = replicas.user_command(&["create", "operated"], PASSWORD)?;
    assert!(created.status.success());
    let records = folder.records()?;
    let by_operator = records.iter().find(|record| record["operator"].is_number());
    assert_eq!(by_operator.context("a record")?["login"], "operated");
    Ok(())
}

async fn a_broken_audit_log_stops_no_request_by_default(store: Store) -> Result<()> {
    let folder = AuditFolder::create()?;
    let replicas = Replicas::start_with(store, 1, folder.settings()).await?;
    let client = replicas.client(0)?;
    assert_eq!(client.register("alice").await?.status, 201);
    wait::until("the record", async || folder.count("register") == 1).await?;
    let up = async || replicas.metric(0, "auth_api_audit_log_up", &[]).await;
    assert_eq!(up().await?, Some(1.0));

    folder.take_away()?;
    assert_eq!(client.login("alice").await?.status, 200);
    // The record is on standard output instead, and in the file as soon as that can be written.
    replicas.wait_for_log("\"event\":\"login\"").await?;
    assert_eq!(up().await?, Some(0.0));
    let failures = replicas.metric(0, "auth_api_audit_log_failures_total", &[]);
    assert_eq!(failures.await?, Some(1.0));
    assert_eq!(client.get("/ready").await?.status, 200);
    folder.put_back()?;
    wait::until("the record", async || folder.count("login") == 1).await?;
    wait::until("the metric", async || up().await.ok() == Some(Some(1.0))).await
}

async fn a_required_audit_log_that_is_broken_stops_what_it_has_to_record(
    store: Store,
) -> Result<()> {
    let folder = AuditFolder::create()?;
    let mut all = folder.settings();
    all.extend(settings([("AUDIT_LOG_MODE", "required".to_owned())]));
    let replicas = Replicas::start_with(store, 1, all).await?;
    let client = replicas.client(0)?;
    let token = client.register_and_login("alice").await?;
    assert_eq!((folder.count("register"), folder.count("login")), (1, 1));

    folder.take_away()?;
    // The first one finds it out and is taken back, the next ones do not begin.
    for _ in 0..2 {
        let registered = client.register("bob").await?;
        assert_eq!(registered.status, 503, "{}", registered.text);
        assert_eq!(registered.header("retry-after"), "1");
    }
    assert_eq!(client.login("alice").await?.status, 503);
    client
        .wait_for_response("/ready", |response| {
            let problem = response.json()["audit_log"]["problem"].to_string();
            response.status == 503 && problem.contains("not writable")
        })
        .await?;
    let logout = client.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 503);
    let profile = client.get_with_token(&token, "/api/profile").await?;
    assert_eq!(profile.status, 200);
    let sessions = client.get_with_token(&token, "/api/sessions").await?;
    assert_eq!(
        sessions.json()["sessions"].as_array().map(Vec::len),
        Some(1)
    );

    folder.put_back()?;
    wait::until("registration to succeed", async || {
        let registered = client.register("bob").await;
        registered.is_ok_and(|response| response.status == 201)
    })
    .await?;
    let logout = client.post_with_token(&token, "/api/logout", None).await?;
    assert_eq!(logout.status, 200);
    assert_eq!(folder.count("logout"), 1);
    client
        .wait_for_response("/ready", |response| response.status == 200)
        .await?;
    Ok(())
}

#[tokio::test]
async fn records_are_written_before_the_program_ends() -> Result<()> {
    let folder = AuditFolder::create()?;
    let mut replicas = Replicas::start_with(Store::Embedded, 1, folder.settings()).await?;
    let client = replicas.client(0)?;
    for number in 0..20 {
        let login = client.login(&format!("unknown {number}")).await?;
        assert_eq!(login.status, 401);
    }
    drop(client);
    assert!(replicas.instances[0].process.terminate()?.success());
    assert_eq!(folder.count("login_failed"), 20);
    Ok(())
}

#[tokio::test]
async fn a_full_disk_leaves_no_partial_record() -> Result<()> {
    let folder = AuditFolder::create()?;
    let mut all = folder.settings();
    all.extend(settings([
        ("AUDIT_LOG_MODE", "required".to_owned()),
        // The log of the harness is a file too.
        ("LOG_LEVEL", "ERROR".to_owned()),
    ]));
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, all).await?;
    let client = replicas.client(0)?;
    let wrong = credentials("nobody", PASSWORD);
    assert_eq!(client.post("/api/login", &wrong).await?.status, 401);
    let length = fs::metadata(folder.path().join("audit.log"))?.len();
    let process = &replicas.instances[0].process;
    process.limit_file_size(Some(length + 10))?;
    assert_eq!(client.post("/api/login", &wrong).await?.status, 503);
    assert_eq!(fs::metadata(folder.path().join("audit.log"))?.len(), length);
    process.limit_file_size(None)?;
    wait::until("logins to be recorded", async || {
        let login = client.post("/api/login", &wrong).await;
        login.is_ok_and(|response| response.status == 401)
    })
    .await?;
    // Also that of the login whose response was 503.
    assert_eq!(folder.records()?.len(), 3);
    Ok(())
}

#[tokio::test]
async fn an_audit_log_that_cannot_be_opened_stops_the_start() -> Result<()> {
    let replicas = Replicas::start(Store::Embedded, 0).await?;
    let output = replicas
        .command("auth-api")
        .env("AUDIT_LOG", "/missing/audit.log")
        .output()?;
    let error = String::from_utf8(output.stderr)?;
    assert!(!output.status.success());
    assert!(error.contains("AUDIT_LOG: opening the file"), "{error}");
    Ok(())
}
