//! Agreement of the scripts with the model that the protocol is tested against, on a real server.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::{Builder, Value};

use super::scripts;
use crate::config::{Config, Environment, RateLimitAlgorithm};
use crate::features::rate_limit::shared::LeaseIdentity;
use crate::features::rate_limit::shared::store_model::ModelStore;
use crate::features::rate_limit::shared::{LeaseReport, LeaseTerms, ScriptArguments, SpentUnits};
use crate::runtime::clock::{Instant, nanoseconds};

/// Server of one test.
struct RedisServer {
    process: Child,
    url: String,
}

impl RedisServer {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let process = Command::new("redis-server")
            .args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"])
            .args(["--save", ""])
            .stdout(Stdio::null())
            .spawn()
            .expect("Redis is installed");
        let server = Self {
            process,
            url: format!("redis://{address}"),
        };
        while TcpStream::connect(address).is_err() {
            std::thread::yield_now();
        }
        server
    }

    async fn connect(&self) -> Client {
        let config = fred::types::config::Config::from_url(&self.url).unwrap();
        let client = Builder::from_config(config).build().unwrap();
        client.init().await.unwrap();
        client
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns a report about units of a lease: each is spent at a random instant, kept, returned, or not reported.
fn random_report(
    random: &mut fastrand::Rng,
    terms: LeaseTerms,
    identity: LeaseIdentity,
    units: u32,
) -> LeaseReport {
    let lease = terms.lease_time();
    let made = Instant(u64::MAX / 2);
    let mut instants: Vec<_> = (0..random.u32(..=units))
        .map(|_| Instant(made.0 - random.u64(..=nanoseconds(lease))))
        .collect();
    instants.sort_unstable();
    let mut spent = SpentUnits::default();
    for instant in instants {
        spent.add(|| terms.spent_interval(), instant);
    }
    let kept = random.u32(..=units - spent.total());
    LeaseReport {
        identity,
        spent,
        kept,
        returned: random.u32(..=units - spent.total() - kept),
        made,
    }
}

/// Runs commands of random content on one key by the script and by the model.
async fn compare(client: &Client, key: &str, terms: LeaseTerms, commands: u32) {
    let mut random = fastrand::Rng::with_seed(u64::from(commands) ^ terms.period());
    let mut model = ModelStore::default();
    let mut leases: Vec<(LeaseIdentity, u32)> = Vec::new();
    for number in 0..commands {
        let report = random.bool().then(|| {
            let index = random.usize(..leases.len().max(1));
            let (identity, units) = (index < leases.len()).then(|| leases.swap_remove(index))?;
            Some(random_report(&mut random, terms, identity, units))
        });
        let report = report.flatten();
        let arguments = ScriptArguments {
            terms,
            gateways: random.u32(1..4),
            need: random.u32(0..3),
            want: random.u32(0..40),
            report,
        };
        let value: Value = scripts::of(terms)
            .evalsha_with_reload(client, vec![key.to_owned()], scripts::to_values(&arguments))
            .await
            .unwrap();
        let reply = scripts::parse_reply(value).unwrap();
        let expected = model.execute(reply.now, &arguments);
        let mut actual = reply;
        if actual.identity.incarnation == reply.now || actual.identity.incarnation == 0 {
            // The key may have expired, which has no other effect than that the state is another one.
            actual.identity.incarnation = expected.identity.incarnation;
            if terms.algorithm != RateLimitAlgorithm::FixedWindow && actual.granted > 0 {
                model.incarnation = Some(reply.identity.incarnation);
            }
        }
        assert_eq!(
            actual, expected,
            "command {number} of {terms:?}: {arguments:?}"
        );
        let held = u32::try_from(reply.granted + reply.kept).unwrap();
        if held > 0 {
            leases.push((reply.identity, held));
        }
        if random.u8(..) < 20 {
            tokio::time::sleep(Duration::from_millis(random.u64(1..30))).await;
        }
    }
}

fn terms(algorithm: &str, quota: u32, seconds: f64, bucket_size: u32) -> LeaseTerms {
    let yaml = format!(
        "premier: {{default_features: {{rate_limit: {{quota: {quota}, duration: {seconds}, \
         algorithm: {algorithm}, bucket_size: {bucket_size}}}}}}}"
    );
    let config = Config::parse("gateway.yml".as_ref(), &yaml, &Environment::for_tests()).unwrap();
    LeaseTerms::of(config.default_features.rate_limit.as_ref().unwrap())
}

#[tokio::test]
async fn the_scripts_do_what_their_model_does() {
    let server = RedisServer::start();
    let client = server.connect().await;
    for (number, (algorithm, quota, seconds, bucket_size)) in [
        ("fixed_window", 50, 0.06, 1),
        ("fixed_window", 1000, 3600.0, 1),
        ("sliding_window", 50, 0.2, 1),
        ("sliding_window", 3, 0.05, 1),
        ("sliding_window", 1000, 3600.0, 1),
        ("token_bucket", 200, 0.1, 20),
        ("token_bucket", 10, 1.0, 40),
        ("token_bucket", 1000, 3600.0, 1000),
        ("token_bucket", 3_000_000, 1.0, 500),
        ("leaky_bucket", 200, 0.1, 20),
        ("leaky_bucket", 7, 3600.0, 100),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("test:quota:{number}");
        compare(
            &client,
            &key,
            terms(algorithm, quota, seconds, bucket_size),
            600,
        )
        .await;
    }
}

#[tokio::test]
async fn keys_expire() {
    let server = RedisServer::start();
    let client = server.connect().await;
    for algorithm in [
        "fixed_window",
        "sliding_window",
        "token_bucket",
        "leaky_bucket",
    ] {
        let terms = terms(algorithm, 5, 10.0, 5);
        let key = format!("test:{algorithm}");
        let arguments = ScriptArguments {
            terms,
            gateways: 1,
            need: 5,
            want: 0,
            report: None,
        };
        let _: Value = scripts::of(terms)
            .evalsha_with_reload(&client, vec![key.clone()], scripts::to_values(&arguments))
            .await
            .unwrap();
        let lifetime: i64 = client.pttl(&key).await.unwrap();
        assert!(
            (9_000..12_000).contains(&lifetime),
            "{algorithm}: {lifetime} ms"
        );
    }
}

#[test]
fn the_scripts_use_commands_of_redis_5() {
    /// Commands, with the version of Redis that introduced them in the form that the scripts use (redis.io, "Commands").
    const KNOWN: [(&str, u32); 8] = [
        ("HDEL", 2),
        ("HGETALL", 2),
        ("HMGET", 2),
        ("HSET", 4),
        ("HSETNX", 2),
        ("PEXPIRE", 2),
        ("TIME", 2),
        ("HGET", 2),
    ];
    let scripts = [
        include_str!("common.lua"),
        include_str!("fixed_window.lua"),
        include_str!("sliding_window.lua"),
        include_str!("bucket.lua"),
        include_str!("heartbeat.lua"),
    ];
    for script in scripts {
        for call in script.split("redis.").skip(1) {
            let command = call
                .strip_prefix("call('")
                .expect("only commands are called");
            let (command, _) = command.split_once('\'').unwrap();
            // Scripts may write after TIME since Redis 5 replicates their effects.
            let version = KNOWN.iter().find(|(known, _)| *known == command);
            assert!(
                version.is_some_and(|(_, version)| *version <= 5),
                "{command}"
            );
        }
    }
}
