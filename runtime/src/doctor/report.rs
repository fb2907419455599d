//! The report that people read: one line for each thing, in columns.

use std::fmt::{self, Display, Formatter};

use super::{Diagnosis, Feature, Kernel, Limit, Limits, Outcome, Processors, Quota, Rules, Uring};
use super::{Hint, Variable};
use crate::driver::Bytes;

/// The longest name of a line, with room behind it.
const NAME_WIDTH: usize = 25;
/// The longest name of an optional feature, with room behind it.
const FEATURE_WIDTH: usize = 34;

impl Display for Diagnosis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.runtime {
            Ok(info) => line(f, "a runtime would run on", info)?,
            Err(error) => line(f, "no runtime", error)?,
        }
        line(f, "shards", self.shards)?;
        kernel(f, &self.kernel)?;
        uring(f, &self.uring)?;
        rules(f, &self.rules)?;
        limits(f, &self.limits)?;
        processors(f, &self.processors)?;
        environment(f, &self.environment)?;
        hints(f, &self.hints)
    }
}

fn line(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{name:NAME_WIDTH$}{value}")
}

fn title(f: &mut Formatter<'_>, title: &str) -> fmt::Result {
    writeln!(f, "\n{title}")
}

/// What may not have been readable.
fn known<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "cannot be read".to_owned(), |value| value.to_string())
}

fn kernel(f: &mut Formatter<'_>, kernel: &Kernel) -> fmt::Result {
    let release = known(kernel.release.as_deref());
    line(f, "kernel", format_args!("{release} on {}", kernel.architecture))?;
    line(f, "clock", known(kernel.clock.as_deref()))
}

fn uring(f: &mut Formatter<'_>, uring: &Uring) -> fmt::Result {
    title(f, "io_uring")?;
    match &uring.ring_entries {
        Ok(entries) if *entries < uring.ring_entries_asked => {
            let asked = uring.ring_entries_asked;
            line(f, "  ring", format_args!("works, with {entries} entries instead of {asked}"))?;
        }
        Ok(entries) => line(f, "  ring", format_args!("works, with {entries} entries"))?,
        Err(refusal) => line(f, "  ring", refusal.summary())?,
    }
    writeln!(f, "  needed; without one of these, epoll runs:")?;
    for Feature { name, since, present, .. } in &uring.needed {
        writeln!(f, "  {:4} since {since:5} {name}", found(*present))?;
    }
    writeln!(f, "  used where it is there:")?;
    for Feature { name, since, present, without } in &uring.optional {
        writeln!(
            f,
            "  {:4} since {since:5} {name:FEATURE_WIDTH$}else: {without}",
            found(*present)
        )?;
    }
    Ok(())
}

fn found(present: Option<bool>) -> &'static str {
    match present {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    }
}

fn rules(f: &mut Formatter<'_>, rules: &Rules) -> fmt::Result {
    title(f, "what may forbid it")?;
    let sysctl = match rules.io_uring_disabled {
        Some(0) => "0, allowed to all".to_owned(),
        Some(1) => "1, allowed to kernel.io_uring_group and the privileged".to_owned(),
        Some(value) => format!("{value}, forbidden to all"),
        None => "cannot be read (Linux has it since 6.6)".to_owned(),
    };
    line(f, "  io_uring_disabled", sysctl)?;
    let group = match rules.io_uring_group {
        Some(-1) => "none".to_owned(),
        group => known(group),
    };
    line(f, "  io_uring_group", group)?;
    let seccomp = match rules.seccomp {
        Some(0) => "off".to_owned(),
        Some(1) => "strict".to_owned(),
        Some(2) => "a filter is set".to_owned(),
        mode => known(mode),
    };
    line(f, "  seccomp", seccomp)?;
    line(f, "  security modules", known(rules.security_modules.as_deref()))
}

fn limits(f: &mut Formatter<'_>, limits: &Limits) -> fmt::Result {
    title(f, "limits")?;
    let count = |value: u64| match value {
        u64::MAX => "unlimited".to_owned(),
        value => value.to_string(),
    };
    let descriptors = limits
        .descriptors
        .map(|Limit { soft, hard }| format!("{} (hard limit {})", count(soft), count(hard)));
    line(f, "  descriptors", known(descriptors))?;
    line(f, "  descriptors of system", known(limits.descriptors_of_system))?;
    let memory = limits
        .locked_memory
        .map(|Limit { soft, hard }| format!("{} (hard limit {})", Bytes(soft), Bytes(hard)));
    line(f, "  locked memory", known(memory))?;
    let ring = Bytes(limits.ring_locks);
    match (limits.locks_without_limit, limits.rings_that_fit()) {
        _ if limits.ring_locks == 0 => line(f, "  a ring locks", "nothing (Linux 5.12 to 6.13)"),
        (Some(true), _) => {
            line(f, "  a ring locks", format_args!("{ring}; this process is exempt (CAP_IPC_LOCK)"))
        }
        (_, Some(fit)) => {
            line(f, "  a ring locks", format_args!("{ring}: this user may have {fit} such rings"))
        }
        (_, None) => line(f, "  a ring locks", ring),
    }?;
    line(f, "  somaxconn", known(limits.backlog))
}

fn processors(f: &mut Formatter<'_>, processors: &Processors) -> fmt::Result {
    title(f, "processors")?;
    line(f, "  online", known(processors.online))?;
    line(f, "  allowed (affinity)", known(processors.allowed))?;
    let quota = match processors.quota {
        Quota::Unlimited => "none".to_owned(),
        Quota::Processors(count) => format!("{count:.2} processors"),
        Quota::Unknown => known(None::<f64>),
    };
    line(f, "  quota of the cgroup", quota)?;
    line(f, "  parallelism", processors.available)
}

fn environment(f: &mut Formatter<'_>, variables: &[Variable]) -> fmt::Result {
    title(f, "environment")?;
    if variables.is_empty() {
        return writeln!(f, "  no ANNULUS_ variable is set");
    }
    for Variable { name, value, outcome } in variables {
        let name = format!("  {name}");
        match outcome {
            Outcome::Accepted => line(f, &name, format_args!("{value:?}"))?,
            Outcome::Refused(_) => line(f, &name, format_args!("{value:?} cannot be used"))?,
            Outcome::Unknown => line(f, &name, format_args!("{value:?} has no meaning"))?,
        }
    }
    Ok(())
}

fn hints(f: &mut Formatter<'_>, hints: &[Hint]) -> fmt::Result {
    if hints.is_empty() {
        return writeln!(f, "\nall is well");
    }
    title(f, "what to do")?;
    hints.iter().try_for_each(|hint| writeln!(f, "  - {hint}"))
}
