//! Tokens that the `openssl` command has signed, with keys that it has made.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use super::*;

/// Runs `openssl`, which must succeed, and returns its output.
fn openssl(folder: &Path, arguments: &str) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(folder).stdin(Stdio::null());
    let output = command.output().expect("these tests need openssl: apt-get install openssl");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A token with this algorithm: the message is signed by the command, and `format` converts the signature.
fn token(folder: &Path, alg: &str, sign: &str, format: fn(&[u8]) -> Vec<u8>) -> String {
    let header = json!({ "alg": alg, "typ": "JWT" }).to_string();
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims(NOW).to_string()));
    fs::write(folder.join("message"), &message).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(format(&openssl(folder, sign))))
}

/// The fixed form (RFC 7518 section 3.4) of a DER signature: both integers in 32 bytes.
fn fixed(der: &[u8]) -> Vec<u8> {
    let mut fixed = Vec::new();
    let mut rest = &der[2..];
    for _ in 0..2 {
        let (integer, after) = rest[2..].split_at(usize::from(rest[1]));
        let significant: Vec<u8> = integer.iter().copied().skip_while(|byte| *byte == 0).collect();
        fixed.extend(vec![0; 32 - significant.len()]);
        fixed.extend(significant);
        rest = after;
    }
    fixed
}

#[expect(clippy::unwrap_in_result, reason = "a broken fixture ends the test")]
fn verified(folder: &Path, token: &str) -> Result<(), TokenError> {
    let pem = String::from_utf8(openssl(folder, "pkey -in key -pubout")).unwrap();
    let keys = KeySet::Single(VerificationKey::of_pem(&pem).unwrap());
    super::super::verify(token, &keys, &ClaimRules::default(), NOW).map(drop)
}

#[test]
fn tokens_that_openssl_signed_are_valid() {
    const PSS: &str = "dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest -sign key message";
    const RSA: &str = "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key";
    const EC: &str = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key";
    for (alg, make, sign, format) in [
        ("RS256", RSA, "dgst -sha256 -sign key message", <[u8]>::to_vec as fn(&[u8]) -> Vec<u8>),
        ("RS512", RSA, "dgst -sha512 -sign key message", <[u8]>::to_vec),
        ("PS256", RSA, PSS, <[u8]>::to_vec),
        ("ES256", EC, "dgst -sha256 -sign key message", fixed),
        ("EdDSA", "genpkey -algorithm ED25519 -out key", "pkeyutl -sign -rawin -inkey key -in message", <[u8]>::to_vec),
    ] {
        let folder = tempfile::tempdir().unwrap();
        openssl(folder.path(), make);
        let good = token(folder.path(), alg, sign, format);
        assert_eq!(verified(folder.path(), &good), Ok(()), "{alg}");
        let (message, signature) = good.rsplit_once('.').unwrap();
        let changed = format!("{message}.{}{}", if signature.starts_with('A') { "B" } else { "A" }, &signature[1..]);
        assert_eq!(verified(folder.path(), &changed), Err(TokenError::Signature), "{alg}");
        openssl(folder.path(), make);
        assert_eq!(verified(folder.path(), &good), Err(TokenError::Signature), "{alg} with another key");
    }
}

#[test]
fn a_key_of_openssl_that_is_too_weak_or_of_another_type_is_rejected() {
    for make in [
        "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out key",
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out key",
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp256k1 -out key",
        "genpkey -algorithm X25519 -out key",
        "genpkey -algorithm ED448 -out key",
    ] {
        let folder = tempfile::tempdir().unwrap();
        openssl(folder.path(), make);
        let pem = String::from_utf8(openssl(folder.path(), "pkey -in key -pubout")).unwrap();
        assert!(VerificationKey::of_pem(&pem).is_err(), "{make}");
    }
}
