//! An example as a child process, on the driver of the test.

#![allow(dead_code, reason = "each test binary uses its own part of what is here")]

use std::net::SocketAddr;
use std::process::Command;

use annulus::Driver;

use crate::common::process::Running;

pub(crate) struct Server {
    pub(crate) process: Running,
    /// What it said before its address.
    pub(crate) preface: String,
    pub(crate) addr: SocketAddr,
}

impl Server {
    /// Starts the program on two shards, with these arguments behind its address.
    pub(crate) fn start(program: &str, arguments: &[&str]) -> Server {
        let driver = annulus::driver_info().driver();
        let mut command = Command::new(program);
        command.arg("127.0.0.1:0").args(arguments);
        command.env("ANNULUS_DRIVER", driver.to_string()).env("ANNULUS_SHARDS", "2");
        let mut process = Running::start(command);
        let mut preface = String::new();
        let addr = loop {
            let line = process.line_after("");
            if let Some(addr) = line.strip_prefix("listening on ") {
                break addr.parse().expect("an address");
            }
            preface = preface + &line + "\n";
        };
        let runs_on = process.line_after("driver: ");
        let wanted = if driver == Driver::Uring { "io_uring" } else { "epoll" };
        assert!(runs_on.starts_with(wanted), "the server runs on {runs_on}");
        Server { process, preface, addr }
    }

    pub(crate) fn open_sockets(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.id());
        let entries = std::fs::read_dir(folder).expect("read the server's descriptors");
        // One that is closed meanwhile leads nowhere.
        let leads = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        leads.filter(|leads| leads.to_string_lossy().starts_with("socket:")).count()
    }
}
