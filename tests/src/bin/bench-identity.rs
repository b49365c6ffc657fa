//! Service of `scripts/bench identity`: a replica of auth-api with its stores, a user, and tokens. Writes what the
//! benchmark needs into a folder, the file `environment` last, and runs until standard input ends.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tests::Store;
use tests::identity_edge::{SIGNING_KEY, Signer, encode_token};
use tests::replicas::Replicas;
use tests::settings::settings;

/// Secret of the HS256 token, at least as long as its hash (RFC 7518, section 3.2).
const SECRET: &str = "a secret of a benchmark of 32 bytes or more";

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: bench-identity FOLDER FILES TOKENS-PER-FILE";
    let folder = PathBuf::from(arguments.next().context(usage)?);
    let files: u32 = arguments.next().context(usage)?.parse()?;
    let tokens_per_file: u32 = arguments.next().context(usage)?.parse()?;

    let settings = settings([
        ("SIGNING_KEY", SIGNING_KEY.to_owned()),
        ("LOG_LEVEL", "INFO".to_owned()),
    ]);
    let replicas = Replicas::start_with(Store::PostgresRedis, 1, settings).await?;
    let token = replicas.client(0)?.register_and_login("alice").await?;
    let claims = Signer::claims_of(&token)?;
    fs::write(folder.join("token"), &token)?;
    for file in 0..files {
        let tokens = distinct_tokens(&claims, file, tokens_per_file);
        fs::write(folder.join(format!("tokens.{file}")), tokens)?;
    }
    write_tokens_for_haproxy(&folder, &claims)?;

    let redis = replicas.redis.as_ref().context("the replicas use Redis")?;
    let redis_process = redis.process().context("Redis runs")?;
    let replica = &replicas.instances[0];
    let environment = format!(
        "{} {} {} {}\n",
        replica.address,
        replica.process.id(),
        redis.address,
        redis_process.id(),
    );
    let incomplete = folder.join("environment.incomplete");
    fs::write(&incomplete, environment)?;
    fs::rename(incomplete, folder.join("environment"))?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    drop(replicas);
    Ok(())
}

/// Returns valid tokens of one session that differ in their `jti`, one in each line.
fn distinct_tokens(claims: &Value, file: u32, count: u32) -> String {
    let signer = Signer::of_replicas();
    let header = signer.header();
    let mut claims = claims.clone();
    let mut tokens = String::new();
    for number in 0..count {
        claims["jti"] = json!(format!("{file:08x}-{number:08x}"));
        writeln!(tokens, "{}", signer.sign(&header, &claims))
            .expect("writing to a String succeeds");
    }
    tokens
}

/// Writes tokens with the same claims for algorithms that haproxy verifies, and their keys.
fn write_tokens_for_haproxy(folder: &Path, claims: &Value) -> Result<()> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let random = SystemRandom::new();
    let header = json!({"alg": "ES256", "typ": "at+jwt"});
    let token = encode_token(&header, claims, |text| {
        let signature = pair.sign(&random, text).expect("the key can sign");
        signature.as_ref().to_vec()
    });
    fs::write(folder.join("token.es256"), token)?;
    let public_key: PublicKeyX509Der = pair.public_key().as_der()?;
    fs::write(folder.join("es256.pem"), pem(public_key.as_ref())?)?;

    let secret = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let header = json!({"alg": "HS256", "typ": "at+jwt"});
    let token = encode_token(&header, claims, |text| {
        hmac::sign(&secret, text).as_ref().to_vec()
    });
    fs::write(folder.join("token.hs256"), token)?;
    fs::write(folder.join("hs256.secret"), SECRET)?;
    Ok(())
}

/// Returns a public key in DER as text (RFC 7468).
fn pem(public_key: &[u8]) -> Result<String> {
    const LINE_LENGTH: usize = 64;
    let text = STANDARD.encode(public_key);
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    for line in text.as_bytes().chunks(LINE_LENGTH) {
        writeln!(pem, "{}", str::from_utf8(line)?)?;
    }
    pem += "-----END PUBLIC KEY-----\n";
    Ok(pem)
}
