//! The machine card: what the figures hold for.

use std::fmt;
use std::fs;
use std::process::Command;

/// The versions that were built.
const LOCK: &str = include_str!("../../../../Cargo.lock");

/// Packages that a figure may depend on.
const PACKAGES: &[&str] = &[
    "annulus",
    "tokio",
    "monoio",
    "glommio",
    "compio",
    "tokio-uring",
    "smol",
    "async-io",
    "hyper",
    "io-uring",
];

/// Limits of the kernel that servers meet.
const SYSCTLS: &[&str] = &[
    "net/core/somaxconn",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "kernel/io_uring_disabled",
];

/// Names and values, in the order in which they are read.
pub(crate) struct Machine {
    pub(crate) facts: Vec<(String, String)>,
}

impl Machine {
    /// What cannot be found out is left out.
    pub(crate) fn look(places: &str) -> Self {
        let mut facts = vec![];
        let mut add = |name: &str, value: Option<String>| {
            facts.extend(value.map(|value| (name.to_owned(), value)));
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        add("cpu", field(&cpuinfo, "model name"));
        let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        add("cpus", Some(cpus.to_string()));
        let flags = field(&cpuinfo, "flags").unwrap_or_default();
        let guest = flags.split(' ').any(|flag| flag == "hypervisor");
        add("virtual machine", Some(if guest { "yes" } else { "no" }.to_owned()));
        add("governor", read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
        add("kernel", read("/proc/sys/kernel/osrelease"));
        add("kernel command line", read("/proc/cmdline"));
        add("mitigations", mitigations());
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        for limit in ["Max open files", "Max locked memory"] {
            let line = limits.lines().find_map(|line| line.strip_prefix(limit));
            add(limit, line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
        for name in SYSCTLS {
            add(&name.replace('/', "."), read(&format!("/proc/sys/{name}")));
        }
        add("places", Some(places.to_owned()));
        add("rustc", output("rustc", &["--version"]));
        add("wrk", output("wrk", &["--version"]));
        for package in PACKAGES {
            add(package, version(LOCK, package));
        }
        Self { facts }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts.iter().try_for_each(|(name, value)| writeln!(formatter, "{name}: {value}"))
    }
}

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
}

/// The first value of a name in a file of `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What the kernel does against the faults of the processor.
fn mitigations() -> Option<String> {
    let mut all = vec![];
    for entry in fs::read_dir("/sys/devices/system/cpu/vulnerabilities").ok()?.flatten() {
        let state = fs::read_to_string(entry.path()).ok()?;
        if let Some(measure) = state.trim().strip_prefix("Mitigation: ") {
            all.push(format!("{}: {measure}", entry.file_name().to_string_lossy()));
        }
    }
    all.sort();
    Some(if all.is_empty() { "none".to_owned() } else { all.join(" | ") })
}

/// The first line that a program prints, if it is there.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned();
    Some(text).filter(|text| !text.is_empty())
}

/// The versions of a package in a lock file.
fn version(lock: &str, package: &str) -> Option<String> {
    let entry = format!("name = \"{package}\"\nversion = \"");
    let versions = lock.split(&entry).skip(1).filter_map(|rest| rest.split('"').next());
    Some(versions.collect::<Vec<_>>().join(", ")).filter(|versions| !versions.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"tokio-uring\"\nversion = \"0.5.0\"\n\n[[package]]\n\
            name = \"tokio\"\nversion = \"1.48.0\"\n";
        assert_eq!(version(lock, "tokio").as_deref(), Some("1.48.0"));
        assert_eq!(version(lock, "glommio"), None);
        assert!(version(LOCK, "tokio").is_some(), "the lock file of this workspace");
    }

    #[test]
    fn fields_are_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: A Processor: fast\n";
        assert_eq!(field(text, "model name").as_deref(), Some("A Processor: fast"));
        assert_eq!(field(text, "flags"), None);
    }
}
