//! Texts of `/proc` and `/sys` about processors and control groups.

use super::{Quota, count_of_list, quota};
use crate::choices::Choices;

/// Mounts and groups as they are, of both versions.
const MOUNTS: [&str; 2] = [
    "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw",
    "34 32 0:30 /docker /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct",
];
const GROUPS: [&str; 2] = ["0::/a.slice/b.service", "4:cpu,cpuacct:/docker/7f"];

/// Texts of these bytes, among some that make sense.
pub(crate) fn processors(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let list =
        text(&mut choices, &["0-", ",", "1", "18446744073709551615", "18446744073709551614"]);
    if let Some(count) = count_of_list(&list) {
        assert!(count > 0 && list.contains(|it: char| it.is_ascii_digit()));
    }
    let (groups, mounts) = (text(&mut choices, &GROUPS), text(&mut choices, &MOUNTS));
    let file = text(&mut choices, &["max", "-1", "0", " ", "100000", "50000"]);
    match quota(&groups, &mounts, |_| Some(file.clone())) {
        Quota::Processors(count) => assert!(count.is_finite() && count >= 0.0),
        other => assert_eq!(other, Quota::Unlimited),
    }
    assert_eq!(quota(&groups, &mounts, |_| None), Quota::Unlimited, "out of no file");
}

/// Some of these parts, and others, in lines or not.
fn text(choices: &mut Choices<'_>, parts: &[&str]) -> String {
    let mut text = String::new();
    for _ in 0..choices.below(6) {
        match choices.byte() % 8 {
            0 => {
                let length = choices.below(20);
                text.push_str(&String::from_utf8_lossy(choices.bytes(length)));
            }
            1 => text.push('\n'),
            2 => text.push_str(&choices.magnitude().to_string()),
            _ => text.push_str(parts[choices.below(parts.len())]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::processors;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn texts_of_processors_may_be_anything() {
        with_kept("processors", processors);
        with_seeds(5000, processors);
    }
}
