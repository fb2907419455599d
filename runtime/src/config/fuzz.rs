//! The environment, which may say anything.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::{Config, RING_COMPLETIONS, RING_ENTRIES, SHARDS, SPIN_US, STALL_MS, VARIABLES};
use crate::choices::Choices;

/// Some of the variables, set to these bytes or to something near what is allowed.
pub(crate) fn settings(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut set = Vec::new();
    for name in VARIABLES {
        let value = match choices.byte() % 8 {
            0..=2 => None,
            3 => Some(b"uring".to_vec()),
            4 => Some(choices.magnitude().to_string().into_bytes()),
            5 => Some(format!("+{:03}", choices.magnitude()).into_bytes()),
            _ => {
                let length = choices.below(24);
                Some(choices.bytes(length).to_vec())
            }
        };
        set.extend(value.map(|value| (name, OsString::from_vec(value))));
    }
    let found = |name: &str| set.iter().find(|(of, _)| *of == name).map(|(_, value)| value.clone());
    match Config::default().with_variables(found) {
        Ok(config) => {
            assert!(config.shards.is_none_or(|shards| SHARDS.contains(&shards)));
            assert!(RING_ENTRIES.contains(&config.ring_entries));
            assert!(config.ring_entries.is_power_of_two());
            assert!(RING_COMPLETIONS.contains(&config.ring_completions));
            assert!(config.ring_completions >= 2 * config.ring_entries);
            assert!(config.spin <= Duration::from_micros(*SPIN_US.end()));
            assert!(config.stall <= Duration::from_millis(*STALL_MS.end()));
            assert!(config.locked_bytes() > 0);
            for (name, value) in &set {
                let value = value.to_str().expect("nothing else is a setting");
                let is_number = value.parse::<u64>().is_ok();
                assert!(is_number != (*name == "ANNULUS_DRIVER"), "{name}={value:?}");
            }
            assert_eq!(config.clone().checked(), Ok(config), "what is checked stands");
        }
        Err(error) => {
            let text = error.to_string();
            assert!(set.iter().any(|(name, _)| text.starts_with(name)), "{text} names no variable");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::settings;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn a_variable_is_a_setting_in_its_range_or_an_error_that_names_it() {
        with_kept("settings", settings);
        with_seeds(5000, settings);
    }
}
