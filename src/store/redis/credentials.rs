//! The logins that are configured in addition to the URL, or in a URL that is itself a secret. They are read again for
//! each connection, so the next connection uses a changed password.

use super::address::{Address, AddressError, RedisLogin};
use crate::{
    model::{Secret, SecretRef},
    secrets::{self, SecretError},
};

/// The sources of logins. By default only the URL.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The URL, if it is a secret.
    pub url: Option<SecretRef>,
    /// Replaces the URL's user.
    pub username: Option<String>,
    /// Replaces the URL's password.
    pub password: Option<SecretRef>,
    pub sentinel_username: Option<String>,
    /// The password of the Sentinels. Without it, the server's login is tried.
    pub sentinel_password: Option<SecretRef>,
    /// Permits a password over an unencrypted connection.
    pub insecure: bool,
}

/// A login could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("store.{key}")]
    Secret {
        key: &'static str,
        #[source]
        cause: SecretError,
    },
    #[error("store.url: the secret is no address")]
    Address(#[from] AddressError),
    #[error("store.url: the password would be sent to another machine in plain text; write rediss in place of redis")]
    Exposed,
}

impl Credentials {
    /// The current address: `configured`, unless the URL is a secret.
    pub async fn locate(&self, configured: &Address) -> Result<Address, CredentialsError> {
        let Some(url) = &self.url else { return Ok(configured.clone()) };
        let address: Address = read("url", url).await?.expose().parse()?;
        if address.exposes_credentials() && !self.insecure {
            return Err(CredentialsError::Exposed);
        }
        Ok(address)
    }

    /// The address with the current logins. Fails if the URL now names another server: the location of the data does
    /// not change while the store is open.
    pub(super) async fn resolve(&self, address: &Address) -> Result<Address, CredentialsError> {
        let mut complete = self.locate(address).await?;
        if !complete.is_same_server(address) {
            tracing::warn!(%address, now = %complete, "store.url changed; the new address is used after a restart");
            complete = address.clone();
        }
        if let Some(username) = &self.username {
            complete.user = Some(username.clone());
        }
        if let Some(password) = &self.password {
            complete.password = Some(read("password", password).await?);
        }
        if let Some(password) = &self.sentinel_password {
            let password = read("sentinel_password", password).await?;
            complete.sentinels = Some(RedisLogin { user: self.sentinel_username.clone(), password });
        }
        Ok(complete)
    }
}

async fn read(key: &'static str, secret: &SecretRef) -> Result<Secret, CredentialsError> {
    secrets::read(secret).await.map_err(|cause| CredentialsError::Secret { key, cause })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::telemetry::chain;

    #[tokio::test]
    async fn a_configured_login_overrides_the_url_and_is_read_for_each_dial() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let configured: Address = "redis+sentinel://ann:old@localhost/main".parse().unwrap();
        let secret = Some(SecretRef::File(path.clone()));
        let credentials =
            Credentials { username: Some("bob".to_owned()), password: secret.clone(), ..Credentials::default() };
        let missing = chain(&credentials.resolve(&configured).await.unwrap_err());
        assert!(missing.starts_with("store.password: could not read secret file "), "{missing}");
        for password in ["first", "second"] {
            fs::write(&path, format!("{password}\n")).unwrap();
            let complete = credentials.resolve(&configured).await.unwrap();
            assert_eq!((complete.user.as_deref(), complete.password), (Some("bob"), Some(Secret::new(password))));
            assert_eq!(complete.sentinels, None);
        }
        let own = Credentials { sentinel_password: secret, ..Credentials::default() };
        let complete = own.resolve(&configured).await.unwrap();
        assert_eq!(complete.sentinels, Some(RedisLogin { user: None, password: Secret::new("second") }));
        assert_eq!((complete.user.as_deref(), complete.password), (Some("ann"), Some(Secret::new("old"))));
    }

    #[tokio::test]
    async fn a_url_file_is_reread_for_its_login_and_never_moves_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        let credentials = Credentials { url: Some(SecretRef::File(path.clone())), ..Credentials::default() };
        let configured: Address = "redis://ann:old@localhost/1".parse().unwrap();
        fs::write(&path, "redis://ann:new@localhost/1").unwrap();
        assert_eq!(credentials.resolve(&configured).await.unwrap().password, Some(Secret::new("new")));
        fs::write(&path, "redis://ann:new@localhost/2").unwrap();
        assert_eq!(credentials.resolve(&configured).await.unwrap(), configured);
        fs::write(&path, "redis://ann:hunter2@redis.acme.example").unwrap();
        let exposed = chain(&credentials.locate(&configured).await.unwrap_err());
        assert!(exposed.contains("plain text") && !exposed.contains("hunter2"), "{exposed}");
    }
}
