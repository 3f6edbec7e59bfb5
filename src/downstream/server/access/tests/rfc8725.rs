//! RFC 8725 (JSON Web Token Best Current Practices), section 3, row by row.

use super::*;
use crate::downstream::server::access::{VerificationKeyError, key_set::IssuerKey};

/// A section of the RFC, an attack or a rule, the token, the keys, and `valid` or the label of the error.
type Row = (&'static str, &'static str, String, KeySet, &'static str);

/// The number of rows.
const ROWS: usize = 92;

fn issuer(keys: &[(&str, &TestKey)]) -> KeySet {
    let key = |(id, key): &(&str, &TestKey)| IssuerKey {
        id: Some((*id).to_owned()),
        key: VerificationKey::of_pem(&key.public_pem).unwrap(),
    };
    KeySet::Issuer(keys.iter().map(key).collect())
}

fn public(key: &TestKey) -> KeySet {
    KeySet::Single(VerificationKey::of_pem(&key.public_pem).unwrap())
}

/// An HMAC token with this header.
fn with_header(header: &str) -> String {
    signed(header, &claims(NOW).to_string(), &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256)
}

/// An HMAC token with these claims.
fn with_claims(text: &str) -> String {
    signed(r#"{"alg":"HS256"}"#, text, &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256)
}

/// An HMAC token whose claims have this member in place of the valid one; null removes it.
fn with_claim(name: &str, value: Value) -> String {
    let mut claims = claims(NOW);
    claims[name] = value;
    if claims[name].is_null() {
        claims.as_object_mut().unwrap().remove(name);
    }
    with_claims(&claims.to_string())
}

fn valid() -> String {
    hmac_token(SECRET, Algorithm::HS256, &claims(NOW))
}

/// A part of the valid token replaced.
fn replaced(part: usize, text: &str) -> String {
    let token = valid();
    let mut parts: Vec<&str> = token.split('.').collect();
    parts[part] = text;
    parts.join(".")
}

fn unsigned(alg: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#));
    format!("{header}.{}.", URL_SAFE_NO_PAD.encode(claims(NOW).to_string()))
}

/// HS256 with the public key as the secret.
fn confused(key: &TestKey, secret: &[u8]) -> (String, KeySet) {
    let secret = EncodingKey::from_secret(secret);
    let token = signed(r#"{"alg":"HS256"}"#, &claims(NOW).to_string(), &secret, Algorithm::HS256);
    (token, public(key))
}

fn algorithm_rows() -> Vec<Row> {
    const S: &str = "3.1";
    let (pem_as_secret, ed_keys) = confused(&ED, ED.public_pem.as_bytes());
    let (trimmed_as_secret, p256_keys) = confused(&P256, P256.public_pem.trim().as_bytes());
    let es = |key: &TestKey, alg: &str| key.token(&json!({ "alg": alg }), &claims(NOW));
    vec![
        (S, "an HMAC token", valid(), hmac_keys(), "valid"),
        (S, "an ES256 token", es(&P256, "ES256"), public(&P256), "valid"),
        (S, "an ES384 token", es(&P384, "ES384"), public(&P384), "valid"),
        (S, "an EdDSA token", es(&ED, "EdDSA"), public(&ED), "valid"),
        (S, "the public key as HMAC secret", pem_as_secret, ed_keys, "algorithm"),
        (S, "the trimmed public key as HMAC secret", trimmed_as_secret, p256_keys, "algorithm"),
        (S, "alg names another type than the key", es(&P256, "EdDSA"), public(&P256), "algorithm"),
        (S, "alg names another curve than the key", es(&P256, "ES384"), public(&P256), "algorithm"),
        (S, "alg names RSA for an EC key", es(&P256, "RS256"), public(&P256), "algorithm"),
        (S, "HS256 under the key id of a public key", kid_token("a", "HS256"), issuer(&[("a", &ED)]), "algorithm"),
        (S, "another algorithm than the signature", with_header(r#"{"alg":"HS384"}"#), hmac_keys(), "algorithm"),
        (S, "no alg", with_header(r#"{"typ":"JWT"}"#), hmac_keys(), "malformed"),
        (S, "alg twice", with_header(r#"{"alg":"HS256","alg":"none"}"#), hmac_keys(), "malformed"),
        (S, "alg is a list", with_header(r#"{"alg":["HS256","none"]}"#), hmac_keys(), "malformed"),
        (S, "a list in place of the header", with_header(r#"["HS256"]"#), hmac_keys(), "malformed"),
    ]
}

fn kid_token(kid: &str, alg: &str) -> String {
    ED.token(&json!({ "alg": alg, "kid": kid }), &claims(NOW))
}

fn none_rows() -> Vec<Row> {
    const S: &str = "3.2";
    let spelled = |alg: &str| with_header(&json!({ "alg": alg }).to_string());
    vec![
        (S, "none without signature", unsigned("none"), hmac_keys(), "malformed"),
        (S, "None without signature", unsigned("None"), hmac_keys(), "malformed"),
        (S, "none with a signature", spelled("none"), hmac_keys(), "algorithm"),
        (S, "nOnE with a signature", spelled("nOnE"), hmac_keys(), "algorithm"),
        (S, "an empty alg", spelled(""), hmac_keys(), "algorithm"),
        (S, "alg in lower case", spelled("hs256"), hmac_keys(), "algorithm"),
        (S, "alg with a blank", spelled("HS256 "), hmac_keys(), "algorithm"),
        (S, "RSA with PKCS#1 v1.5 encryption", spelled("RSA1_5"), hmac_keys(), "algorithm"),
        (S, "an unknown algorithm", spelled("ES256K"), hmac_keys(), "algorithm"),
    ]
}

fn operation_rows() -> Vec<Row> {
    const S: &str = "3.3";
    let token = valid();
    let (message, signature) = token.rsplit_once('.').unwrap();
    let other_claims = URL_SAFE_NO_PAD.encode(json!({ "sub": "admin" }).to_string());
    let flipped =
        format!("{message}.{}", if signature.starts_with('A') { "B" } else { "A" }.to_owned() + &signature[1..]);
    let nested = with_header(r#"{"alg":"HS256","cty":"JWT"}"#);
    vec![
        (S, "a changed signature", flipped, hmac_keys(), "signature"),
        (S, "a shorter signature", token[..token.len() - 4].to_owned(), hmac_keys(), "signature"),
        (S, "an empty signature", format!("{message}."), hmac_keys(), "malformed"),
        (S, "no signature", message.to_owned(), hmac_keys(), "malformed"),
        (S, "changed claims", replaced(1, &other_claims), hmac_keys(), "signature"),
        (S, "another secret", hmac_token(OTHER_SECRET, Algorithm::HS256, &claims(NOW)), hmac_keys(), "signature"),
        (S, "an all-zero ECDSA signature", zero_signature(), public(&P256), "signature"),
        (S, "a nested token", nested, hmac_keys(), "header"),
        (S, "an encrypted token", format!("{token}.{signature}.{signature}"), hmac_keys(), "malformed"),
        (S, "a header of encryption", with_header(r#"{"alg":"HS256","enc":"A256GCM"}"#), hmac_keys(), "header"),
        (S, "an extension", with_header(r#"{"alg":"HS256","crit":["exp"],"exp":1}"#), hmac_keys(), "header"),
        (S, "an empty list of extensions", with_header(r#"{"alg":"HS256","crit":[]}"#), hmac_keys(), "header"),
        (S, "extensions are null", with_header(r#"{"alg":"HS256","crit":null}"#), hmac_keys(), "header"),
        (S, "claims that are not encoded", with_header(r#"{"alg":"HS256","b64":false}"#), hmac_keys(), "header"),
    ]
}

fn zero_signature() -> String {
    let token = P256.token(&json!({ "alg": "ES256" }), &claims(NOW));
    let (message, _) = token.rsplit_once('.').unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 64]))
}

fn input_rows() -> Vec<Row> {
    const S: &str = "3.4";
    let long = with_claim("jti", json!("x".repeat(9000)));
    let longest = with_claim("jti", json!("x".repeat(5700)));
    let (token, header) = (valid(), valid().split('.').next().unwrap().to_owned());
    vec![
        (S, "more than 8 KiB", long, hmac_keys(), "too_long"),
        (S, "almost 8 KiB", longest, hmac_keys(), "valid"),
        (S, "an empty token", String::new(), hmac_keys(), "malformed"),
        (S, "only dots", "..".to_owned(), hmac_keys(), "malformed"),
        (S, "padding", replaced(0, &format!("{header}=")), hmac_keys(), "malformed"),
        (S, "base64 with + and /", replaced(0, "+/+/"), hmac_keys(), "malformed"),
        (S, "a blank in front", format!(" {token}"), hmac_keys(), "malformed"),
        (S, "a line break at the end", format!("{token}\n"), hmac_keys(), "signature"),
        (S, "claims are a list", with_claims(r#"["wall",2000000000]"#), hmac_keys(), "claims"),
        (S, "a claim twice", with_claims(r#"{"sub":"a","sub":"b","exp":2e9,"streams":["*"]}"#), hmac_keys(), "claims"),
        (S, "deeply nested claims", with_claims(&"[".repeat(3000)), hmac_keys(), "claims"),
    ]
}

/// Weak HMAC secrets are rejected when the key is read. A secret is long enough for its algorithm only.
fn entropy_rows() -> Vec<Row> {
    const S: &str = "3.5";
    let long = "0123456789abcdef".repeat(4);
    let keys = || KeySet::Single(VerificationKey::of_secret(&Secret::new(long.as_str())).unwrap());
    vec![
        (S, "HS512 with 34 bytes", hmac_token(SECRET, Algorithm::HS512, &claims(NOW)), hmac_keys(), "algorithm"),
        (S, "HS384 with 34 bytes", hmac_token(SECRET, Algorithm::HS384, &claims(NOW)), hmac_keys(), "algorithm"),
        (S, "HS512 with 64 bytes", hmac_token(&long, Algorithm::HS512, &claims(NOW)), keys(), "valid"),
        (S, "HS384 with 64 bytes", hmac_token(&long, Algorithm::HS384, &claims(NOW)), keys(), "valid"),
    ]
}

fn encoding_rows() -> Vec<Row> {
    let compressed = with_header(r#"{"alg":"HS256","zip":"DEF"}"#);
    let utf16: Vec<u8> = r#"{"alg":"HS256"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let latin1 = {
        let claims: Vec<u8> = [&br#"{"sub":""#[..], &[0xe4], &br#"","exp":2e9,"streams":["*"]}"#[..]].concat();
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#), URL_SAFE_NO_PAD.encode(claims));
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    };
    vec![
        ("3.6", "compression", compressed, hmac_keys(), "header"),
        ("3.7", "a header in UTF-16", replaced(0, &URL_SAFE_NO_PAD.encode(utf16)), hmac_keys(), "malformed"),
        ("3.7", "claims in Latin-1", latin1, hmac_keys(), "malformed"),
        ("3.7", "a subject beyond ASCII", with_claim("sub", json!("wänd")), hmac_keys(), "valid"),
    ]
}

fn claim_rows() -> Vec<Row> {
    vec![
        ("3.8", "no subject", with_claim("sub", Value::Null), hmac_keys(), "claim_missing"),
        ("3.8", "an empty subject", with_claim("sub", json!("")), hmac_keys(), "claim_invalid"),
        ("3.8", "a subject with a line break", with_claim("sub", json!("a\nb")), hmac_keys(), "claim_invalid"),
        ("3.9", "another audience", with_claim("aud", json!("other")), hmac_keys(), "audience"),
        ("3.9", "no expiry", with_claim("exp", Value::Null), hmac_keys(), "claim_missing"),
        ("3.9", "expired", with_claim("exp", json!(NOW.0 / 1000 - 6)), hmac_keys(), "expired"),
        ("3.9", "expired within the leeway", with_claim("exp", json!(NOW.0 / 1000 - 4)), hmac_keys(), "valid"),
        ("3.9", "not valid yet", with_claim("nbf", json!(NOW.0 / 1000 + 6)), hmac_keys(), "not_yet_valid"),
        ("3.9", "issued in the future", with_claim("iat", json!(NOW.0 / 1000 + 6)), hmac_keys(), "not_yet_valid"),
        ("3.9", "an expiry as text", with_claim("exp", json!("2000000000")), hmac_keys(), "claim_invalid"),
    ]
}

fn trust_rows() -> Vec<Row> {
    const S: &str = "3.10";
    let own_key = json!({ "alg": "EdDSA", "jwk": OTHER_ED.jwk("x") });
    let foreign = |header: Value| OTHER_ED.token(&header, &claims(NOW));
    let keys = || issuer(&[("a", &ED), ("b", &P256)]);
    let twice = || issuer(&[("a", &ED), ("a", &OTHER_ED)]);
    let plain = || ED.token(&json!({ "alg": "EdDSA" }), &claims(NOW));
    vec![
        (S, "a known key id", kid_token("a", "EdDSA"), keys(), "valid"),
        (S, "an unknown key id", kid_token("c", "EdDSA"), keys(), "unknown_key"),
        (S, "the id of a key of another type", kid_token("b", "EdDSA"), keys(), "algorithm"),
        (S, "an id that two keys have", kid_token("a", "EdDSA"), twice(), "ambiguous_key"),
        (S, "no id, one key of the type", plain(), keys(), "valid"),
        (S, "no id, two keys of the type", plain(), issuer(&[("a", &ED), ("b", &OTHER_ED)]), "ambiguous_key"),
        (S, "a path as key id", kid_token("../../dev/null", "EdDSA"), keys(), "unknown_key"),
        (S, "a query as key id", kid_token("' OR '1'='1", "EdDSA"), keys(), "unknown_key"),
        (S, "an empty key id", kid_token("", "EdDSA"), keys(), "unknown_key"),
        (S, "a key id that is null", with_header(r#"{"alg":"HS256","kid":null}"#), hmac_keys(), "malformed"),
        (S, "two key ids", with_header(r#"{"alg":"HS256","kid":"a","kid":"b"}"#), hmac_keys(), "malformed"),
        (S, "its own key in the header", foreign(own_key), public(&ED), "signature"),
        (
            S,
            "the address of a key set",
            foreign(json!({ "alg": "EdDSA", "jku": "http://x" })),
            public(&ED),
            "signature",
        ),
        (S, "the address of a certificate", foreign(json!({ "alg": "EdDSA", "x5u": "http://x" })), keys(), "signature"),
        (S, "before the first keys", kid_token("a", "EdDSA"), KeySet::Unavailable, "keys_unavailable"),
    ]
}

fn typing_rows() -> Vec<Row> {
    let typ = |typ: &str| with_header(&json!({ "alg": "HS256", "typ": typ }).to_string());
    vec![
        ("3.11", "no type", with_header(r#"{"alg":"HS256"}"#), hmac_keys(), "valid"),
        ("3.11", "the type JWT", typ("JWT"), hmac_keys(), "valid"),
        ("3.11", "the type of an access token", typ("application/at+jwt"), hmac_keys(), "valid"),
        ("3.11", "the type of a security event", typ("secevent+jwt"), hmac_keys(), "header"),
        ("3.11", "the type of a logout token", typ("logout+jwt"), hmac_keys(), "header"),
        ("3.11", "an empty type", typ(""), hmac_keys(), "header"),
        (
            "3.12",
            "a token without streams, as for sign-in",
            with_claim("streams", Value::Null),
            hmac_keys(),
            "claim_missing",
        ),
        ("3.12", "no stream", with_claim("streams", json!([])), hmac_keys(), "claim_invalid"),
        ("3.12", "streams as text", with_claim("streams", json!("*")), hmac_keys(), "claim_invalid"),
        ("3.12", "a filter that is no text", with_claim("filter", json!({})), hmac_keys(), "claim_invalid"),
    ]
}

#[test]
fn each_rule_for_tokens_holds() {
    let groups = [
        algorithm_rows(),
        none_rows(),
        operation_rows(),
        input_rows(),
        entropy_rows(),
        encoding_rows(),
        claim_rows(),
        trust_rows(),
        typing_rows(),
    ];
    let rows: Vec<Row> = groups.into_iter().flatten().collect();
    assert_eq!(rows.len(), ROWS);
    for section in 1..=12 {
        let section = format!("3.{section}");
        assert!(rows.iter().any(|row| row.0 == section), "no row for section {section}");
    }
    for (section, what, token, keys, expected) in rows {
        let found = crate::downstream::server::access::verify(&token, &keys, &ClaimRules::default(), NOW);
        let found = found.map_or_else(TokenError::label, |_| "valid");
        assert_eq!(found, expected, "section {section}: {what}");
    }
}

#[test]
fn issuer_and_audience_are_those_of_the_configuration() {
    let rules = ClaimRules { audience: Some("t".to_owned()), issuer: Some("i".to_owned()) };
    for (section, aud, iss, expected) in [
        ("3.8", json!("t"), json!("i"), "valid"),
        ("3.8", json!("t"), json!("j"), "issuer"),
        ("3.8", json!("t"), json!("i "), "issuer"),
        ("3.8", json!("t"), json!(["i"]), "claim_invalid"),
        ("3.9", json!(["u", "t"]), json!("i"), "valid"),
        ("3.9", json!(["u"]), json!("i"), "audience"),
        ("3.9", json!(""), json!("i"), "audience"),
        ("3.9", json!({ "t": 1 }), json!("i"), "claim_invalid"),
    ] {
        let mut claims = claims(NOW);
        (claims["aud"], claims["iss"]) = (aud, iss);
        let found =
            crate::downstream::server::access::verify(&with_claims(&claims.to_string()), &hmac_keys(), &rules, NOW);
        assert_eq!(found.map_or_else(TokenError::label, |_| "valid"), expected, "{section}: {claims}");
    }
}

/// Sections 3.4 and 3.5 for keys.
#[test]
fn weak_and_invalid_keys_are_rejected_when_they_are_read() {
    let jwk = |json: Value| {
        let jwk: Result<Jwk, _> = serde_json::from_value(json);
        jwk.map_err(|_| VerificationKeyError::OtherUse).and_then(|jwk| VerificationKey::of_jwk(&jwk)).map(drop)
    };
    let with = |name: &str, value: Value| {
        let mut json = P256.jwk("a");
        json[name] = value;
        json
    };
    let zeros = |count: usize| URL_SAFE_NO_PAD.encode(vec![0; count]);
    let rsa = |bytes: usize| json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(vec![0xff; bytes]), "e": "AQAB" });
    for (what, found, expected) in [
        ("a point that is not on the curve", jwk(with("x", json!(zeros(32)))), Err(VerificationKeyError::NoPublicKey)),
        ("a point of another length", jwk(with("x", json!(zeros(31)))), Err(VerificationKeyError::NoPublicKey)),
        (
            "a short Ed25519 key",
            jwk(json!({ "kty": "OKP", "crv": "Ed25519", "x": zeros(31) })),
            Err(VerificationKeyError::NoPublicKey),
        ),
        ("an RSA key of 1024 bits", jwk(rsa(128)), Err(VerificationKeyError::RsaSize { found: 1024 })),
        ("an RSA key of 2040 bits", jwk(rsa(255)), Err(VerificationKeyError::RsaSize { found: 2040 })),
        ("an RSA key of 2048 bits", jwk(rsa(256)), Ok(())),
        ("an RSA key of 16384 bits", jwk(rsa(2048)), Err(VerificationKeyError::RsaSize { found: 16_384 })),
        (
            "a secret among public keys",
            jwk(json!({ "kty": "oct", "k": zeros(64) })),
            Err(VerificationKeyError::OtherUse),
        ),
        ("a key for encryption", jwk(with("use", json!("enc"))), Err(VerificationKeyError::OtherUse)),
        ("a key that only signs", jwk(with("key_ops", json!(["sign"]))), Err(VerificationKeyError::OtherUse)),
        ("a key for another algorithm", jwk(with("alg", json!("RS256"))), Err(VerificationKeyError::OtherUse)),
        ("an EC key for HMAC", jwk(with("alg", json!("HS256"))), Err(VerificationKeyError::OtherUse)),
        ("a key for its algorithm", jwk(with("alg", json!("ES256"))), Ok(())),
        ("an unknown curve", jwk(with("crv", json!("secp256k1"))), Err(VerificationKeyError::NoPublicKey)),
    ] {
        assert_eq!(found, expected, "{what}");
    }
    for (len, expected) in [(31, Err(VerificationKeyError::ShortSecret { found: 31 })), (32, Ok(()))] {
        assert_eq!(VerificationKey::of_secret(&Secret::new("x".repeat(len))).map(drop), expected);
    }
    for (pem, expected) in [
        ("", VerificationKeyError::NoPublicKey),
        (P256.private_pem.as_str(), VerificationKeyError::PrivateKey),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", VerificationKeyError::NoPublicKey),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", VerificationKeyError::NoPublicKey),
    ] {
        assert_eq!(VerificationKey::of_pem(pem).map(drop), Err(expected), "{pem}");
    }
}
