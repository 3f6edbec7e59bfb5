//! The proxies of an account: from its keys, else from the environment.

use super::{
    Environment,
    finding::{Finding, KeyPath, SourceLocation},
    shape::{AccountSection, File},
};
use crate::network::proxy::{EnvironmentError, NO_PROXY, Proxies, Proxy};

/// Reports environment variables that an account uses and that are not valid proxies.
pub(super) fn check(file: &File, environment: &Environment) -> Vec<Finding> {
    let errors = file.accounts.values().filter_map(|account| of(account, environment).err());
    let finding = |error: EnvironmentError| {
        let text = format!("{}; or write proxy = \"none\" in the account", error.cause);
        Finding::new(Some(SourceLocation::whole(error.variable)), KeyPath::default(), text)
    };
    let mut findings: Vec<Finding> = errors.map(finding).collect();
    findings.dedup();
    findings
}

/// The proxies of the environment; none if a variable is invalid, which is an error where an account uses it.
pub(super) fn of_environment(environment: &Environment) -> Proxies {
    Proxies::of_environment(|name| environment.get(name), &[]).unwrap_or_else(|_| Proxies::none())
}

/// The proxies of an account.
pub(super) fn of(account: &AccountSection, environment: &Environment) -> Result<Proxies, EnvironmentError> {
    match account.proxy.as_deref() {
        Some(NO_PROXY) => Ok(Proxies::none()),
        // `format` has reported an invalid URL.
        Some(url) => {
            Ok(Proxy::parse(url).map_or_else(|_| Proxies::none(), |proxy| Proxies::all(&proxy, &account.no_proxy)))
        }
        None => Proxies::of_environment(|name| environment.get(name), &account.no_proxy),
    }
}
