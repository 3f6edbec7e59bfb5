//! Reads secrets from the configured sources. Errors name the source and never the value.

use std::{env::VarError, io, path::PathBuf};

use tokio::io::AsyncReadExt;

use crate::model::{Secret, SecretRef};

/// The most bytes of a secret file.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// A secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("environment variable {0} is not set")]
    MissingVariable(String),
    #[error("environment variable {0} is not UTF-8 text")]
    NonUtf8Variable(String),
    #[error("environment variable {0} is empty")]
    EmptyVariable(String),
    #[error("environment variable {0} holds more than one line, or a control character")]
    InvalidVariable(String),
    #[error("could not read secret file {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("secret file {} is empty", .0.display())]
    EmptyFile(PathBuf),
    #[error("secret file {} holds more than one line, or a control character", .0.display())]
    InvalidFile(PathBuf),
}

/// The present value of the secret, without surrounding white space: one line.
pub async fn read(reference: &SecretRef) -> Result<Secret, SecretError> {
    let secret = read_lines(reference).await?;
    match Secret::has_control_characters(secret.expose()) {
        true => Err(SecretError::not_one_line(reference)),
        false => Ok(secret),
    }
}

/// The present value of a secret that may have several lines, such as a key in PEM, without surrounding white space.
pub async fn read_lines(reference: &SecretRef) -> Result<Secret, SecretError> {
    match reference {
        SecretRef::Env(name) => variable(name),
        SecretRef::File(path) => file(path).await,
    }
}

impl SecretError {
    fn not_one_line(reference: &SecretRef) -> Self {
        match reference {
            SecretRef::Env(name) => Self::InvalidVariable(name.clone()),
            SecretRef::File(path) => Self::InvalidFile(path.clone()),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a secret that the configuration refers to is read only where it is used"
)]
fn variable(name: &str) -> Result<Secret, SecretError> {
    let text = std::env::var(name).map_err(|error| match error {
        VarError::NotPresent => SecretError::MissingVariable(name.to_owned()),
        VarError::NotUnicode(_) => SecretError::NonUtf8Variable(name.to_owned()),
    })?;
    match Secret::trimmed(&text) {
        "" => Err(SecretError::EmptyVariable(name.to_owned())),
        text => Ok(Secret::new(text)),
    }
}

async fn file(path: &PathBuf) -> Result<Secret, SecretError> {
    let text = read_text(path).await.map_err(|cause| SecretError::Unreadable { path: path.clone(), cause })?;
    match Secret::trimmed(&text) {
        "" => Err(SecretError::EmptyFile(path.clone())),
        text => Ok(Secret::new(text)),
    }
}

async fn read_text(path: &PathBuf) -> io::Result<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await?;
    let len = file.take(FILE_LEN_MAX + 1).read_to_string(&mut text).await?;
    if len as u64 > FILE_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than a secret can be"));
    }
    Ok(text)
}
