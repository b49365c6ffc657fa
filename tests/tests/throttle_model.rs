//! Failed verifications of passwords against a model, on both stores: random sequences of attempts, some of them at once,
//! on two replicas.
//!
//! Time passes by moving the ends of the stored windows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fred::prelude::ClientLike;
use fred::types::CustomCommand;
use proptest::prelude::*;
use proptest::sample::select;
use tests::Store;
use tests::client::{PASSWORD, Response, credentials};
use tests::model::run_sequences;
use tests::replicas::Replicas;

const CASES: u32 = 40;
const MAX_STEPS: usize = 40;
/// Failures after which a login is locked.
const MAX_FAILURES: usize = 10;
const WINDOW: Duration = Duration::from_mins(15);
/// A step is left out if the model's answer would be another one within this time: a busy machine is slow.
const SLACK: Duration = Duration::from_secs(15);

/// Login of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Login {
    Existing,
    /// No account has it: it is locked all the same.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Attempts with a wrong password, at once.
    Fail {
        login: Login,
        attempts: usize,
    },
    Succeed,
    Unlock(Login),
    Pass {
        seconds: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let login = || select(vec![Login::Existing, Login::Unknown]);
    let attempts = prop_oneof![3 => Just(1_usize), 2 => 2..15_usize];
    prop_oneof![
        10 => (login(), attempts).prop_map(|(login, attempts)| Step::Fail { login, attempts }),
        3 => Just(Step::Succeed),
        1 => login().prop_map(Step::Unlock),
        4 => select(vec![100, 500, 860, 940]).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

/// Failures of a login within a window.
#[derive(Debug, Clone, Copy)]
struct Failures {
    count: usize,
    begun: Instant,
}

/// Failures of both logins.
#[derive(Debug, Default)]
struct Model([Option<Failures>; 2]);

impl Model {
    fn of(&mut self, login: Login) -> &mut Option<Failures> {
        &mut self.0[match login {
            Login::Existing => 0,
            Login::Unknown => 1,
        }]
    }

    /// Returns the failures that count, `None` if that depends on a few seconds.
    fn count(&mut self, login: Login, now: Instant) -> Option<usize> {
        let failures = self.of(login);
        match *failures {
            Some(Failures { begun, .. }) if (now - begun).abs_diff(WINDOW) < SLACK => None,
            Some(Failures { begun, .. }) if now - begun > WINDOW => {
                *failures = None;
                Some(0)
            }
            Some(Failures { count, .. }) => Some(count),
            None => Some(0),
        }
    }
}

struct Service {
    replicas: Replicas,
}

impl Service {
    async fn pass(&self, duration: Duration) -> Result<()> {
        let millis = duration.as_millis().to_string();
        let Some(server) = &self.replicas.redis else {
            let statement = format!("UPDATE failures SET until = until - {millis}");
            return self.replicas.execute(statement).await;
        };
        let script = "
            for _, key in ipairs(redis.call('KEYS', 'failures:*')) do
                redis.call('PEXPIRE', key, redis.call('PTTL', key) - ARGV[1])
            end
            return 1";
        let evaluate = CustomCommand::new_static("EVAL", None, false);
        let redis = server.connect().await?;
        let _: i64 = redis.custom(evaluate, vec![script, "0", &millis]).await?;
        Ok(())
    }

    /// Attempts to log in, at once, on both replicas.
    async fn log_in(&self, login: &str, password: &str, attempts: usize) -> Result<Vec<Response>> {
        let clients = [self.replicas.client(0)?, self.replicas.client(1)?];
        let mut pending = tokio::task::JoinSet::new();
        for number in 0..attempts {
            let (client, body) = (clients[number % 2].clone(), credentials(login, password));
            pending.spawn(async move { client.post("/api/login", &body).await });
        }
        pending.join_all().await.into_iter().collect()
    }

    async fn run(&self, case: usize, steps: &[Step]) -> Result<()> {
        let name = |login| match login {
            Login::Existing => format!("user-{case}"),
            Login::Unknown => format!("unknown-{case}"),
        };
        self.replicas
            .client(0)?
            .register(&name(Login::Existing))
            .await?;
        let mut model = Model::default();
        for (number, step) in steps.iter().enumerate() {
            self.take(*step, &mut model, name)
                .await
                .with_context(|| format!("step {number}, {step:?}"))?;
        }
        Ok(())
    }

    async fn take(
        &self,
        step: Step,
        model: &mut Model,
        name: impl Fn(Login) -> String,
    ) -> Result<()> {
        let now = Instant::now();
        match step {
            Step::Fail { login, attempts } => {
                let Some(count) = model.count(login, now) else {
                    return Ok(());
                };
                let responses = self
                    .log_in(&name(login), "a wrong password", attempts)
                    .await?;
                let revealed = attempts.min(MAX_FAILURES - count);
                let with_status = |status| {
                    let is_it = |response: &&Response| response.status == status;
                    responses.iter().filter(is_it).count()
                };
                let statuses = (with_status(401), with_status(429));
                let expected = (revealed, attempts - revealed);
                ensure!(
                    statuses == expected,
                    "{statuses:?} in place of {expected:?}"
                );
                if revealed > 0 {
                    let failures = model.of(login).get_or_insert(Failures {
                        count: 0,
                        begun: now,
                    });
                    failures.count += revealed;
                }
                let begun = model.of(login).map(|failures| failures.begun);
                for response in responses.iter().filter(|response| response.status == 429) {
                    let wait: u64 = response.header("retry-after").parse()?;
                    let rest = WINDOW.saturating_sub(now - begun.context("no window")?);
                    let is_exact = Duration::from_secs(wait).abs_diff(rest) < SLACK;
                    ensure!(is_exact, "Retry-After is {wait} in place of {rest:?}");
                }
            }
            Step::Succeed => {
                let Some(count) = model.count(Login::Existing, now) else {
                    return Ok(());
                };
                let responses = self.log_in(&name(Login::Existing), PASSWORD, 1).await?;
                let expected = if count < MAX_FAILURES { 200 } else { 429 };
                let status = responses[0].status;
                ensure!(status == expected, "{status} in place of {expected}");
                if expected == 200 {
                    *model.of(Login::Existing) = None;
                }
            }
            Step::Unlock(login) => {
                let output = self.replicas.user_command(&["unlock", &name(login)], "")?;
                // There is no account to unlock.
                ensure!(output.status.success() == (login == Login::Existing));
                if login == Login::Existing {
                    *model.of(login) = None;
                }
            }
            Step::Pass { seconds } => {
                let duration = Duration::from_secs(seconds);
                self.pass(duration).await?;
                for failures in model.0.iter_mut().flatten() {
                    failures.begun -= duration;
                }
            }
        }
        Ok(())
    }
}

/// Runs all cases on a store.
fn compare(store: Store) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let replicas = runtime.block_on(Replicas::start(store, 2))?;
    let service = Service { replicas };
    let mut case = 0;
    let outcome = run_sequences(CASES, MAX_STEPS, step(), |steps| {
        case += 1;
        runtime.block_on(service.run(case, steps))
    });
    // The replicas end within the runtime.
    runtime.block_on(async move { drop(service) });
    outcome
}

#[test]
fn failures_in_postgres_and_redis_are_as_their_model() -> Result<()> {
    compare(Store::PostgresRedis)
}

#[test]
fn failures_in_the_embedded_store_are_as_their_model() -> Result<()> {
    compare(Store::Embedded)
}
