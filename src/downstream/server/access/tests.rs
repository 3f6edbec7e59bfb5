//! Tokens against keys: fixtures, the configured key, and what errors and logs show.

mod issuer;
mod openssl;
mod rfc8725;

use std::{fs, sync::LazyLock, time::Duration};

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        Ed25519KeyPair, KeyPair,
    },
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, jwk::Jwk};
use serde_json::{Value, json};

use super::{
    GrantRequest, JwtSettings, KeySourceError, Settings, TokenError, TokenSigner, Verifier, key::VerificationKey,
    key_set::KeySet,
};
use crate::{
    clock,
    model::{ClaimError, ClaimRules, Secret, SecretRef, Timestamp},
    network::{self, NetworkPolicy, Resolver, TrustedRoots},
    tasks::Tasks,
    telemetry::chain,
};

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The time of the tokens in tables.
const NOW: Timestamp = Timestamp(1_800_000_000_000);
const SECRET: &str = "canary-secret-0123456789-abcdefghi";
const OTHER_SECRET: &str = "another-secret-0123456789-abcdefg";

/// A key pair.
struct TestKey {
    algorithm: Algorithm,
    private: EncodingKey,
    private_pem: String,
    public_pem: String,
}

static P256: LazyLock<TestKey> = LazyLock::new(|| ec(Algorithm::ES256, &ECDSA_P256_SHA256_FIXED_SIGNING));
static P384: LazyLock<TestKey> = LazyLock::new(|| ec(Algorithm::ES384, &ECDSA_P384_SHA384_FIXED_SIGNING));
static ED: LazyLock<TestKey> = LazyLock::new(ed);
static OTHER_ED: LazyLock<TestKey> = LazyLock::new(ed);

fn ec(algorithm: Algorithm, kind: &'static EcdsaSigningAlgorithm) -> TestKey {
    let pair = EcdsaKeyPair::generate(kind).unwrap();
    let private_pem = pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref());
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    let private = EncodingKey::from_ec_pem(private_pem.as_bytes()).unwrap();
    TestKey { algorithm, private, private_pem, public_pem: pem("PUBLIC KEY", public.as_ref()) }
}

fn ed() -> TestKey {
    let pair = Ed25519KeyPair::generate().unwrap();
    let private_pem = pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref());
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    let private = EncodingKey::from_ed_pem(private_pem.as_bytes()).unwrap();
    TestKey { algorithm: Algorithm::EdDSA, private, private_pem, public_pem: pem("PUBLIC KEY", public.as_ref()) }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl TestKey {
    fn token(&self, header: &Value, claims: &Value) -> String {
        signed(&header.to_string(), &claims.to_string(), &self.private, self.algorithm)
    }

    /// The public key as a member of a JWKS.
    fn jwk(&self, id: &str) -> Value {
        let pem = self.public_pem.as_bytes();
        let key = DecodingKey::from_ed_pem(pem).or_else(|_| DecodingKey::from_ec_pem(pem)).unwrap();
        let mut jwk = serde_json::to_value(Jwk::from_decoding_key(&key, None).unwrap()).unwrap();
        jwk["kid"] = json!(id);
        jwk
    }
}

/// A token of any header and any claims.
fn signed(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn hmac_token(secret: &str, algorithm: Algorithm, claims: &Value) -> String {
    let header = json!({ "alg": algorithm, "typ": "JWT" }).to_string();
    signed(&header, &claims.to_string(), &EncodingKey::from_secret(secret.as_bytes()), algorithm)
}

/// Valid claims for an hour from `now`.
fn claims(now: Timestamp) -> Value {
    json!({ "sub": "wall", "exp": now.0 / 1000 + 3600, "iat": now.0 / 1000, "streams": ["queues", "acme.*"] })
}

fn hmac_keys() -> KeySet {
    KeySet::Single(VerificationKey::of_secret(&Secret::new(SECRET)).unwrap())
}

fn settings(jwt: JwtSettings) -> Settings {
    Settings { jwt, ..serde_json::from_value(json!({ "jwt": {} })).unwrap() }
}

fn network() -> NetworkPolicy {
    let trust = TrustedRoots::of(rustls::RootCertStore::empty()).unwrap();
    NetworkPolicy::new(network::Settings::default(), trust, Resolver::default())
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = clock::now() + TIMEOUT;
    while !condition() {
        assert!(clock::now() < until, "not within {TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_changed_secret_file_replaces_the_key_and_a_bad_one_does_not() {
    let logs = issuer::Logs::default();
    let _capturing = tracing::subscriber::set_default(logs.subscriber());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, SECRET).unwrap();
    let jwt = JwtSettings { hmac: Some(SecretRef::File(path.clone())), ..JwtSettings::default() };
    let mut tasks = Tasks::new("access");
    let verifier = Verifier::start(&settings(jwt), &network(), &mut tasks).await.unwrap();
    let [old, new] = [SECRET, OTHER_SECRET].map(|secret| hmac_token(secret, Algorithm::HS256, &claims(NOW)));
    assert_eq!(verifier.verify(&old, NOW).unwrap().subject.as_str(), "wall");
    assert_eq!(verifier.verify(&new, NOW), Err(TokenError::Signature));

    fs::write(&path, "too short").unwrap();
    eventually("the bad secret is reported", || logs.text().contains("not usable")).await;
    assert!(verifier.verify(&old, NOW).is_ok(), "the last key stays in use");
    fs::write(&path, format!("{OTHER_SECRET}\n")).unwrap();
    eventually("the new secret is in use", || verifier.verify(&new, NOW).is_ok()).await;
    assert_eq!(verifier.verify(&old, NOW), Err(TokenError::Signature));
    tasks.drain(Duration::from_secs(1)).await.unwrap();
}

#[tokio::test]
async fn a_key_that_cannot_be_used_is_reported_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Some(SecretRef::File(path))
    };
    let none = JwtSettings::default;
    for (jwt, expected) in [
        (none(), "exactly one of hmac, public_key and jwks_url"),
        (JwtSettings { hmac: file("a", "short"), ..none() }, "a secret of at least 32 bytes, found 5"),
        (JwtSettings { hmac: file("b", "two\nlines"), ..none() }, "more than one line"),
        (JwtSettings { public_key: file("c", SECRET), ..none() }, "expected a public key in PEM"),
        (JwtSettings { public_key: file("d", &P256.private_pem), ..none() }, "found a private key"),
        (JwtSettings { jwks_url: Some("http://keys.test/".to_owned()), ..none() }, "plain text"),
    ] {
        let mut tasks = Tasks::new("access");
        let error = Verifier::start(&settings(jwt), &network(), &mut tasks).await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains(expected) && !text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn a_new_token_is_signed_with_the_configured_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Some(SecretRef::File(path))
    };
    let request = GrantRequest {
        subject: "wall".parse().unwrap(),
        streams: vec!["acme.*".parse().unwrap()],
        ttl: Duration::from_secs(600),
        filter: Some("a".to_owned()),
    };
    let pair = |name: &str, key: &TestKey| JwtSettings {
        public_key: file(&format!("{name}.pub"), &key.public_pem),
        signing_key: file(name, &key.private_pem),
        ..JwtSettings::default()
    };
    let hmac = JwtSettings { hmac: file("h", SECRET), ..JwtSettings::default() };
    for jwt in [hmac, pair("p256", &P256), pair("p384", &P384), pair("ed", &ED)] {
        let named = Settings { audience: Some("t".to_owned()), issuer: Some("i".to_owned()), ..settings(jwt) };
        let token = TokenSigner::read(&named).await.unwrap().sign(&request, NOW).unwrap();
        let mut tasks = Tasks::new("access");
        let verifier = Verifier::start(&named, &network(), &mut tasks).await.unwrap();
        let grant = verifier.verify(&token, NOW).unwrap();
        assert_eq!(grant.streams, request.streams);
        assert_eq!(grant.expires_at, NOW.after(request.ttl));
        assert_eq!(grant.issued_at, Some(NOW));
        assert_eq!(grant.filter, request.filter);
    }
    let other = JwtSettings { signing_key: file("other", &OTHER_ED.private_pem), ..pair("ed", &ED) };
    let signer = TokenSigner::read(&settings(other)).await.unwrap();
    assert!(signer.sign(&request, NOW).unwrap_err().to_string().contains("does not belong to public_key"));
    let mixed = JwtSettings { signing_key: file("other", &P256.private_pem), ..pair("ed", &ED) };
    let error = TokenSigner::read(&settings(mixed)).await.unwrap_err();
    assert!(chain(&error).contains("of the same type as the public key"), "{}", chain(&error));
}

#[tokio::test]
async fn no_part_of_a_token_or_key_is_in_errors_logs_or_debug_output() {
    let logs = issuer::Logs::default();
    let _capturing = tracing::subscriber::set_default(logs.subscriber());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, SECRET).unwrap();
    let jwt = JwtSettings { hmac: Some(SecretRef::File(path.clone())), ..JwtSettings::default() };
    let mut tasks = Tasks::new("access");
    let verifier = Verifier::start(&settings(jwt), &network(), &mut tasks).await.unwrap();
    let mut claims = claims(NOW);
    claims["sub"] = json!("canary-subject");
    claims["exp"] = json!("canary-exp");
    let token = hmac_token(SECRET, Algorithm::HS256, &claims);
    let mut shown = format!("{verifier:?}");
    for token in
        [token.clone(), token[..token.len() - 4].to_owned(), "canary".repeat(2000), "canary.canary.canary".into()]
    {
        let error = verifier.verify(&token, NOW).unwrap_err();
        shown += &format!("{error} {error:?} {}", error.label());
    }
    fs::write(&path, "canary").unwrap();
    eventually("the bad secret is reported", || logs.text().contains("not usable")).await;
    shown += &logs.text();
    for needle in ["canary", &token[..20], token.rsplit('.').next().unwrap()] {
        assert!(!shown.contains(needle), "{needle} is in: {shown}");
    }
    tasks.drain(Duration::from_secs(1)).await.unwrap();
}

#[test]
fn a_verification_is_short() {
    const ROUNDS: usize = 200;
    /// A release build needs a fraction of it.
    const VERIFY_MAX: Duration = Duration::from_micros(500);
    let keys = [hmac_keys(), KeySet::Single(VerificationKey::of_pem(&ED.public_pem).unwrap())];
    let header = json!({ "alg": "EdDSA" });
    let tokens = [hmac_token(SECRET, Algorithm::HS256, &claims(NOW)), ED.token(&header, &claims(NOW))];
    for (keys, token) in keys.iter().zip(&tokens) {
        let rounds = (0..ROUNDS).map(|_| {
            let start = clock::now();
            super::verify(token, keys, &ClaimRules::default(), NOW).unwrap();
            clock::now() - start
        });
        // The shortest round: other processes may interrupt the rest.
        let shortest = rounds.min().unwrap();
        assert!(shortest < VERIFY_MAX, "{shortest:?}");
    }
}

#[test]
fn the_errors_of_a_start_name_the_key() {
    assert!(KeySourceError::Undefined.to_string().contains("http.auth.jwt"));
    assert_eq!(TokenError::from(ClaimError::Expired).label(), "expired");
}
