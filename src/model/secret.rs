//! A value that must not be seen: it has no useful `Debug`, no `Display` and no `Serialize`.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A secret text: wiped from memory when dropped, printed as `***`.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes the text over.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The text itself: only where it goes onto the wire.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// In constant time for equal lengths, so that comparing tells nothing about the text.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.expose().as_bytes(), other.expose().as_bytes()).is_ok()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
