//! The keys of a dialect in the configuration, and the findings of its checks.

use crate::model::Span;

/// The keys of a dialect in the table of a stream, without those that all dialects have.
#[derive(Debug, Clone, Copy)]
pub struct SettingKeys {
    pub required: &'static [&'static str],
    pub optional: &'static [&'static str],
}

/// The settings outside the dialect that its checks need.
#[derive(Debug, Clone, Copy)]
pub struct CheckContext {
    pub silence_max: Span,
    pub retention: Span,
    /// None if the stream names no existing account.
    pub account: Option<AccountContext>,
}

/// The settings of the account that the checks need.
#[derive(Debug, Clone, Copy)]
pub struct AccountContext {
    pub has_region: bool,
    /// Whether neither a region nor a key gives the URL of the REST API.
    pub lacks_api_url: bool,
}

/// An error in the settings of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingFinding {
    pub key: SettingKey,
    pub severity: Severity,
    pub text: String,
}

/// The key of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingKey {
    Stream(&'static str),
    Account(&'static str),
}

/// What a finding prevents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Mistake,
    /// The setting cannot work. The rest works without it.
    Ineffective,
}

impl SettingFinding {
    /// A finding that refuses the configuration.
    pub(super) fn mistake(key: SettingKey, text: impl Into<String>) -> Self {
        Self { key, severity: Severity::Mistake, text: text.into() }
    }

    /// A finding about a setting without effect.
    pub(super) fn ineffective(key: SettingKey, text: impl Into<String>) -> Self {
        Self { key, severity: Severity::Ineffective, text: text.into() }
    }
}
