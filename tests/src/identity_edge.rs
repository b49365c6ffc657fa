//! Gateways that identify users, in front of a mock upstream, beside replicas of auth-api.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::client::Client;
use crate::gateway::Gateway;
use crate::mock_upstream::{MockUpstream, ReceivedRequest};
use crate::replicas::{Replicas, Store};
use crate::settings::settings;
use crate::wait;

const REPLICAS: usize = 2;
/// Seed of the private key of RFC 8037, appendix A.1.
const SEED: [u8; 32] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];
/// The private key of RFC 8037 in PKCS#8, as auth-api's setting. [`Signer::of_replicas`] has it too.
pub const SIGNING_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";
/// Thumbprint of the key (RFC 8037, appendix A.3).
const KEY_ID: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

/// Features by path. The verify endpoint and the sessions precede them.
const PATHS: &str = "
  paths:
    - pattern: /private/*
      features: {auth: {required: true}}
    - pattern: /open/*
      features: {auth: {required: false}}
    - pattern: /of-user/*
      features: {auth: {}, rate_limit: {quota: 100000, duration: 60, per: [user]}}
    - pattern: /few-of-user/*
      features: {auth: {required: false}, rate_limit: {quota: 2, duration: 86400, per: [user]}}
";

/// Running gateways with the same upstream, and two replicas of auth-api.
#[derive(Debug)]
pub struct IdentityEdge {
    // Fields drop in this order: the gateways exit before what they use.
    pub gateways: Vec<Gateway>,
    pub upstream: MockUpstream,
    pub replicas: Replicas,
    /// Further settings of the gateways, as lines under `premier`.
    settings: String,
}

impl IdentityEdge {
    /// Starts `gateways` gateways and two replicas on a new `store`. Tokens are signed with `EdDSA`. Each gateway asks
    /// another replica than the one before.
    ///
    /// # Errors
    /// Returns an error with the program's log if one does not start.
    pub async fn start(store: Store, gateways: usize) -> Result<Self> {
        Self::start_with(store, gateways, |_| String::new()).await
    }

    /// Starts the same on PostgreSQL and Redis, with gateways that share their quotas through that Redis.
    ///
    /// # Errors
    /// Returns an error with the program's log if one does not start.
    pub async fn start_sharing_quotas(gateways: usize) -> Result<Self> {
        let settings = |redis: Option<SocketAddr>| {
            redis.map_or_else(String::new, |redis| {
                format!("  quotas: {{store: 'redis://{redis}/0', timeout: 5}}\n")
            })
        };
        Self::start_with(Store::PostgresRedis, gateways, settings).await
    }

    async fn start_with(
        store: Store,
        gateways: usize,
        settings_of_gateways: impl FnOnce(Option<SocketAddr>) -> String,
    ) -> Result<Self> {
        let signing_key = settings([("SIGNING_KEY", SIGNING_KEY.to_owned())]);
        let replicas = Replicas::start_with(store, REPLICAS, signing_key).await?;
        let upstream = MockUpstream::always_ok().await?;
        let redis = replicas.redis.as_ref().map(|redis| redis.address);
        let mut edge = Self {
            gateways: Vec::new(),
            upstream,
            replicas,
            settings: settings_of_gateways(redis),
        };
        for _ in 0..gateways {
            edge.start_gateway(redis).await?;
        }
        Ok(edge)
    }

    /// Starts a further gateway that learns of the ends of sessions by the Redis server at `redis`.
    ///
    /// # Errors
    /// Returns an error with the gateway's log if it does not start.
    pub async fn start_gateway(&mut self, redis: Option<SocketAddr>) -> Result<&mut Gateway> {
        let replica = self.replicas.instances[self.gateways.len() % REPLICAS].address;
        let sessions = redis.map_or_else(String::new, |redis| format!("redis://{redis}/0"));
        let yaml = format!(
            "premier:\n  identity:\n    keys: http://{replica}/.well-known/jwks.json\n    \
             sessions: '{sessions}'\n    issuer: auth-api\n{}{PATHS}",
            self.settings
        );
        let gateway = Gateway::start(self.upstream.address, &yaml).await?;
        self.gateways.push(gateway);
        self.gateways.last_mut().context("a gateway was just added")
    }

    /// Returns the request that the upstream received last, empty if there is none.
    #[must_use]
    pub fn last_request(&self) -> ReceivedRequest {
        let mut requests = self.upstream.received_requests();
        requests.pop().unwrap_or_default()
    }

    /// Waits until the first gateway has the key set.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_for_keys(&self) -> Result<()> {
        let fetches = "gateway_identity_key_fetches_total";
        self.gateways[0]
            .wait_for_metric(fetches, &["success"], 1.0)
            .await
    }

    /// Waits until the gateway at `index` remembers `token`, so that it asks no replica.
    ///
    /// # Errors
    /// Returns an error after [`wait::TIMEOUT`].
    pub async fn wait_until_remembered(&self, index: usize, token: &str) -> Result<()> {
        let gateway = &self.gateways[index];
        let client = gateway.client()?;
        let count = async || {
            let metric = gateway
                .metric("gateway_identity_checks_total", &["remembered"])
                .await;
            metric.ok().flatten().unwrap_or_default()
        };
        wait::until("the gateway to remember the token", async || {
            let before = count().await;
            let response = client.get_with_token(token, "/private/warm").await;
            response.is_ok_and(|response| response.status == 200) && count().await > before
        })
        .await
    }

    /// Returns the number of requests to the verify endpoints of all replicas.
    ///
    /// # Errors
    /// Returns an error if a replica does not respond.
    pub async fn verify_requests(&self) -> Result<u64> {
        let mut sum = 0;
        for replica in &self.replicas.instances {
            let metrics = Client::cleartext(replica.internal_address)?
                .get("/metrics")
                .await?;
            sum += metrics
                .text
                .lines()
                .filter(|line| {
                    line.starts_with("auth_api_http_requests_total") && line.contains("/api/verify")
                })
                .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .sum::<u64>();
        }
        Ok(sum)
    }
}

/// Signer of tokens that a test makes itself.
#[derive(Debug)]
pub struct Signer {
    pair: Ed25519KeyPair,
    key_id: String,
}

impl Signer {
    fn new(seed: &[u8; 32], key_id: &str) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed);
        Self {
            pair: pair.expect("any 32 bytes are a seed"),
            key_id: key_id.to_owned(),
        }
    }

    /// Returns a signer with the key of the replicas.
    #[must_use]
    pub fn of_replicas() -> Self {
        Self::new(&SEED, KEY_ID)
    }

    /// Returns a signer whose key no replica has.
    #[must_use]
    pub fn foreign() -> Self {
        Self::new(&[0x11; 32], "foreign")
    }

    /// Returns the header of an access token.
    #[must_use]
    pub fn header(&self) -> Value {
        json!({"alg": "EdDSA", "typ": "at+jwt", "kid": self.key_id})
    }

    /// Returns a token with this header and these claims.
    #[must_use]
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        encode_token(header, claims, |text| {
            self.pair.sign(text).as_ref().to_vec()
        })
    }

    /// Returns a token whose HMAC has the public key as its secret.
    #[must_use]
    pub fn sign_with_public_key(&self, claims: &Value) -> String {
        let header = json!({"alg": "HS256", "typ": "at+jwt", "kid": self.key_id});
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.pair.public_key().as_ref());
        encode_token(&header, claims, |text| {
            hmac::sign(&secret, text).as_ref().to_vec()
        })
    }

    /// Returns a token without a signature.
    #[must_use]
    pub fn unsigned(header: &Value, claims: &Value) -> String {
        format!("{}.", signed_text(header, claims))
    }

    /// Returns the claims of a token.
    ///
    /// # Errors
    /// Returns an error if it is no JWT.
    pub fn claims_of(token: &str) -> Result<Value> {
        let claims = token.split('.').nth(1).context("a JWT has claims")?;
        Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?)
    }
}

/// Returns a JWT with the signature that `sign` makes of its text.
#[must_use]
pub fn encode_token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let text = signed_text(header, claims);
    let signature = URL_SAFE_NO_PAD.encode(sign(text.as_bytes()));
    format!("{text}.{signature}")
}

fn signed_text(header: &Value, claims: &Value) -> String {
    let parts = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    parts.join(".")
}
