//! The log filter in the syntax of `RUST_LOG`, validated before the library parses it.
//!
//! The library would print errors to standard error in colour; here they become a log line.

use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing_subscriber::EnvFilter;

/// The filter if none is given or it is invalid.
const FILTER_DEFAULT: &str = "info";

/// The filter to use, and why the given one is invalid.
pub(super) fn read(given: Option<&str>) -> (EnvFilter, Option<String>) {
    let given = given.map(str::trim).filter(|given| !given.is_empty()).unwrap_or(FILTER_DEFAULT);
    match checked(given).and_then(|filter| EnvFilter::try_new(filter).map_err(|error| error.to_string())) {
        Ok(filter) => (filter, None),
        Err(why) => {
            let problem = format!("log filter {given:?} ignored: {why}; using {FILTER_DEFAULT}");
            (EnvFilter::new(FILTER_DEFAULT), Some(problem))
        }
    }
}

/// The filter without white space, if every part is `LEVEL` or `TARGET=LEVEL`.
fn checked(filter: &str) -> Result<String, String> {
    let parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    Ok(parts.map(checked_part).collect::<Result<Vec<_>, _>>()?.join(","))
}

fn checked_part(part: &str) -> Result<&str, String> {
    let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
    match level.parse::<LevelFilter>() {
        Ok(level) if level > STATIC_MAX_LEVEL => {
            Err(format!("level {level} is not part of this build, the most verbose is {STATIC_MAX_LEVEL}"))
        }
        Ok(_) => Ok(part),
        Err(_) => Err(format!("unknown level {level:?}, expected {}, off or TARGET=LEVEL", levels())),
    }
}

/// The levels that are part of this build.
fn levels() -> String {
    let all = [LevelFilter::ERROR, LevelFilter::WARN, LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE];
    let names = all.into_iter().filter(|level| *level <= STATIC_MAX_LEVEL).map(|level| level.to_string());
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_used_or_its_fault_is_named() {
        for good in ["info", "DEBUG", "off", "warn,trunkline=debug", " trunkline::auth=info , hyper=off", "", " "] {
            assert_eq!(read(Some(good)).1, None, "{good:?}");
        }
        assert_eq!(read(None).1, None);
        for (bad, named) in [
            ("verbose", "unknown level \"verbose\", expected error, warn, info, debug"),
            ("trunkline=loud", "unknown level \"loud\""),
            ("info,trunkline", "unknown level \"trunkline\""),
            ("\u{1b}[31m", "unknown level \"\\u{1b}[31m\""),
        ] {
            let (filter, complaint) = read(Some(bad));
            assert!(complaint.is_some_and(|complaint| complaint.contains(named)), "{bad:?}");
            assert_eq!(filter.to_string(), FILTER_DEFAULT);
        }
    }
}
