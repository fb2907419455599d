//! The chat example: lines reach everybody, and who does not read harms nobody.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use common::each_driver;
use common::peer;
use common::process::{Running, example};

mod common;

each_driver! {
    fn a_client_that_does_not_read_holds_nobody_up_and_costs_no_memory(driver: Driver) {
        let (chat, addr) = start(driver);

        let mut ada = Client::enter(addr, "ada");
        let mut idle = Client::enter(addr, "idle");
        assert_eq!(ada.line(), "idle joins");
        let before = resident_bytes(&chat);
        // 20 MiB: more than the sockets hold. Each line comes back before many more are sent.
        let text = "x".repeat(1000);
        for _ in 0..200 {
            for _ in 0..100 {
                ada.say(&text);
            }
            for _ in 0..100 {
                assert_eq!(ada.line(), format!("ada says: {text}"));
            }
        }
        let grown = resident_bytes(&chat).saturating_sub(before);
        assert!(grown < 8 << 20, "the chat has grown by {grown} bytes");

        ada.say("the end");
        let mut missed = false;
        loop {
            match idle.line().as_str() {
                "ada says: the end" => break,
                line => missed |= line.ends_with(" lines missed)"),
            }
        }
        assert!(missed, "a client that lagged behind has missed nothing");
    }

    fn a_burst_of_lines_reaches_everybody_whole(driver: Driver) {
        let (_chat, addr) = start(driver);
        let mut ada = Client::enter(addr, "ada");
        let mut bob = Client::enter(addr, "bob");
        assert_eq!(ada.line(), "bob joins");
        let numbers: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
        ada.say(&numbers.join("\n"));
        for number in numbers {
            assert_eq!(bob.line(), format!("ada says: {number}"));
            assert_eq!(ada.line(), format!("ada says: {number}"));
        }
    }

    fn a_name_is_given_once_and_free_again_after_a_leave(driver: Driver) {
        let (_chat, addr) = start(driver);

        let mut ada = Client::enter(addr, "ada");
        let bob = Client::enter(addr, "bob");
        assert_eq!(ada.line(), "bob joins");
        let mut second = Client::connect(addr);
        assert_eq!(second.line(), "your name?");
        second.say("bob");
        assert_eq!(second.line(), "your name?");
        drop(bob);
        assert_eq!(ada.line(), "bob leaves");
        second.say("bob");
        assert_eq!(second.line(), "bob joins");
        assert_eq!(ada.line(), "bob joins");
    }
}

/// The example as a child process.
fn start(driver: annulus::Driver) -> (Running, SocketAddr) {
    let mut command = Command::new(example("chat"));
    command.arg("127.0.0.1:0").env("ANNULUS_DRIVER", driver.to_string());
    let mut chat = Running::start(command);
    let addr = chat.line_after("listening on ").parse().expect("an address");
    (chat, addr)
}

struct Client {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

impl Client {
    fn connect(addr: SocketAddr) -> Client {
        let stream = peer::connect(addr);
        let input = BufReader::new(stream.try_clone().expect("a second handle"));
        Client { stream, input }
    }

    fn enter(addr: SocketAddr, name: &str) -> Client {
        let mut client = Client::connect(addr);
        assert_eq!(client.line(), "your name?");
        client.say(name);
        assert_eq!(client.line(), format!("{name} joins"));
        client
    }

    fn say(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).expect("send a line");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.input.read_line(&mut line).expect("receive a line");
        line.trim_end().to_owned()
    }
}

/// The memory of the child.
fn resident_bytes(child: &Running) -> usize {
    let path = format!("/proc/{}/statm", child.id());
    let text = std::fs::read_to_string(path).expect("read statm");
    let pages: usize = text.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("a number");
    pages * 4096
}
