//! What a runtime would run on here, what stands in its way, and what to do about it.
//!
//! [`doctor`] reads what surrounds the process, tries a ring as a runtime would, and returns a
//! [`Diagnosis`], which can be printed or looked into. What cannot be read is said to be so.

mod hints;
mod processors;
mod report;
mod surroundings;

pub use self::hints::Hint;
pub use self::processors::{Processors, Quota};
pub use self::surroundings::{Kernel, Limit, Limits, Outcome, Rules, Variable};
use crate::config::{Config, Driver};
pub use crate::driver::Feature;
use crate::driver::{Cause, DriverInfo, Refusal, Surroundings, survey};
use crate::error::BuildError;
#[cfg(fuzzing)]
pub(crate) use processors::fuzz::processors;

/// What [`doctor`] has found. Printed, it is a report for people.
///
/// Its fields are for programs; more may be added.
///
/// # Examples
///
/// ```
/// let diagnosis = annulus_runtime::doctor();
/// match &diagnosis.runtime {
///     Ok(info) => println!("{} shards would run on {info}", diagnosis.shards),
///     Err(error) => println!("no runtime here: {error}"),
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Diagnosis {
    /// What a runtime with the default settings would run on under this environment, or why there
    /// would be none.
    pub runtime: Result<DriverInfo, BuildError>,
    /// How many shards it would have, if the program does not say.
    pub shards: usize,
    /// The kernel.
    pub kernel: Kernel,
    /// io_uring, whether or not it would be chosen.
    pub uring: Uring,
    /// What may forbid it.
    pub rules: Rules,
    /// How much there may be of what a server needs.
    pub limits: Limits,
    /// The processors of this process.
    pub processors: Processors,
    /// The variables that are set for this runtime.
    pub environment: Vec<Variable>,
    /// What is not well, and what to do about it. Empty if all is well.
    pub hints: Vec<Hint>,
}

/// What io_uring offers to this process.
///
/// # Examples
///
/// ```
/// let uring = annulus_runtime::doctor().uring;
/// match uring.ring_entries {
///     Ok(entries) => assert!(entries <= uring.ring_entries_asked),
///     Err(refusal) => println!("{refusal}"),
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Uring {
    /// How many entries the ring of the next runtime would have, or why it would have no ring.
    pub ring_entries: Result<u32, Refusal>,
    /// How many the settings ask for. Where locked memory is short, there are fewer.
    pub ring_entries_asked: u32,
    /// What a ring must have.
    pub needed: Vec<Feature>,
    /// What a ring may have besides.
    pub optional: Vec<Feature>,
}

/// Finds out what a runtime would run on here, what stands in its way, and what to do about it.
///
/// It works within a runtime and outside of one, and never fails. A ring is made, tried and closed
/// again; where locked memory is short, that takes up to half a second, and the kernel gives that
/// memory back a moment after this returns.
///
/// # Examples
///
/// ```
/// let diagnosis = annulus_runtime::doctor();
/// for hint in &diagnosis.hints {
///     eprintln!("{hint}");
/// }
/// println!("{diagnosis}");
/// ```
#[must_use]
pub fn doctor() -> Diagnosis {
    let (environment, config) = surroundings::environment();
    let found = survey(&config);
    let around = Surroundings::read();
    let processors = Processors::read();
    let mut diagnosis = Diagnosis {
        runtime: choice(&config, &environment, &found.ring_entries),
        shards: config.shards.map_or(processors.available, |shards| shards as usize),
        kernel: Kernel::of(&around),
        uring: Uring {
            ring_entries: found.ring_entries,
            ring_entries_asked: config.ring_entries,
            needed: found.needed,
            optional: found.optional,
        },
        rules: Rules::of(&around),
        limits: Limits::of(&around, &config),
        processors,
        environment,
        hints: Vec::new(),
    };
    diagnosis.hints = hints::of(&diagnosis);
    diagnosis
}

/// What the builder of a runtime would answer.
fn choice(
    config: &Config,
    environment: &[Variable],
    ring: &Result<u32, Refusal>,
) -> Result<DriverInfo, BuildError> {
    for variable in environment {
        if let Outcome::Refused(error) = &variable.outcome {
            return Err(BuildError::Config(error.clone()));
        }
    }
    match (config.driver, ring) {
        (Driver::Epoll, _) => Ok(DriverInfo::new(Driver::Epoll, None)),
        (_, Ok(_)) => Ok(DriverInfo::new(Driver::Uring, None)),
        (_, Err(refusal)) if *refusal.cause() == Cause::OutOfDescriptors => {
            Err(BuildError::Io("making a ring", refusal.clone().into()))
        }
        (Driver::Uring, Err(refusal)) => Err(BuildError::Refused(refusal.clone())),
        (Driver::Auto, Err(refusal)) => Ok(DriverInfo::new(Driver::Epoll, Some(refusal.clone()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Runtime;

    #[test]
    fn it_foretells_what_a_runtime_then_runs_on() {
        let outside = doctor().runtime.unwrap().to_string();
        let runtime = Runtime::new().unwrap();
        assert_eq!(runtime.driver().to_string(), outside);
        let within = runtime.block_on(async { doctor().runtime.unwrap().to_string() });
        assert_eq!(within, outside);
    }

    #[test]
    fn the_choice_is_the_builders() {
        let refusal = || Err(Refusal::diagnose(crate::Stage::Setup, libc::EIO, 0));
        let with = |driver| Config { driver, ..Config::default() };
        let chosen = |driver, ring| choice(&with(driver), &[], &ring).map(|info| info.driver());
        assert_eq!(chosen(Driver::Auto, Ok(256)).unwrap(), Driver::Uring);
        assert_eq!(chosen(Driver::Auto, refusal()).unwrap(), Driver::Epoll);
        assert_eq!(chosen(Driver::Epoll, Ok(256)).unwrap(), Driver::Epoll);
        assert!(matches!(chosen(Driver::Uring, refusal()), Err(BuildError::Refused(_))));
    }
}
