//! What the environment asks tests for. What cannot be understood fails: taken for what nobody has
//! asked for, it would make a test pass without having done what was wanted.

use std::env;
use std::fmt::Display;
use std::str::FromStr;

/// The number that this variable has, if it is set.
pub(crate) fn number<N: FromStr + PartialOrd + Display>(name: &str, least: N) -> Option<N> {
    let text = env::var_os(name)?;
    match text.to_str().and_then(|text| text.parse().ok()) {
        Some(number) if number >= least => Some(number),
        _ => panic!("{name}={text:?}: a number of at least {least}"),
    }
}

/// Whether this variable is set to 1; nothing and 0 are no.
pub(crate) fn is_on(name: &str) -> bool {
    match env::var_os(name) {
        None => false,
        Some(text) if text == "0" => false,
        Some(text) if text == "1" => true,
        Some(text) => panic!("{name}={text:?}: 0 or 1"),
    }
}
