//! Texts of `/proc` about what may refuse a ring.

use super::{Refusal, Stage, Surroundings, maps_every_user, number};
use crate::choices::Choices;

/// A process that is described by these bytes, and is refused.
pub(crate) fn refusals(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let stage =
        [Stage::Setup, Stage::Features, Stage::Enter, Stage::Register, Stage::Probe("SEND")]
            [choices.below(5)];
    let errno = i32::from(choices.byte());
    let mut text = || {
        let length = choices.below(40);
        String::from_utf8_lossy(choices.bytes(length)).into_owned()
    };
    let (release, sysctl, group, uid_map) = (text(), text(), text(), text());
    let mut around = Surroundings {
        release: (!release.is_empty()).then_some(release),
        sysctl: number(sysctl),
        sysctl_group: number(group),
        in_user_namespace: (!uid_map.is_empty()).then(|| !maps_every_user(&uid_map)),
        memlock_limit: choices.is_heads().then(|| choices.magnitude()),
        ..Surroundings::default()
    };
    let needed = choices.magnitude();
    around.read_status(&String::from_utf8_lossy(choices.rest()));
    let refusal = Refusal::judge(stage, errno, needed, &around);
    assert_eq!(refusal.stage(), stage);
    assert!(!refusal.summary().is_empty() && !refusal.to_string().is_empty());
    assert!(!refusal.cause_and_remedy().0.is_empty());
}

#[cfg(test)]
mod tests {
    use super::refusals;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn whatever_surrounds_a_refusal_it_is_explained() {
        with_kept("refusals", refusals);
        with_seeds(3000, refusals);
    }
}
